"""How far apart the atoms of snapshots are, and how far they vibrate."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import chemical_symbols
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
    "broken_bond",
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
_BROKEN = 1.5  # times the mean length of a bond
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


def broken_bond(snapshots: Snapshots) -> str:
    """The bond that breaks in most of the ``snapshots``, in words; "" if none does.

    One that is half as long again as on average.
    """
    system = snapshots.system
    if system.periodic:
        bonds = [kind.atoms[:, kind.bonds].reshape(-1, 2) for kind in snapshots.molecules or []]
        pairs = np.concatenate(bonds) if bonds else np.zeros((0, 2), int)
    else:
        pairs = snapshots.topology.bonds
    if not len(pairs):
        return ""
    x = snapshots.positions
    mean = np.zeros(len(pairs))
    for part in blocks(len(x), IMAGES * len(pairs)):
        mean += distances(x[part], pairs, system=system).sum(0) / len(x)
    count, longest = np.zeros(len(pairs), int), np.zeros(len(pairs))
    for part in blocks(len(x), IMAGES * len(pairs)):
        r = distances(x[part], pairs, system=system)
        count += (r > _BROKEN * mean).sum(0)
        longest = np.maximum(longest, r.max(0))
    if not count.any():
        return ""
    k = int(count.argmax())
    i, j = pairs[k]
    named = "-".join(f"{chemical_symbols[system.numbers[n]]}{n}" for n in (i, j))
    return (
        f"{snapshots.source}: bond {named} breaks in {count[k]} of {len(x)} snapshots (up to "
        f"{longest[k]:.2f} Å, on average {mean[k]:.2f})"
    )


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
