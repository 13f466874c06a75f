"""Trajectory files as series: time first, walkers second, from H5MD or anything ASE reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..system import System
from .ase_frames import iterate
from .spikes import spikes
from .trajectory import Trajectory

__all__ = ["Series", "read_series"]

_FAR = 1e6  # Å


@dataclass(frozen=True, eq=False)
class Series:
    """Frames of one system.

    ``columns`` are what was written with every frame: ``energy`` (eV), ``acceptance``, variables
    of a bias, numbers in ``atoms.info``.
    """

    system: System
    positions: np.ndarray  # (T, W, N, 3) Å
    columns: dict[str, np.ndarray]  # (T, W) by name
    groups: np.ndarray | None  # (W,) which walkers had one start, or None if all starts differ
    left_out: int  # walkers that were lost
    cells: np.ndarray | None = None  # (T, W, 3, 3) Å where they change; None: that of ``system``


def read_series(paths: Sequence[Path], *, skip: float = 0.0) -> Series:
    """The walkers of all files side by side, cut to the shortest, without lost walkers.

    Parameters
    ----------
    paths : H5MD files (``.h5``), or any that ASE reads
    skip : fraction of the frames left out at first

    Raises
    ------
    FileNotFoundError : no such file
    ValueError : no files, or of different systems, no frames, only lost walkers, positions that
        no atom has. Warns of coordinates that jump away and back (`spikes.spikes`)
    """
    if not paths:
        raise ValueError("no files: give at least one trajectory")
    parts = [_read_h5(Path(p)) if Path(p).suffix == ".h5" else _read_ase(Path(p)) for p in paths]
    system = parts[0].system
    cells = _cells(parts)
    for path, part in zip(paths, parts, strict=True):
        theirs = part.system
        if cells is not None and theirs.periodic and system.periodic:
            theirs = replace(theirs, cell=system.cell)
        if difference := theirs.difference(system):
            raise ValueError(
                f"{path} and {paths[0]} are of different systems, which differ in {difference}; "
                "analyse them one by one"
            )
    count = min(len(part.positions) for part in parts)
    first = int(skip * count)

    def side_by_side(values) -> np.ndarray:
        return np.concatenate([of[:count] for of in values], axis=1)

    positions = side_by_side(part.positions for part in parts)
    names = [n for n in parts[0].columns if all(n in part.columns for part in parts)]
    columns = {n: side_by_side(part.columns[n] for part in parts) for n in names}
    kept = np.isfinite(positions).all((0, 2, 3))
    if not kept.any():
        raise ValueError(f"{paths[0]}: all walkers were lost, there is nothing to analyse")
    starts = positions[0, kept].reshape(int(kept.sum()), -1)
    _, groups, sizes = np.unique(starts, axis=0, return_inverse=True, return_counts=True)
    same = len(sizes) > 1 and sizes[0] > 1 and len(set(sizes.tolist())) == 1
    return Series(
        system,
        positions[first:, kept],
        {name: values[first:, kept] for name, values in columns.items()},
        groups.reshape(-1) if same else None,
        int((~kept).sum()),
        None if cells is None else side_by_side(cells)[first:, kept],
    )


class _Part(NamedTuple):
    """One file: system, positions (T, W, N, 3), columns and, where they change, cells."""

    system: System
    positions: np.ndarray
    columns: dict[str, np.ndarray]
    cells: np.ndarray | None = None


def _cells(parts: Sequence[_Part]) -> list[np.ndarray] | None:
    """Cells (T, W, 3, 3) of the frames of each file, or None where they change in none of them."""
    if all(part.cells is None for part in parts):
        return None
    return [
        np.broadcast_to(part.system.cell, (*part.positions.shape[:2], 3, 3))
        if part.cells is None
        else part.cells
        for part in parts
    ]


def _read_h5(path: Path) -> _Part:
    trajectory = Trajectory(path)
    if not len(trajectory):
        raise ValueError(f"{path} has no frames")
    columns = {"energy": trajectory.energies, **trajectory.columns}
    return _Part(trajectory.system, trajectory.positions[:], columns)


def _read_ase(path: Path) -> _Part:
    """Frames of one walker, or of a batch, where ``atoms.info["walker"]`` says whose."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such trajectory")
    frames = list(iterate(path))
    if not frames:
        raise ValueError(f"{path} has no frames")
    system = System.from_atoms(frames[0])
    if any(not np.array_equal(f.numbers, frames[0].numbers) for f in frames):
        raise ValueError(f"{path}: frames of different elements; expected a trajectory")
    if any(not np.array_equal(f.pbc, frames[0].pbc) for f in frames):
        raise ValueError(f"{path}: frames of different pbc; analyse those of each one by one")
    walkers: dict[int, list] = {}
    for frame in frames:
        walkers.setdefault(int(frame.info.get("walker", 0)), []).append(frame)
    longest = max(map(len, walkers.values()))
    shape = longest, len(walkers)
    positions = np.full((*shape, len(system), 3), np.nan)
    cells = np.full((*shape, 3, 3), system.cell if system.periodic else np.nan)
    shown = [n for n, v in frames[0].info.items() if _number(v) and n not in ("walker", "step")]
    columns = {name: np.full(shape, np.nan) for name in ("energy", *shown)}
    for column, own in enumerate(walkers.values()):
        for time, frame in enumerate(own):
            positions[time, column] = frame.positions
            if system.periodic:
                cells[time, column] = System.from_atoms(frame).cell
            if frame.calc is not None and frame.calc.results.get("energy") is not None:
                columns["energy"][time, column] = frame.calc.results["energy"]
            for name in shown:
                value = frame.info.get(name)
                if _number(value):
                    columns[name][time, column] = value
    varies = system.periodic and bool((cells != system.cell).any())
    _check(path, positions, None if varies or not system.periodic else system.cell)
    return _Part(system, positions, columns, cells if varies else None)


def _check(path: Path, positions: np.ndarray, cell: np.ndarray | None) -> None:
    far = np.argwhere(np.abs(positions) > _FAR)
    if len(far):
        frame, _, atom, _ = far[0].tolist()
        raise ValueError(
            f"{path}: frame {frame} has atom {atom} more than {_FAR:g} Å away: it was damaged, or "
            "its lengths are not in Å"
        )
    strange = spikes(positions, cell)
    if len(strange):
        frame, walker, atom, _ = strange[0].tolist()
        distance = np.abs(positions[frame, walker, atom] - positions[frame - 1, walker, atom]).max()
        warnings.warn(
            f"{path}: {len(strange)} coordinates jump away and back; the first is that of atom "
            f"{atom} in frame {frame}, by {distance:.3g} Å: was the file damaged?",
            stacklevel=4,
        )


def _number(value) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
