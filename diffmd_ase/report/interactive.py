"""What a page with scripts shows in place of pictures: charts to zoom into, and a moving molecule.

The numbers of a matplotlib figure go into the page beside its picture, which stays where there are
no scripts, and in print. The script, ``assets/report.js``, is part of the page.
"""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from ..io.json_text import to_json
from ..system import System

__all__ = ["chart", "script", "viewer"]

_POINTS = 2000  # of a line
_FRAMES = 200  # of a walker
_WALKERS = 4
_NUMBERS = 1_500_000  # of all frames that are shown
_UNIT = 0.005  # Å


def script() -> str:
    """The code of the page."""
    return resources.files(__package__).joinpath("assets/report.js").read_text("utf-8")


def chart(figure: Figure) -> str | None:
    """HTML of the numbers of a ``figure`` for `script`; None where one of its axes has no lines."""
    panels = [_panel(axis) for axis in figure.axes if axis.get_visible()]
    if not panels or any(panel is None for panel in panels):
        return None
    return _data(panels)


def _data(value: Any) -> str:
    text = to_json(value, indent=None).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _panel(axis: Axes) -> dict[str, Any] | None:
    """Lines, steps, bands and bars of one axis; None if it has none, or has pictures."""
    errors = {id(c.lines[0]): c for c in axis.containers if isinstance(c, ErrorbarContainer)}
    series = [_line(line, errors.get(id(line))) for line in axis.lines if not _is_mark(line)]
    series += [_steps(patch) for patch in axis.patches if isinstance(patch, StepPatch)]
    for bars in axis.containers:
        if isinstance(bars, BarContainer):
            series += _bars(bars, [t.get_text() for t in axis.get_xticklabels()])
    if not series or axis.images:
        return None
    for band in axis.collections:
        if isinstance(band, PolyCollection) and not isinstance(band, LineCollection):
            series += _band(band)
    return {
        "title": axis.get_title(),
        "xlabel": axis.get_xlabel(),
        "ylabel": axis.get_ylabel(),
        "logx": axis.get_xscale() == "log",
        "logy": axis.get_yscale() == "log",
        "xlim": list(axis.get_xlim()),
        "ylim": list(axis.get_ylim()),
        "series": series,
    }


