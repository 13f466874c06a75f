"""Mean squared displacements, and diffusion coefficients by generalised least squares.

Displacements over overlapping windows are correlated, and a line through their means that takes
them for independent has a wrong error. For Brownian motion seen with a static noise (vibrations,
cages), ``MSD(t) = A + 2 d D t``, the covariance of the means is exactly

    cov(MSD_i, MSD_j) = 2/(N_i N_j) Σ_nm cov(Δ_n^i, Δ_m^j)²

for each of d components, with Δ_n^i over i frames from frame n; the line that is fitted with it is
the best one (Bullerjahn, von Bülow & Hummer, J. Chem. Phys. 153, 024116 (2020)). At short times
motion is no such line: lags grow until the slope stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from ..statistics import Estimate, jackknife_error
from .passages import ChainTooShort

__all__ = ["Diffusion", "Displacements", "diffusion", "mean_squared_displacement"]

_LAGS = 10  # of a fit
_FEWEST = 4  # lags
_GROUPS = 20  # of walkers
_WINDOWS = 4  # that follow each other in a walker, of the longest lag
_AT_A_TIME = 4_000_000  # numbers


@dataclass(frozen=True, eq=False)
class Displacements:
    """Mean squared displacements; made by `mean_squared_displacement`."""

    lags: np.ndarray  # (L,) in the unit of the spacing
    values: np.ndarray  # (L,) Å²
    errors: np.ndarray  # (L,) of a jackknife over walkers, NaN for one


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Made by `diffusion`."""

    coefficient: Estimate  # D in Å² over the unit of the spacing; of D·t in Å²: over the bare D
    offset: Estimate  # A in Å², of the line at t = 0
    lags: np.ndarray  # (M,) that were fitted, in the unit of the spacing
    quality: float  # probability of a larger χ², were the atoms independent


