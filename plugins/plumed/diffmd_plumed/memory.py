"""What both potentials do at the steps of a run: start, learn, go on, end."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from diffmd_ase.potentials.base import Potential

from . import library
from .driver import Driver
from .instances import Instances

__all__ = ["Remembering"]


class Remembering(Potential):
    """A potential whose bias is in `Instances` of PLUMED.

    A subclass says what PLUMED is given of positions (`_given`), and brings an instance there
    (`_calculate`). As a context manager it is finalized at the end.
    """

    has_memory = True
    _instances: Instances
    _what: str
    _warned = False

    def _use(self, instances: Instances) -> None:
        self._instances, self.directory = instances, instances.directory
        if instances.plan.impure:
            warnings.warn(
                f"{', '.join(instances.plan.impure)} learn at every evaluation, not only at "
                "accepted steps: plain dynamics evaluates once a step, as they expect; Metropolis "
                "steps, finite differences and energy queries disturb them",
                stacklevel=3,
            )

    @abstractmethod
    def _given(self, x: Tensor) -> np.ndarray:
        """What PLUMED is given of positions x (*batch, N, 3), float64 (frames, …)."""

    @abstractmethod
    def _calculate(self, driver: Driver, walker: int, values: np.ndarray, step: int) -> None:
        """Bring an instance to the values of a walker at a step."""

    def _at(self, walker: int, values: np.ndarray, step: int | None = None) -> Driver:
        """The instance that serves a walker, at its values: to evaluate, or to commit ``step``."""
        driver = self._instances.of(walker)
        self._instances.evaluate(
            walker, values, lambda at: self._calculate(driver, walker, values, at), step=step
        )
        return driver

    def _commit(self, walker: int, values: np.ndarray, step: int) -> dict[str, float | np.ndarray]:
        with library.working_directory(str(self.directory)):  # and other threads wait
            return self._committed(walker, values, step)

    def _committed(self, walker: int, values: np.ndarray, step: int):
        last = self._instances.last(walker, values, step)
        if last is not None:
            self._calculate(self._instances.of(walker), walker, *last)
        driver = self._at(walker, values, step)
        row = {name: driver.get_value(name) for name in self._watched}
        driver.update()
        if driver.stopped and not self._warned:
            self._warned = True
            warnings.warn(f"step {step}: PLUMED asks to stop (COMMITTOR)", stacklevel=4)
        return row

    @property
    def _watched(self) -> tuple[str, ...]:
        return ()

    # ------------------------------------------------------------------ a run

    def begin(self, x: Tensor, step: int) -> bool:
        """The run starts at x (N, 3) or (B, N, 3): what PLUMED does at its first step."""
        if self._instances.begun:
            return False
        # who starts outside of a grid is about to be lost, and the others start without them
        if not (self.needs_base or torch.isfinite(self(x).energy).all()):
            return False
        return self._instances.begin(step, self._given(x), self._what, self._commit)

    def update(self, x: Tensor, step: int) -> bool:
        """Deposit and print at accepted positions (N, 3) or (B, N, 3); True if V changed.

        Without `begin` the run has started where the walkers were evaluated first; an update at
        the step of the start is one, too.

        Raises
        ------
        ValueError : a step that was completed before, positions that are not finite (the
            walkers are named), positions that were not evaluated where ENERGY is biased
        """
        if x.ndim > 3:
            raise ValueError(f"positions {tuple(x.shape)}: expected (N, 3) or (B, N, 3)")
        if self._instances.passes(step):
            return False
        self._instances.learn(step, self._given(x), self._what, self._commit)
        return self._instances.changes(step)

    def next_change(self, step: int) -> float:
        """The next step at which an action deposits; the next one where evaluations count, too."""
        plan = self._instances.plan
        if self.needs_base or plan.impure or plan.once or plan.timed:
            return step + 1
        return min((step - step % period + period for period in plan.learn), default=math.inf)

    @property
    def stopped(self) -> bool:
        """An action (COMMITTOR) of some walker asked to stop."""
        return any(driver.stopped for driver in self._instances.drivers)

    def flush(self) -> None:
        """Files are complete on disk up to the last update."""
        library.flush_files()

    def finish(self) -> None:
        """Run PLUMED's final jobs, such as DUMPGRID without STRIDE; files are complete on disk."""
        self._instances.finish()

    def finalize(self) -> None:
        """Run the final jobs and close all files; nothing can be evaluated any more.

        Twice is harmless. A potential that is forgotten, or left when Python ends, does so by
        itself.
        """
        self._instances.finalize()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.finalize()

    # ------------------------------------------------------------------ walkers, restart

    def select(self, keep: Tensor) -> None:
        self._instances.select(keep.tolist())

    def checkpoint(self) -> dict:
        """Files are flushed; their lengths and the walkers that are left are returned."""
        return self._instances.checkpoint()

    def restore(self, saved: dict, x: Tensor, step: int) -> None:
        """Cut the files back to the checkpoint, read them, repeat the last step unseen.

        Raises
        ------
        ValueError : made without ``restart=True``, another input, files that were changed
        """
        values = self._given(x)
        self._instances.restore(
            saved, step, len(values), lambda walker: self._commit(walker, values[walker], step)
        )
