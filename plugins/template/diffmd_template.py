"""A potential to copy: springs between pairs of atoms, ``U(x) = Σ (k/2)(|x_i - x_j| - r0)²``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffmd_ase import Evaluation, Potential, System

__all__ = ["Springs"]


class Springs(Potential):
    """``U(x) = Σ_pairs (k/2)(r_ij - r0)²``; a restraint, or a bead model.

    The class is its own factory: ``load_potential("template", system, pairs=...)``.

    Parameters
    ----------
    system : atoms without pbc
    pairs : (P, 2) indices of atoms
    length : r0 in Å
    k : eV/Å²

    Raises
    ------
    ValueError : pairs that are not there, a length or k that is not positive, pbc
    """

    def __init__(self, system: System, *, pairs, length: float, k: float = 5.0):
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise ValueError(f"pairs has shape {pairs.shape}, expected (P, 2) atom indices")
        if pairs.min() < 0 or pairs.max() >= len(system) or (pairs[:, 0] == pairs[:, 1]).any():
            raise ValueError(
                f"{pairs.tolist()=}: expected two different atoms of 0…{len(system) - 1}"
            )
        if not (length > 0 and k > 0):
            raise ValueError(f"{length=} (Å) and {k=} (eV/Å²) must be positive")
        if system.periodic:
            raise ValueError(f"pbc={system.pbc.tolist()}: these springs know no periodic images")
        self.system, self.length, self.k = system, length, k
        self._first, self._second = torch.tensor(pairs.T)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        # x is (*batch, N, 3), on any device and in any precision; so are the results
        first, second = self._first.to(x.device), self._second.to(x.device)
        bonds = x[..., first, :] - x[..., second, :]
        r = torch.linalg.vector_norm(bonds, dim=-1)
        energy = 0.5 * self.k * (r - self.length).square().sum(-1)
        pull = (-self.k * (r - self.length) / r)[..., None] * bonds
        forces = torch.zeros_like(x).index_add(-2, first, pull).index_add(-2, second, -pull)
        return Evaluation(energy, forces)