def mean_squared_displacement(
    x: np.ndarray, spacing: float, *, lags: np.ndarray | None = None
) -> Displacements:
    """Mean over atoms, walkers and origins of ``|x(n + lag) - x(n)|²``, by FFT.

    Parameters
    ----------
    x : (T, W, n, d) in Å, not wrapped into a cell
    spacing : between frames
    lags : in frames, default all up to half of a walker

    Raises ``ValueError`` for another shape, or lags that do not fit.
    """
    at = np.arange(len(x) // 2 + 1) if lags is None else np.asarray(lags, int)
    each = _by_walker(x, at)
    error = np.full(len(at), np.nan)
    if each.shape[1] > 1:
        error = jackknife_error(np.array([each[:, kept].mean(1) for kept in _left(each.shape[1])]))
    return Displacements(spacing * at, each.mean(1), error)


def diffusion(x: np.ndarray, spacing: float) -> Diffusion:
    """The diffusion coefficient of the atoms of ``x``, all alike.

    The error is that of the fit, with atoms that know nothing of each other, or that of a
    jackknife over walkers, the larger. The first lag is the shortest of 1, 2, 4, … frames from
    which D stays within two errors at the next two.

    Parameters
    ----------
    x : (T, W, n, d) in Å, not wrapped into a cell
    spacing : between frames

    Raises
    ------
    ValueError : another shape
    ChainTooShort : the slope still changes at the longest lag, a fourth of a walker
    """
    frames = len(_checked(x))
    fits: list[Diffusion] = []
    stride = 1
    while frames >= _WINDOWS * _FEWEST * stride:
        count = min(_LAGS, frames // (_WINDOWS * stride))
        fits.append(_fitted(x, stride * np.arange(1, count + 1), spacing))
        stride *= 2
    for n, fit in enumerate(fits[:-1]):
        if all(_agree(fit.coefficient, f.coefficient) for f in fits[n + 1 : n + 3]):
            return fit
    raise ChainTooShort(
        f"{frames} frames: D still changes with the lag at a fourth of them; run longer, or the "
        "atoms are caged and do not diffuse"
    )


def _agree(one: Estimate, other: Estimate) -> bool:
    return abs(one.value - other.value) < 2 * np.hypot(one.error, other.error)


def _checked(x: np.ndarray) -> np.ndarray:
    if np.ndim(x) != 4 or min(np.shape(x)) < 1 or len(x) < _WINDOWS * _FEWEST:
        raise ValueError(
            f"positions {np.shape(x)}: expected (T, W, n, d) of {_WINDOWS * _FEWEST} frames at "
            "least"
        )
    return x


def _by_walker(x: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """(L, W) means over atoms and origins."""
    frames, walkers, atoms, d = _checked(x).shape
    if lags.min() < 0 or lags.max() >= frames:
        raise ValueError(f"lags {lags.min()} to {lags.max()} of {frames} frames")
    found = np.empty((len(lags), walkers))
    most = max(1, _AT_A_TIME // (frames * atoms * d))
    for start in range(0, walkers, most):
        part = np.asarray(x[:, start : start + most], float)
        part = part - part.mean(0)
        spectrum = np.fft.rfft(part, n=2 * frames, axis=0)
        cross = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:frames].sum(-1)
        square = (part**2).sum(-1)
        up = np.concatenate((np.zeros((1, *square.shape[1:])), square.cumsum(0)))
        first, last = up[frames - lags], up[frames] - up[lags]  # Σ of origins, and of ends
        each = np.maximum(first + last - 2 * cross[lags], 0.0) / (frames - lags)[:, None, None]
        found[:, start : start + most] = each.mean(-1)
    return found


def _left(walkers: int) -> list[np.ndarray]:
    """Walkers that are left without each of the groups."""
    groups = np.array_split(np.arange(walkers), min(_GROUPS, walkers))
    return [np.setdiff1d(np.arange(walkers), group) for group in groups]


def _fitted(x: np.ndarray, lags: np.ndarray, spacing: float) -> Diffusion:
    frames, walkers, atoms, d = x.shape
    each = _by_walker(x, lags)
    design = np.stack((np.ones(len(lags)), lags), 1)
    line = np.linalg.lstsq(design, each.mean(1), rcond=None)[0]
    parts = _covariances(lags, frames)
    for _ in range(20):
        noise, step = np.maximum(line, [0.0, 1e-12 * each.max()]) / d
        powers = np.array([step**2, step * noise, noise**2])
        covariance = np.tensordot(powers, parts, 1) * d / (walkers * atoms)
        solve = np.linalg.solve(design.T @ np.linalg.solve(covariance, design), design.T)
        weights = np.linalg.solve(covariance, solve.T).T  # (2, M)
        before, line = line, weights @ each.mean(1)
        if np.allclose(line, before, rtol=1e-6):
            break
    errors = np.sqrt(np.diag(weights @ covariance @ weights.T))
    if walkers > 1:
        left = np.array([weights @ each[:, kept].mean(1) for kept in _left(walkers)])
        errors = np.maximum(errors, jackknife_error(left))
    residual = each.mean(1) - design @ line
    off = float(residual @ np.linalg.solve(covariance, residual))
    scale = 1 / (2 * d * spacing)
    count = float(walkers * atoms)
    return Diffusion(
        Estimate(float(line[1] * scale), float(errors[1] * scale), count),
        Estimate(float(line[0]), float(errors[0]), count),
        spacing * lags,
        float(chi2.sf(off, len(lags) - 2)),
    )


def _covariances(lags: np.ndarray, frames: int) -> np.ndarray:
    """(3, M, M): of the mean squared displacements of one component of one atom.

    What step², step noise and noise² are multiplied by, with A and the variance of a frame's step
    as noise and step.
    """
    found = np.empty((3, len(lags), len(lags)))
    for a, i in enumerate(lags):
        for b, j in enumerate(lags[: a + 1]):
            k = np.arange(-j, i + 1)  # from the origin of the first to that of the second
            overlap = np.maximum(np.minimum(i, k + j) - np.maximum(0, k), 0)
            ends = 0.5 * (1.0 * (k == i - j) + (k == 0) - (k == i) - (k == -j))
            pairs = np.maximum(np.minimum(frames - i, frames - j - k) - np.maximum(0, -k), 0)
            squares = np.stack((overlap**2, 2 * overlap * ends, ends**2))
            found[:, a, b] = found[:, b, a] = squares @ pairs
    return 2 * found / ((frames - lags)[:, None] * (frames - lags))
