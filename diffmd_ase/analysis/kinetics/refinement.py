"""One Brownian path on finer and finer grids: how a plain chain comes to its continuous limit.

Grid l has steps h/2^l. All grids start at one x, and a step of a grid is kicked by the sum of the
kicks of the finest grid within it,

    x_l ← x_l + M_l s(x_l) + Σ_k sqrt(2 M_L) ξ_k

so that what differs between two grids is the error of the coarser one. With noise that does not
depend on x, Euler–Maruyama has strong and weak order 1 (Kloeden & Platen, Numerical Solution of
Stochastic Differential Equations, 1992, ch. 10 and 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...noise import Noise
from ...potentials.base import evaluate
from ...sampling.euler import EulerMaruyama
from ..statistics import Estimate, jackknife_error
from .path_error import clock

__all__ = ["Convergence", "Observables", "converge", "refined"]

Observables = Mapping[str, Callable[[Tensor], Tensor]]
"""Functions of positions (B, N, 3) that give (B,), by name."""

_GROUPS = 20  # of walkers, for the errors


@dataclass(frozen=True)
class Convergence:
    """How the differences between neighbouring grids shrink; made by `converge`."""

    span: float  # D·t of the path in Å²
    h: list[float]  # steps of the coarser grid of each pair, Å²
    strong: list[Estimate]  # rms distance of the ends on both grids, Å for each coordinate
    weak: dict[str, list[Estimate]]  # difference of the averages of each observable
    strong_order: Estimate  # p in h^p, fitted to all pairs
    weak_order: dict[str, Estimate]  # likewise; nan where a difference is not seen in the noise

    def to_dict(self) -> dict:
        """Numbers by name, as JSON holds them."""

        return {
            "span_A2": self.span,
            "h_A2": self.h,
            "strong_A": [e.to_dict() for e in self.strong],
            "weak": {name: [e.to_dict() for e in row] for name, row in self.weak.items()},
            "strong_order": self.strong_order.to_dict(),
            "weak_order": {name: order.to_dict() for name, order in self.weak_order.items()},
        }


def refined(
    kernel: EulerMaruyama, x: Tensor, n_steps: int, *, levels: int, noise: Noise
) -> Iterator[list[Tensor]]:
    """After every step of the coarsest grid, the positions on all ``levels`` grids.

    Parameters
    ----------
    kernel : of the coarsest grid; plain, with no potential that learns
    x : (B, N, 3) or (N, 3) in Å, where all start
    n_steps : of the coarsest grid
    levels : grids, each of half the step of the one before

    Raises
    ------
    ValueError : ``n_steps`` below 1, ``levels`` below 2, a potential with memory
    RuntimeError : a grid diverged
    """
    if n_steps < 1 or levels < 2:
        raise ValueError(f"{n_steps=} must be at least 1, and {levels=} at least 2")
    if kernel.potential.has_memory:
        raise ValueError("a bias that learns differs from grid to grid: refine the plain chain")
    kernels = [kernel.scaled(0.5**level) for level in range(levels)]
    each = [1 << (levels - 1 - level) for level in range(levels)]  # finest steps in one of level
    x = x.double()
    places, zero = [x] * levels, torch.zeros_like(x)
    kicks = [zero] * levels
    for n in range(n_steps):
        for fine in range(each[0]):
            kick = kernels[-1].propose(zero, zero, n * each[0] + fine, None, noise)
            for level, own in enumerate(kernels):
                kicks[level] = kicks[level] + kick
                if (fine + 1) % each[level] == 0:
                    forces = evaluate(own.potential.terms, places[level]).forces
                    places[level] = own.mean(places[level], forces) + kicks[level]
                    kicks[level] = zero
        if not all(bool(torch.isfinite(place).all()) for place in places):
            raise RuntimeError(
                f"the grid of h = {clock(kernel):.3g} Å² or a finer one diverged at step {n + 1}: "
                "start from relaxed positions, with a smaller step"
            )
        yield list(places)


def converge(
    kernel: EulerMaruyama,
    x: Tensor,
    n_steps: int,
    *,
    levels: int = 5,
    noise: Noise,
    observables: Observables | None = None,
) -> Convergence:
    """Strong and weak errors and orders of a plain kernel, from one Brownian path for each walker.

    Parameters
    ----------
    kernel : of the coarsest grid
    x : (B, N, 3) in Å, at least two walkers; more give smaller errors
    n_steps : of the coarsest grid
    levels : grids; orders need three
    observables : whose averages are compared at the end, default the energy of the drift

    Raises as `refined`, and ``ValueError`` for fewer than three levels, fewer than two walkers, or
    nothing to observe.
    """
    if levels < 3 or x.ndim != 3 or len(x) < 2:
        raise ValueError(
            f"{levels=} and positions {tuple(x.shape)}: orders need at least three grids, and "
            "errors at least two walkers (B, N, 3)"
        )
    if observables is None:
        if not kernel.potential.conservative:
            raise ValueError("the drift has no energy: give observables= to compare")
        observables = {"energy": lambda x: evaluate(kernel.potential.terms, x).energy}
    for places in refined(kernel, x, n_steps, levels=levels, noise=noise):  # noqa: B007
        pass
    h = [clock(kernel) * 0.5**level for level in range(levels - 1)]
    d = kernel.freedom(x.shape[-2])
    pairs = list(pairwise(places))
    squares = np.array([_numpy((a - b).square().sum((-2, -1)) / d) for a, b in pairs])
    strong, strong_order = _fitted(h, squares, root=True)
    weak, weak_order = {}, {}
    for name, function in observables.items():
        values = [function(place) for place in places]
        apart = [_numpy(a) - _numpy(b) for a, b in pairwise(values)]
        weak[name], weak_order[name] = _fitted(h, np.array(apart), root=False)
    return Convergence(clock(kernel) * n_steps, h, strong, weak, strong_order, weak_order)


def _fitted(h: list[float], values: np.ndarray, *, root: bool) -> tuple[list[Estimate], Estimate]:
    """Means of ``values`` (pairs, B), or their ``root``, and p of h^p, with errors by jackknife."""
    groups = np.array_split(np.arange(values.shape[1]), min(_GROUPS, values.shape[1]))
    left = [np.delete(values, group, axis=1).mean(1) for group in groups]
    rows = np.array([values.mean(1), *left])
    rows = np.sqrt(rows) if root else rows
    errors = jackknife_error(rows[1:])
    count = values.shape[1]
    means = [Estimate(float(v), float(e), count) for v, e in zip(rows[0], errors, strict=True)]
    seen = np.abs(rows[0]) > 2 * errors
    signs = np.sign(rows)
    if not seen.all() or (signs != signs[0, 0]).any():
        return means, Estimate(math.nan, math.nan, count)
    weights = np.abs(rows[0]) / np.maximum(errors, 1e-300)  # 1/σ of the logarithms
    slopes = [
        np.polynomial.polynomial.polyfit(np.log(h), np.log(np.abs(row)), 1, w=weights)[1]
        for row in rows
    ]
    order = Estimate(float(slopes[0]), float(jackknife_error(slopes[1:])), count)
    return means, order


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
