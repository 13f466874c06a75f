"""Entries of the card where more is known of the data: energies, forces, temperature."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from .comparisons import Torsions
from .scorecard import Entry, Goals, entry
from .statistics import std_estimate

__all__ = ["calibration_entry", "force_entries", "label_entries", "temperature_entry"]


def label_entries(
    true: np.ndarray, model: np.ndarray, kT: float, torsions: Torsions | None, angles, goals: Goals
) -> list[Entry]:
    """Energies (M,) in eV where the reference is known: spread, correlation, offsets of modes.

    ``angles`` (M, n) of the torsions of the same frames.
    """
    gap = (true - model) / kT
    n = len(gap)
    std = std_estimate(gap)
    r = float(np.corrcoef(true, model)[0, 1])
    found = [
        entry("labels", "std of U - E, kT", std.value, std.error, goal=goals.energy_std),
        entry(
            "labels",
            "energy correlation",
            r,
            (1 - r**2) / np.sqrt(n),
            expected=1.0,
            goal=goals.energy_correlation,
        ),
    ]
    for name, k, a, b in torsions.parted if torsions is not None else []:
        in_a, in_b = a(angles[:, k]), b(angles[:, k])
        if in_b.sum() < 2 or in_a.sum() < 2:
            continue
        offset = gap[in_b].mean() - gap[in_a].mean()
        error = np.hypot(*(gap[m].std() / np.sqrt(m.sum()) for m in (in_a, in_b)))
        found.append(
            entry(
                "labels",
                f"U - E in {name}, kT",
                offset,
                error,
                goal=goals.offset,
                words=f"mean there minus mean in {a}; {int(in_b.sum())} frames there",
            )
        )
    if r > 0.9:
        slope = np.cov(true, model)[0, 1] / model.var(ddof=1)
        error = slope * np.sqrt((1 - r**2) / n) / r
        found.append(
            entry(
                "temperature",
                "T by energies / label",
                slope,
                error,
                expected=1.0,
                goal=goals.temperature,
                words="slope of U over E: -ln p of the data is U/kT of the true temperature",
            )
        )
    return found


def force_entries(true: np.ndarray, model: np.ndarray, goals: Goals) -> list[Entry]:
    """Forces (M, N, 3) in eV/Å where the reference is known; jackknife over groups of frames."""
    groups = np.arange(len(true)) % min(20, len(true))

    def both(keep) -> np.ndarray:
        a, b = true[keep].ravel(), model[keep].ravel()
        relative = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
        return np.array([np.corrcoef(a, b)[0, 1], relative])

    full = both(slice(None))
    left = np.array([both(groups != g) for g in range(groups.max() + 1)])
    error = left.std(0) * np.sqrt(len(left) - 1)
    goal = goals.force_correlation
    return [
        entry("labels", "force correlation", full[0], error[0], expected=1.0, goal=goal),
        entry("labels", "force error, relative", full[1], error[1], goal=None),
    ]


def temperature_entry(
    square: Tensor, divergence: Tensor, n_effective: float, goals: Goals
) -> Entry:
    """The configurational temperature of frames in the model's forces, over the model's own.

        T/T_model = ⟨|F|²⟩ / (kT_model ⟨-∇·F⟩)

    which is 1 for frames of the model's law (Rugh, PRL 78, 772 (1997); Butler et al.,
    J. Chem. Phys. 109, 6519 (1998)): stiff bonds weigh most. Bonds that are wider than
    the model's by a factor f in variance give f.

    Parameters
    ----------
    square, divergence : (M,) of |F|²/kT and -∇·F in eV/Å²
    """
    ratio = float(square.mean() / divergence.mean())
    influence = (square - ratio * divergence) / divergence.mean()
    error = float(influence.std()) / max(1.0, min(len(square), n_effective)) ** 0.5
    return entry(
        "temperature",
        "T by forces / model's",
        ratio,
        error,
        expected=1.0,
        goal=goals.temperature,
        words="configurational temperature: widths of stiff bonds",
    )


def calibration_entry(members: np.ndarray, true: np.ndarray, goals: Goals) -> Entry:
    """Forces (C, M, N, 3) of a committee: is its spread the error of its mean?"""
    spread = members.std(0, ddof=1) * np.sqrt(1 + 1 / len(members))
    error = members.mean(0) - true
    ratio = np.sqrt(np.mean(error**2) / np.mean(spread**2))
    each = [np.sqrt(np.mean(v**2, axis=(1, 2))) for v in (error, spread)]
    # the error of the ratio: of frames
    half = np.std(np.log(each[0] / each[1])) / np.sqrt(len(true))
    rank = float(spearmanr(*each).statistic)
    return entry(
        "uncertainty",
        "force error over spread",
        ratio,
        ratio * half,
        expected=1.0,
        goal=goals.calibration,
        words=f"rank correlation of error and spread over frames {rank:.2f}",
    )
