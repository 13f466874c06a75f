"""Error bars: correlated series, and free-energy differences.

Series have time first and walkers second: (T,) or (T, W). The mean is pooled over walkers,
so a walker that never leaves its basin shows up as a long correlation time instead of a
small error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._moved import forward

__all__ = [
    "Estimate",
    "basin_free_energy",
    "correlation",
    "jackknife_error",
    "mean_estimate",
    "statistical_inefficiency",
    "std_estimate",
]

_MIN_LAGS = 3  # as pymbar: noise may cross zero at the first lags


class Estimate(NamedTuple):
    """A number and how well it is known."""

    value: float  # the number
    error: float  # its standard error, in its unit
    n_effective: float  # independent samples behind it

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"

    def to_dict(self) -> dict[str, float | None]:
        """Value and error by name; None, as in JSON, where they are not finite."""
        value, error = (v if math.isfinite(v) else None for v in self[:2])
        return {"value": value, "error": error}


def correlation(a: np.ndarray) -> np.ndarray:
    """Normalised autocorrelation of a series (T,) or (T, W, …), averaged over all but time.

    ``C(t) = Σ_w Σ_n δa(n) δa(n+t) / ((T-t) W σ²)`` with ``δa = a - mean`` over time and
    walkers, by FFT; axes after the second (components of a vector) are summed, so that an
    angle enters as (cos, sin).
    """
    a = np.asarray(a, dtype=float)
    a = a.reshape(a.shape[0], 1) if a.ndim == 1 else a
    delta = a - a.mean(axis=(0, 1))
    count = len(delta)
    spectrum = np.fft.rfft(delta, n=2 * count, axis=0)
    raw = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:count]
    raw = raw.sum(axis=tuple(range(1, raw.ndim))) / np.arange(count, 0, -1)
    return np.ones(count) * np.nan if raw[0] <= 0 else raw / raw[0]


def statistical_inefficiency(a: np.ndarray) -> float:
    """``g = 1 + 2 Σ_t (1 - t/T) C(t) ≥ 1``, summed up to the first zero of C.

    The estimator of ``pymbar.timeseries.statistical_inefficiency_multiple`` (Chodera et al.,
    JCTC 3, 26 (2007)), by FFT. A constant series has g = T: it says nothing.
    """
    c = correlation(a)
    count = len(c)
    if np.isnan(c[0]):
        return float(count)
    lags = np.arange(1, count - 1)
    crossed = (c[1:-1] <= 0) & (lags > _MIN_LAGS)
    last = int(np.argmax(crossed)) if crossed.any() else len(lags)
    g = 1.0 + 2.0 * np.sum((1.0 - lags[:last] / count) * c[1 : last + 1])
    return float(max(1.0, g))


def mean_estimate(a: np.ndarray) -> Estimate:
    """Mean over time and walkers of (T,) or (T, W), error ``σ sqrt(g/(T W))``.

    With 8 walkers or more the spread of their means, ``std(ā_w)/sqrt(W)``, is computed as
    well and the larger error is given.
    """
    a = np.asarray(a, dtype=float)
    n_effective = a.size / statistical_inefficiency(a)
    error = a.std() / np.sqrt(max(n_effective - 1.0, 1.0))
    if a.ndim == 2 and a.shape[1] >= 8:
        error = max(error, a.mean(0).std(ddof=1) / np.sqrt(a.shape[1]))
    return Estimate(float(a.mean()), float(error), float(n_effective))


def std_estimate(a: np.ndarray) -> Estimate:
    """Standard deviation of (T,) or (T, W), with ``err(σ) = err(σ²)/(2σ)``."""
    a = np.asarray(a, dtype=float)
    variance = mean_estimate((a - a.mean()) ** 2)
    sigma = np.sqrt(variance.value)
    error = variance.error / (2.0 * sigma) if sigma > 0 else 0.0
    return Estimate(float(sigma), float(error), variance.n_effective)


def jackknife_error(left) -> np.ndarray:
    """Standard error from estimates ``left`` (G, …), each made without one of G groups.

    ``sqrt((G - 1)/G Σ_g (θ_g - θ̄)²)`` (Efron & Stein, Ann. Stat. 9, 586 (1981)).
    """
    return np.std(left, axis=0) * np.sqrt(len(left) - 1)


def basin_free_energy(in_a: np.ndarray, in_b: np.ndarray, *, kT: float = 1.0) -> Estimate:
    """``ΔF = F_B - F_A = -kT ln(p_B/p_A)`` from series of whether a walker is in A, and in B.

    The error is that of the mean of ``1_B/p_B - 1_A/p_A`` times kT, so that correlations
    in time and between the two are in it. An empty basin gives an infinite value with an
    undefined error (nan). ``in_a`` and ``in_b`` are boolean, (T,) or (T, W);
    the value has the unit of ``kT``.
    """
    in_a, in_b = np.asarray(in_a, float), np.asarray(in_b, float)
    p_a, p_b = in_a.mean(), in_b.mean()
    if p_a == 0 or p_b == 0:
        value = np.nan if p_a == p_b else np.inf * (1.0 if p_b == 0 else -1.0)
        return Estimate(float(value), float("nan"), 0.0)
    influence = mean_estimate(in_b / p_b - in_a / p_a)
    return Estimate(float(-kT * np.log(p_b / p_a)), kT * influence.error, influence.n_effective)


__getattr__ = forward(__name__, "analysis.divergence")
