"""Pictures of certificates, of convergence, of paths and of kinetics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from .path_error import ErrorsByStep
from .refinement import Convergence
from .transition_paths import TransitionPath

if TYPE_CHECKING:
    from .summary import Kinetics

__all__ = ["convergence_figure", "error_figure", "kinetics_figure", "path_figure"]

_POINTS = 200  # of a curve
_NAMED = 8  # states whose names fit under a bar


def error_figure(errors: ErrorsByStep) -> Figure:
    """Score ``errors`` and those of the step in nats per Å² of D·t against the step."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    series = {"score": errors.score, "discretisation": errors.discretisation}
    for (name, rows), colour in zip(series.items(), ("#0072b2", "#d55e00"), strict=True):
        values, bars = np.array([row[:2] for row in rows]).T
        axes.errorbar(errors.h, values, 2 * bars, label=name, color=colour, marker="o", capsize=2)
    axes.set(xscale="log", yscale="log", xlabel="step h (Å²)", ylabel="nats per Å² of D·t")
    axes.legend(frameon=False)
    return figure


def convergence_figure(found: Convergence) -> Figure:
    """Strong and weak errors against the step, with a line of order 1 (``found`` by `converge`)."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    rows = {"strong (Å)": found.strong} | {f"⟨{n}⟩": row for n, row in found.weak.items()}
    for name, row in rows.items():
        values, errors = np.array([e[:2] for e in row]).T
        axes.errorbar(found.h, np.abs(values), 2 * errors, label=name, marker="o", capsize=2)
    first = found.strong[0].value
    axes.plot(found.h, [first * h / found.h[0] for h in found.h], "k:", label="order 1")
    axes.set(xscale="log", yscale="log", xlabel="step h (Å²)", ylabel="difference of h and h/2")
    axes.legend(frameon=False)
    return figure


def path_figure(path: TransitionPath, committor: list[dict] | None) -> Figure:
    """Energy along a ``path``, and its ``committor`` (values and errors by name) where known."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(path.length, path.energy - path.energy[0], color="#0072b2", marker=".")
    axes.set(xlabel="length (Å)", ylabel="energy (kT)")
    if committor is not None:
        other = axes.twinx()
        values, errors = ([row[n] for row in committor] for n in ("value", "error"))
        other.errorbar(path.length, values, errors, color="#d55e00", marker="o", ms=3, capsize=2)
        other.set(ylabel="committor", ylim=(-0.05, 1.05))
    return figure


def kinetics_figure(found: Kinetics) -> Figure:
    """Autocorrelations and, of states, implied timescales and populations, with one-sigma errors.

    ``found`` is made by `analysis.kinetics.summary.kinetics`. Timescales in the shaded corner are
    shorter than the lag, and mean nothing.
    """
    panels = 3 if found.models else 1
    figure = Figure(figsize=(4.2 * panels + 0.8, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    unit = found.unit if found.unit != "Å²" else "Å² of D·t"
    for name, c in found.correlations.items():
        few = np.unique(np.geomspace(1, max(1, len(c.lags) - 1), _POINTS).astype(int))
        few = few[few < len(c.lags)]
        if not len(few):  # forgotten from one frame to the next: nothing on an axis of logarithms
            continue
        (line,) = axes[0].plot(c.lags[few], c.values[few], label=name)
        low, high = c.values[few] - c.errors[few], c.values[few] + c.errors[few]
        axes[0].fill_between(c.lags[few], low, high, alpha=0.2, color=line.get_color())
    axes[0].axhline(0.0, color="#999999", linewidth=0.8)
    axes[0].set(xlabel=f"time ({unit})", ylabel="autocorrelation")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].set_xscale("log")
        axes[0].legend(frameon=False, fontsize=8)
    if not found.models:
        return figure
    lags = np.array([m.lag for m in found.models])
    for n in range(min(3, len(found.models[0].timescales))):
        values, errors = np.array([m.timescales[n][:2] for m in found.models]).T
        axes[1].errorbar(lags, values, errors, marker="o", ms=3, capsize=2, label=str(n + 1))
    axes[1].fill_between(lags, lags * 0 + lags.min() * 0.1, lags, color="#dddddd", zorder=0)
    if found.model is not None:
        axes[1].axvline(found.model.lag, color="#999999", linewidth=0.8)
    axes[1].set(xscale="log", yscale="log", xlabel=f"lag ({unit})")
    axes[1].set_ylabel(f"implied timescales ({unit})")
    axes[1].legend(frameon=False, fontsize=8)
    values, errors = np.array([p[:2] for p in found.populations]).T
    axes[2].bar(range(len(values)), values, yerr=errors, color="#0072b2", alpha=0.7, capsize=2)
    axes[2].set(ylabel="population")
    if len(values) <= _NAMED:
        axes[2].set_xticks(range(len(values)), found.states, rotation=30, ha="right", fontsize=7)
    else:
        axes[2].set_xlabel("state")
    return figure
