"""How an instance of PLUMED is opened for walkers: in which folder, with which lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .at_hand import bring
from .check import Checked
from .driver import Driver
from .files import empty_of, refuse_empty, refuse_too_many
from .plan import PACED, actions_of, plan
from .script import extended, gated, parse

__all__ = ["GATE", "Opening", "with_all_digits"]

GATE = "diffmd_learns"
"""The EXTRACV that is 0 while walkers of one instance must not put down a hill."""


def with_all_digits(lines: Sequence[str]) -> list[str]:
    """The lines with hills written with all 17 digits of a number, unless they say how.

    PLUMED writes 16, and what it reads at a restart would be other hills.
    """
    return extended(lines, lambda line: "FMT=%25.17g" if line.name in PACED else None)


@dataclass(frozen=True)
class Opening:
    """The instances of a checked input.

    Parameters
    ----------
    natoms, settings : of each `Driver`
    checked : the input, from `check_input`
    prepare : called with each new driver, and the labels of the values of the plan in it,
        before anything is evaluated
    restart, directory : as of `PlumedPotential`

    Raises
    ------
    ValueError : walkers that the input does not fit, too many of them; PLUMED refuses the input
    """

    natoms: int
    checked: Checked
    prepare: Callable[[Driver, Sequence[str]], None]
    restart: bool
    directory: Path
    settings: dict[str, Any]
    at_checkpoint: bool = False  # files are what they were then, also those that have no rows yet

    def again(self, *, anew: bool) -> Opening:
        """The same input, its files cut back to a checkpoint.

        ``anew``: to one at which nothing had been written.
        """
        if not anew:
            return replace(self, at_checkpoint=True)
        for folder in [self.directory, *self.directory.glob("walker-*")]:
            for name in self.checked.files:
                Path(folder, name).unlink(missing_ok=True)
        return replace(self, restart=False)

    def gates(self, walkers: int) -> bool:
        """Whether several walkers of one instance could put down hills at the start."""
        return walkers > 1 and bool(self.checked.plan.paced)

    def shared(self, walkers: int, step: int) -> Driver:
        """One instance for all walkers, the first evaluation at ``step``."""
        lines: Sequence[str] = self.checked.lines(0)
        if not self.gates(walkers):
            return self._open(self.directory, lines, step, self.checked.plan.values)
        lines = gated(lines, PACED, GATE)
        return self._open(self.directory, lines, step, None)

    def reopened(self, driver: Driver, walkers: int) -> Driver:
        """A ``driver`` that was opened for one walker, and has learned nothing, for several."""
        driver.finalize()
        if not self.restart:
            for name in self.checked.files:
                Path(self.directory, name).unlink(missing_ok=True)
        return self.shared(walkers, driver.step)

    def independent(self, walkers: Sequence[int], step: int) -> list[Driver]:
        """An instance for each of the ``walkers``, in folders of their own."""
        refuse_too_many(len(walkers), len(self.checked.files) + 1)
        return [self._own(walker, step) for walker in walkers]

    def check_independent(self, walkers: Sequence[int], *, all_of_them: bool) -> None:
        """Raise ``ValueError`` where the input has no values, or files, for each of ``walkers``.

        There may be more values, unless these are ``all_of_them``.
        """
        count = len(self.checked.variants)
        if count > 1 and (count != len(walkers) if all_of_them else count <= max(walkers)):
            raise ValueError(
                f"@replicas: in the input has {count} values for {len(walkers)} walkers: give one "
                "for each"
            )
        fixed = [n for n in self.checked.files if os.path.isabs(n) or n.startswith(os.pardir)]
        if fixed and len(walkers) > 1:
            raise ValueError(
                f"all {len(walkers)} independent walkers would write {', '.join(sorted(fixed))}: "
                "give a relative name, which means the folder of each walker"
            )

    def _own(self, walker: int, step: int) -> Driver:
        folder = self.directory / f"walker-{walker}"
        lines: Sequence[str] = self.checked.lines(walker)
        for name in self.checked.files:
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        lines = bring(self.directory, folder, lines, self.checked.files)
        return self._open(folder, lines, step, self.checked.plan.values)

    def _open(
        self, folder: Path, lines: Sequence[str], step: int, labels: Sequence[str] | None
    ) -> Driver:
        folder.mkdir(parents=True, exist_ok=True)
        if self.restart and self.at_checkpoint:
            for _, path in empty_of(folder, parse(lines)):
                path.unlink(missing_ok=True)  # PLUMED would set it aside
            lines = extended(lines, lambda line: "RESTART=NO" if empty_of(folder, [line]) else None)
        elif self.restart:
            refuse_empty(folder, self.checked.script)
        driver = Driver(
            self.natoms,
            with_all_digits(lines),
            restart=self.restart,
            first_step=step,
            directory=folder,
            **self.settings,
        )
        if labels is None:  # actions without a label are numbered, and there are more of them now
            driver.set_extra(GATE, 1.0)
            labels = plan(actions_of(driver.log()), ()).values
        self.prepare(driver, labels)
        return driver
