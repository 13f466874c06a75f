"""Lines of the card where more is known of the frames: energies, forces, temperature."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from ..analysis.statistics import jackknife_error, std_estimate
from ..score.curvature import temperature_ratio
from .comparisons import Torsions
from .scorecard import Goals, Line, line

__all__ = [
    "calibration_line",
    "energy_label_lines",
    "error_bar_line",
    "force_lines",
    "temperature_line",
]

_GROUPS = 20  # of frames, for the jackknife


def energy_label_lines(
    true: np.ndarray, model: np.ndarray, kT: float, torsions: Torsions, angles, goals: Goals
) -> list[Line]:
    """Energies where the reference is known: spread, correlation, offsets of modes, temperature.

    Parameters
    ----------
    true, model : (M,) in eV, of the same frames
    torsions : gives the modes
    angles : (M, n) of them in rad
    goals : ``energy_std``, ``energy_correlation``, ``offset`` and ``temperature`` hold
    """
    gap = (true - model) / kT
    std, n = std_estimate(gap), len(gap)
    r = float(np.corrcoef(true, model)[0, 1])
    goal, error = goals.energy_correlation, (1 - r**2) / np.sqrt(n)
    lines = [
        line("labels", "std of U - E, kT", std.value, std.error, goal=goals.energy_std),
        line("labels", "energy correlation", r, error, expected=1.0, goal=goal),
    ]
    for name, k, a, b in torsions.parted:
        in_a, in_b = gap[a(angles[:, k])], gap[b(angles[:, k])]
        if min(len(in_a), len(in_b)) < 2:
            continue
        offset, error = in_b.mean() - in_a.mean(), np.hypot(_standard(in_a), _standard(in_b))
        words = f"mean there minus mean in {a}; {len(in_b)} frames there"
        name = f"U - E in {name}, kT"
        lines.append(line("labels", name, offset, error, goal=goals.offset, words=words))
    slope = true.std(ddof=1) / model.std(ddof=1)
    error = slope * np.sqrt((1 - r**2) / n) / abs(r)
    return [*lines, _label_temperature("energies", slope, error, r, goals)]


def force_lines(true: np.ndarray, model: np.ndarray, goals: Goals) -> list[Line]:
    """Forces where the reference is known: correlation, error, temperature.

    ``true`` and ``model`` (M, N, 3) in eV/Å; errors by a jackknife over groups of frames;
    ``force_correlation`` and ``temperature`` of the ``goals`` hold.
    """
    groups = np.arange(len(true)) % min(_GROUPS, len(true))

    def of(keep) -> np.ndarray:
        a, b = true[keep].ravel(), model[keep].ravel()
        relative = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
        return np.array([np.corrcoef(a, b)[0, 1], relative, np.sqrt(a @ a / (b @ b))])

    (r, relative, slope), left = of(slice(None)), [of(groups != g) for g in set(groups)]
    errors = jackknife_error(left)
    goal = goals.force_correlation
    return [
        line("labels", "force correlation", r, errors[0], expected=1.0, goal=goal),
        line("labels", "force error, relative", relative, errors[1], goal=None),
        _label_temperature("forces", slope, errors[2], r, goals),
    ]


def _label_temperature(kind: str, slope: float, error: float, r: float, goals: Goals) -> Line:
    """-ln p of the data is U/kT of the true temperature, hence U over E has the slope T/T_label.

    Both have errors: those of a noisy model make the slope of U over E r times as large as it is,
    those of a model that knows less than it should that of E over U. ``std(U)/std(E)`` lies between
    the two, whose distance is part of its error. Of a model that does not know the energies nothing
    can be told.
    """
    error = np.hypot(error, slope * (1 / r - r) / 2) if r > 0.9 else np.inf
    words = f"spread of the labelled {kind} over the model's: true temperature over the label"
    name, goal = f"T by labelled {kind}", goals.temperature
    return line("temperature", name, slope, error, expected=1.0, goal=goal, words=words)


def temperature_line(square: Tensor, divergence: Tensor, goals: Goals) -> Line:
    """The configurational temperature of frames in the model's forces, over the model's own.

    See `score.curvature.temperature_ratio`: stiff bonds weigh most, and bonds whose variance is
    that of the model times f give f.

    Parameters
    ----------
    square, divergence : (M,) of |F|²/kT_model and -∇·F in eV/Å², of independent frames
    goals : ``temperature`` holds
    """
    ratio, error = temperature_ratio(square, divergence)
    words = "configurational temperature: widths of stiff bonds in the data over the model's"
    goal = goals.temperature
    return line("temperature", "T by widths", ratio, error, expected=1.0, goal=goal, words=words)


def calibration_line(members: np.ndarray, true: np.ndarray, goals: Goals) -> Line:
    """Forces of a committee: is its spread the error of its mean?

    ``sqrt(⟨|mean - true|²⟩ / ((1 + 1/C) ⟨s²⟩))``, s the spread of the members, is 1 where the
    truth scatters as the members do.

    Parameters
    ----------
    members : (C, M, N, 3) in eV/Å
    true : (M, N, 3) in eV/Å
    goals : ``calibration`` holds
    """
    spread = members.std(0, ddof=1) * np.sqrt(1 + 1 / len(members))
    error = members.mean(0) - true
    ratio = np.sqrt(np.mean(error**2) / np.mean(spread**2))
    of_frames = [np.sqrt(np.mean(v**2, axis=(1, 2))) for v in (error, spread)]
    uncertain = ratio * _standard(np.log(of_frames[0] / of_frames[1]))
    rank = float(spearmanr(*of_frames).statistic)
    return line(
        "uncertainty",
        "force error over spread",
        ratio,
        uncertain,
        expected=1.0,
        goal=goals.calibration,
        words=f"rank correlation of error and spread over frames {rank:.2f}",
    )


def error_bar_line(said: np.ndarray, error: np.ndarray) -> Line:
    """Error bars of forces: how large are errors in units of them?

    ``sqrt(⟨error²⟩ / ⟨said²⟩)`` is one where the true energy lies in the form; more is its misfit,
    or that snapshots are fewer than they look.

    Parameters
    ----------
    said : (M, N, 3) standard errors by the covariance of the parameters, in eV/Å
    error : (M, N, 3) in eV/Å, as found
    """
    ratio = np.sqrt(np.mean(error**2) / np.mean(said**2))
    of_frames = [np.sqrt(np.mean(v**2, axis=(1, 2))) for v in (error, said)]
    uncertain = ratio * _standard(np.log(of_frames[0] / of_frames[1]))
    inside = np.mean(np.abs(error) < said)
    words = f"{inside:.0%} of the components are within one; beyond one it is the form's"
    name = "force error over its error bar"
    return line("uncertainty", name, ratio, uncertain, expected=1.0, goal=None, words=words)


def _standard(values: np.ndarray) -> float:
    return float(np.std(values) / np.sqrt(len(values)))
