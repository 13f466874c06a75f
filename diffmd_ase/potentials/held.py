"""Some atoms in their places, the others free."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..state import Evaluation
from ..system import System
from .base import Potential

__all__ = ["Held"]


class Held(Potential):
    """``U(x_moving; x_held)``: the energy of the atoms that move, the others in their places.

    With it any kernel samples the density of the moving atoms given the places of the others,
    that of a slab with `ase.constraints.FixAtoms`: what is held is no coordinate at all.

    Parameters
    ----------
    inner : of all N atoms, without memory
    places : (N, 3) in Å; those of moving atoms do not matter
    moving : (N,) bool

    Raises
    ------
    ValueError : shapes that do not fit, nothing that moves, a memory or a function for each walker
    """

    def __init__(self, inner: Potential, places: np.ndarray, moving: np.ndarray):
        moving = np.asarray(moving, bool)
        if np.shape(places) != (len(moving), 3) or not moving.any():
            raise ValueError(
                f"places of shape {np.shape(places)} and {moving.sum()} moving atoms of "
                f"{len(moving)}: expected (N, 3), and one that moves"
            )
        if inner.has_memory or inner.per_walker:
            raise ValueError(f"{type(inner).__name__} has a memory, or a function for each walker")
        self.inner, self.places = inner, torch.as_tensor(places)
        self.moving = torch.as_tensor(np.flatnonzero(moving))
        self.conservative = inner.conservative
        if inner.system is not None:
            system = inner.system
            numbers, masses = system.numbers[moving], system.masses[moving]
            self.system = System(numbers, masses, system.cell, system.pbc)

    def whole(self, x: Tensor) -> Tensor:
        """Positions (*batch, N, 3) of all atoms, for those that move (*batch, M, 3)."""
        every = self.places.to(x).expand(*x.shape[:-2], -1, -1)
        return every.index_copy(-2, self.moving.to(x.device), x)

    def __call__(self, x, *, stress=False) -> Evaluation:
        value = self.inner(self.whole(x))
        return Evaluation(value.energy, value.forces[..., self.moving.to(x.device), :])
