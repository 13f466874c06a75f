"""Free-energy surfaces, differences and barriers from weighted samples, with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import logsumexp

from ..._moved import forward
from ..statistics import Estimate, mean_estimate
from .grid import Axis, Basin
from .reweighting import Samples

__all__ = [
    "BlockScan",
    "Convergence",
    "Surface",
    "basin_difference",
    "basin_difference_on_grid",
    "block_scan",
    "convergence",
    "free_energy_surface",
]

_MIN_BLOCKS, _MAX_BLOCKS = 8, 64
_MANY_WALKERS = 8


@dataclass(frozen=True)
class Surface:
    """``F(s) = -kT ln p(s)`` on a grid, lowest bin 0, in the unit of kT.

    Attributes
    ----------
    axes : of the grid
    free_energy : (*shape), infinite where no sample fell
    deviations : (B, *shape) relative weight of each of B blocks in a bin, minus that of
        the block in all: what -ln p owes to the block
    error : standard error of -kT ln p(s), p normalised; nan where no sample fell
    """

    axes: tuple[Axis, ...]
    kT: float
    free_energy: np.ndarray
    deviations: np.ndarray

    @property
    def error(self) -> np.ndarray:
        return np.where(np.isfinite(self.free_energy), self._spread(self.deviations), np.nan)

    def difference(self, at: tuple[int, ...], reference: tuple[int, ...]) -> Estimate:
        """``F(at) - F(reference)`` of two bins; correlations between them are in the error."""
        value = self.free_energy[at] - self.free_energy[reference]
        by_bin = np.moveaxis(self.deviations, 0, -1)
        delta = by_bin[at] - by_bin[reference]
        error = float(self._spread(delta)) if np.isfinite(value) else np.nan
        return Estimate(float(value), error, float(len(self.deviations)))

    def _spread(self, deviations: np.ndarray) -> np.ndarray:
        blocks = len(deviations)
        return self.kT * np.sqrt(blocks / (blocks - 1) * (deviations**2).sum(0))


def free_energy_surface(
    samples: Samples,
    axes: Sequence[Axis],
    *,
    kT: float,
    bandwidth: Sequence[float] | None = None,
    blocks: int | None = None,
) -> Surface:
    """Weighted histogram, or kernel density with Gaussians of ``bandwidth``, and its error.

    ``F = -kT ln Σ_n w_n 1(s_n in bin)``; the kernels are applied to the binned weights,
    around the circle for periodic axes, and lower barriers by widening them. The error is
    that of a ratio from blocks: with A_b(s) the weight that block b has in a bin and W_b
    its weight in all, ``δ_b = A_b/ΣA - W_b/ΣW`` and ``error² = kT² B/(B-1) Σ δ_b²``. Blocks
    are pieces of time of each walker and, with 8 walkers or more, also whole walkers:
    the larger error holds.

    Parameters
    ----------
    samples, axes : with their weights; one axis for each of their variables, in their order
    bandwidth : standard deviation of the kernels, for each axis, in its unit
    blocks : how many; default, pieces ten times as long as the statistical inefficiency,
        between 8 and 64 of them

    Raises
    ------
    ValueError : axes that do not fit, a bandwidth narrower than half a bin, no sample inside
    """
    axes = tuple(axes)
    if tuple(a.name for a in axes) != samples.names:
        raise ValueError(f"axes {[a.name for a in axes]} for the variables {samples.names}")
    if bandwidth is not None:
        _check_bandwidth(bandwidth, axes)
    shape = tuple(a.bins for a in axes)
    index = np.stack([a.index(samples.s[:, n]) for n, a in enumerate(axes)])
    inside = (index >= 0).all(0)
    if not inside.any():
        raise ValueError("no sample is inside the axes: widen their ranges")
    flat = np.ravel_multi_index(tuple(index[:, inside]), shape)
    w = samples.weights
    best = None
    for label in _block_labels(samples, blocks):
        count = label.max() + 1
        size = int(np.prod(shape))
        cells = np.bincount(label[inside] * size + flat, w[inside], count * size)
        cells = cells.reshape(count, *shape)
        if bandwidth is not None:
            cells = _smooth(cells, axes, bandwidth)
        total = cells.sum(0)
        share = np.bincount(label, w, count) / w.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = cells / total - share.reshape(-1, *[1] * len(shape))
        deviation = np.where(total > 0, deviation, np.nan)
        spread = count / (count - 1) * np.nansum(deviation**2 * total) / total.sum()
        if best is None or spread > best[0]:
            best = spread, deviation, total
    _, deviation, total = best
    with np.errstate(divide="ignore"):
        energy = -kT * np.log(total)
    return Surface(axes, kT, energy - energy.min(), deviation)


def _smooth(cells: np.ndarray, axes: Sequence[Axis], bandwidth: Sequence[float]) -> np.ndarray:
    for n, axis in enumerate(axes):
        mode = "wrap" if axis.periodic else "reflect"  # the weight stays inside
        cells = gaussian_filter1d(
            cells, bandwidth[n] / axis.width, axis=n + 1, mode=mode, truncate=5.0
        )
    return cells


def _check_bandwidth(bandwidth, axes) -> None:
    if len(bandwidth) != len(axes):
        raise ValueError(f"{len(bandwidth)} bandwidths for {len(axes)} variables: give one each")
    for width, axis in zip(bandwidth, axes, strict=True):
        if not width >= axis.width / 2:
            raise ValueError(
                f"bandwidth {width} of {axis.name} is below half a bin of {axis.width:.3g}: "
                "take more bins or a wider kernel"
            )


def _block_labels(samples: Samples, blocks: int | None) -> list[np.ndarray]:
    """Pieces of time of each walker and, of many walkers, the walkers themselves."""
    walkers, own = np.unique(samples.walker, return_inverse=True)
    if blocks is None:
        length = 10 * samples.inefficiency
        blocks = int(np.clip(len(samples) / length, _MIN_BLOCKS, _MAX_BLOCKS))
    if blocks < 2:
        raise ValueError(f"{blocks=}: an error needs two at least")
    pieces = max(1, round(blocks / len(walkers)))
    if pieces * len(walkers) < 2 or len(samples) < 2 * pieces * len(walkers):
        raise ValueError(
            f"{len(samples)} samples of {len(walkers)} walkers cannot make {blocks} blocks"
        )
    piece = np.minimum((samples.progress() * pieces - 1e-9).astype(int), pieces - 1)
    labels = [own * pieces + piece]
    if len(walkers) >= _MANY_WALKERS and pieces > 1:
        labels.append(own)
    return labels


# ------------------------------------------------------------------------ two basins


def basin_difference(samples: Samples, a: Basin, b: Basin, *, kT: float) -> Estimate:
    """``ΔF = F_b - F_a = -kT ln(Σ_b w/Σ_a w)``, with weights and time in its error.

    The error is that of the mean of ``w (1_b/p_b - 1_a/p_a)``, a correlated series, times kT.
    ``samples`` hold the weights w; ``a`` and ``b`` are basins on their variables.

    Raises ``ValueError`` where a basin holds no sample.
    """
    p_a, p_b, z = _influence(samples, a, b)
    mean = mean_estimate(samples.series(z))
    variance = 1 / p_a + 1 / p_b
    n_effective = variance / mean.error**2 if mean.error > 0 else 0.0
    return Estimate(float(-kT * np.log(p_b / p_a)), kT * mean.error, float(n_effective))


def _influence(samples: Samples, a: Basin, b: Basin):
    w = samples.weights
    in_a, in_b = a.contains(samples), b.contains(samples)
    p_a, p_b = np.mean(w * in_a), np.mean(w * in_b)
    for basin, inside in ((a, in_a), (b, in_b)):
        if not inside.any():
            seen = ", ".join(
                f"{name} in [{samples.s[:, n].min():.4g}, {samples.s[:, n].max():.4g}]"
                for n, name in enumerate(samples.names)
            )
            raise ValueError(
                f"no sample in the basin {basin}: the run saw {seen}; ΔF is unknown, run "
                "longer or give other ranges"
            )
    return p_a, p_b, w * (in_b / p_b - in_a / p_a)


def basin_difference_on_grid(
    free_energy: np.ndarray, axes: Sequence[Axis], a: Basin, b: Basin, *, kT: float
) -> float:
    """``-kT ln(Σ_b e^(-F/kT)/Σ_a e^(-F/kT))`` of a surface.

    Parameters
    ----------
    free_energy : F (*shape) on the grid of the ``axes``, in the unit of kT
    a, b : basins on these axes
    """
    log_p = -free_energy / kT
    sums = [logsumexp(log_p[basin.on_grid(axes)]) for basin in (a, b)]
    return float(-kT * (sums[1] - sums[0]))


class BlockScan(NamedTuple):
    """Error of ΔF against the length of blocks; it should level off.

    Attributes
    ----------
    lengths : (K,) in rows
    errors : (K,) of ΔF, in the unit of kT
    uncertainty : (K,) of an error from B blocks: error/sqrt(2(B-1))
    plateau : whether it levels off
    """

    lengths: np.ndarray
    errors: np.ndarray
    uncertainty: np.ndarray
    plateau: bool


def block_scan(samples: Samples, a: Basin, b: Basin, *, kT: float) -> BlockScan:
    """Flyvbjerg & Petersen, J. Chem. Phys. 91, 461 (1989), of the weighted series of ΔF.

    Blocks double from one row to a sixth of a walker. A plateau: the errors of the last
    lengths with 8 blocks at least agree within their uncertainties. Parameters and what it raises
    are those of `basin_difference`: ``samples`` and basins ``a``, ``b``.
    """
    z = samples.series(_influence(samples, a, b)[2])
    z = z[:, None] if z.ndim == 1 else z
    lengths, errors, uncertainty, counts = [], [], [], []
    length = 1
    while len(z) // length >= 6:
        pieces = len(z) // length
        means = z[: pieces * length].reshape(pieces, length, -1).mean(1)
        error = kT * means.std(ddof=1) / np.sqrt(means.size)
        lengths.append(length)
        errors.append(error)
        uncertainty.append(error / np.sqrt(2 * (means.size - 1)))
        counts.append(means.size)
        length *= 2
    e, u = np.array(errors), np.array(uncertainty)
    last = [n for n, count in enumerate(counts) if count >= 8][-3:]
    level = len(last) == 3 and all(
        e[last[-1]] - e[n] <= 2 * np.hypot(u[last[-1]], u[n]) for n in last[:-1]
    )
    # the first of the three must already be out of the correlated part
    level = level and bool(e[last[-1]] - e[last[0]] <= 0.3 * e[last[-1]])
    return BlockScan(np.array(lengths), e, u, bool(level))


class Convergence(NamedTuple):
    """ΔF from parts of the run, in the unit of kT.

    Attributes
    ----------
    fractions : (K,) in (0, 1]
    forward, backward : ΔF from the first and from the last such fraction of every walker
    halves : ΔF of the first and of the second half
    z : difference of the halves over the error of that difference
    """

    fractions: np.ndarray
    forward: list[Estimate]
    backward: list[Estimate]
    halves: tuple[Estimate, Estimate]
    z: float


def convergence(samples: Samples, a: Basin, b: Basin, *, kT: float, points=10) -> Convergence:
    """How ΔF settles with time; nan where a part of the run saw only one basin.

    ``samples`` and basins ``a``, ``b`` are those of `basin_difference`; ``points``: how many
    fractions of the run are looked at.
    """
    done = samples.progress()
    fractions = np.arange(1, points + 1) / points

    def part(rows) -> Estimate:
        try:
            return basin_difference(samples.take(rows), a, b, kT=kT)
        except ValueError:
            return Estimate(np.nan, np.nan, 0.0)

    forward = [part(done <= f + 1e-12) for f in fractions]
    backward = [part(done > 1 - f - 1e-12) for f in fractions]
    halves = part(done <= 0.5), part(done > 0.5)
    error = np.hypot(halves[0].error, halves[1].error)
    gap = halves[1].value - halves[0].value
    z = gap / error if error > 0 else (np.nan if np.isnan(gap) else np.inf * np.sign(gap))
    return Convergence(fractions, forward, backward, halves, float(z))


__getattr__ = forward(__name__, "analysis.free_energy.grid")
