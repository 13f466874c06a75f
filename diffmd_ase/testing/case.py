"""A Boltzmann law that is known, and how exact draws and means of it are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..potentials.base import Potential

__all__ = ["Case", "boltzmann_nodes", "gauss_hermite", "rejection"]


@dataclass(frozen=True, eq=False)
class Case:
    """A Boltzmann law ``exp(-U/kT)`` that is known, and what a kernel needs to sample it.

    ``quadrature`` gives nodes (Q, N, 3) and weights (Q,) with sum 1, finer for a larger integer.
    """

    name: str  # for messages
    target: Potential  # U, with an energy
    drift: Potential  # not conservative; proposes roughly what the forces of the target would
    surrogate: Potential  # conservative and about 15 % off, where a cheap energy is needed
    kT: float
    h: float | Tensor  # Å², at which one MALA step is accepted in 50 to 90 % of the cases
    sample: Callable[[int, int], Tensor]  # (n, seed) → (n, N, 3), independent exact draws
    observables: Callable[[Tensor], Tensor]  # (n, N, 3) → (n, 20)
    quadrature: Callable[[int], tuple[Tensor, Tensor]]
    known: dict[int, float]  # means of observables that the nodes do not see, by column

    @cached_property
    def exact(self) -> Tensor:
        """(20,) exact means of the observables."""
        return self.means(1)

    def means(self, refine: int) -> Tensor:
        """(20,) means by a quadrature of ``refine`` times as many nodes along each axis."""
        nodes, weights = self.quadrature(refine)
        values = weights @ self.observables(nodes)
        for column, value in self.known.items():
            values[column] = value
        return values


def boltzmann_nodes(target, kT, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """``nodes`` (Q, N, 3) of a regular grid, and weights (Q,) ∝ exp(-U/kT) of ``target``, sum 1."""
    logs = -target(nodes).energy / kT
    return nodes, torch.softmax(logs, 0)


def gauss_hermite(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Nodes (Q, d) and weights (Q,) of a standard normal, ``counts`` of them along each axis."""
    rules = [np.polynomial.hermite_e.hermegauss(count) for count in counts]
    nodes = np.array(list(product(*(rule[0] for rule in rules))))
    weights = np.array([np.prod(w) for w in product(*(rule[1] for rule in rules))])
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def rejection(log_density, edges: tuple[np.ndarray, ...], n: int, rng) -> np.ndarray:
    """``n`` exact draws (n, d) of a density on a grid of cells, from a constant in each.

    The constant is ``e^0.1`` times the density at the largest of a cell's corners.

    Parameters
    ----------
    log_density : (M, d) → (M,), up to a constant
    edges : of the cells, one increasing array for each of the d axes

    Raises
    ------
    RuntimeError : a cell where that is no envelope
    """
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1)
    logs = log_density(corners.reshape(-1, len(edges))).reshape(corners.shape[:-1])
    for axis in range(len(edges)):
        upper = np.take(logs, range(1, logs.shape[axis]), axis)
        logs = np.maximum(upper, np.take(logs, range(logs.shape[axis] - 1), axis))
    logs = logs + 0.1
    heights = np.cumsum(np.exp(logs - logs.max()).ravel())
    starts = np.array([edge[0] for edge in edges])
    sizes = np.array([edge[1] - edge[0] for edge in edges])
    kept, count = [], 0
    while count < n:
        cell = np.searchsorted(heights, rng.random(2 * (n - count) + 100) * heights[-1], "right")
        where = np.stack(np.unravel_index(cell, logs.shape), axis=-1)
        points = starts + (where + rng.random(where.shape)) * sizes
        excess = log_density(points) - logs.ravel()[cell]
        if excess.max() > 0:
            raise RuntimeError(f"the grid is too coarse for the density: {excess.max():.3g}")
        kept.append(points[np.log(rng.random(len(points))) < excess])
        count += len(kept[-1])
    return np.concatenate(kept)[:n]
