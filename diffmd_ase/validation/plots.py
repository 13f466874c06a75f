"""The picture of a validation: every number against its goal."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .scorecard import Validation

__all__ = ["deviations"]

_COLOURS = {True: "#1b7f3b", False: "#c0392b", None: "#888888"}
_LIMIT = 4.0  # goals, where the picture ends


def deviations(validation: Validation) -> Figure:
    """Deviation and two standard errors of each line of a ``validation``, in units of its goal."""
    lines = [one for one in validation.lines if one.goal][::-1]
    figure = Figure(figsize=(7.5, 0.3 * len(lines) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-1, 1, color=_COLOURS[True], alpha=0.1)
    axis.axvline(0, color="#999999", linewidth=0.8)
    for place, one in enumerate(lines):
        value = np.clip(one.deviation / one.goal, -_LIMIT, _LIMIT)
        error = 2 * one.error / one.goal if np.isfinite(one.error) else 2 * _LIMIT
        if np.isfinite(value):
            axis.errorbar(value, place, xerr=error, fmt="o", color=_COLOURS[one.good], markersize=4)
    axis.set_yticks(range(len(lines)), [one.name for one in lines], fontsize=8)
    axis.set(xlim=(-1.05 * _LIMIT, 1.05 * _LIMIT), title=validation.facts["formula"])
    axis.set_xlabel("off by, in goals, ± two standard errors; grey: cannot be told")
    return figure
