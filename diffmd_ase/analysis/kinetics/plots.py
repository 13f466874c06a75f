"""Pictures of certificates, of convergence and of paths."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .path_error import ErrorsByStep
from .refinement import Convergence
from .transition_paths import TransitionPath

__all__ = ["convergence_figure", "error_figure", "path_figure"]


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
