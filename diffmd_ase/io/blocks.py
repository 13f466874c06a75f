"""Trajectories larger than memory: measured block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .trajectory import Trajectory

__all__ = ["blocks", "measured"]

_BYTES = 32_000_000  # of positions at a time


def blocks(
    trajectory: Trajectory, *, skip: float = 0.0, most: int = _BYTES
) -> Iterator[np.ndarray]:
    """Positions (T', W, N, 3) in Å of a ``trajectory``, as many frames as fit into ``most`` bytes.

    Parameters
    ----------
    skip : fraction of the frames left out at first
    most : bytes of the positions of a block; one frame at least is read
    """
    frames, walkers, atoms, _ = trajectory.positions.shape
    rows = max(1, most // (walkers * atoms * 12))
    first = int(skip * frames)
    for start in range(first, frames, rows):
        yield trajectory.positions[start : min(start + rows, frames)]


def measured(
    trajectory: Trajectory,
    measure: Callable[[np.ndarray], np.ndarray],
    *,
    skip: float = 0.0,
    most: int = _BYTES,
) -> np.ndarray:
    """What ``measure`` gives of all frames, (T, W, …), with one block of positions in memory.

    Parameters
    ----------
    measure : takes positions (T', W, N, 3) in Å, NaN of lost walkers, and gives (T', W, …)
    skip, most : as of `blocks`

    Raises
    ------
    ValueError : no frames, another shape than (T', W, …); what a damaged file raises
    """
    parts = []
    for x in blocks(trajectory, skip=skip, most=most):
        values = np.asarray(measure(x))
        if values.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"a variable of shape {values.shape} of positions {x.shape}: expected one value, "
                f"or row of values, of each frame and walker, {x.shape[:2]}"
            )
        parts.append(values)
    if not parts:
        raise ValueError(f"{trajectory.path} has no frames")
    return np.concatenate(parts)
