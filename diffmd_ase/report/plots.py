"""Pictures of a report: matplotlib figures without pyplot, hence without global state."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..analysis.divergence import torsion_rows

__all__ = ["curves", "distributions", "embed", "free_energy_maps"]

# data is black, samples blue, dynamics orange: told apart in print and by colour-blind eyes
COLOURS = {"data": "#222222", "i.i.d.": "#0072b2", "MD": "#d55e00"}
_LIMIT = 8.0  # kT


def embed(figure: Figure) -> str:
    """The figure as a PNG in a ``data:`` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def free_energy_maps(
    angles: dict[str, np.ndarray], names: Sequence[str], *, bins: int = 64
) -> Figure:
    """``F/kT = -ln p + const`` of two angles, one map for each set, one colour scale.

    The constant is that of a smooth common zero: the 99.5th percentile of all densities,
    so that a basin of the same population has the same colour in every panel.

    Parameters
    ----------
    angles : label → (…, 2) in rad
    names : of the two angles
    bins : along each
    """
    density = {}
    for label, values in angles.items():
        counts = torsion_rows(values.reshape(-1, 2), bins=bins).sum(0)
        density[label] = counts.reshape(bins, bins).T / counts.sum()
    top = np.median([np.percentile(p[p > 0], 99.5) for p in density.values()])
    figure = Figure(figsize=(3.6 * len(angles) + 0.8, 3.6), layout="constrained")
    axes = figure.subplots(1, len(angles), squeeze=False, sharey=True)[0]
    for axis, (label, p) in zip(axes, density.items(), strict=True):
        energy = np.full(p.shape, np.nan)
        energy[p > 0] = -np.log(p[p > 0] / top)
        image = axis.imshow(
            energy,
            origin="lower",
            extent=(-180, 180, -180, 180),
            cmap="viridis",
            vmin=0,
            vmax=_LIMIT,
        )
        axis.set(title=label, xlabel=f"{names[0]} (°)")
        axis.set_xticks(range(-180, 181, 90))
        axis.set_yticks(range(-180, 181, 90))
    axes[0].set_ylabel(f"{names[1]} (°)")
    figure.colorbar(image, ax=list(axes), label="free energy (kT)", shrink=0.9)
    return figure


def distributions(
    panels: dict[str, dict[str, np.ndarray]],
    unit: str,
    *,
    bins: int = 60,
    columns: int = 3,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Normalised histograms, one panel for each quantity, one line for each set of values.

    Parameters
    ----------
    panels : title → label → values, those that are not finite left out
    unit : of all values, for the labels
    bins : of each histogram
    columns : of panels, at most
    limits : of all histograms; default, the range of nearly all values of a panel
    """
    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.5 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, sets) in zip(axes.flat, panels.items(), strict=False):
        values = {label: np.ravel(v)[np.isfinite(np.ravel(v))] for label, v in sets.items()}
        if limits is not None:
            low, high = limits
        else:
            low = min(np.percentile(v, 0.05) for v in values.values())
            high = max(np.percentile(v, 99.95) for v in values.values())
        edges = np.linspace(low, high + 1e-9 * max(1.0, abs(high)), bins + 1)
        for label, v in values.items():
            height = np.histogram(v, edges)[0] / (len(v) * np.diff(edges))
            axis.stairs(height, edges, label=label, color=COLOURS.get(label), linewidth=1.4)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit, fontsize=9)
        axis.set_yticks([])
    axes.flat[0].legend(fontsize=8, frameon=False)
    return figure


def curves(
    lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    xlabel: str,
    ylabel: str,
    *,
    logx: bool = False,
    zero: float | None = None,
) -> Figure:
    """Lines with errors, as bands of ± one.

    Parameters
    ----------
    lines : label → (x, y, standard error or None), (n,) each
    xlabel, ylabel : names of the axes
    logx : x on a logarithmic axis
    zero : where a horizontal line is drawn
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for label, (x, y, error) in lines.items():
        (line,) = axis.plot(x, y, label=label, linewidth=1.4, color=COLOURS.get(label))
        if error is not None:
            low, high = np.asarray(y) - error, np.asarray(y) + error
            axis.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    if zero is not None:
        axis.axhline(zero, color="#999999", linewidth=0.8)
    if logx:
        axis.set_xscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8, frameon=False)
    return figure
