"""What is looked for in snapshots: shapes, overlaps, order in time, duplicates."""

from __future__ import annotations

import logging

import numpy as np

from ..geometry import Lattice, distances
from ..system import System

__all__ = ["check_positions", "check_shapes", "correlation", "duplicates"]

_CLOSEST = 0.4  # Å; no two nuclei of an equilibrium frame come nearer


def check_shapes(system: System, positions, energies, forces, source: str) -> None:
    """``ValueError`` unless the arrays of snapshots go together, and there is a frame.

    Parameters
    ----------
    positions : (M, N, 3) with M > 0
    energies, forces : (M,) and (M, N, 3), or None
    source : for the message
    """
    if positions.ndim != 3 or positions.shape[1:] != (len(system), 3):
        raise ValueError(
            f"{source}: positions have shape {positions.shape}, expected (M, {len(system)}, 3)"
        )
    if len(positions) == 0:
        raise ValueError(f"{source} holds no snapshots")
    for name, values, shape in (
        ("energies", energies, positions.shape[:1]),
        ("forces", forces, positions.shape),
    ):
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{source}: {name} have shape {np.shape(values)}, expected {shape}")


def check_positions(system: System, positions: np.ndarray, source: str) -> None:
    """``ValueError`` for ``positions`` that are not finite, or where atoms overlap.

    They are (M, N, 3) in Å; atoms nearer than 0.4 Å overlap. ``source`` is for the `ValueError`.
    """
    bad = ~np.isfinite(positions).all(axis=(1, 2))
    if bad.any():
        raise ValueError(
            f"{source}: {bad.sum()} snapshots hold NaN or infinite positions, the first is "
            f"number {int(bad.argmax())}; remove them"
        )
    close = _closest(system, positions)
    if (close < _CLOSEST).any():
        worst = int(close.argmin())
        raise ValueError(
            f"{source}: atoms overlap in {(close < _CLOSEST).sum()} snapshots (frame {worst}: "
            f"{close[worst]:.3f} Å); are the positions in Å? Equilibrium frames are needed"
        )


def duplicates(positions: np.ndarray) -> int:
    """How many of the frames, ``positions`` (M, N, 3), are exact copies of another."""
    return len(positions) - len(np.unique(positions.reshape(len(positions), -1), axis=0))


def correlation(system: System, positions: np.ndarray) -> float:
    """Statistical inefficiency of the slowest of a few collective distances.

    ``positions`` (M, N, 3) in Å; 1 for fewer than 50 frames. The estimator is that of pymbar
    (Chodera et al., JCTC 3, 26 (2007)), the worst of the size of the `system` and three distances,
    of nearest images where it is periodic.
    """
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it advertises when imported
    from pymbar.timeseries import statistical_inefficiency

    if len(positions) < 50:
        return 1.0
    count = len(system)
    if system.periodic:  # there is no centre; the nearest images of the others around one atom
        around = distances(positions, [(0, n) for n in range(1, count)], system=system)
        size = np.sqrt((around**2).sum(-1))
    else:
        size = np.sqrt(((positions - positions.mean(axis=1, keepdims=True)) ** 2).sum((1, 2)))
    middle = count // 2
    pairs = [(0, count - 1), (0, middle), (middle, count - 1)] if count > 2 else []
    ends = distances(positions, pairs, system=system)
    worst = 1.0
    for series in (size, *ends.T):
        if series.std() > 1e-9:
            worst = max(worst, statistical_inefficiency(series))
    return float(worst)


def _closest(system: System, positions) -> np.ndarray:
    """Smallest distance of each frame (M,), with minimum images where periodic."""
    i, j = np.triu_indices(len(system), 1)
    smallest = np.full(len(positions), np.inf)
    if not len(i):
        return smallest
    lattice = Lattice(system) if system.periodic else None
    for first in range(0, len(positions), 2000):
        part = slice(first, first + 2000)
        d = positions[part][:, i] - positions[part][:, j]
        # wrapping finds every pair this near
        d = lattice.wrap(d) if lattice is not None else d
        smallest[part] = np.sqrt(np.einsum("mpd,mpd->mp", d, d).min(axis=1))
    return smallest
