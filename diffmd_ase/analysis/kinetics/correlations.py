"""How fast a variable forgets: autocorrelation and integrated time, with errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..statistics import Estimate, correlation, jackknife_error
from .passages import ChainTooShort

__all__ = ["Autocorrelation", "autocorrelation"]

_GROUPS = 20  # of walkers
_LONG = 5.0  # integrated times that a walker must last


@dataclass(frozen=True, eq=False)
class Autocorrelation:
    """Of one variable; made by `autocorrelation`."""

    lags: np.ndarray  # (L,) in the unit of the spacing
    values: np.ndarray  # (L,) C(t), 1 at the first
    errors: np.ndarray  # (L,)
    time: Estimate  # integrated, ∫ C dt, in the unit of the spacing


def autocorrelation(values: np.ndarray, spacing: float) -> Autocorrelation:
    """Normalised autocorrelation and ``τ = spacing (½ + Σ_{t ≥ 1} C(t))`` up to the first zero.

    Errors are those of a jackknife over walkers.

    Parameters
    ----------
    values : (T, W) or (T, W, n), time first, two walkers at least; components are summed, an angle
        enters as `analysis.observables.angular_vectors`
    spacing : between frames

    Raises
    ------
    ValueError : another shape, a constant
    ChainTooShort : walkers of fewer than five integrated times
    """
    a = np.asarray(values, dtype=float)
    if a.ndim not in (2, 3) or a.shape[1] < 2 or len(a) < 4:
        raise ValueError(
            f"values {a.shape}: expected (T, W) or (T, W, n) with four frames and two walkers at "
            "least, whose spread is the error"
        )
    if np.ptp(a, axis=(0, 1)).max() == 0:
        raise ValueError("a constant: it has no correlation time")
    whole = correlation(a)
    end = _first_zero(whole)
    tau = spacing * (0.5 + whole[1:end].sum())
    if not tau * _LONG <= spacing * len(a):
        raise ChainTooShort(
            f"walkers of {spacing * len(a):.3g} are not {_LONG:g} times as long as the integrated "
            f"time, {tau:.3g} or more: run longer"
        )
    groups = np.array_split(np.arange(a.shape[1]), min(_GROUPS, a.shape[1]))
    left = np.array([correlation(np.delete(a, group, axis=1)) for group in groups])
    # each up to a zero of its own: where to stop is uncertain too
    times = [spacing * (0.5 + row[1 : _first_zero(row)].sum()) for row in left]
    n_effective = a.shape[0] * a.shape[1] * spacing / (2 * tau)
    return Autocorrelation(
        spacing * np.arange(end),
        whole[:end],
        jackknife_error(left)[:end],
        Estimate(float(tau), float(jackknife_error(times)), float(n_effective)),
    )


def _first_zero(c: np.ndarray) -> int:
    crossed = c <= 0
    return int(crossed.argmax()) if crossed.any() else len(c)
