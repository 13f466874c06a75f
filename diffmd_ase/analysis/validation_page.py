"""The HTML page of a validation: verdicts, and every entry against its goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..system import System
from .page import Page, flat, image, render, save, table
from .scorecard import Validation

__all__ = ["write_page"]

_COLOURS = {True: "#1b7f3b", False: "#c0392b", None: "#888888"}
_LIMIT = 4.0  # goals, where the picture ends


def write_page(path: str | Path, found: Validation, system: System) -> None:
    """Write the card as one self-contained page."""
    page = Page()
    page.judge(found.good, found.words)
    for line in found.entries:
        if line.goal is None:
            continue
        page.judge(
            line.good,
            f"{line.group}: {line.name} is {line.value:.4g} ± {line.error:.2g}, expected "
            f"{line.expected:.4g}; off by {line.deviation:+.4g}, goal {line.goal:g}: "
            f"{line.verdict}. {line.words}",
        )
    for good, text in found.notes:
        page.judge(good, text)
    for text in found.left_out:
        page.judge(None, f"left out: {text}")
    page.section("Deviations over their goals", image(_picture(found)))
    for line in found.entries:
        if line.group in ("widths", "distances") and line.expected == 1.0 and line.details:
            rows = sorted(line.details.items(), key=lambda row: -abs(row[1][0] - 1))
            cells = [(name, f"{v:.4f} ± {e:.4f}") for name, (v, e) in rows]
            page.section(line.name, table(("", "model over data"), cells))
    page.section("How", table(("", ""), [(k, flat(v)) for k, v in found.facts.items()]))
    title = f"Validation of {found.facts['formula']}"
    save(Path(path), render(page, title, system, found.facts["temperature_K"]))


def _picture(found: Validation) -> Figure:
    """Deviation and two errors of each entry, in units of its goal."""
    lines = [line for line in found.entries if line.goal]
    figure = Figure(figsize=(7.5, 0.32 * len(lines) + 1.0), layout="constrained")
    axis = figure.subplots()
    for place, line in enumerate(reversed(lines)):
        value = line.deviation / line.goal
        error = 2 * line.error / line.goal if np.isfinite(line.error) else 0.0
        if np.isfinite(value):
            axis.errorbar(
                np.clip(value, -_LIMIT, _LIMIT),
                place,
                xerr=min(error, 2 * _LIMIT),
                fmt="o",
                color=_COLOURS[line.good],
                markersize=4,
            )
    axis.axvspan(-1, 1, color="#1b7f3b", alpha=0.1)
    axis.axvline(0, color="#999999", linewidth=0.8)
    axis.set_yticks(range(len(lines)), [line.name for line in reversed(lines)], fontsize=8)
    axis.set(xlim=(-_LIMIT, _LIMIT), xlabel="deviation over goal, two standard errors")
    return figure