def _series(name: str, x, y, color, **more: Any) -> dict[str, Any]:
    """Of one line; numbers of six digits, names that matplotlib makes up left out."""
    every = max(1, len(x) // _POINTS)
    columns = {"x": x, "y": y} | {k: v for k, v in more.items() if isinstance(v, np.ndarray)}
    rounded = {
        k: [float(f"{n:.6g}") for n in np.asarray(v, float)[::every]] for k, v in columns.items()
    }
    return more | rounded | {"name": "" if name.startswith("_") else name, "color": to_hex(color)}


def _is_mark(line: Line2D) -> bool:
    """The caps of error bars, which have no line, and lines across the whole axis."""
    across = line.get_transform() != line.axes.transData if line.axes is not None else False
    return across or (line.get_linestyle() == "None" and line.get_marker() in ("_", "|"))


def _line(line: Line2D, of: ErrorbarContainer | None) -> dict[str, Any]:
    x, y = (np.asarray(v, float) for v in line.get_data())
    name, more = str(line.get_label()), {}
    if of is not None:
        name = str(of.get_label())
        segments = of.lines[2][0].get_segments() if of.lines[2] else []
        if len(segments) == len(x):
            more["error"] = np.array([np.ptp(s[:, 1]) / 2 for s in segments])
    return _series(
        name,
        x,
        y,
        line.get_color(),
        marker=line.get_marker() not in ("None", None, "", " "),
        dash=line.get_linestyle() not in ("-", "None"),
        **more,
    )


def _steps(patch: StepPatch) -> dict[str, Any]:
    values, edges, _ = patch.get_data()
    y = np.append(values, values[-1])
    return _series(str(patch.get_label()), edges, y, patch.get_edgecolor(), steps=True)


def _bars(bars: BarContainer, labels: list[str]) -> list[dict[str, Any]]:
    found = []
    errors = bars.errorbar.lines[2][0].get_segments() if bars.errorbar is not None else []
    for n, bar in enumerate(bars.patches):
        more = {"error": np.array([np.ptp(errors[n][:, 1]) / 2])} if n < len(errors) else {}
        name = labels[n] if n < len(labels) else ""
        at, height = bar.get_x() + bar.get_width() / 2, bar.get_height()
        found.append(_series(name, [at], [height], bar.get_facecolor(), marker=True, **more))
    return found


def _band(band: PolyCollection) -> list[dict[str, Any]]:
    """Between two curves over the same points, as `fill_between` makes it."""
    outlines = band.get_paths()
    if len(outlines) != 1 or len(band.get_facecolor()) != 1:
        return []
    corners = np.asarray(outlines[0].vertices)  # start, lower, last of upper, upper, closed
    count = (len(corners) - 3) // 2
    low, high = corners[1 : count + 1], corners[count + 2 : -1][::-1]
    if low.shape != high.shape or not np.allclose(low[:, 0], high[:, 0]):
        return []
    x, low, high = low[:, 0], low[:, 1], high[:, 1]
    return [_series("_", x, 0.5 * (low + high), band.get_facecolor()[0], low=low, high=high)]


def viewer(
    system: System, x: np.ndarray, *, bonds: np.ndarray, times: np.ndarray | None = None
) -> str:
    """HTML of a view of the molecule or crystal that plays its frames, for `script`.

    Parameters
    ----------
    x : (T, W, N, 3) in Å, finite; some hundred frames of a few walkers are shown
    bonds : (M, 2) atoms that are joined
    times : (T,) D·t of the frames in Å²
    """
    walkers = min(_WALKERS, x.shape[1], max(1, _NUMBERS // (3 * len(system))))
    most = max(2, min(_FRAMES, _NUMBERS // (3 * len(system) * walkers)))
    kept = np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)
    few = np.asarray(x[kept][:, :walkers], float).swapaxes(0, 1)  # (W, T, N, 3)
    centre = few[0, 0].mean(0)
    if system.periodic:
        placed, corners = few - centre, np.array(list(np.ndindex(2, 2, 2)), float)
        ends = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 == (b != a).sum()]
        cell = np.array(ends) @ np.asarray(system.cell) - centre
    else:
        placed, cell = _aligned(few), np.zeros((0, 2, 3))
    placed = np.clip(placed, -32000 * _UNIT, 32000 * _UNIT)
    colors = jmol_colors[system.numbers]
    far = np.abs(cell).max() if len(cell) else np.sqrt((placed**2).sum(-1).max()) + 0.5
    return _data(
        {
            "data": base64.b64encode((placed / _UNIT).round().astype("<i2").tobytes()).decode(),
            "unit": _UNIT,
            "frames": len(kept),
            "walkers": [f"walker {n}" for n in range(walkers)],
            "radius": float(far),
            "radii": (0.45 * covalent_radii[system.numbers]).round(3).tolist(),
            "colors": [to_hex(c) for c in colors],
            "dark": [to_hex(0.45 * c) for c in colors],
            "bonds": np.asarray(bonds, int).reshape(-1, 2).tolist(),
            "cell": cell.round(3).tolist(),
            "times": [] if times is None else np.asarray(times, float)[kept].tolist(),
        }
    )


def _aligned(x: np.ndarray) -> np.ndarray:
    """``x`` (W, T, N, 3) moved and turned onto the first frame (Kabsch, Acta Cryst. A 34, 1978)."""
    x = x - x.mean(-2, keepdims=True)
    u, _, v = np.linalg.svd(np.swapaxes(x, -1, -2) @ x[0, 0])
    sign = np.sign(np.linalg.det(u @ v))
    u[..., -1] *= sign[..., None]
    return x @ (u @ v)
