"""Frames in which one coordinate is out of line: all that files without checksums can show."""

from __future__ import annotations

import numpy as np

__all__ = ["spikes"]

_FACTOR = 20.0  # over what coordinates do from frame to frame, and over what this one does around


def spikes(positions: np.ndarray, cell: np.ndarray | None = None) -> np.ndarray:
    """Places (n, 4), as (frame, walker, atom, axis), of coordinates that jump away and back.

        min(|x_t - x_{t-1}|, |x_t - x_{t+1}|) > 20 max(|x_{t+1} - x_{t-1}|, median |x_t - x_{t-1}|)

    A flipped bit does so to one coordinate of a frame. Independent frames never do, for their
    neighbours are no nearer to each other, and what moves really moves more than one coordinate.
    What is below that, nobody sees.

    Parameters
    ----------
    positions : (T, W, N, 3) in time
    cell : (3, 3), rows are lattice vectors: whole ones of them are no jump; None: not periodic
    """
    if len(positions) < 3:
        return np.zeros((0, 4), int)

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        difference = a - b
        if cell is not None:
            difference -= np.round(difference @ np.linalg.pinv(cell)) @ cell
        return np.abs(difference)

    with np.errstate(invalid="ignore", over="ignore"):
        steps = apart(positions[1:], positions[:-1])
        around = apart(positions[2:], positions[:-2])
        usual = np.median(steps, axis=0)
        jump = np.minimum(steps[:-1], steps[1:])
        found = jump > _FACTOR * np.maximum(around, usual)
    alone = found.sum((2, 3)) == 1  # what moves takes others along
    places = np.argwhere(found & alone[:, :, None, None])
    places[:, 0] += 1
    return places
