"""Markov models of trajectories in states, by deeptime behind two functions.

Transition probabilities at a lag, reversible; implied timescales ``-t/ln λ_i``; mean first passage
times. Errors are those of the Bayesian posterior (Trendelkamp-Schroer et al., J. Chem. Phys. 143,
174101 (2015)) with counts thinned to independent ones, and of a bootstrap over walkers as a second
opinion; the larger is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...libraries import quiet_deeptime
from ..statistics import Estimate
from .passages import ChainTooShort

__all__ = ["Consistency", "MarkovModel", "chapman_kolmogorov", "markov_model"]

_FEWEST = 10  # transitions into and out of each state


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A reversible Markov model; made by `markov_model`."""

    lag: float  # in the unit of the spacing
    transitions: np.ndarray  # (S, S) probabilities at that lag
    populations: list[Estimate]  # (S,) of the stationary law
    timescales: list[Estimate]  # (S - 1,) implied, slowest first, in the unit of the spacing
    samples: list[Any]  # models of the posterior and of the bootstrap, of deeptime
    spacing: float  # between frames
    frames: int  # of the lag

    def mfpt(self, start: Sequence[int], end: Sequence[int]) -> Estimate:
        """Mean first passage time from the states ``start`` to the states ``end``.

        Raises ``ValueError`` for sets that overlap or are empty.
        """
        a, b = _sets(start, end)
        return _estimate(lambda model: model.mfpt(a, b) * self.spacing, self.samples)

    def committor(self, start: Sequence[int], end: Sequence[int]) -> list[Estimate]:
        """(S,) probability of each state to come to ``end`` before ``start``. Raises as `mfpt`."""
        a, b = _sets(start, end)
        return _each(lambda model: model.committor_forward(a, b), self.samples)

    def flux(self, start: Sequence[int], end: Sequence[int]) -> Estimate:
        """Reactive paths from ``start`` to ``end`` in a unit of time (of the spacing).

        Of transition path theory (Metzner et al., Multiscale Model. Simul. 7, 1192 (2009)), at the
        lag of the model: paths there and back within a lag are not seen. Raises as `mfpt`.
        """
        a, b = _sets(start, end)
        return _estimate(
            lambda model: model.reactive_flux(a, b).total_flux / self.lag, self.samples
        )


@dataclass(frozen=True)
class Consistency:
    """Whether a Markov model predicts a multiple of its lag; made by `chapman_kolmogorov`."""

    lag: float  # in the unit of the spacing
    difference: float  # the largest, of a probability
    error: float  # of that one, by a bootstrap over walkers
    z: float  # the largest |difference| of a probability over its error


def markov_model(
    states: np.ndarray,
    lag: int,
    spacing: float,
    *,
    posterior: int = 50,
    bootstrap: int = 20,
    seed: int = 0,
) -> MarkovModel:
    """A Markov model of ``states`` (T, W), numbered from 0.

    Parameters
    ----------
    lag : frames
    spacing : between frames
    posterior, bootstrap : models drawn, of the posterior and over walkers

    Raises
    ------
    ValueError : states that are negative, one state only, a lag that does not fit
    ChainTooShort : a state with fewer than ten transitions in or out
    ImportError : no deeptime
    """
    s = np.asarray(states)
    if s.ndim != 2 or s.min(initial=0) < 0:
        raise ValueError(f"states {s.shape}: expected (T, W) with numbers from 0, one every frame")
    count = int(s.max()) + 1
    if count < 2:
        raise ValueError("one state only: there is no kinetics in that")
    if not 1 <= lag < len(s):
        raise ValueError(f"{lag=} of {len(s)} frames: expected at least 1, and fewer")
    moves = np.zeros((count, count), int)
    np.add.at(moves, (s[:-lag].ravel(), s[lag:].ravel()), 1)
    np.fill_diagonal(moves, 0)
    fewest = min(moves.sum(0).min(), moves.sum(1).min())
    if fewest < _FEWEST:
        raise ChainTooShort(
            f"a state with {fewest} transitions in or out at this lag: expected at least {_FEWEST} "
            "of each; run longer, or join states"
        )
    markov = quiet_deeptime("markov", "Markov models")
    best = _fitted(markov, s, lag)
    bayes = markov.msm.BayesianMSM(n_samples=posterior).fit_fetch(_counted(markov, s, lag, True))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(bootstrap if s.shape[1] > 1 else 0):
        rows = rng.integers(s.shape[1], size=s.shape[1])
        try:
            again = _fitted(markov, s[:, rows], lag)
        except ValueError:  # not connected without the others
            continue
        if again.n_states == count:
            drawn.append(again)
    samples = [best, list(bayes.samples), drawn]
    populations = _each(lambda m: m.stationary_distribution, samples)
    times = _each(lambda m: _timescales(m) * spacing, samples)
    return MarkovModel(
        lag * spacing, best.transition_matrix, populations, times, samples, spacing, lag
    )


