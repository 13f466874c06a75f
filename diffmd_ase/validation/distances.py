"""Lines of the card for what has no torsions: distances, and the first peaks of g(r)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.signal import find_peaks
from scipy.sparse import csr_array, vstack

from ..analysis.divergence import cell_rows, excess_divergence
from ..analysis.statistics import jackknife_error
from ..geometry import distances
from ..score.neighbours import edges
from ..score.networks.inputs import Inputs
from ..score.snapshot_checks import blocks
from ..system import System
from .comparisons import divergence_line
from .scorecard import Goals, Line, worst_line

__all__ = ["distance_lines"]

_CELLS = 150
_CUTOFF = 6.0  # Å, of distances between periodic images
_NEIGHBOURS = 1000  # numbers for each atom, of its edges within that
_GROUPS = 20  # of frames, for the jackknife
_NEAR, _TOP = 0.3, 0.16  # Å around the place of a peak, and of the parabola through its top


def distance_lines(
    system: System,
    reference: np.ndarray,
    samples: dict[str, tuple[np.ndarray, np.ndarray | None]],
    goals: Goals,
    *,
    seed: int,
) -> list[Line]:
    """Divergence of all distances; places and heights of up to three peaks of their density.

    Parameters
    ----------
    reference : (M, N, 3) in Å of the data
    samples : name → positions (S, N, 3) and, of walkers, their groups (S,)
    goals : ``independent``, ``dynamics`` and ``peak`` hold
    """
    limits = _limits(system, reference)
    rows, lines = _rows(system, reference, limits), []
    data = _Density(rows, np.arange(len(reference)) * _GROUPS // len(reference), limits)
    places = data.places()
    for label, (x, groups) in samples.items():
        table = _rows(system, x, limits)
        excess = excess_divergence(rows, table, groups=groups, seed=seed)
        goal = goals.independent if groups is None else goals.dynamics
        words = f"{len(x)} frames worth {excess.n_effective:.0f}"
        lines.append(divergence_line("distances", f"JS distances: {label}", excess, goal, words))
        ours = _Density(table, np.arange(len(x)) % _GROUPS if groups is None else groups, limits)
        names = [
            f"{what} of peak {n} at {place:.2f} Å"
            for n, place in enumerate(places, 1)
            for what in ("place", "height")
        ]
        pairs = [(ours.peak(place), data.peak(place)) for place in places]
        values = np.array([a[0] / b[0] for a, b in pairs]).ravel()
        relative = [np.hypot(a[1] / a[0], b[1] / b[0]) for a, b in pairs]
        if names:
            name = f"peaks of g(r): {label}"
            errors = values * np.ravel(relative)
            lines.append(worst_line("distances", name, names, values, errors, goal=goals.peak))
    return lines


class _Density:
    """Counts over r² dr in groups of frames (G, K): peaks with a jackknife."""

    def __init__(self, rows, groups, limits: np.ndarray):
        groups = np.unique(groups, return_inverse=True)[1]
        counts = [rows[groups == g].sum(0) for g in range(groups.max() + 1)]
        self.r, shell = (limits[1:] + limits[:-1]) / 2, np.diff(limits**3)
        self.whole = np.sum(counts, 0) / shell / rows.shape[0]
        sizes = np.bincount(groups)
        self.left = [
            (np.sum(counts, 0) - c) / shell / (rows.shape[0] - n)
            for c, n in zip(counts, sizes, strict=True)
        ]

    def places(self) -> list[float]:
        tops = find_peaks(self.whole, prominence=0.1 * self.whole.max())[0][:3]
        return self.r[tops].tolist()

    def peak(self, near: float) -> tuple[np.ndarray, np.ndarray]:
        """Place and height (2,) of the highest peak within 0.3 Å, and their errors (2,)."""
        left = [_top(self.r, g, near) for g in self.left]
        return _top(self.r, self.whole, near), jackknife_error(left)


def _top(r, g, near) -> np.ndarray:
    """Of a parabola through the bins around the largest one."""
    close = np.abs(r - near) < _NEAR
    top = r[close][g[close].argmax()]
    close = np.abs(r - top) < max(_TOP, 1.5 * (r[1] - r[0]))
    a, b, c = np.polyfit(r[close] - top, g[close], 2)
    return np.array([top - b / (2 * a), c - b**2 / (4 * a)]) if a < 0 else np.full(2, np.nan)


def _limits(system: System, frames) -> np.ndarray:
    """Of bins, from a little below the smallest distance of the frames."""
    ends = [(r.min(), r.max()) for _, r in _distances(system, frames) if len(r)]
    low, high = np.min(ends), np.max(ends)
    return np.linspace(0.9 * low, high * (1 + 1e-9), _CELLS + 1)


def _rows(system: System, x, limits) -> csr_array:
    def shape(part: slice) -> tuple[int, int]:
        return part.stop - part.start, len(limits) - 1

    parts = [
        cell_rows(owner, np.searchsorted(limits, r, side="right") - 1, shape(part))
        for part, (owner, r) in zip(_parts(system, x), _distances(system, x), strict=True)
    ]
    return vstack(parts, format="csr")


def _distances(system: System, x) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and lengths of all distances of some frames at a time; periodic ones up to 6 Å."""
    pairs = None if system.periodic else np.stack(np.triu_indices(len(system), 1), 1)
    for part in _parts(system, x):
        some = np.asarray(x[part])
        if pairs is not None:
            r = distances(some, pairs)
            yield np.repeat(np.arange(len(r)), len(pairs)), r.ravel()
            continue
        _, cell, pbc = Inputs.of(system, dtype=torch.float64)
        first, _, vector = edges(torch.as_tensor(some, dtype=torch.float64), _CUTOFF, cell, pbc)
        yield first.numpy() // len(system), vector.norm(dim=-1).numpy()


def _parts(system: System, x) -> list[slice]:
    n = len(system)
    return list(blocks(len(x), _NEIGHBOURS * n if system.periodic else 4 * n**2))
