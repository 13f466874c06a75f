"""What the frames themselves say: their modes, their range, and frames that cannot be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.ndimage import gaussian_filter1d

from ..geometry import distances
from ..score.topology import Topology
from ..system import System
from .observables import angular_vectors

__all__ = [
    "Arc",
    "Range",
    "atom_names",
    "map_axes",
    "torsion_basins",
    "torsion_modes",
    "unphysical_frames",
]

_BINS = 120  # 3° each
_SMOOTH = 2.0  # bins
_EMPTY = 0.02  # of the uniform density
_GAP = 5  # bins
_REACH = 10  # bins of a gap that belong to a mode
_RARE = 5  # frames, below which it is no mode
_WIDE = 3.0  # bins, of the density whose minima part basins
_DEEP = 0.5  # of the peaks beside them
_SEEN = 30  # frames of a peak
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

    @property
    def whole(self) -> bool:
        """It is the circle: every angle is in it."""
        return self.high - self.low > 2 * np.pi - 1e-9

    def __call__(self, phi: np.ndarray) -> np.ndarray:
        """Whether angles are in the mode."""
        return (phi - self.low) % (2 * np.pi) < self.high - self.low

    def __str__(self) -> str:
        middle = np.degrees(self.low + self.high) / 2
        return f"{(middle + 180) % 360 - 180:.0f}±{np.degrees(self.high - self.low) / 2:.0f}°"


def torsion_modes(phi: np.ndarray) -> list[Arc]:
    """Modes of angles ``phi`` (n,) in rad, parted by gaps that are all but empty; largest first.

    A gap is at least 15° wide, with a density below 0.02 of the uniform one; modes reach to
    its middle, but no more than 30° into it. Fewer than 5 frames, or one in a thousand, are
    no mode. Without a gap there is one, the circle.
    """
    phi = np.asarray(phi, float).ravel()
    counts = np.histogram((phi + np.pi) % (2 * np.pi), _BINS, (0, 2 * np.pi))[0]
    density = gaussian_filter1d(counts.astype(float), _SMOOTH, mode="wrap") * _BINS / len(phi)
    empty = density < _EMPTY
    first = int(np.argmin(empty))  # a full bin, so that no gap is torn
    ends = np.flatnonzero(np.diff(np.roll(empty, -first).astype(int), append=0))
    gaps = [(a + 1 + first, b + 1 + first) for a, b in ends.reshape(-1, 2) if b - a >= _GAP]
    if not gaps:
        return [Arc(-np.pi, np.pi, 1.0)]
    arcs = []
    before = (gaps[-1][0] - _BINS, gaps[-1][1] - _BINS)
    for gap in gaps:
        low = max(sum(before) / 2, before[1] - _REACH)
        high = min(sum(gap) / 2, gap[0] + _REACH)
        low_angle = (low % _BINS) * 2 * np.pi / _BINS - np.pi
        arc = Arc(low_angle, low_angle + (high - low) * 2 * np.pi / _BINS, 0.0)
        arcs.append(replace(arc, population=float(arc(phi).mean())))
        before = gap
    arcs = sorted(arcs, key=lambda arc: -arc.population)
    few = max(_RARE / len(phi), 1e-3)
    return [arc for n, arc in enumerate(arcs) if n == 0 or arc.population >= few]


def torsion_basins(phi: np.ndarray) -> list[Arc]:
    """`torsion_modes` of angles ``phi`` (n,) in rad; without a gap, what minima part.

    A minimum of the density, smoothed over 9°, is below half of the peaks beside it, and those
    have 30 frames. Without two of them there is one basin, the circle.
    """
    modes = torsion_modes(phi)
    if len(modes) > 1 or not modes[0].whole:
        return modes
    phi = np.asarray(phi, float).ravel()
    counts = np.histogram((phi + np.pi) % (2 * np.pi), _BINS, (0, 2 * np.pi))[0]
    density = gaussian_filter1d(counts.astype(float), _WIDE, mode="wrap")
    seen = density * _WIDE * np.sqrt(4 * np.pi) >= _SEEN
    peaks = np.flatnonzero(
        seen & (density > np.roll(density, 1)) & (density >= np.roll(density, -1))
    )
    lows = []
    for peak, after in zip(peaks, np.roll(peaks, -1), strict=True):
        between = np.arange(peak, after + (_BINS if after <= peak else 0)) % _BINS
        low = between[density[between].argmin()]
        if density[low] < _DEEP * min(density[peak], density[after]):
            lows.append(int(low))
    if len(lows) < 2:
        return modes
    ends = (np.sort(lows) + 0.5) * 2 * np.pi / _BINS - np.pi
    arcs = [Arc(a, b, 0.0) for a, b in zip(ends, [*ends[1:], ends[0] + 2 * np.pi], strict=True)]
    arcs = [replace(arc, population=float(arc(phi).mean())) for arc in arcs]
    return sorted(arcs, key=lambda arc: -arc.population)


class Range:
    """All distances within those of given frames, and a margin around.

    Of structures outside the frames say nothing, and a model is an extrapolation there.

    Parameters
    ----------
    frames : (M, N, 3) in Å
    margin : in Å, on either side
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
    """Frames with overlapping atoms or, of a molecule, broken bonds: number → why.

    Atoms overlap within half the sum of their covalent radii; a bond is broken or
    crushed beyond 10 robust standard deviations (1.48 times the median deviation) of the
    frames, and 0.05 Å, from their median.

    ``positions`` are (M, N, 3) in Å; ``topology`` gives the bonds, None of a crystal.
    """
    pairs = np.stack(np.triu_indices(len(system), 1), 1)
    wrong: dict[int, str] = {}
    if not len(pairs):
        return wrong
    limit = _OVERLAP * covalent_radii[system.numbers][pairs].sum(1)
    begin = 0
    for part in _chunks(positions, len(pairs)):
        d = distances(part, pairs, system=system)
        for frame in np.flatnonzero((d < limit).any(1)).tolist():
            worst = int(np.argmin(d[frame] / limit))
            atoms = atom_names(system, pairs[worst])
            wrong[begin + frame] = f"{atoms} overlap ({d[frame, worst]:.2f} Å)"
        begin += len(part)
    if topology is not None and len(topology.bonds):
        lengths = distances(positions, topology.bonds, system=system)
        median = np.median(lengths, axis=0)
        away = np.abs(lengths - median)
        limit = np.maximum(_BROKEN * 1.4826 * np.median(away, axis=0), _SLACK)
        for frame in np.flatnonzero((away > limit).any(1)).tolist():
            worst = int(np.argmax(away[frame] / limit))
            atoms = atom_names(system, topology.bonds[worst])
            wrong.setdefault(
                frame,
                f"bond {atoms} is {lengths[frame, worst]:.2f} Å, {median[worst]:.2f} Å in most",
            )
    return dict(sorted(wrong.items()))


def map_axes(names: Sequence[str], phi: np.ndarray) -> list[int]:
    """Which torsions make the map: ``phi`` and ``psi``, or the two that spread most.

    ``names`` of n torsions and their angles ``phi`` (M, n) in rad; spread is told by the length of
    the mean of (cos φ, sin φ). One where there is only one.
    """
    if "phi" in names and "psi" in names:
        return [names.index("phi"), names.index("psi")]
    length = np.linalg.norm(angular_vectors(phi).mean(0), axis=-1)
    return sorted(np.argsort(length)[:2].tolist())


def atom_names(system: System, atoms) -> str:
    """Elements and numbers of ``atoms`` of a system, counted from 0, such as C8–H9."""
    return "–".join(f"{chemical_symbols[system.numbers[a]]}{a}" for a in atoms)


def _chunks(x: np.ndarray, width: int):
    size = max(1, _MEMORY // max(1, width))
    for begin in range(0, len(x), size):
        yield x[begin : begin + size]
