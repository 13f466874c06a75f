"""Kinetics of a reference from trajectories of a model: exact weights of paths.

A plain step of the model's chain from x with kick κ = x' - x - M ŝ has, towards the reference's
drift s = ŝ + Δ, the log likelihood ratio

    ℓ = ½ κ·Δ - ¼ Δᵀ M Δ

and a path the sum of its steps; the mean weight is 1. It is the exact correction of kinetics, as
Metropolis is of statistics (Girsanov; for Markov models: Donati, Hartmann & Keller, J. Chem. Phys.
146, 244112 (2017)), and costs one evaluation of the reference a step, or one in ``stride`` of them
with Δ held in between, which is exact for a reference with such a drift; how far that is from the
true one is estimated. The log weights have the variance 2 KL, where KL = r t grows with
the lag: they hold up to a KL of one or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...noise import Noise
from ...potentials.base import Potential, evaluate
from ...sampling.euler import EulerMaruyama
from ...sampling.run import advance
from ..statistics import Estimate, jackknife_error, mean_estimate
from .path_error import clock

__all__ = ["Transitions", "WeightedPaths", "weigh_paths"]

_LIMIT = 2.0  # nats: the weights of a Gaussian log with variance 4 are worth 2 % of the paths
_FEWEST = 50.0  # effective paths from each state
_GROUPS = 20  # of walkers, for the errors


@dataclass(frozen=True, eq=False)
class Transitions:
    """Transition probabilities between S states at one lag, of model and reference."""

    lag: float  # D·t in Å²
    model: np.ndarray  # (S, S) as counted
    model_error: np.ndarray  # (S, S)
    reference: np.ndarray  # (S, S) reweighted
    reference_error: np.ndarray  # (S, S)
    paths: np.ndarray  # (S,) paths from each state; those that overlap in time count each
    effective: np.ndarray  # (S,) that they are worth, (Σw)²/Σw²
    kl: Estimate  # mean -log weight of a path, nats
    holds: bool  # KL and effective paths are such that the reweighted numbers mean something


@dataclass(frozen=True, eq=False)
class WeightedPaths:
    """A chain of a model with the weights of its paths; made by `weigh_paths`."""

    values: np.ndarray  # (T + 1, W, …) what was observed
    increments: np.ndarray  # (T, W) log weights between two of them
    divergences: np.ndarray  # (T, W) ``¼ Σ ΔᵀMΔ`` between two of them, nats
    start: np.ndarray | None  # (T + 1, W) -(U - E)/kT, or None without energies
    spacing: float  # D·t between two, Å²
    stride_rate: Estimate  # KL of the reference with a held Δ from the true one, nats per Å²

    def kl(self, lag: int) -> Estimate:
        """Mean ``¼ Σ ΔᵀMΔ`` of paths of ``lag`` values, nats: their KL, exact on average.

        The mean of -log weight is the same with the noise of κ added, which may make it negative.
        Raises ``ValueError`` for a lag outside 1…T.
        """
        return mean_estimate(self._sums(self.divergences, lag))

    def longest_lag(self, limit: float = _LIMIT) -> float:
        """D·t in Å² at which the KL of paths is ``limit`` nats; beyond, weights do not hold."""
        rate = self.kl(1).value / self.spacing
        return limit / rate if rate > 0 else math.inf

    def transitions(self, states: np.ndarray, lag: int, *, equilibrium: bool = True) -> Transitions:
        """Probabilities ``p(x(t) in j | x(0) in i)`` at ``lag`` values.

        Parameters
        ----------
        states : (T + 1, W) number of the state of each value, -1 for none
        equilibrium : x(0) has the reference's law within i, by its energies, where there are any;
            else the model's

        Raises
        ------
        ValueError : another shape, a lag outside 1…T, one state only
        """
        states = np.asarray(states)
        if states.shape != self.values.shape[:2]:
            raise ValueError(f"states {states.shape} of values {self.values.shape[:2]}")
        count = int(states.max()) + 1
        if count < 2:
            raise ValueError("one state only: no transition was seen, nor could be")
        logs = self._sums(self.increments, lag)
        if equilibrium and self.start is not None:
            logs = logs + self.start[: len(logs)]
        first, last = states[: len(logs)], states[lag:]
        weights = np.exp(logs - logs.max())
        plain = _counts(first, last, np.ones_like(weights), count)
        weighted = _counts(first, last, weights, count)
        squares = _counts(first, last, weights**2, count).sum((0, 2))
        model, model_error = _rows(plain)
        reference, reference_error = _rows(weighted)
        with np.errstate(invalid="ignore", divide="ignore"):
            effective = np.where(squares > 0, weighted.sum((0, 2)) ** 2 / squares, 0.0)
        kl, paths = self.kl(lag), plain.sum((0, 2))
        # paths that overlap in time share their steps
        independent = effective / lag
        holds = kl.value <= _LIMIT and bool((independent >= _FEWEST).all())
        return Transitions(
            lag * self.spacing,
            model,
            model_error,
            reference,
            reference_error,
            paths,
            effective,
            kl,
            holds,
        )

    def _sums(self, of: np.ndarray, lag: int) -> np.ndarray:
        """(T + 1 - lag, W) sums of numbers (T, W) over all paths of ``lag`` values."""
        if not 1 <= lag <= len(of):
            raise ValueError(f"{lag=} of {len(of)} values: expected 1 or more of them")
        sums = np.concatenate((np.zeros_like(of[:1]), np.cumsum(of, axis=0)))
        return sums[lag:] - sums[:-lag]


def weigh_paths(
    kernel: EulerMaruyama,
    x: Tensor,
    reference: Potential,
    n_steps: int,
    *,
    noise: Noise,
    observe: Callable[[Tensor], Tensor],
    every: int = 1,
    stride: int = 1,
) -> WeightedPaths:
    """Run a plain ``kernel`` and weigh its paths towards a reference.

    Parameters
    ----------
    kernel : plain, with no potential that learns
    x : start (B, N, 3) in Å
    reference : gives the true forces, and energies if it has any
    n_steps : a multiple of ``every``
    observe : what is kept of positions (B, N, 3), (B, …)
    every : steps between values that are kept, a multiple of ``stride``
    stride : steps between evaluations of the reference

    Raises
    ------
    ValueError : numbers that are no multiples, positions without a batch, a potential that learns
    """
    if min(n_steps, every, stride) < 1 or n_steps % every or every % stride:
        raise ValueError(
            f"{n_steps=}, {every=}, {stride=}: expected positive numbers, each a multiple of the "
            "next"
        )
    if x.ndim != 3 or kernel.potential.has_memory:
        raise ValueError(
            f"positions {tuple(x.shape)} and {type(kernel.potential).__name__}: expected (B, N, 3) "
            "and a potential that does not learn"
        )
    energies = kernel.potential.conservative and reference.conservative
    state = kernel.init(x.double())
    true = evaluate(reference.terms, state.x)
    kT = float(torch.as_tensor(kernel.kT))

    def seen():
        values.append(_numpy(observe(state.x)))
        if energies:
            start.append(_numpy(-(true.energy - state.energy) / kT))

    values: list[np.ndarray] = []
    start: list[np.ndarray] = []
    increments, apart_by, held = [], [], []
    total, spent = torch.zeros_like(state.x[:, 0, 0]), torch.zeros_like(state.x[:, 0, 0])
    seen()
    for n in range(0, n_steps, stride):
        apart, kicks = true.forces - state.forces, torch.zeros_like(state.x)
        for _ in range(stride):
            before = kernel.mean(state.x, state.forces)
            state, _ = advance(kernel, state, noise)
            kicks = kicks + state.x - before
        cost = stride * kernel.divergence(apart, torch.zeros_like(apart))
        total = total + 0.5 * (kicks * apart.double()).sum((-2, -1)) / kT - cost
        spent = spent + cost
        true = evaluate(reference.terms, state.x)
        # |Δ(x_k) - Δ(x_n)|² grows linearly within a stride: on average (stride - 1)/2 steps of it
        moved = kernel.divergence(true.forces - state.forces, apart)
        held.append(_numpy(moved * (stride - 1) / (2 * stride)))
        if (n + stride) % every == 0:
            increments.append(_numpy(total))
            apart_by.append(_numpy(spent))
            total, spent = torch.zeros_like(total), torch.zeros_like(spent)
            seen()
    error = mean_estimate(np.array(held) / clock(kernel))
    return WeightedPaths(
        np.array(values),
        np.array(increments),
        np.array(apart_by),
        np.array(start) if energies else None,
        every * clock(kernel),
        error,
    )


def _counts(first: np.ndarray, last: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """(W, S, S) summed weights of the paths of each walker from i to j."""
    walkers = np.broadcast_to(np.arange(first.shape[1]), first.shape)
    inside = (first >= 0) & (last >= 0)
    index = (walkers * count + first) * count + last
    total = np.bincount(index[inside], weights[inside], minlength=first.shape[1] * count * count)
    return total.reshape(first.shape[1], count, count)


def _rows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (S, S) from counts (W, S, S), and errors by a jackknife over walkers."""

    def normalised(total: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / total.sum(-1, keepdims=True)

    total = counts.sum(0)
    groups = np.array_split(np.arange(len(counts)), min(_GROUPS, len(counts)))
    if len(groups) < 2:
        return normalised(total), np.full(total.shape, np.nan)
    left = [normalised(total - counts[group].sum(0)) for group in groups]
    return normalised(total), jackknife_error(np.array(left))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
