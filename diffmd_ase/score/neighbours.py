"""Neighbours: all directed pairs closer than a cutoff, periodic images included.

Dense over atoms and images for small systems, `vesin` for larger ones. `VerletList` keeps the
pairs of a larger radius, so that dynamics need not search at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import vesin
from torch import Tensor

__all__ = [
    "Pairs",
    "VerletList",
    "edges",
    "envelope",
    "find_pairs",
]

_DENSE = 64  # atoms up to which all pairs are looked at
_SAME = 0.6  # of the skin: a sequence that comes farther with one step is taken for another
_SEQUENCES = 64  # of positions that take turns, at most
_KEPT = 1 << 22  # pairs of all of them, 100 MB


@dataclass(frozen=True, eq=False)
class Pairs:
    """Directed pairs of a batch, sorted by target, source and image.

    ``shift`` counts lattice vectors from the source to the image that is meant, for positions as
    they were given, inside the cell or not.
    """

    source: Tensor  # (E,) into the flattened (B·N) atoms
    target: Tensor  # likewise
    shift: Tensor | None  # (E, 3) whole numbers; None without periodicity
    chosen: bool = False  # all are closer than what is asked for, see `closer`

    def vectors(self, x: Tensor, cell: Tensor | None) -> Tensor:
        """``x_source + shift·cell - x_target`` (E, 3), differentiable in x (B, N, 3) and cell."""
        flat = x.reshape(-1, 3)
        vectors = flat[self.source] - flat[self.target]
        if self.shift is None:
            return vectors
        if cell.ndim == 2:
            return vectors + self.shift.to(x) @ cell
        own = cell.expand(len(x), 3, 3)[self.target // x.shape[1]]
        return vectors + torch.einsum("ea,eab->eb", self.shift.to(x), own)

    @torch.no_grad()
    def closer(self, cutoff: float, x: Tensor, cell: Tensor | None) -> Pairs:
        """Those that are closer than ``cutoff`` (Å) at x (B, N, 3)."""
        near = self.vectors(x, cell).square().sum(-1) < cutoff**2
        if near.all():
            return replace(self, chosen=True)
        shift = None if self.shift is None else self.shift[near]
        return Pairs(self.source[near], self.target[near], shift, chosen=True)


def edges(x: Tensor, cutoff: float, cell=None, pbc=(False,) * 3, pairs: Pairs | None = None):
    """All directed pairs closer than ``cutoff`` (Å), periodic images included.

    Parameters
    ----------
    cell : (3, 3) or (B, 3, 3), rows are lattice vectors in Å, or None
    pbc : three bools, which of them are periodic
    pairs : candidates that hold all of them, for instance of a `VerletList`

    Returns
    -------
    source, target : (E,) into the flattened (B·N) atoms
    vectors : (E, 3) from target to source, differentiable in x and cell
    """
    if pairs is None:
        pairs = find_pairs(x, cutoff, cell, pbc)
    if not pairs.chosen:
        pairs = pairs.closer(cutoff, x.detach(), cell)
    return pairs.source, pairs.target, pairs.vectors(x, cell)


@torch.no_grad()
def find_pairs(x: Tensor, cutoff: float, cell=None, pbc=(False,) * 3) -> Pairs:
    """The pairs of positions ``x`` (B, N, 3) closer than ``cutoff`` in Å; sorted.

    ``cell`` and ``pbc`` are as of `edges`. Positions that are not finite have no neighbours.
    """
    if cell is None or not any(pbc):
        cell, pbc = None, (False,) * 3
    find = _dense if x.shape[1] <= _DENSE else _listed
    target, source, shift = find(x.detach(), cutoff, None if cell is None else cell.detach(), pbc)
    # one order, whatever the positions at which the list was made: sums do not depend on it
    order = torch.arange(len(target), device=x.device)
    for key in (*reversed(shift.unbind(-1)), source, target):
        order = order[torch.argsort(key[order], stable=True)]
    return Pairs(source[order], target[order], None if cell is None else shift[order].to(x))


class VerletList:
    """Candidate pairs that stay valid while atoms move less than half of ``skin`` (Å).

    Built with radius ``cutoff + skin``. No pair can come closer than ``cutoff`` (Å) unnoticed
    while every atom has moved less than ``skin/2`` from where the list was built, apart from
    a motion of the whole (Verlet, Phys. Rev. 159, 98 (1967)). It is for one sequence of
    positions, or for several that take turns, each of which has pairs of its own; others only cost
    a new search.

    Raises ``ValueError`` for a cutoff that is not positive or a negative skin.
    """

    def __init__(self, cutoff: float, skin: float = 1.0):
        if not (cutoff > 0 and skin >= 0):
            raise ValueError(f"{cutoff=} must be positive and {skin=} not negative (Å)")
        self.cutoff, self.skin, self.builds = cutoff, skin, 0
        self._built: tuple[_Built, ...] = ()
        self._last = 0  # that was of use

    def __call__(self, x: Tensor, cell: Tensor | None, pbc) -> Pairs:
        """Pairs that hold all those closer than ``cutoff`` at x (B, N, 3)."""
        kept, last = self._built, self._last  # once: another thread may replace them
        built = tuple(one for one in kept if one.alike(x, cell, pbc))
        moved = []
        for turn in range(1, len(built) + 1):  # the one whose turn it is comes first
            place = (last + turn) % len(built)
            moved.append((built[place].moved(x), place))
            if moved[-1][0] < 0.4995 * self.skin:  # a thousandth for rounding
                self._last = place
                return built[place].pairs
        pairs = find_pairs(x, self.cutoff + self.skin, cell, pbc)
        self.builds += 1
        nearest, place = min(moved, default=(torch.inf, 0))
        if not nearest < _SAME * self.skin:  # another sequence
            place = len(built) if len(built) < _SEQUENCES else (last + 1) % len(built)
        new = _Built(x.detach().clone(), cell, tuple(pbc), pairs)
        built = (*built[:place], new, *built[place + 1 :])
        if sum(len(one.pairs.source) for one in built) > _KEPT:
            built, place = (new,), 0
        self._built, self._last = built, place
        return pairs


class _Built(NamedTuple):
    """Pairs, and where they were found."""

    x: Tensor
    cell: Tensor | None
    pbc: tuple
    pairs: Pairs

    def alike(self, x: Tensor, cell: Tensor | None, pbc) -> bool:
        """Whether x is in the same cell, on the same device."""
        if self.x.device != x.device or self.pbc != tuple(pbc):
            return False
        if cell is None or self.cell is None:
            return cell is self.cell
        return cell is self.cell or torch.equal(cell, self.cell)

    def moved(self, x: Tensor) -> float:
        """How far some atom of x (B, N, 3) is from there, in Å; inf of other batches, and NaN."""
        if self.x.shape != x.shape:
            return torch.inf
        away = x.detach() - self.x
        away = away - away.mean(1, keepdim=True)
        farthest = float(away.square().sum(-1).max()) ** 0.5 if away.numel() else 0.0
        return torch.inf if math.isnan(farthest) else farthest


def _dense(x: Tensor, cutoff: float, cell, pbc):
    """Target, source, shift of all pairs, by looking at all images."""
    n_batch, n_atoms = x.shape[:2]
    shifts, home, wrapped, images = x.new_zeros(1, 3), torch.zeros_like(x), x, x.new_zeros(1, 1, 3)
    if cell is not None:
        cell = cell.expand(n_batch, 3, 3)
        inverse = torch.linalg.inv(cell)
        heights = 1 / inverse.norm(dim=-2)  # distances between lattice planes
        reach = torch.ceil(cutoff / heights).amax(0).long().tolist()
        axes = [
            torch.arange(-n, n + 1) if p else torch.zeros(1, dtype=torch.long)
            for n, p in zip(reach, pbc, strict=True)
        ]
        shifts = torch.cartesian_prod(*axes).to(x)
        home = torch.floor(x @ inverse) * x.new_tensor([float(p) for p in pbc])
        wrapped = x - home @ cell  # into the cell, so that few images suffice
        images = shifts @ cell
    difference = wrapped[:, None, :, None] - wrapped[:, :, None, None]  # (B, target, source, 1, 3)
    distance2 = (difference + images[:, None, None]).square().sum(-1)
    own = torch.eye(n_atoms, dtype=torch.bool, device=x.device)[None, :, :, None]
    own = own & (shifts == 0).all(-1)
    batch, target, source, image = torch.nonzero((distance2 < cutoff**2) & ~own, as_tuple=True)
    shift = shifts[image] + home[batch, target] - home[batch, source]
    return batch * n_atoms + target, batch * n_atoms + source, shift


def _listed(x: Tensor, cutoff: float, cell, pbc):
    """The same from the cell lists of vesin, one structure after the other."""
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    frames = x.double().cpu().numpy()
    boxes = np.zeros((len(x), 3, 3))
    if cell is not None:
        boxes[:] = cell.expand(len(x), 3, 3).double().cpu().numpy()
    targets, sources, shifts = [], [], []
    for n, (points, box) in enumerate(zip(frames, boxes, strict=True)):
        if not np.isfinite(points).all():
            continue
        i, j, s = search.compute(points, box, list(pbc), "ijS")
        targets.append(n * x.shape[1] + i.astype(np.int64))
        sources.append(n * x.shape[1] + j.astype(np.int64))
        shifts.append(s.astype(np.float64))
    if not targets:
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        return none, none, x.new_zeros(0, 3)
    target, source, shift = (
        torch.as_tensor(np.concatenate(parts), device=x.device)
        for parts in (targets, sources, shifts)
    )
    return target, source, shift.to(x)


def envelope(t: Tensor) -> Tensor:
    """``1 - 10t³ + 15t⁴ - 6t⁵`` for t < 1, else 0: smooth to second order at the cutoff."""
    t = t.clamp(max=1.0)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)
