"""What every bias in PLUMED instances does: it learns, loses walkers, goes on from files."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from diffmd_ase.potentials.base import Potential

from . import kernel as kernels
from .instances import Instances

__all__ = ["PlumedBias"]


class PlumedBias(Potential):
    """A bias that learns in `update` only, from accepted positions.

    A subclass makes ``_instances``, and says what PLUMED is given of positions (`_given`) and
    how a walker is committed (`_commit`).

    Attributes
    ----------
    given : what PLUMED is given, for messages
    """

    has_memory = True
    given: str
    _instances: Instances
    _committed: tuple = ()

    @abstractmethod
    def _given(self, x: Tensor) -> np.ndarray:
        """Numbers (B, …) of positions (N, 3) or (B, N, 3), a row for each walker."""

    @abstractmethod
    def _commit(self, walker: int, row: np.ndarray) -> Any:
        """Evaluate and learn; what is returned is kept in ``_committed``."""

    def _accepted(self, x: Tensor) -> None:
        """Told of the positions of every completed step, also where nothing is deposited."""

    def update(self, x: Tensor, step: int) -> bool:
        """Deposit and print at accepted positions (N, 3) or (B, N, 3); True if V changed.

        Raises
        ------
        ValueError : a step that was completed before; what PLUMED is given is not finite (the
            walkers are named); positions that were not evaluated where ENERGY is biased
        """
        instances, plan = self._instances, self._instances.plan
        instances.check_next(step)
        if x.ndim > 3:
            raise ValueError(f"positions {tuple(x.shape)}: expected (N, 3) or (B, N, 3)")
        self._accepted(x)
        if not plan.due(step):
            instances.step = step
            return False
        rows = self._given(x)
        lost = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1))
        if len(lost):
            names = [instances.name(walker) for walker in lost.tolist()]
            raise ValueError(
                f"{self.given} of walkers {names} are not finite at step {step}: nothing was "
                "deposited"
            )
        instances.require(len(rows))
        instances.advance(step, lambda walker: self._commit(walker, rows[walker]))
        self._committed = tuple([self._commit(walker, row) for walker, row in enumerate(rows)])
        return plan.changes(step)

    def flush(self) -> None:
        """Files are complete on disk up to the last update."""
        kernels.flush_files()

    def finalize(self) -> None:
        """Close all files; nothing can be evaluated any more."""
        self._instances.finalize()

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
        rows = self._given(x)
        self._instances.restore(
            saved, step, len(rows), lambda walker: self._commit(walker, rows[walker])
        )
