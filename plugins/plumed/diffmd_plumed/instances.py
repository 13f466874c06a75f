"""PLUMED instances and whom they serve: one for all walkers, or one for each."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from . import library
from .check import Checked
from .driver import Driver
from .files import cut_back, drop_repeated_headers, lengths, refuse_existing
from .opening import GATE, Opening

__all__ = ["Instances"]

Row = dict[str, float | np.ndarray]
Commit = Callable[[int, np.ndarray, int], Row]


class Instances:
    """The instances of one bias: made when they are needed, started, restarted, closed.

    The first update that PLUMED sees is that of the start, so that rows, averages and hills are of
    the steps that they say, and PLUMED swallows no hill. `begin` tells the start; without it, it is
    where the walkers were evaluated first.

    Parameters
    ----------
    natoms, settings : of each `Driver`
    checked : the input, from `check_input`
    source : its lines as they were given, which a restart must repeat
    prepare : called with each new driver, and the labels of the values of the plan in it,
        before anything is evaluated
    walkers, restart, directory, first_step : as of `PlumedPotential`
    numbers : of the walkers, default from 0

    Attributes
    ----------
    step : the last completed one
    drivers : the instances, one if they are shared
    ids : numbers of the walkers that are left
    begun : the start was committed
    rows : what the last commit gave, for each walker

    Raises
    ------
    FileExistsError : files of another run would be overwritten
    ValueError : ``@replicas:`` for walkers that share an instance
    """

    def __init__(
        self,
        natoms: int,
        checked: Checked,
        prepare: Callable[[Driver, Sequence[str]], None],
        *,
        source: Sequence[str],
        walkers: str,
        restart: bool,
        directory: str | Path,
        first_step: int,
        settings: dict,
        numbers: Sequence[int] | None = None,
    ):
        if walkers not in ("shared", "independent"):
            raise ValueError(f"{walkers=}: expected 'shared' or 'independent'")
        self._numbers = numbers
        self._checked, self._source = checked, source
        self.shared, self._restart = walkers == "shared", bool(restart)
        self.directory = Path(os.path.abspath(directory))
        self._opening = Opening(natoms, checked, prepare, bool(restart), self.directory, settings)
        self.step, self.begun = int(first_step), False
        self._first: np.ndarray | None = None
        self._held: dict[int, tuple[bytes, int]] = {}
        self._last: dict[int, tuple[np.ndarray, int]] = {}
        self.rows: list[Row] = []
        self.plan = checked.plan
        self.drivers: list[Driver] = []
        self.ids: list[int] = []
        self._continued: dict[str, dict[str, list[int]]] = {}  # lengths of files by folder
        if self.shared and len(checked.variants) > 1:
            raise ValueError(
                f"@replicas: in the input gives {len(checked.variants)} walkers values of their "
                "own, and one instance serves all of them: use walkers='independent'"
            )
        if restart:
            for name, what in self.plan.inexact.items():
                warnings.warn(
                    f"{name} does not restart exactly ({what}): the run goes on with a bias that "
                    "differs from that of an uninterrupted one",
                    stacklevel=3,
                )
            return
        self._refuse_existing()

    def of(self, walker: int) -> Driver:
        """The instance that serves a walker."""
        return self.drivers[0 if self.shared else walker]

    def name(self, walker: int) -> int:
        """The number that a walker had before others were lost."""
        return self.ids[walker] if walker < len(self.ids) else walker

    def require(self, walkers: int) -> None:
        """Enough instances for ``walkers``, and none that several would disturb.

        The first call opens the files: not before a run has its lock.

        Raises
        ------
        FileExistsError : files of another run would be overwritten
        ValueError : an action keeps a state of one walker; another number than before
        """
        if self.drivers and (self.begun or not self.shared or len(self.ids) >= walkers):
            self._require(walkers)
            return
        with library.working_directory(
            str(self.directory)
        ):  # of several threads one opens the files
            self._require(walkers)

    def _require(self, walkers: int) -> None:
        if self.shared:
            if walkers > 1 and self.plan.per_walker:
                name, reason = next(iter(self.plan.per_walker.items()))
                raise ValueError(
                    f"{name} keeps {reason}, so one instance cannot serve {walkers} walkers: "
                    "use walkers='independent'"
                )
            if len(self.ids) < walkers and not self.begun:
                self.ids = self._first_ids(walkers)
                if self.drivers and self._opening.gates(len(self.ids)):
                    self.drivers = [self._opening.reopened(self.drivers[0], len(self.ids))]
            if not self.drivers:
                self._open()
        elif not self.drivers:
            self.ids = self._first_ids(walkers)
            self._opening.check_independent(self.ids, all_of_them=self._numbers is None)
            self._open()
        elif walkers != len(self.drivers):
            raise ValueError(
                f"{walkers} walkers, but there are {len(self.drivers)} independent biases: "
                "evaluate all of them, or use walkers='shared'"
            )

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self,
        walker: int,
        values: np.ndarray,
        calculate: Callable[[int], object],
        *,
        step: int | None,
    ) -> None:
        """Have the instance of a walker at its ``values``: ``calculate(step)`` brings it there.

        At the last completed step or, to be committed, at ``step``. What learns when it is
        evaluated is calculated once for each step, as an MD engine does: an evaluation is that of
        the step being made, and what the instance holds is not calculated again.
        """
        if not self.plan.once:
            calculate(self.step if step is None else step)
            return
        name, key = self.name(walker), values.tobytes()
        held, at = self._held.get(name), self.step + self.begun if step is None else step
        if held is None or held[0] != key or (step is not None and held[1] != step):
            self._held.pop(name, None)
            calculate(at)
            self._held[name] = key, at

    def last(self, walker: int, values: np.ndarray, step: int) -> tuple[np.ndarray, int] | None:
        """Where and when a walker was committed before it is at ``values`` in ``step``.

        An instance must be there again where the work of a schedule is counted, since it counts
        from its last calculation; None where that is of no matter.
        """
        if not self.plan.timed or self.plan.once or (self.shared and len(self.ids) > 1):
            return None
        name = self.name(walker)
        before, self._last[name] = self._last.get(name), (values.copy(), step)
        return before

    def saw(self, values: np.ndarray) -> bool:
        """Remember ``values`` (walkers, …) if they are the first ones that are evaluated."""
        first = self._first is None and not self.begun
        if first:
            self._first = values.copy()
        return first

    # ------------------------------------------------------------------ learning

    def begin(self, step: int, values: np.ndarray, what: str, commit: Commit) -> bool:
        """Commit the start; True if the bias may have changed.

        Walkers that are not finite are about to be lost, and the others start without them. Raises
        ``ValueError`` for a step before those that were completed.
        """
        if not np.isfinite(values).all():
            return False
        if step < self.step:
            raise ValueError(f"start at step {step}, but {self.step} were completed before")
        self._commit(step, values, what, commit)
        return self.changes(step)

    def passes(self, step: int) -> bool:
        """Whether nothing happens at this new ``step``, which is completed by that."""
        passes = step > self.step and not self.plan.due(step)
        passes = passes and (self.begun or self._first is None)
        if passes:
            self.step = step
        return passes

    def learn(self, step: int, values: np.ndarray, what: str, commit: Commit) -> None:
        """Complete a step: ``commit(walker, values[walker], step)`` where something happens at it.

        Raises
        ------
        ValueError : a step that was completed before, values (``what``) that are not finite, with
            the walkers; nothing is committed
        """
        if not self.begun and (step == self.step or self._fits(values)):
            start = values if step == self.step else self._first
            self._commit(self.step, start, what, commit)
            if start is values:
                return
        if step <= self.step:
            raise ValueError(f"step {step} after step {self.step}: steps are completed once")
        if not self.plan.due(step):
            self.step = step
            return
        if not self.begun and any(step % pace == 0 for pace in self.plan.paced):
            # nobody knows the start: PLUMED swallows the hill of a step that does not print
            quiet = self.plan.quiet_before(step)
            if quiet is not None:
                self.require(len(values))
                self._once_each(lambda walker: commit(walker, values[walker], quiet))
                self.begun = True
        self._commit(step, values, what, commit)

    def changes(self, step: int) -> bool:
        """Whether the bias has changed after ``step``, so that it must be evaluated again.

        What learns when it is evaluated is not, nor a schedule whose work is counted then: an MD
        engine goes on with the forces it has.
        """
        driven = self.plan.impure or (self.plan.once and self.plan.timed)
        return self.plan.changes(step) and not driven

    def _fits(self, values: np.ndarray) -> bool:
        first = self._first
        return first is not None and len(first) == len(values) and bool(np.isfinite(first).all())

    def _commit(self, step: int, values: np.ndarray, what: str, commit: Commit) -> None:
        lost = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1)).tolist()
        if lost:
            raise ValueError(
                f"{what} of walkers {[self.name(walker) for walker in lost]} are not finite at "
                f"step {step}: nothing was deposited"
            )
        self.require(len(values))
        starts, self.begun, self._first, self.step = not self.begun, True, None, step
        self.rows = []
        for walker, row in enumerate(values):
            # PLUMED's first step deposits nothing, and is that of all walkers
            held_back = starts and walker > 0 and self.shared and self._opening.gates(len(values))
            if held_back:
                self.drivers[0].set_extra(GATE, 0.0)
            try:
                self.rows.append(commit(walker, row, step))
            finally:
                if held_back:
                    self.drivers[0].set_extra(GATE, 1.0)
        # an update uses up what was calculated for it, and may change it
        held = {} if self.changes(step) else self._held
        self._held = {name: (key, at - 1) for name, (key, at) in held.items()}

    # ------------------------------------------------------------------ walkers, restart

    def select(self, keep: Sequence[bool]) -> None:
        """Forget the walkers outside the mask."""
        if self._first is not None and len(self._first) == len(keep):
            self._first = self._first[np.array(keep, bool)]
        if len(keep) != len(self.ids):
            return
        if not self.shared:
            for driver, kept in zip(self.drivers, keep, strict=True):
                if not kept:
                    driver.finalize()
            self.drivers = [d for d, kept in zip(self.drivers, keep, strict=True) if kept]
        self.ids = [i for i, kept in zip(self.ids, keep, strict=True) if kept]

    def checkpoint(self) -> dict:
        """Files are flushed; their lengths and the walkers that are left are returned."""
        self._flush()
        folders = [os.path.relpath(d.directory, self.directory) for d in self.drivers]
        return {
            "input": self._digest(),
            "begun": self.begun,
            "walkers": self.ids,
            "files": {f: lengths(self.directory / f, self._checked.files) for f in folders},
            "inexact": self.plan.inexact,
        }

    def restore(
        self, saved: dict, step: int, walkers: int, commit: Callable[[int], object]
    ) -> None:
        """Cut the files back to the checkpoint, read them, repeat the last step unseen.

        Raises
        ------
        ValueError : made without ``restart=True``, another input, files that were changed
        """
        if not self._restart:
            raise ValueError("to go on from a checkpoint, make this potential with restart=True")
        if not saved:
            raise ValueError("the checkpoint holds nothing of PLUMED: was the run biased?")
        if saved["input"] != self._digest():
            raise ValueError(
                "the PLUMED input is not that of the checkpoint: repeat it, or start a new run"
            )
        for folder, files in saved["files"].items():
            cut_back(self.directory / folder, files, self._checked.files)
        self.ids = list(saved["walkers"]) or list(range(walkers))
        self.step, self.begun = step, saved.get("begun", True)
        sizes = [size for files in saved["files"].values() for size, _ in files.values()]
        self._opening = self._opening.again(anew=not self.begun and bool(sizes) and not any(sizes))
        self._open()
        self._continued = saved["files"]
        if not self.begun:
            return
        self._once_each(commit)
        library.flush_files()
        # what the repeated step has printed is there already
        for folder, files in saved["files"].items():
            cut_back(self.directory / folder, files)

    def finish(self) -> None:
        """Run the final jobs; see `Driver.finish`."""
        for driver in self.drivers:
            driver.finish()
        self._flush()

    def finalize(self) -> None:
        """Run the final jobs and close all files; nothing can be evaluated any more."""
        for driver in self.drivers:
            driver.finalize()
        self._flush()

    def _once_each(self, commit: Callable[[int], object]) -> None:
        for walker in range(len(self.drivers)):
            commit(walker)

    def _first_ids(self, walkers: int) -> list[int]:
        return list(range(walkers) if self._numbers is None else self._numbers)

    def _flush(self) -> None:
        """Files are complete on disk, and those of a restart as if there had been none."""
        library.flush_files()
        for folder, files in self._continued.items():
            for name in drop_repeated_headers(self.directory / folder, files):
                del files[name]

    def _refuse_existing(self) -> None:
        for folder in [self.directory] if self.shared else self.directory.glob("walker-*"):
            refuse_existing(folder, self._checked.files)

    def _open(self) -> None:
        if not self._restart:
            self._refuse_existing()
        if self.shared:
            self.drivers = [self._opening.shared(len(self.ids), self.step)]
        else:
            self.drivers = self._opening.independent(self.ids, self.step)

    def _digest(self) -> str:
        kind = "shared" if self.shared else "independent"
        text = "\n".join((kind, *self._source))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
