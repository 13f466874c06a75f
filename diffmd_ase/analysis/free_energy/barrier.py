"""The pass between two basins of a free-energy surface."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from ..statistics import Estimate
from .surface import Basin, Surface

__all__ = ["Barrier", "barrier"]


class Barrier(NamedTuple):
    """The pass between two basins.

    Attributes
    ----------
    at : values of the variables in its bin
    from_a, from_b : its height above the minimum of either basin, in the unit of kT
    """

    at: tuple[float, ...]
    from_a: Estimate
    from_b: Estimate


def barrier(surface: Surface, a: Basin, b: Basin) -> Barrier | None:
    """The lowest pass between the minima of two basins, along faces of the grid.

    The path whose highest bin is lowest (Dijkstra's algorithm with maxima for sums). None
    where no path of visited bins joins them. A pass read off noisy bins is biased upwards
    at the top by about the error of one bin.

    ``surface``: of one variable or more; ``a`` and ``b``: basins on some of its variables, else
    ``ValueError`` is raised.
    """
    f = surface.free_energy
    ends = [
        np.unravel_index(int(np.argmin(np.where(basin.on_grid(surface.axes), f, np.inf))), f.shape)
        for basin in (a, b)
    ]
    start, end = (tuple(int(i) for i in e) for e in ends)
    top = _pass(f, start, end, [axis.periodic for axis in surface.axes])
    if top is None:
        return None
    at = tuple(float(axis.centres[i]) for axis, i in zip(surface.axes, top, strict=True))
    return Barrier(at, surface.difference(top, start), surface.difference(top, end))


def _pass(f: np.ndarray, start, end, periodic) -> tuple[int, ...] | None:
    queue = [(float(f[start]), start, start)]
    seen = set()
    while queue:
        height, here, top = heapq.heappop(queue)
        if here in seen or not np.isfinite(height):
            continue
        seen.add(here)
        if here == end:
            return top
        for axis in range(f.ndim):
            for move in (-1, 1):
                i = here[axis] + move
                if periodic[axis]:
                    i %= f.shape[axis]
                elif not 0 <= i < f.shape[axis]:
                    continue
                there = (*here[:axis], i, *here[axis + 1 :])
                if there in seen:
                    continue
                higher = float(f[there]) > height
                heapq.heappush(
                    queue, (max(height, float(f[there])), there, there if higher else top)
                )
    return None
