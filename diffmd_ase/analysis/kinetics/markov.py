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

from ..statistics import Estimate
from .passages import ChainTooShort

__all__ = ["MarkovModel", "chapman_kolmogorov", "markov_model"]

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
        if not start or not end or set(start) & set(end):
            raise ValueError(f"sets {start} and {end}: expected states in each, and none in both")
        return _estimate(
            lambda model: model.mfpt(list(start), list(end)) * self.spacing, self.samples
        )


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
    markov = _deeptime()
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
    times = _each(lambda m: m.timescales() * spacing, samples)
    return MarkovModel(
        lag * spacing, best.transition_matrix, populations, times, samples, spacing, lag
    )


def chapman_kolmogorov(
    states: np.ndarray, lag: int, spacing: float, *, multiples: Sequence[int] = (2, 3, 4)
) -> list[tuple[float, float]]:
    """How far ``P(lag)^k`` is from P(k lag), for each k of the ``multiples``.

    Parameters
    ----------
    states : (T, W), numbered from 0
    lag : frames
    spacing : between frames

    Returns
    -------
    Lag ``k lag`` in the unit of the spacing, and the largest difference of a probability. Raises as
    `markov_model`.
    """
    first = markov_model(states, lag, spacing, posterior=2, bootstrap=0)
    markov, told = _deeptime(), []
    for k in multiples:
        there = _fitted(markov, np.asarray(states), lag * k).transition_matrix
        apart = np.abs(np.linalg.matrix_power(first.transitions, k) - there).max()
        told.append((k * lag * spacing, float(apart)))
    return told


def _estimate(value: Callable[[Any], float], samples: list[Any]) -> Estimate:
    best, posterior, drawn = samples
    errors = [np.std([value(m) for m in of], ddof=1) for of in (posterior, drawn) if len(of) > 1]
    return Estimate(float(value(best)), float(max(errors, default=np.nan)), float(len(posterior)))


def _each(values: Callable[[Any], np.ndarray], samples: list[Any]) -> list[Estimate]:
    def one(i: int) -> Estimate:
        return _estimate(lambda model: values(model)[i], samples)

    return [one(i) for i in range(len(values(samples[0])))]


def _counted(markov, states: np.ndarray, lag: int, effective: bool):
    mode = "effective" if effective else "sliding"
    columns = [np.ascontiguousarray(c.astype(np.int32)) for c in states.T]
    return markov.TransitionCountEstimator(lagtime=lag, count_mode=mode).fit_fetch(columns)


def _fitted(markov, states: np.ndarray, lag: int):
    return markov.msm.MaximumLikelihoodMSM().fit_fetch(_counted(markov, states, lag, False))


def _deeptime():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from deeptime import markov
    except ImportError as error:
        raise ImportError(
            "Markov models need deeptime: pip install 'diffmd-ase[kinetics]', or pip install "
            "deeptime"
        ) from error
    return markov
