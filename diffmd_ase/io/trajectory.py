"""Trajectories of a batch of walkers on disk, in H5MD files that survive a kill.

The layout of the file is described in `io.h5md`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from ..state import State
from ..system import System
from . import h5md
from .atomic import replacing, reserve, sync
from .carried import with_carried
from .checksums import row_sums
from .h5md import append_frames, create_file, growth, open_to_append, read_file
from .h5md_checks import check_layout, check_links
from .parts import parts_of
from .positions import JoinedPositions, Positions, compare
from .run_info import RunInfo

__all__ = ["Positions", "RunInfo", "Trajectory", "TrajectoryWriter"]


class TrajectoryWriter:
    """Appends states to an H5MD file; made by :meth:`create` or :meth:`resume`.

    Frames are kept until ``block`` of them are there, or until :meth:`flush` or
    :meth:`close`. Flush before a checkpoint is saved, so that the file is never behind it.

    Parameters
    ----------
    walkers : (W,) global ids
    info : what the frames mean
    block : frames that are written at once
    columns : names of further numbers of each walker and frame

    Raises
    ------
    FileExistsError : `create` does not overwrite a trajectory
    ValueError : ids or names of columns that a file cannot have; a state of another shape or of
        other walkers, or whose step is not after the last one
    """

    def __init__(
        self, path, system: System, walkers, info: RunInfo, block: int, columns: Sequence[str] = ()
    ):
        self.path, self.system, self.info = Path(path).absolute(), system, info
        self.columns = tuple(columns)
        self.walkers = np.asarray(walkers)
        self._order = np.argsort(self.walkers)
        self._block = block
        # (step, positions, energies, named columns) of each frame
        self._pending: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._last_step = -1
        self.frames = 0
        self._failure: OSError | None = None

    @classmethod
    def create(
        cls,
        path,
        system: System,
        walkers,
        info: RunInfo,
        *,
        columns: Sequence[str] = (),
        block: int = 64,
    ) -> TrajectoryWriter:
        """A new file; the parameters are those of the class."""
        path = Path(path)
        if path.exists():
            raise FileExistsError(
                f"{path} exists: choose another name, remove it, or restart from a checkpoint"
            )
        writer = cls(path, system, walkers, info, block, columns)
        with replacing(path) as temporary:
            create_file(temporary, system, writer.walkers, info, writer.columns)
        return writer

    @classmethod
    def resume(cls, path, *, step: int, block: int = 64) -> TrajectoryWriter:
        """Continue a file from a checkpoint at ``step``: later frames are removed.

        The frames kept are copied to a new file that then replaces the old one, so that a
        kill in between costs nothing. Walkers lost before are still named in the file.
        Raises as `Trajectory`.
        """
        old = Trajectory(path)
        keep = int(np.searchsorted(old.steps, step, side="right"))
        writer = cls(path, old.system, old.walkers, old.info, block, tuple(old.columns))
        writer.frames = keep
        writer._last_step = int(old.steps[keep - 1]) if keep else -1
        if keep < len(old) or not old.closed_cleanly or not old.grows:
            with replacing(writer.path) as temporary:
                create_file(temporary, old.system, old.walkers, old.info, writer.columns)
                _copy(old, temporary, keep)
        return writer

    @classmethod
    def copied(
        cls, path, old: Trajectory, walkers, *, step: int, block: int = 64
    ) -> TrajectoryWriter:
        """A new file at ``path`` with the frames of ``old`` up to ``step``, of these ``walkers``.

        What is at ``path`` is replaced. Raises ``LookupError`` for walkers that ``old`` has not.
        """
        keep = int(np.searchsorted(old.steps, step, side="right"))
        writer = cls(path, old.system, walkers, old.info, block, tuple(old.columns))
        writer.frames = keep
        writer._last_step = int(old.steps[keep - 1]) if keep else -1
        with replacing(writer.path) as temporary:
            create_file(temporary, old.system, writer.walkers, old.info, writer.columns)
            _copy(old, temporary, keep, [old.column(w) for w in writer.walkers.tolist()])
        return writer

    def append(self, state: State, named: Mapping[str, Tensor] | None = None) -> None:
        """Keep positions (B, N, 3) or (N, 3), energy and step of ``state`` as one frame.

        ``named`` are the numbers of the columns, (B,) each; NaN where there are none.
        """
        x = state.x.detach().cpu().numpy().astype(np.float32)
        x = x[None] if x.ndim == 2 else x
        n_atoms = len(self.system)
        if x.ndim != 3 or x.shape[1:] != (n_atoms, 3):
            raise ValueError(
                f"positions {tuple(state.x.shape)}, expected ({n_atoms}, 3) or "
                f"(B, {n_atoms}, 3) for {self.system.formula}"
            )
        if state.step <= self._last_step:
            raise ValueError(
                f"step {state.step} after step {self._last_step}: frames must come in order; "
                "use resume(path, step=...) to go back"
            )
        ids = np.arange(len(x)) if state.walkers is None else state.walkers.cpu().numpy()
        near = np.searchsorted(self.walkers, ids, sorter=self._order)
        columns = self._order[np.minimum(near, len(self.walkers) - 1)]
        if len(x) != len(ids) or (self.walkers[columns] != ids).any():
            raise ValueError(
                f"{len(x)} structures with walkers {ids.tolist()}: the file holds the walkers "
                f"{self.walkers.tolist()}"
            )
        frame = np.full((len(self.walkers), n_atoms, 3), np.nan, np.float32)
        frame[columns] = x
        energy = np.full(len(self.walkers), np.nan)
        if state.energy is not None:
            energy[columns] = state.energy.detach().cpu().double().numpy().reshape(-1)
        values = np.full((len(self.columns), len(self.walkers)), np.nan)
        for row, name in zip(values, self.columns, strict=True):
            if named is not None and name in named:
                row[columns] = named[name].detach().cpu().double().numpy().reshape(-1)
        self._pending.append((int(state.step), frame, energy, values))
        self._last_step = int(state.step)
        self.frames += 1
        if len(self._pending) >= self._block:
            self.flush()

    def flush(self) -> None:
        """Write the frames kept so far; they survive a kill from here on.

        Raises ``OSError`` on a full disk: the file is as before, and the frames are still kept.
        Where the disk fails later than that, all that follows raises it again: HDF5 does not let
        go of a file that it could not close.
        """
        if not self._pending:
            return
        if self._failure is not None:
            raise self._failure
        steps, positions, energies, values = (
            np.array(column) for column in zip(*self._pending, strict=True)
        )
        named = dict(zip(self.columns, values.swapaxes(0, 1), strict=True))
        more, _ = read_file(self.path, lambda file: growth(file, len(steps)))
        reserve(self.path, more)
        try:
            with open_to_append(self.path) as file:
                append_frames(file, steps, positions, energies, named, self.system, self.info)
            sync(self.path)
        except (OSError, RuntimeError) as error:
            self._failure = _failed(error, self.path, steps[0])
            raise self._failure from error
        self._pending = []

    def close(self) -> None:
        """`flush`; the file itself is never left open."""
        self.flush()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exception) -> None:
        # also after an error: what was computed is kept
        self.close()


def _failed(error: Exception, path: Path, step: int) -> OSError:
    """An ``error`` of HDF5 in plain words, where it was writing the frame of ``step``."""
    number = errno.EIO
    part: BaseException | None = error
    while part is not None:  # that of closing the file hides what went wrong before
        said = re.search(r"errno = (\d+)", str(part))
        number = getattr(part, "errno", None) or (int(said[1]) if said else number)
        part = part.__context__
    return OSError(
        number,
        f"{os.strerror(number)}: frames from step {step} on were not written, "
        "those before are safe",
        str(path),
    )


class Trajectory:
    """Reads a file of :class:`TrajectoryWriter`, finished, running or cut by a kill.

    An index (`io.parts`) is read as one trajectory of all walkers, from the files that it names.

    Attributes
    ----------
    positions : `Positions` (frames, W, N, 3), lazy
    steps : (frames,) completed steps
    Dt : (frames,) clock D·t in Å², from step 0
    energies : (frames, W) eV
    columns : {name: (frames, W)} of further numbers
    walkers : (W,) global ids
    system, info : atoms, and what the frames mean
    closed_cleanly : no block is being written, and none was cut off by a kill
    has_checksums : False of files of earlier versions
    grows : frames can be added to the file as it is
    parts : paths of the files of an index, in the order of their walkers; none of other files

    Raises
    ------
    FileNotFoundError : no such file, or none of one that an index names
    ValueError : damaged, of a later version, or no trajectory of diffmd_ase

    Each frame has checksums (not in files of earlier versions): all but its positions are
    verified at once, positions when they are read; ``verify=False`` reads what is there.
    """

    positions: Positions | JoinedPositions
    system: System
    info: RunInfo
    walkers: np.ndarray

    def __init__(self, path, *, verify: bool = True):
        self.path, self._verify = Path(path).absolute(), verify
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such trajectory")
        self.parts, _ = read_file(self.path, lambda file: parts_of(file, self.path))
        if self.parts:
            self._join([Trajectory(part, verify=verify) for part in self.parts])
        else:
            _, self.closed_cleanly = read_file(self.path, self._read)

    def _read(self, file: h5py.File) -> None:
        steps = file[h5md.STEP]  # opened first, and once: its writer makes it longer last
        check_links(file, self.path)
        names = check_layout(file, self.path)
        self.info = RunInfo.from_json(h5md.text(file["diffmd_ase"].attrs["metadata"]), self.path)
        self.walkers = file["diffmd_ase/walkers"][:]
        count = len(self.walkers)
        box = file[f"{h5md.ROOT}/box"]
        n_atoms = file[f"{h5md.ROOT}/species"].shape[0] // count
        pbc = box.attrs["boundary"].astype(str) == "periodic"
        cell = file["diffmd_ase"].attrs.get("cell")
        system = System(
            file[f"{h5md.ROOT}/species"][:n_atoms], file[f"{h5md.ROOT}/mass"][:n_atoms], cell, pbc
        )
        carried = file["diffmd_ase"].get("carried")
        try:
            self.system = with_carried(system, None if carried is None else h5md.text(carried[()]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        # a kill can leave other columns longer than the steps, never shorter
        self.steps = steps[:]
        frames = len(self.steps)
        self.Dt = self.steps * self.info.h
        self.energies = file[h5md.ENERGY][:frames]
        self.columns = {name: file[h5md.column(name)][:frames] for name in names}
        self.positions = Positions(self.path, (frames, count, n_atoms, 3), self._verify)
        self.has_checksums = h5md.CHECKS in file
        self.grows = h5md.grows(file, names, self.system.periodic)
        if self._verify and self.has_checksums:
            if h5md.header_digest(file) != h5md.text(file[h5md.CHECKS].attrs["header"]):
                raise ValueError(f"{self.path} is damaged: its header differs from its checksum")
            parts = h5md.rest(names, self.system.periodic)
            sums = row_sums(*(file[part][:frames] for part in parts))
            compare(self.path, np.flatnonzero(sums != file[h5md.CHECK_REST][:frames]))

    def _join(self, parts: list[Trajectory]) -> None:
        first, *others = parts
        frames = min(map(len, parts))
        self.info, self.system, self.steps = first.info, first.system, first.steps[:frames]
        for part in others:
            alike = part.system == first.system and replace(part.info, extra={}) == replace(
                first.info, extra={}
            )
            if not alike or not np.array_equal(part.steps[:frames], self.steps):
                raise ValueError(
                    f"{self.path} is damaged: {part.path.name} is of another run than "
                    f"{first.path.name}"
                )
        self.walkers = np.concatenate([part.walkers for part in parts])
        self.Dt = first.Dt[:frames]
        self.energies = np.concatenate([part.energies[:frames] for part in parts], axis=1)
        self.columns = {
            name: np.concatenate([part.columns[name][:frames] for part in parts], axis=1)
            for name in first.columns
            if all(name in part.columns for part in parts)
        }
        self.positions = JoinedPositions([part.positions for part in parts], frames)
        self.closed_cleanly = all(part.closed_cleanly for part in parts)
        self.has_checksums = all(part.has_checksums for part in parts)
        self.grows = False

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def lost(self) -> np.ndarray:
        """Global ids of the walkers that are missing in the last frame."""
        if not len(self):
            return self.walkers[:0]
        return self.walkers[np.isnan(self.positions[-1]).any(axis=(1, 2))]

    def to_atoms(self, frame: int, walker: int):
        """``ase.Atoms`` of one ``frame``, its columns in ``info``; ``walker`` is a global id.

        Raises ``LookupError`` for an id that the file does not hold.
        """
        column = self.column(walker)
        return self._atoms(frame, column, self.positions[frame, column])

    def _atoms(self, frame: int, column: int, x: np.ndarray):
        atoms = self.system.to_atoms(x)
        energy = self.energies[frame, column]
        if np.isfinite(energy):
            from ase.calculators.singlepoint import SinglePointCalculator

            atoms.calc = SinglePointCalculator(atoms, energy=float(energy))
        atoms.info.update(step=int(self.steps[frame]), Dt=float(self.Dt[frame]))
        atoms.info["walker"] = int(self.walkers[column])
        told = {name: float(values[frame, column]) for name, values in self.columns.items()}
        atoms.info.update({name: value for name, value in told.items() if np.isfinite(value)})
        return atoms

    def write(self, path, walker: int, *, every: int = 1) -> None:
        """One walker in any format of ASE (``.extxyz``, ``.traj``, …), up to its loss.

        From the first frame on every ``every``-th. Raises as `to_atoms`.
        """
        from ase.io import write

        column = self.column(walker)
        positions = self.positions[::every, column]
        kept = np.flatnonzero(np.isfinite(positions).all(axis=(1, 2)))
        write(path, [self._atoms(n * every, column, positions[n]) for n in kept.tolist()])

    def column(self, walker: int) -> int:
        """The place of a global id ``walker`` in the file.

        Raises ``LookupError`` for one that it does not hold.
        """
        found = np.flatnonzero(self.walkers == walker)
        if not len(found):
            raise LookupError(f"no walker {walker}: the file holds {self.walkers.tolist()}")
        return int(found[0])


def _copy(old: Trajectory, path: Path, frames: int, walkers: list[int] | None = None) -> None:
    which = slice(None) if walkers is None else walkers
    rows = max(1, (1 << 26) // (12 * int(np.prod(old.positions.shape[1:]))))
    more, _ = read_file(path, lambda file: growth(file, frames))
    reserve(path, more)
    with h5py.File(path, "r+", libver="v110") as file:
        for start in range(0, frames, rows):
            part = slice(start, min(start + rows, frames))
            positions, energies = old.positions[part][:, which], old.energies[part][:, which]
            named = {name: values[part][:, which] for name, values in old.columns.items()}
            append_frames(file, old.steps[part], positions, energies, named, old.system, old.info)