def chapman_kolmogorov(
    states: np.ndarray,
    lag: int,
    spacing: float,
    *,
    multiples: Sequence[int] = (2, 3, 4),
    bootstrap: int = 20,
    seed: int = 0,
) -> list[Consistency]:
    """How far ``P(lag)^k`` is from P(k lag), for each k of the ``multiples``.

    Parameters
    ----------
    states : (T, W), numbered from 0
    lag : frames
    spacing : between frames
    bootstrap : draws of walkers, for the errors
    seed : of these draws

    Raises as `markov_model`.
    """
    first = markov_model(states, lag, spacing, posterior=2, bootstrap=0)
    s, markov, told = np.asarray(states), quiet_deeptime("markov", "Markov models"), []
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(bootstrap if s.shape[1] > 1 else 0):
        drawn.append(s[:, rng.integers(s.shape[1], size=s.shape[1])])
    for k in multiples:
        apart = _apart(markov, s, lag, k, len(first.transitions))
        again = [_apart(markov, other, lag, k, len(first.transitions)) for other in drawn]
        spread = np.std([a for a in again if a is not None] or [apart * np.nan], axis=0, ddof=1)
        largest = np.unravel_index(np.abs(apart).argmax(), apart.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.abs(apart) / spread
        worst = float(np.nanmax(z)) if np.isfinite(z).any() else float("nan")
        told.append(
            Consistency(
                k * lag * spacing, float(np.abs(apart[largest])), float(spread[largest]), worst
            )
        )
    return told


def _apart(markov, states: np.ndarray, lag: int, k: int, count: int) -> np.ndarray | None:
    """``P(lag)^k - P(k lag)``, or None where a state is missing."""
    try:
        one, there = (_fitted(markov, states, n) for n in (lag, lag * k))
    except ValueError:  # not connected
        return None
    if one.n_states != count or there.n_states != count:
        return None
    return np.linalg.matrix_power(one.transition_matrix, k) - there.transition_matrix


def _sets(start: Sequence[int], end: Sequence[int]) -> tuple[list[int], list[int]]:
    if not start or not end or set(start) & set(end):
        raise ValueError(f"sets {start} and {end}: expected states in each, and none in both")
    return list(start), list(end)


def _estimate(value: Callable[[Any], float], samples: list[Any]) -> Estimate:
    best, posterior, drawn = samples
    errors = [np.std([value(m) for m in of], ddof=1) for of in (posterior, drawn) if len(of) > 1]
    return Estimate(float(value(best)), float(max(errors, default=np.nan)), float(len(posterior)))


def _each(values: Callable[[Any], np.ndarray], samples: list[Any]) -> list[Estimate]:
    def one(i: int) -> Estimate:
        return _estimate(lambda model: values(model)[i], samples)

    return [one(i) for i in range(len(values(samples[0])))]


def _timescales(model) -> np.ndarray:
    """In lags; of drawn models some eigenvalues are complex, which deeptime would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return model.timescales()


def _counted(markov, states: np.ndarray, lag: int, effective: bool):
    mode = "effective" if effective else "sliding"
    columns = [np.ascontiguousarray(c.astype(np.int32)) for c in states.T]
    return markov.TransitionCountEstimator(lagtime=lag, count_mode=mode).fit_fetch(columns)


def _fitted(markov, states: np.ndarray, lag: int):
    return markov.msm.MaximumLikelihoodMSM().fit_fetch(_counted(markov, states, lag, False))
