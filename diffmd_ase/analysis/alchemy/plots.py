"""Pictures of an alchemical estimate: ∂U/∂λ, overlap of windows, convergence."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..statistics import Estimate
from .estimates import CoupledEstimate

__all__ = ["alchemy_figure", "works_figure"]

_LINE, _SECOND = "#0072b2", "#d55e00"


def alchemy_figure(result: CoupledEstimate) -> Figure:
    """Three panels: mean ∂U/∂λ, the overlap matrix, ΔF from growing parts of the run."""
    figure = Figure(figsize=(13.2, 3.7), layout="constrained")
    slope, overlap, settling = figure.subplots(1, 3)
    slope.errorbar(
        result.states, result.slope, 2 * result.slope_error, color=_LINE, marker="o", markersize=3
    )
    best = result.best
    title = f"ΔF = {best.value:.3f} ± {best.error:.3f} kT (MBAR)"
    slope.set(xlabel="λ", ylabel="⟨∂U/∂λ⟩ (kT)", title=title)
    image = overlap.imshow(result.overlap, cmap="viridis", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=overlap)
    if len(result.states) <= 12:
        for (i, j), value in np.ndenumerate(result.overlap):
            shade = "black" if value > 0.5 else "white"
            overlap.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=shade)
    overlap.set(xlabel="window", ylabel="window", title="overlap")
    if len(result.convergence):
        fraction, first, first_error, last, last_error = result.convergence.T
        sets = (
            ("from the start", first, first_error, _LINE),
            ("from the end", last, last_error, _SECOND),
        )
        for label, y, error, colour in sets:
            settling.errorbar(
                fraction, y, error, color=colour, label=label, marker="o", markersize=3
            )
        settling.legend(fontsize=8, frameon=False)
    settling.axhspan(best.value - best.error, best.value + best.error, color="#dddddd", zorder=0)
    settling.set(xlabel="fraction of the run", ylabel="ΔF (kT)", title="convergence")
    return figure


def works_figure(forward: np.ndarray, backward: np.ndarray, best: Estimate) -> Figure:
    """P_F(w) of ``forward`` works and P_B(-w) of ``backward``, kT: they cross at ΔF = ``best``."""
    figure = Figure(figsize=(5.0, 3.7), layout="constrained")
    panel = figure.subplots()
    both = np.concatenate((forward, -backward))
    edges = np.histogram_bin_edges(both[np.isfinite(both)], bins=30).tolist()
    panel.hist(forward, edges, density=True, alpha=0.6, color=_LINE, label="forward, w")
    panel.hist(-backward, edges, density=True, alpha=0.6, color=_SECOND, label="backward, -w")
    panel.axvspan(best.value - best.error, best.value + best.error, color="#888888", alpha=0.5)
    title = f"ΔF = {best.value:.3f} ± {best.error:.3f} kT (BAR)"
    panel.set(xlabel="work (kT)", ylabel="density (1/kT)", title=title)
    panel.legend(fontsize=8, frameon=False)
    return figure
