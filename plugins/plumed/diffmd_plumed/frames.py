"""Trajectories as PLUMED is given them: walkers at steps, with the cell of each frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.io.trajectory import Trajectory as AseTrajectory

from diffmd_ase.io.trajectory import Positions, Trajectory

__all__ = ["Frames", "read_frames"]

_BLOCK = 64  # frames read at once


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of W walkers of one system.

    Parameters
    ----------
    positions : (T, W, N, 3) in Å, read as they are needed; NaN of walkers that are lost
    cells : (T, W, 3, 3) or (1, 1, 3, 3) in Å, zero where there is no period
    steps : (T,)
    walkers : (W,) their numbers
    masses, charges : (N,) in u and e
    timestep_ps : of a step, where the file says it
    kT : in eV, where the file says it
    """

    positions: np.ndarray | Positions
    cells: np.ndarray
    steps: np.ndarray
    walkers: np.ndarray
    masses: np.ndarray
    charges: np.ndarray
    timestep_ps: float | None = None
    kT: float | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def cell(self, frame: int, column: int) -> np.ndarray:
        """Lattice vectors (3, 3) as rows, zero where there is no period."""
        return self.cells[min(frame, len(self.cells) - 1), min(column, self.cells.shape[1] - 1)]

    def numbered(self, stride: int | None, first: int | None) -> Frames:
        """The same frames, ``stride`` steps apart and from step ``first`` on; None: as they are."""
        steps = self.steps if stride is None else stride * np.arange(len(self))
        return replace(self, steps=steps if first is None else steps - steps[0] + first)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Step and positions (W, N, 3), float64, of each frame."""
        for start in range(0, len(self), _BLOCK):
            block = np.asarray(self.positions[start : start + _BLOCK], float)
            yield from zip(self.steps[start : start + _BLOCK].tolist(), block, strict=True)


def read_frames(path: Path) -> Frames:
    """Frames of H5MD files of `diffmd run`, or of any file that ASE reads.

    Steps are those of the file (``step`` in ``atoms.info``, the interval of a ``.traj``), or count
    the frames from 0. ``walker`` in ``atoms.info`` says whose a frame is.

    Raises
    ------
    FileNotFoundError : no such file
    ValueError : no frames, frames of different elements, a cell that is periodic in part
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such trajectory")
    frames = _of_run(path) if path.suffix == ".h5" else _of_ase(path)
    if not len(frames):
        raise ValueError(f"{path} has no frames")
    return frames


def _of_run(path: Path) -> Frames:
    trajectory = Trajectory(path)
    system, info = trajectory.system, trajectory.info
    return Frames(
        trajectory.positions,
        _box(system.cell, system.pbc, path)[None, None],
        trajectory.steps,
        trajectory.walkers,
        system.masses,
        np.zeros(len(system)),
        # `diffmd run --plumed` counts steps as femtoseconds where there is no clock
        1e-3 * (1.0 if info.timestep_fs is None else info.timestep_fs),
        None if np.ndim(info.kT) else float(info.kT),  # type: ignore[arg-type]
    )


def _of_ase(path: Path) -> Frames:
    read: Any = ase.io.read(path, index=":")
    if not read:
        raise ValueError(f"{path} has no frames")
    first = read[0]
    if any(not np.array_equal(frame.numbers, first.numbers) for frame in read):
        raise ValueError(f"{path}: frames of different elements; expected a trajectory")
    of_walker: dict[int, list[Atoms]] = {}
    for frame in read:
        of_walker.setdefault(int(frame.info.get("walker", 0)), []).append(frame)
    longest = max(of_walker.values(), key=len)
    shape = len(longest), len(of_walker)
    positions, cells = np.full((*shape, len(first), 3), np.nan), np.zeros((*shape, 3, 3))
    for column, own in enumerate(of_walker.values()):
        for time, frame in enumerate(own):
            positions[time, column] = frame.positions
            cells[time, column] = _box(frame.cell.array, frame.pbc, path)
    interval, timestep = _clock(path)
    return Frames(
        positions,
        cells,
        _steps(longest, interval),
        np.array(list(of_walker)),
        first.get_masses(),
        first.get_initial_charges(),
        timestep,
    )


def _clock(path: Path) -> tuple[int, float | None]:
    """Steps between the frames of a ``.traj``, and ps of a step, if its dynamics said so."""
    if path.suffix != ".traj":
        return 1, None
    with AseTrajectory(str(path)) as trajectory:
        said = trajectory.description or {}
    timestep = said.get("timestep")
    return int(said.get("interval", 1)), None if timestep is None else timestep / (1e3 * units.fs)


def _steps(frames: Sequence[Atoms], interval: int) -> np.ndarray:
    steps = [frame.info.get("step") for frame in frames]
    if None not in steps and all(b > a for a, b in pairwise(steps)):
        return np.array(steps, int)
    return interval * np.arange(len(frames))


def _box(cell: np.ndarray | None, pbc: np.ndarray, path: Path) -> np.ndarray:
    if cell is None or not np.any(pbc):
        return np.zeros((3, 3))
    if not np.all(pbc):
        raise ValueError(
            f"{path}: pbc={np.asarray(pbc).tolist()}: PLUMED knows all three directions or none; "
            "give a cell that is long where there are no images, or none"
        )
    return np.asarray(cell, float)
