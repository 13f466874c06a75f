"""The slowest linear combinations of variables: TICA and VAMP scores, by deeptime.

TICA (Perez-Hernandez et al., J. Chem. Phys. 139, 015102 (2013)) finds the combinations of features
with the largest autocorrelation λ at a lag, whose times are ``-lag/ln λ`` (for a reversible chain a
lower bound of the true ones). The VAMP-2 score ``Σ σ²`` (Wu & Noe, J. Nonlinear Sci. 30, 23 (2020))
says how much of the slow motion features hold; here on walkers that were not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...libraries import quiet_deeptime
from ..statistics import Estimate

__all__ = ["SlowModes", "slow_modes", "vamp_score"]


@dataclass(frozen=True, eq=False)
class SlowModes:
    """Of features at one lag; made by `slow_modes`."""

    lag: float  # in the unit of the spacing
    timescales: list[Estimate]  # (k,) slowest first, in the unit of the spacing
    model: Any  # of deeptime

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Values (T, W, k) of the modes of ``features`` (T, W, m)."""
        flat = np.asarray(features, float).reshape(-1, np.shape(features)[-1])
        return self.model.transform(flat).reshape(*np.shape(features)[:-1], -1)


def slow_modes(
    features: np.ndarray,
    lag: int,
    spacing: float,
    *,
    count: int = 2,
    bootstrap: int = 20,
    seed: int = 0,
) -> SlowModes:
    """The ``count`` slowest modes (TICA), errors by a bootstrap over walkers.

    Parameters
    ----------
    features : (T, W, m), as of `Variables.features`
    lag : frames
    spacing : between frames
    bootstrap : draws of walkers
    seed : of these draws

    Raises
    ------
    ValueError : another shape, a lag that does not fit, more modes than independent features
    ImportError : no deeptime
    """
    x = _checked(features, lag)
    decomposition = quiet_deeptime("decomposition", "TICA and VAMP")

    def fitted(values: np.ndarray):
        return decomposition.TICA(dim=count).fit_from_timeseries(_pairs(values, lag)).fetch_model()

    def times(model) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return -lag * spacing / np.log(np.abs(model.singular_values[:count]))

    model, rng, drawn = fitted(x), np.random.default_rng(seed), []
    best = times(model)
    if len(best) < count:
        raise ValueError(f"{count} modes of {len(best)} independent features: ask for fewer")
    for _ in range(bootstrap if x.shape[1] > 1 else 0):
        drawn.append(times(fitted(x[:, rng.integers(x.shape[1], size=x.shape[1])]))[:count])
    whole = [row for row in drawn if len(row) == count]
    errors = np.std(whole, axis=0, ddof=1) if len(whole) > 1 else np.full(count, np.nan)
    rows = [Estimate(float(v), float(e), float("nan")) for v, e in zip(best, errors, strict=True)]
    return SlowModes(lag * spacing, rows, model)


def vamp_score(
    features: np.ndarray, lag: int, *, count: int = 2, splits: int = 10, seed: int = 0
) -> Estimate:
    """VAMP-2 score of the ``count`` slowest modes on half of the walkers, fitted on the others.

    The value is the mean over random halves, with their spread as error; the largest possible is
    count + 1 with the constant, which is counted.

    Parameters
    ----------
    features : (T, W, m) with two walkers at least
    lag : frames
    splits : halves drawn
    seed : of these

    Raises as `slow_modes`.
    """
    x = _checked(features, lag)
    if x.shape[1] < 2:
        raise ValueError("one walker: a score needs walkers that were not fitted, two at least")
    decomposition, rng, found = (
        quiet_deeptime("decomposition", "TICA and VAMP"),
        np.random.default_rng(seed),
        [],
    )
    for _ in range(splits):
        order = rng.permutation(x.shape[1])
        half = len(order) // 2
        here, there = (
            decomposition.VAMP(dim=count).fit_from_timeseries(_pairs(x[:, rows], lag)).fetch_model()
            for rows in (order[:half], order[half:])
        )
        found.append(here.score(2, test_model=there))
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1)), float(splits))


def _checked(features: np.ndarray, lag: int) -> np.ndarray:
    x = np.asarray(features, float)
    if x.ndim != 3 or not 1 <= lag < len(x):
        raise ValueError(
            f"features {x.shape} at {lag=}: expected (T, W, m), and a lag of 1 to T - 1 frames"
        )
    return x


def _pairs(x: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    flat = (v.reshape(-1, x.shape[-1]) for v in (x[:-lag], x[lag:]))
    first, last = flat
    return np.ascontiguousarray(first), np.ascontiguousarray(last)
