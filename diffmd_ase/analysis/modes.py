"""What the frames themselves say: their modes, their range, and frames that cannot be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.ndimage import gaussian_filter1d

from ..score.topology import Topology
from ..system import System
from .observables import distances

__all__ = ["Arc", "Range", "torsion_modes", "unphysical_frames"]

_BINS = 120  # 3° each
_SMOOTH = 2.0  # bins
_EMPTY = 0.02  # of the uniform density
_GAP = 5  # bins
_RARE = 5  # frames, below which it is no mode
_OVERLAP = 0.5  # of the sum of covalent radii
_BROKEN = 10.0  # robust standard deviations from the median
_SLACK = 0.05  # Å, of bonds that are rigid
_MEMORY = 1_000_000  # distances at a time


@dataclass(frozen=True)
class Arc:
    """One mode of a torsion: from ``low`` to ``high`` rad, with low in [-π, π) and high > low;
    ``population``: fraction of the frames."""

    low: float
    high: float
    population: float

    def __call__(self, phi: np.ndarray) -> np.ndarray:
        """Whether angles are in the mode."""
        return (phi - self.low) % (2 * np.pi) < self.high - self.low

    @property
    def whole(self) -> bool:
        return self.high - self.low > 2 * np.pi - 1e-9

    def __str__(self) -> str:
        middle = np.degrees(self.low + self.high) / 2
        return f"{(middle + 180) % 360 - 180:.0f}±{np.degrees(self.high - self.low) / 2:.0f}°"


def torsion_modes(phi: np.ndarray) -> list[Arc]:
    """Modes of angles (n,) in rad, parted by gaps that are all but empty; largest first.

    A gap is at least 15° wide, with a density below 0.02 of the uniform one; the cut is
    in its middle. Fewer than 5 frames, or none in a thousand, are no mode and belong to
    the one before. Without two gaps there is one mode, the circle.
    """
    phi = np.asarray(phi, float).ravel()
    counts = np.histogram((phi + np.pi) % (2 * np.pi), _BINS, (0, 2 * np.pi))[0]
    density = gaussian_filter1d(counts.astype(float), _SMOOTH, mode="wrap") * _BINS / len(phi)
    empty = density < _EMPTY
    cuts: list[float] = []
    if not empty.all() and empty.any():
        first = int(np.argmin(empty))  # starts in a full bin, so that no gap is torn
        run = 0
        for n in range(first, first + _BINS + 1):
            if empty[n % _BINS]:
                run += 1
                continue
            if run >= _GAP:
                cuts.append(((n - run / 2) % _BINS) * 2 * np.pi / _BINS - np.pi)
            run = 0
    few = max(_RARE, 1e-3 * len(phi))
    while len(cuts) > 1:
        arcs = _between(sorted(cuts), phi)
        smallest = min(arcs, key=lambda arc: arc.population)
        if smallest.population * len(phi) >= few:
            return sorted(arcs, key=lambda arc: -arc.population)
        cuts.remove(smallest.low)
    low = cuts[0] if cuts else -np.pi
    return [Arc(low, low + 2 * np.pi, 1.0)]


def _between(cuts: list[float], phi: np.ndarray) -> list[Arc]:
    arcs = []
    for low, high in zip(cuts, [*cuts[1:], cuts[0] + 2 * np.pi], strict=True):
        arcs.append(Arc(low, high, float(Arc(low, high, 0.0)(phi).mean())))
    return arcs


class Range:
    """All distances within those of the frames (M, N, 3), and ``margin`` Å around.

    Of structures outside the frames say nothing, and a model is an extrapolation there.
    """

    def __init__(self, frames: np.ndarray, *, margin: float = 0.3):
        self.pairs = np.stack(np.triu_indices(frames.shape[1], 1), 1)
        low, high = [], []
        for part in _chunks(frames, len(self.pairs)):
            d = distances(part, self.pairs)
            low.append(d.min(0))
            high.append(d.max(0))
        self.low, self.high = np.min(low, 0) - margin, np.max(high, 0) + margin

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(*batch) bool."""
        flat = x.reshape(-1, *x.shape[-2:])
        inside = []
        for part in _chunks(flat, len(self.pairs)):
            d = distances(part, self.pairs)
            inside.append(((d > self.low) & (d < self.high)).all(-1))
        return np.concatenate(inside).reshape(x.shape[:-2])


def unphysical_frames(
    system: System, positions: np.ndarray, topology: Topology | None = None
) -> dict[int, str]:
    """Frames (of (M, N, 3)) with overlapping atoms or, of a molecule, broken bonds: number → why.

    Atoms overlap within half the sum of their covalent radii; a bond is broken or
    crushed beyond 10 robust standard deviations (1.48 times the median deviation) of the
    frames, and 0.05 Å, from their median.
    """
    pairs = np.stack(np.triu_indices(len(system), 1), 1)
    found: dict[int, str] = {}
    if not len(pairs):
        return found
    limit = _OVERLAP * covalent_radii[system.numbers][pairs].sum(1)
    begin = 0
    for part in _chunks(positions, len(pairs)):
        d = distances(part, pairs, system=system)
        for frame in np.flatnonzero((d < limit).any(1)).tolist():
            worst = int(np.argmin(d[frame] / limit))
            atoms = _pair(system, pairs[worst])
            found[begin + frame] = f"{atoms} overlap ({d[frame, worst]:.2f} Å)"
        begin += len(part)
    if topology is not None and len(topology.bonds):
        lengths = distances(positions, topology.bonds)
        median = np.median(lengths, axis=0)
        away = np.abs(lengths - median)
        limit = np.maximum(_BROKEN * 1.4826 * np.median(away, axis=0), _SLACK)
        for frame in np.flatnonzero((away > limit).any(1)).tolist():
            worst = int(np.argmax(away[frame] / limit))
            atoms = _pair(system, topology.bonds[worst])
            found.setdefault(
                frame,
                f"bond {atoms} is {lengths[frame, worst]:.2f} Å, {median[worst]:.2f} Å in most",
            )
    return dict(sorted(found.items()))


def _pair(system: System, atoms) -> str:
    return "–".join(f"{chemical_symbols[system.numbers[a]]}{a}" for a in atoms)


def _chunks(x: np.ndarray, width: int):
    size = max(1, _MEMORY // max(1, width))
    for begin in range(0, len(x), size):
        yield x[begin : begin + size]
