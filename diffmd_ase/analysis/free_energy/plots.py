"""Pictures of a free-energy surface: bands or contours, settling in time, lengths of blocks."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .grid import Axis, Basin
from .surface import BlockScan, Convergence

__all__ = ["free_energy_figure"]

_LINE, _SECOND = "#0072b2", "#d55e00"
_SHADES = "#e9e4d4", "#dbe7dc"  # of the first and the second basin


def free_energy_figure(
    axes: tuple[Axis, ...],
    free_energy: np.ndarray,
    error: np.ndarray | None,
    *,
    unit: str,
    basins: tuple[Basin, ...] = (),
    settling: Convergence | None = None,
    scan: BlockScan | None = None,
    history: tuple[np.ndarray, np.ndarray] | None = None,
    limit: float | None = None,
) -> Figure:
    """The surface (one or two axes) and, where given, ΔF in time and its blocks.

    Bands are ± one and two standard errors; of two variables the errors are a map of their own.

    Parameters
    ----------
    axes : one or two
    free_energy, error : (*shape) of the axes; no error of a sum of hills
    unit : of energies, for the labels
    basins : shaded, or outlined on a map
    settling : ΔF from growing parts of the run
    scan : error of ΔF by length of blocks
    history : times and ΔF of a sum of hills, where there is no ``settling``
    limit : highest free energy shown
    """
    panels = ["surface"]
    panels += ["error"] if len(axes) == 2 and error is not None else []
    panels += ["settling"] if settling is not None or history is not None else []
    panels += ["scan"] if scan is not None else []
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.7), layout="constrained")
    subplots = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    if len(axes) == 1:
        _line(subplots["surface"], axes[0], free_energy, error, unit, basins, limit)
    else:
        shown = free_energy if limit is None else np.where(free_energy > limit, np.nan, free_energy)
        _map(figure, subplots["surface"], axes, shown, f"free energy ({unit})", basins)
        if error is not None:
            hidden = np.where(np.isfinite(shown), error, np.nan)
            _map(figure, subplots["error"], axes, hidden, f"standard error ({unit})", ())
    if settling is not None:
        _settling(subplots["settling"], settling, unit)
    elif history is not None:
        subplots["settling"].plot(*history, color=_LINE)
        subplots["settling"].set(xlabel="time", ylabel=f"ΔF ({unit})", title="sum of hills")
    if scan is not None:
        _scan(subplots["scan"], scan, unit)
    return figure


def _line(panel: Axes, axis: Axis, f, error, unit, basins, limit) -> None:
    fine = np.isfinite(f)
    x, y = axis.centres[fine], f[fine]
    for basin, shade in zip(basins, _SHADES, strict=False):
        if axis.name in basin.ranges:
            inside = basin.along(
                axis.name, axis.centres, axis.high - axis.low if axis.periodic else 0.0
            )
            panel.fill_between(
                axis.centres, 0, 1, inside, color=shade, transform=panel.get_xaxis_transform()
            )
    if error is not None:
        for width, alpha in ((2, 0.15), (1, 0.3)):
            low, high = y - width * error[fine], y + width * error[fine]
            panel.fill_between(x, low, high, color=_LINE, alpha=alpha, linewidth=0)
    panel.plot(x, y, color=_LINE, linewidth=1.5)
    panel.set(xlabel=axis.name, ylabel=f"free energy ({unit})", xlim=(axis.low, axis.high))
    if limit is not None:
        panel.set_ylim(-0.02 * limit, limit)


def _map(figure: Figure, panel: Axes, axes, values, label, basins) -> None:
    x, y = (np.linspace(axis.low, axis.high, axis.bins + 1) for axis in axes)
    image = panel.pcolormesh(x, y, np.ma.masked_invalid(values.T), cmap="viridis", vmin=0.0)
    image.set_rasterized(True)
    figure.colorbar(image, ax=panel, label=label)
    for basin, style in zip(basins, ("solid", "dashed"), strict=False):
        inside = basin.on_grid(axes).astype(float).T
        if 0 < inside.mean() < 1:
            centres = (axis.centres for axis in axes)
            panel.contour(*centres, inside, [0.5], colors=_SECOND, linewidths=1.2, linestyles=style)
    panel.set(xlabel=axes[0].name, ylabel=axes[1].name)


def _settling(panel: Axes, settling: Convergence, unit) -> None:
    sets = (
        ("from the start", settling.forward, _LINE),
        ("from the end", settling.backward, _SECOND),
    )
    for label, estimates, colour in sets:
        y = np.array([e.value for e in estimates])
        error = np.array([e.error for e in estimates])
        panel.errorbar(
            settling.fractions, y, error, color=colour, label=label, marker="o", markersize=3
        )
    last = settling.forward[-1]
    if np.isfinite(last.error):
        panel.axhspan(last.value - last.error, last.value + last.error, color="#dddddd", zorder=0)
    panel.set(xlabel="fraction of the run", ylabel=f"ΔF ({unit})")
    panel.legend(fontsize=8, frameon=False)


def _scan(panel: Axes, scan: BlockScan, unit) -> None:
    panel.errorbar(
        scan.lengths, scan.errors, scan.uncertainty, color=_LINE, marker="o", markersize=3
    )
    panel.set_xscale("log")
    panel.set_ylim(bottom=0)
    panel.set(xlabel="rows in a block", ylabel=f"error of ΔF ({unit})")
