"""Are these chains long enough? Rank R-hat, effective samples, errors, and a verdict.

A number of a chain is worth its error bar, and that is worth the mixing of the walkers.
Here the estimators of the field judge both: split rank R-hat, bulk and tail effective
sample sizes and Monte Carlo standard errors of Vehtari et al., Bayesian Analysis 16, 667
(2021), nested R-hat of Margossian et al., Bayesian Analysis 19 (2024) for many short chains
(`arviz_stats`), and the statistical inefficiency of Chodera et al., JCTC 3, 26 (2007)
(`statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .statistics import statistical_inefficiency

__all__ = ["Diagnosis", "diagnose", "diagnose_angle", "verdict"]

_MIXED, _NEARLY = 1.01, 1.05  # R-hat: Vehtari et al. 2021, and what was usual before
_ENOUGH, _FEW = 400.0, 100.0  # effective samples; below the first R-hat itself is noisy
_TAILS = (0.05, 0.95)  # the quantiles of the tail
_SHORTEST = 8  # frames; estimators split chains in halves


@dataclass(frozen=True)
class Diagnosis:
    """What a series says of itself."""

    name: str  # of the row
    frames: int  # that were used
    walkers: int
    mean: float  # in the unit of the series
    std: float  # likewise
    error: float  # Monte Carlo standard error of the mean
    ess_bulk: float  # effective samples, of all walkers, for the mean
    ess_tail: float  # and for the 5 and 95 % quantiles
    rhat: float  # split rank R-hat; 1 if walkers and halves agree
    rhat_nested: float | None  # of groups of walkers with one start
    inefficiency: float  # g, frames from one independent sample to the next
    good: bool | None  # True enough, None usable with care, False not
    words: str  # why


def diagnose(name: str, series: np.ndarray, *, groups: np.ndarray | None = None) -> Diagnosis:
    """Judge a series (T,) or (T, W), time first.

    Parameters
    ----------
    name : what the row and the messages call it
    series : numbers in any unit, that of mean, std and error
    groups : (W,) number of the start that each walker had: walkers of one start are a
        superchain, and nested R-hat replaces the rank R-hat in the verdict

    Raises
    ------
    ValueError : fewer than 8 frames, numbers that are not finite, groups of different sizes
    """
    a = _checked(name, series)
    if np.ptp(a) == 0:
        return _constant(name, a)
    numbers = _mixing(a[None], groups)
    error = float(_stats().mcse(a.T, method="mean"))
    return _judged(name, a, float(a.mean()), float(a.std()), error, numbers)


def diagnose_angle(name: str, angle: np.ndarray, *, groups: np.ndarray | None = None) -> Diagnosis:
    """As `diagnose`, for an angle in rad; mean, std and error in degrees.

    Mixing is that of cos φ and sin φ, the worse of the two. With ``R e^{iμ} = <e^{iφ}>`` the
    mean is μ, the std ``sqrt(-2 ln R)``, and the error that of ``<sin(φ - μ)>/R`` (Fisher,
    Statistical Analysis of Circular Data, 1993). ``angle`` is (T,) or (T, W); ``name``, ``groups``
    and errors are those of `diagnose`.
    """
    a = _checked(name, angle)
    both = np.stack((np.cos(a), np.sin(a)))
    if np.ptp(a) == 0:
        return _constant(name, np.degrees(a))
    numbers = _mixing(both, groups)
    mean = np.exp(1j * a).mean()
    length, centre = abs(mean), np.angle(mean)
    std = math.sqrt(-2.0 * math.log(min(length, 1.0)))
    error = float(_stats().mcse(np.sin(a - centre).T, method="mean")) / length
    degrees = math.degrees
    return _judged(name, a, degrees(centre), degrees(std), degrees(error), numbers)


def verdict(rows: Mapping[str, Diagnosis] | list[Diagnosis]) -> tuple[bool | None, str]:
    """Of all observables together: (good, text), good None where they are usable with care.

    ``rows``: their diagnoses, alone or by name. The worst one is told in words.
    """
    every = rows.values() if isinstance(rows, Mapping) else rows
    judged = [row for row in every if not math.isnan(row.rhat)]
    if not judged:
        return None, "no observable changes: there is nothing to judge"
    bad = [row for row in judged if row.good is False]
    rough = [row for row in judged if row.good is None]
    if not bad and not rough:
        return True, f"converged: all {len(judged)} observables have enough independent samples"
    worst = min(bad or rough, key=lambda row: row.ess_bulk)
    if bad:
        words = f"not converged: {len(bad)} of {len(judged)} observables are not to be trusted"
        return False, f"{words}, worst {worst.name} ({worst.words})"
    words = f"usable with care: error bars of {len(rough)} of {len(judged)} observables are rough"
    return None, f"{words}, worst {worst.name} ({worst.words})"


def _checked(name: str, series: np.ndarray) -> np.ndarray:
    a = np.asarray(series, dtype=float)
    a = a[:, None] if a.ndim == 1 else a
    if a.ndim != 2 or not a.shape[1]:
        raise ValueError(
            f"{name}: a series of shape {np.shape(series)}; expected (T,) or (T, W) with at least "
            "one walker"
        )
    if len(a) < _SHORTEST:
        raise ValueError(
            f"{name}: {len(a)} frames are too few to judge, expected at least {_SHORTEST}: run "
            "longer, write frames more often, or leave fewer out"
        )
    if not np.isfinite(a).all():
        lost = np.flatnonzero(~np.isfinite(a).all(0)).tolist()
        raise ValueError(f"{name}: columns {lost} are not finite: leave lost walkers out")
    return a


def _constant(name: str, a: np.ndarray) -> Diagnosis:
    nan = float("nan")
    words = "constant: it says nothing of mixing"
    value = float(a.flat[0])
    return Diagnosis(
        name, len(a), a.shape[1], value, 0.0, 0.0, nan, nan, nan, None, nan, None, words
    )


def _mixing(parts: np.ndarray, groups: np.ndarray | None):
    """ESS bulk and tail, R-hat, nested R-hat and g of parts (P, T, W): the worst of the parts."""
    stats = _stats()
    moving = [part for part in parts if np.ptp(part) > 0]
    bulk = min(float(stats.ess(p.T, method="bulk")) for p in moving)
    tail = min(float(stats.ess(p.T, method="tail", prob=_TAILS)) for p in moving)
    rhat = max(float(stats.rhat(_chains(p), method="rank")) for p in moving)
    nested = None
    if groups is not None:
        _, sizes = np.unique(groups, return_counts=True)
        if len(sizes) < 2 or len(set(sizes.tolist())) > 1 or sizes[0] < 2:
            raise ValueError(
                f"groups of {sizes.tolist()} walkers: nested R-hat needs two or more of one size, "
                "of at least two walkers"
            )
        ids = np.asarray(groups)
        nested = max(float(stats.rhat_nested(p.T, ids, method="rank")) for p in moving)
    return bulk, tail, rhat, nested, max(map(statistical_inefficiency, moving))


def _judged(name, a: np.ndarray, mean, std, error, numbers) -> Diagnosis:
    bulk, tail, rhat, nested, g = numbers
    agreement, kind = (rhat, "R-hat") if nested is None else (nested, "nested R-hat")
    fewest = min(bulk, tail)
    if not agreement <= _NEARLY:
        what = "walkers" if a.shape[1] > 1 else "halves of the run"
        good, words = False, f"{what} disagree ({kind} {agreement:.2f}): run longer"
    elif not fewest >= _FEW:
        times = math.ceil(_ENOUGH / max(fewest, 1.0))
        good, words = False, f"only {fewest:.0f} effective samples: run {times} times longer"
    elif agreement > _MIXED:
        good, words = None, f"walkers agree roughly ({kind} {agreement:.3f})"
    elif fewest < _ENOUGH:
        good, words = None, f"{fewest:.0f} effective samples: error bars are rough"
    else:
        good, words = True, f"{fewest:.0f} effective samples"
    frames, walkers = a.shape
    return Diagnosis(
        name, frames, walkers, mean, std, error, bulk, tail, rhat, nested, g, good, words
    )


def _chains(part: np.ndarray) -> np.ndarray:
    """Chains (W, T); of one walker its halves, for R-hat compares two at least."""
    if part.shape[1] > 1:
        return part.T
    return part[: len(part) // 2 * 2].reshape(2, -1)


def _stats():
    from arviz_stats.base import array_stats

    return array_stats
