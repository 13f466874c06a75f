"""How far apart the atoms of snapshots are: numbers and distances of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbours import edges
from .networks.inputs import Inputs
from .snapshots import Snapshots

__all__ = ["mean_neighbours", "nearest_by_element", "nearest_neighbours"]

_FAR = 6.0  # Å: beyond it nobody is a neighbour
_SOME = 20  # snapshots, of which they are counted


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


def _nearest(snapshots: Snapshots) -> Tensor:
    """Distance of the nearest neighbour of each atom of some snapshots; inf beyond 6 Å."""
    x, target, vectors = _some_edges(snapshots, _FAR)
    nearest = torch.full((x.shape[0] * x.shape[1],), torch.inf, dtype=x.dtype)
    return nearest.scatter_reduce(0, target, vectors.norm(dim=-1), "amin")


def _some_edges(snapshots: Snapshots, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of at most 20 snapshots, targets and vectors of their edges."""
    x = torch.as_tensor(snapshots.positions[:: max(1, len(snapshots) // _SOME)][:_SOME])
    _, cell, pbc = Inputs.of(snapshots.system, dtype=x.dtype)
    _, target, vectors = edges(x, cutoff, cell, pbc)
    return x, target, vectors
