"""Positions of trajectories, read from disk when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from . import h5md
from .h5md import read_file

__all__ = ["JoinedPositions", "Positions", "compare"]


class Positions:
    """Positions of ``shape`` (frames, W, N, 3), float32 in Å, read from disk when indexed.

    With ``verify`` frames that are not what was written raise ``ValueError``.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], verify: bool = True):
        self._path, self.shape, self._verify = path, shape, verify
        self.dtype, self.ndim = np.dtype(np.float32), 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        frames, walkers = self.shape[:2]
        chosen = np.arange(frames)[first]
        order: Any = slice(None)
        if isinstance(first, slice):
            step = 1 if first.step is None else first.step
            if step < 0:  # HDF5 reads upwards only
                first = slice(int(chosen[-1]), int(chosen[0]) + 1, -step) if len(chosen) else []
                order = slice(None, None, -1)
            else:
                first = slice(*first.indices(frames))
        elif np.ndim(chosen) == 1:
            first, order = np.unique(chosen, return_inverse=True)
        else:
            first, order = int(chosen), ...
        which = slice(0, walkers)
        if rest and isinstance(rest[0], (int, np.integer)):  # one walker: read no other
            walker = range(walkers)[int(rest[0])]
            which, rest[0] = slice(walker, walker + 1), 0
        # opened for each read: a reader is never in the way of a run
        values, _ = read_file(self._path, lambda file: self._read(file, first, which))
        lead = (slice(None),) * np.ndim(chosen)
        return values[order][(*lead, *rest)]

    def _read(self, file: h5py.File, frames, walkers: slice) -> np.ndarray:
        """(frames, walkers, N, 3), or (walkers, N, 3) of one frame."""
        n_atoms = self.shape[2]
        values = file[h5md.POSITION][frames, walkers.start * n_atoms : walkers.stop * n_atoms]
        values = values.reshape(*values.shape[:-2], walkers.stop - walkers.start, n_atoms, 3)
        if self._verify and h5md.CHECKS in file:
            sums = h5md.sums_of_positions(values.reshape(-1, *values.shape[-3:]))
            told = np.atleast_2d(file[h5md.CHECK_POSITIONS][frames, walkers])
            numbers = np.atleast_1d(np.arange(len(self))[frames])
            compare(self._path, numbers[(sums != told).any(1)])
        return values

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


class JoinedPositions:
    """Positions of files that have different walkers in the same ``frames``, as `Positions`."""

    def __init__(self, parts: Sequence[Positions | JoinedPositions], frames: int):
        self._parts = tuple(parts)
        _, _, n_atoms, dim = parts[0].shape
        walkers = sum(int(part.shape[1]) for part in parts)
        self.shape: tuple[int, int, int, int] = (frames, walkers, n_atoms, dim)
        self.dtype, self.ndim = np.dtype(np.float32), 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        chosen = np.arange(len(self))[first]  # of the frames that all files have
        if rest and isinstance(rest[0], (int, np.integer)):  # one walker: read no other file
            walker = range(self.shape[1])[int(rest[0])]
            for part in self._parts:
                if walker < part.shape[1]:
                    return part[(chosen, walker, *rest[1:])]
                walker -= part.shape[1]
        values = np.concatenate([part[chosen] for part in self._parts], axis=-3)
        return values[(*(slice(None),) * np.ndim(chosen), *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def compare(path: Path, damaged: np.ndarray) -> None:
    """Raise ``ValueError`` where frames of ``path`` are ``damaged``: their numbers."""
    if len(damaged):
        some = ", ".join(map(str, damaged[:5].tolist())) + ", …" * (len(damaged) > 5)
        raise ValueError(
            f"{path} is damaged: {len(damaged)} frames ({some}) differ from their checksums; take "
            "a copy of the file, or read what is there with Trajectory(path, verify=False)"
        )
