"""The pass between two basins of a free-energy surface."""

from __future__ import annotations

from typing import NamedTuple

import networkx as nx
import numpy as np

from ..statistics import Estimate
from .grid import Basin
from .surface import Surface

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

    The path whose highest bin is lowest, which is that of the minimum spanning tree. None where
    no path of visited bins joins them. A pass read off noisy bins is biased upwards at the top
    by about the error of one bin.

    ``surface``: of one variable or more; ``a`` and ``b``: basins on some of its variables, else
    ``ValueError`` is raised.
    """
    f = surface.free_energy
    start, end = (
        int(np.argmin(np.where(basin.on_grid(surface.axes), f, np.inf))) for basin in (a, b)
    )
    tree = nx.minimum_spanning_tree(_steps(f, [axis.periodic for axis in surface.axes]))
    if start not in tree or end not in tree or not nx.has_path(tree, start, end):
        return None
    path = nx.shortest_path(tree, start, end)
    bins = [np.unravel_index(n, f.shape) for n in (max(path, key=f.flat.__getitem__), start, end)]
    top, first, second = (tuple(int(i) for i in one) for one in bins)
    at = tuple(float(axis.centres[i]) for axis, i in zip(surface.axes, top, strict=True))
    return Barrier(at, surface.difference(top, first), surface.difference(top, second))


def _steps(f: np.ndarray, periodic: list[bool]) -> nx.Graph:
    """Neighbouring bins that were visited, by number, weighted by the higher of the two."""
    number = np.arange(f.size).reshape(f.shape)
    graph = nx.Graph()
    for axis, around in enumerate(periodic):
        here, there = number, np.roll(number, -1, axis)
        if not around:
            here, there = (np.delete(n, -1, axis) for n in (here, there))
        height = np.maximum(f.flat[here.ravel()], f.flat[there.ravel()])
        edges = zip(here.flat, there.flat, height, strict=True)
        graph.add_weighted_edges_from((int(i), int(j), h) for i, j, h in edges if np.isfinite(h))
    return graph
