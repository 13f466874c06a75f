"""Umbrella windows combined by MBAR, with errors that include the combination."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymbar import MBAR
from scipy.special import logsumexp

from .free_energy import Axis, Surface
from .reweighting import Samples

__all__ = ["mbar_log_weights", "umbrella_surface", "window_overlap"]


def mbar_log_weights(reduced_bias: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Logarithms of the weights (n,) that the unbiased ensemble gives to pooled samples.

    ``ln w_n = -ln Σ_k N_k exp(f_k - V_k(x_n)/kT)`` with the f_k that solve the MBAR
    equations (Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008)).

    Parameters
    ----------
    reduced_bias : (n, K) bias of every window at every sample, over kT
    window : (n,) the window that each sample comes from

    Raises
    ------
    ValueError : shapes that do not fit, or a window without samples
    """
    u, counts = _checked(reduced_bias, window)
    order = np.argsort(window, kind="stable")
    f = MBAR(u[order].T, counts).f_k
    return -logsumexp(f + np.log(counts) - u, axis=1)


def window_overlap(reduced_bias: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Overlap (K, K) of the windows, rows sum to 1; neighbours below 0.03 are not joined."""
    u, counts = _checked(reduced_bias, window)
    order = np.argsort(window, kind="stable")
    return MBAR(u[order].T, counts).compute_overlap()["matrix"]


def umbrella_surface(
    s: np.ndarray,
    reduced_bias: np.ndarray,
    window: np.ndarray,
    axes: Sequence[Axis],
    *,
    kT: float,
    blocks: int = 10,
) -> Surface:
    """Surface of pooled umbrella samples, its error by leaving out blocks of time.

    Each of ``blocks`` leaves the same stretch of every window out and solves the MBAR
    equations again, so that the errors of the f_k are in it:
    ``error² = (B-1)/B Σ_b (F_(b) - F)²`` with both densities normalised.

    Parameters
    ----------
    s : (n, d) variables, in the order of time within each window
    reduced_bias, window : as for `mbar_log_weights`
    """
    s = np.asarray(s, float).reshape(len(s), -1)
    axes = tuple(axes)
    rows = Samples.of(s, walker=window, names=[a.name for a in axes])
    block = np.minimum((rows.progress() * blocks - 1e-9).astype(int), blocks - 1)

    def log_density(kept: np.ndarray) -> np.ndarray:
        log_w = mbar_log_weights(reduced_bias[kept], window[kept])
        w = np.exp(log_w - log_w.max())
        index = np.stack([a.index(s[kept, n]) for n, a in enumerate(axes)])
        inside = (index >= 0).all(0)
        shape = tuple(a.bins for a in axes)
        flat = np.ravel_multi_index(tuple(index[:, inside]), shape)
        cells = np.bincount(flat, w[inside], int(np.prod(shape))).reshape(shape)
        with np.errstate(divide="ignore"):
            return np.log(cells / cells.sum())

    everything = log_density(np.ones(len(s), bool))
    with np.errstate(invalid="ignore"):
        left_out = np.stack([log_density(block != b) - everything for b in range(blocks)])
    # Surface adds with B/(B-1), the jackknife with (B-1)/B
    deviations = -(blocks - 1) / blocks * left_out
    energy = -kT * everything
    return Surface(axes, kT, energy - energy.min(), deviations)


def _checked(reduced_bias: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, window = np.asarray(reduced_bias, float), np.asarray(window)
    if u.ndim != 2 or window.shape != u.shape[:1]:
        raise ValueError(
            f"bias {u.shape} and windows {window.shape}: expected (samples, windows) and (samples,)"
        )
    counts = np.bincount(window, minlength=u.shape[1])
    if len(counts) != u.shape[1] or not counts.all():
        raise ValueError(f"samples of each window: {counts.tolist()}; every window needs some")
    return u, counts
