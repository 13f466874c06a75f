"""How far apart the atoms of snapshots are, and how far they vibrate."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..geometry import distances
from .molecules import whole
from .neighbours import edges
from .networks.inputs import Inputs
from .snapshot_checks import IMAGES, blocks, mean_and_std, unwrapped
from .snapshots import Snapshots

__all__ = [
    "bond_width",
    "extent",
    "mean_neighbours",
    "nearest_by_element",
    "nearest_neighbours",
    "pair_widths",
    "vibration",
]

_FAR = 6.0  # Å: beyond it nobody is a neighbour
_SOME = 20  # snapshots, of which they are counted
_ATOMS = 4000  # of them together, unless one has more
_MANY = 2000  # snapshots, of which widths are taken
_NEAREST = 12  # atoms: the bonds of an atom, and more


def mean_neighbours(snapshots: Snapshots, cutoff: float) -> float:
    """Mean number of neighbours within ``cutoff`` (Å) in a few of the ``snapshots``."""
    x, target, _ = _some_edges(snapshots, cutoff)
    return max(1.0, round(len(target) / (x.shape[0] * x.shape[1]), 2))


def nearest_neighbours(snapshots: Snapshots) -> float:
    """Mean distance (Å) of an atom's nearest neighbour, of those that have one within 6 Å.

    In a few of the ``snapshots``.

    Raises
    ------
    ValueError : none has
    """
    nearest = _nearest(snapshots)
    nearest = nearest[nearest.isfinite()]
    if not len(nearest):
        raise ValueError(
            f"{snapshots.source}: no atom has a neighbour within {_FAR:g} Å; give cutoff="
        )
    return float(nearest.mean())


def nearest_by_element(snapshots: Snapshots) -> dict[int, float]:
    """Mean distance (Å) of the nearest neighbour of each atomic number that has any within 6 Å.

    In a few of the ``snapshots``.
    """
    nearest = _nearest(snapshots)
    numbers = torch.as_tensor(snapshots.system.numbers).repeat(
        len(nearest) // len(snapshots.system)
    )
    means = {
        z: nearest[(numbers == z) & nearest.isfinite()].mean() for z in numbers.unique().tolist()
    }
    return {z: float(mean) for z, mean in means.items() if mean.isfinite()}


def pair_widths(snapshots: Snapshots) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of each atom and its twelve nearest, and the std (P,) of their distances in Å.

    Of at most 2000 ``snapshots`` of a system that is not periodic; nearest in the first of them.
    """
    x = _thinned(snapshots)
    near = cKDTree(x[0]).query(x[0], k=min(1 + _NEAREST, len(x[0])))[1].reshape(len(x[0]), -1)
    ends = np.stack([np.repeat(np.arange(len(near)), near.shape[1]), near.ravel()], axis=1)
    pairs = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return pairs, mean_and_std(x, lambda part: distances(part, pairs), 9 * len(pairs))[1]


def bond_width(snapshots: Snapshots) -> tuple[tuple[int, int], float] | None:
    """The bond that varies least, as two atoms, and the std of its length in Å.

    Of at most 2000 ``snapshots``, all molecules of one kind together; None without molecules or
    without bonds.
    """
    found = None
    for kind in snapshots.molecules or []:
        if not len(kind.bonds):
            continue
        lengths = distances(whole(snapshots.system, _thinned(snapshots), kind), kind.bonds)
        std = lengths.std(0)
        if found is None or std.min() < found[1]:
            i, j = kind.bonds[std.argmin()]
            found = (int(kind.atoms[0, i]), int(kind.atoms[0, j])), float(std.min())
    return found


def extent(snapshots: Snapshots) -> float:
    """Root mean square of a coordinate (Å) about the centre, of at most 2000 ``snapshots``."""
    x, total = _thinned(snapshots), 0.0
    for part in blocks(len(x), x[0].size):
        total += float(((x[part] - x[part].mean(1, keepdims=True)) ** 2).sum())
    return (total / x.size) ** 0.5


def vibration(snapshots: Snapshots) -> float:
    """Median std (Å) of a coordinate about its place, of the moving atoms of a periodic system.

    Of at most 2000 ``snapshots``; jumps by vectors of the cell are none. If all atoms move, a
    motion of the whole is none either.
    """
    x, system, moving = _thinned(snapshots), snapshots.system, snapshots.moving
    drift = bool(moving.all())

    def places(part: np.ndarray) -> np.ndarray:
        part = unwrapped(system, part, x[0], drift=drift)
        return part - part.mean(axis=1, keepdims=True) if drift else part

    return float(np.median(mean_and_std(x, places, IMAGES * x[0].size)[1][moving]))


def _thinned(snapshots: Snapshots) -> np.ndarray:
    return snapshots.positions[:: max(1, len(snapshots) // _MANY)]


def _nearest(snapshots: Snapshots) -> Tensor:
    """Distance of the nearest neighbour of each atom of some snapshots; inf beyond 6 Å."""
    x, target, vectors = _some_edges(snapshots, _FAR)
    nearest = torch.full((x.shape[0] * x.shape[1],), torch.inf, dtype=x.dtype)
    return nearest.scatter_reduce(0, target, vectors.norm(dim=-1), "amin")


def _some_edges(snapshots: Snapshots, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of at most 20 snapshots, targets and vectors of their edges."""
    some = min(_SOME, max(1, _ATOMS // len(snapshots.system)))
    x = torch.as_tensor(snapshots.positions[:: max(1, len(snapshots) // some)][:some])
    _, cell, pbc = Inputs.of(snapshots.system, dtype=x.dtype)
    _, target, vectors = edges(x, cutoff, cell, pbc)
    return x, target, vectors
