"""PLUMED instances and whom they serve: one for all walkers, or one for each."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from . import library
from .check import Checked
from .driver import Driver
from .files import cut_back, lengths, refuse_empty, refuse_existing, refuse_too_many

__all__ = ["Instances"]

Row = TypeVar("Row")


class Instances:
    """The instances of one bias: made when they are needed, restarted, closed.

    Parameters
    ----------
    natoms, settings : of each `Driver`
    checked : the input, from `check_input`
    source : its lines as they were given, which a restart must repeat
    prepare : called with each new driver, before anything is evaluated
    walkers, restart, directory, first_step : as of `PlumedPotential`

    Attributes
    ----------
    step : the last completed one; evaluations are at this step
    drivers : the instances, one if they are shared
    ids : numbers of the walkers that are left

    Raises
    ------
    FileExistsError : files of another run would be overwritten
    """

    def __init__(
        self,
        natoms: int,
        checked: Checked,
        prepare: Callable[[Driver], None],
        *,
        source: Sequence[str],
        walkers: str,
        restart: bool,
        directory: str | Path,
        first_step: int,
        settings: dict,
    ):
        if walkers not in ("shared", "independent"):
            raise ValueError(f"{walkers=}: expected 'shared' or 'independent'")
        self._natoms, self._checked, self._prepare = natoms, checked, prepare
        self.shared, self._restart = walkers == "shared", bool(restart)
        self._source, self.directory, self._settings = (
            source,
            Path(os.path.abspath(directory)),
            settings,
        )
        self.step, self._begun = int(first_step), False
        self.plan = checked.plan
        self.drivers: list[Driver] = []
        self.ids: list[int] = []
        if self.plan.impure:
            warnings.warn(
                f"{', '.join(self.plan.impure)} learn at every evaluation, not only at accepted "
                "steps: Metropolis steps, finite differences and energy queries disturb them",
                stacklevel=3,
            )
        if restart:
            for name, what in self.plan.inexact.items():
                warnings.warn(
                    f"{name} does not restart exactly ({what}): the run goes on with a bias that "
                    "differs from that of an uninterrupted one",
                    stacklevel=3,
                )
            return
        for folder in [self.directory] if self.shared else self.directory.glob("walker-*"):
            refuse_existing(folder, checked.files)
        if self.shared:
            self._open()

    def of(self, walker: int) -> Driver:
        """The instance that serves a walker."""
        return self.drivers[0 if self.shared else walker]

    def name(self, walker: int) -> int:
        """The number that a walker had before others were lost."""
        return self.ids[walker] if walker < len(self.ids) else walker

    def require(self, walkers: int) -> None:
        """Enough instances for ``walkers``, and none that several would disturb.

        Raises
        ------
        ValueError : an action keeps a state of one walker; another number than before
        """
        if self.shared:
            if walkers > 1 and self.plan.per_walker:
                name, reason = next(iter(self.plan.per_walker.items()))
                raise ValueError(
                    f"{name} keeps {reason}, so one instance cannot serve {walkers} walkers: "
                    "use walkers='independent'"
                )
            if not self.drivers:
                self._open()
            if len(self.ids) < walkers and not self._begun:
                self.ids = list(range(walkers))
        elif not self.drivers:
            self.ids = list(range(walkers))
            self._open()
        elif walkers != len(self.drivers):
            raise ValueError(
                f"{walkers} walkers, but there are {len(self.drivers)} independent biases: "
                "evaluate all of them, or use walkers='shared'"
            )

    def begin(self, step: int) -> bool:
        """Whether anything happens at ``step``, by `learn`; otherwise it is completed now.

        Raises ``ValueError`` at a step that was completed before.
        """
        if step <= self.step:
            raise ValueError(f"step {step} after step {self.step}: steps are completed once")
        if self.plan.due(step):
            return True
        self.step = step
        return False

    def learn(
        self, step: int, values: np.ndarray, what: str, commit: Callable[[int, np.ndarray], Row]
    ) -> list[Row]:
        """Complete a step: what ``commit(walker, values[walker])`` gives for each walker.

        It is called besides where PLUMED would swallow the hill of its first update: PLUMED gets
        that update at a quiet step before.

        Raises
        ------
        ValueError : values (``what``) that are not finite, with the walkers; nothing is committed
        """
        lost = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1)).tolist()
        if lost:
            raise ValueError(
                f"{what} of walkers {[self.name(walker) for walker in lost]} are not finite at "
                f"step {step}: nothing was deposited"
            )
        self.require(len(values))
        if not self._begun and any(step % pace == 0 for pace in self.plan.paced):
            self.step = self.plan.quiet_before(step)
            self._once_each(lambda walker: commit(walker, values[walker]))
        self._begun, self.step = True, step
        return [commit(walker, row) for walker, row in enumerate(values)]

    def select(self, keep: Sequence[bool]) -> None:
        """Forget the walkers outside the mask."""
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
        library.flush_files()
        folders = [os.path.relpath(d.directory, self.directory) for d in self.drivers]
        return {
            "input": self._digest(),
            "walkers": self.ids,
            "files": {f: lengths(self.directory / f, self._checked.files) for f in folders},
            "inexact": self.plan.inexact,
        }

    def restore(self, saved: dict, step: int, walkers: int, commit: Callable[[int], None]) -> None:
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
        self._open()
        self.step, self._begun = step, True
        self._once_each(commit)
        library.flush_files()
        # what the repeated step has printed is there already
        for folder, files in saved["files"].items():
            cut_back(self.directory / folder, files)

    def finalize(self) -> None:
        """Close all files; nothing can be evaluated any more."""
        for driver in self.drivers:
            driver.finalize()

    def _once_each(self, commit: Callable[[int], object]) -> None:
        for walker in range(len(self.drivers)):
            commit(walker)

    def _open(self) -> None:
        folders = ["."]
        if not self.shared:
            folders = [f"walker-{walker}" for walker in self.ids]
            refuse_too_many(len(folders), len(self._checked.files) + 1)
        for folder in folders:
            path = self.directory / folder
            path.mkdir(parents=True, exist_ok=True)
            if self._restart:
                refuse_empty(path, self._checked.script)
            driver = Driver(
                self._natoms,
                self._checked.lines,
                restart=self._restart,
                first_step=self.step,
                directory=path,
                **self._settings,
            )
            self.drivers.append(driver)
            self._prepare(driver)

    def _digest(self) -> str:
        kind = "shared" if self.shared else "independent"
        return hashlib.sha256("\n".join((kind, *self._source)).encode()).hexdigest()
