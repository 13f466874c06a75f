"""Trajectories of a batch of walkers on disk: H5MD files that survive a kill.

Layout (H5MD 1.1, https://nongnu.org/h5md): the walkers are copies that do not interact, so
that a batch of W walkers of N atoms is one H5MD particles group of W·N particles, walker by
walker. Any H5MD reader opens it; particle ``w·N + i`` is atom i of walker w.

    /particles/trajectory/position/value  (frames, W·N, 3) float32, Å;  step (frames,)
    /particles/trajectory/position/time   fs where a clock is known; else D·t in Å², and no
                                          unit (MDAnalysis: convert_units=False)
    /particles/trajectory/box             boundary; edges/value (frames, 3, 3) if periodic
    /particles/trajectory/{species,mass,id}  (W·N,), id = global number of the walker
    /observables/potential_energy/value   (frames, W) float64, eV; NaN where there is none
    /diffmd_ase                           attribute ``metadata``: JSON

A lost walker is NaN from the frame in which it was missing. The file is opened in HDF5's
single-writer mode for each block and closed again: a kill at any moment leaves it readable
up to the last block, and other programs can read while the run goes on. ``step`` is
written last, so a frame exists once its step does.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .system import State, System

__all__ = ["Positions", "RunInfo", "Trajectory", "TrajectoryWriter"]

SCHEMA_VERSION = 1
_ROOT = "particles/trajectory"
_STEP = f"{_ROOT}/position/step"
_POSITION = f"{_ROOT}/position/value"
_TIME = f"{_ROOT}/position/time"
_EDGES = f"{_ROOT}/box/edges/value"
_ENERGY = "observables/potential_energy/value"
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class RunInfo:
    """What the frames of a trajectory mean.

    Parameters
    ----------
    seed : of the `Noise`
    kT : eV; one number or one per walker
    h : step size in Å² that makes the clock ``D·t = step · h`` (with per-atom mobility,
        that of the atom whose D is meant)
    kinetics_valid : time correlations may be computed (unbiased, unadjusted dynamics)
    timestep_fs : Δt where a friction or mobility set the clock, else None
    model_sha256 : of the model file, or None
    package_version : of diffmd_ase
    extra : anything that JSON holds
    """

    seed: int
    kT: float | list[float]
    h: float
    kinetics_valid: bool
    timestep_fs: float | None = None
    model_sha256: str | None = None
    package_version: str = field(default_factory=lambda: version("diffmd-ase"))
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        unit = "fs" if self.timestep_fs is not None else "D·t in Å²"
        return json.dumps({"schema_version": SCHEMA_VERSION, "clock": unit, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, source) -> RunInfo:
        data = json.loads(text)
        if data.get("schema_version", 0) > SCHEMA_VERSION:
            raise ValueError(
                f"{source}: written with schema {data['schema_version']}, this version reads "
                f"up to {SCHEMA_VERSION}; update diffmd_ase"
            )
        return cls(**{f.name: data[f.name] for f in fields(cls)})


class TrajectoryWriter:
    """Appends states to an H5MD file; made by :meth:`create` or :meth:`resume`.

    Frames are kept until ``block`` of them are there, or until :meth:`flush` or
    :meth:`close`. Flush before a checkpoint is saved, so that the file is never behind it.
    """

    def __init__(self, path, system: System, walkers, info: RunInfo, block: int):
        self.path, self.system, self.info = Path(path), system, info
        self.walkers = np.asarray(walkers)
        self._column = {int(w): n for n, w in enumerate(self.walkers)}
        self._block = block
        self._pending: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._last_step = -1
        self.frames = 0

    @classmethod
    def create(
        cls, path, system: System, walkers, info: RunInfo, *, block: int = 64
    ) -> TrajectoryWriter:
        """A new file for the walkers with the global ids ``walkers`` (W,).

        Raises ``FileExistsError`` rather than overwrite a trajectory.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(
                f"{path} exists: choose another name, remove it, or restart from a checkpoint"
            )
        writer = cls(path, system, walkers, info, block)
        with replacing(path) as temporary:
            _create(temporary, system, writer.walkers, info)
        return writer

    @classmethod
    def resume(cls, path, *, step: int, block: int = 64) -> TrajectoryWriter:
        """Continue a file from a checkpoint at ``step``: later frames are removed.

        The frames kept are copied to a new file that then replaces the old one, so that a
        kill in between costs nothing. Walkers lost before are still named in the file.
        """
        old = Trajectory(path)
        keep = int(np.searchsorted(old.steps, step, side="right"))
        writer = cls(path, old.system, old.walkers, old.info, block)
        writer.frames = keep
        writer._last_step = int(old.steps[keep - 1]) if keep else -1
        if keep < len(old) or not old.closed_cleanly:
            with replacing(writer.path) as temporary:
                _create(temporary, old.system, old.walkers, old.info)
                _copy(old, temporary, keep)
        return writer

    def append(self, state: State) -> None:
        """Keep positions (B, N, 3) or (N, 3), energy and step of ``state`` as one frame."""
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
        ids = range(len(x)) if state.walkers is None else state.walkers.tolist()
        unknown = sorted(set(ids) - set(self._column))
        if unknown or len(x) != len(ids):
            raise ValueError(
                f"{len(x)} structures with walkers {list(ids)}: the file holds the walkers "
                f"{self.walkers.tolist()}"
            )
        columns = [self._column[w] for w in ids]
        frame = np.full((len(self.walkers), n_atoms, 3), np.nan, np.float32)
        frame[columns] = x
        energy = np.full(len(self.walkers), np.nan)
        if state.energy is not None:
            energy[columns] = state.energy.detach().cpu().double().numpy().reshape(-1)
        self._pending.append((int(state.step), frame, energy))
        self._last_step = int(state.step)
        self.frames += 1
        if len(self._pending) >= self._block:
            self.flush()

    def flush(self) -> None:
        """Write the frames kept so far; they survive a kill from here on."""
        if not self._pending:
            return
        steps, positions, energies = (
            np.array(column) for column in zip(*self._pending, strict=True)
        )
        with h5py.File(self.path, "r+", libver="v110", locking=False) as file:
            file.swmr_mode = True
            _append(file, steps, positions, energies, self.system, self.info)
        sync(self.path)
        self._pending = []

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exception) -> None:
        # also after an error: what was computed is kept
        self.close()


class Positions:
    """Positions (frames, W, N, 3) float32 in Å, read from disk when indexed."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]):
        self._path, self.shape = path, shape
        self.dtype, self.ndim = np.dtype(np.float32), 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        frames, walkers, n_atoms, _ = self.shape
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
        shape: tuple[int, ...] = (walkers, n_atoms, 3)
        atoms = slice(None)
        if rest and isinstance(rest[0], (int, np.integer)):  # one walker: read no other
            walker = range(walkers)[int(rest.pop(0))]
            shape, atoms = (n_atoms, 3), slice(walker * n_atoms, (walker + 1) * n_atoms)
        # opened for each read: a reader is never in the way of a run
        with _open(self._path)[0] as file:
            values = file[_POSITION][first, atoms].reshape(*np.shape(chosen), *shape)
        lead = (slice(None),) * np.ndim(chosen)
        return values[order][(*lead, *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


class Trajectory:
    """Reads a file of :class:`TrajectoryWriter`, finished, running or cut by a kill.

    Attributes
    ----------
    positions : `Positions` (frames, W, N, 3), lazy
    steps : (frames,) completed steps
    Dt : (frames,) clock D·t in Å², from step 0
    energies : (frames, W) eV
    walkers : (W,) global ids
    system, info, closed_cleanly
    """

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such trajectory")
        file, self.closed_cleanly = _open(self.path)
        with file:
            try:
                self._read(file)
            except KeyError as error:
                raise ValueError(
                    f"{self.path} is an HDF5 file but not a trajectory of diffmd_ase ({error})"
                ) from None

    def _read(self, file: h5py.File) -> None:
        self.info = RunInfo.from_json(file["diffmd_ase"].attrs["metadata"], self.path)
        self.walkers = file["diffmd_ase/walkers"][:]
        count = len(self.walkers)
        box = file[f"{_ROOT}/box"]
        n_atoms = file[f"{_ROOT}/species"].shape[0] // count
        pbc = box.attrs["boundary"].astype(str) == "periodic"
        cell = file["diffmd_ase"].attrs.get("cell")
        self.system = System(
            file[f"{_ROOT}/species"][:n_atoms], file[f"{_ROOT}/mass"][:n_atoms], cell, pbc
        )
        # a kill can leave other columns longer than the steps, never shorter
        self.steps = file[_STEP][:]
        frames = len(self.steps)
        self.Dt = self.steps * self.info.h
        self.energies = file[_ENERGY][:frames]
        self.positions = Positions(self.path, (frames, count, n_atoms, 3))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def lost(self) -> np.ndarray:
        """Global ids of the walkers that are missing in the last frame."""
        if not len(self):
            return self.walkers[:0]
        return self.walkers[np.isnan(self.positions[-1]).any(axis=(1, 2))]

    def to_atoms(self, frame: int, walker: int):
        """``ase.Atoms`` of one frame; ``walker`` is a global id."""
        column = self._column(walker)
        return self._atoms(frame, column, self.positions[frame, column])

    def _atoms(self, frame: int, column: int, x: np.ndarray):
        atoms = self.system.to_atoms(x)
        energy = self.energies[frame, column]
        if np.isfinite(energy):
            from ase.calculators.singlepoint import SinglePointCalculator

            atoms.calc = SinglePointCalculator(atoms, energy=float(energy))
        atoms.info.update(step=int(self.steps[frame]), Dt=float(self.Dt[frame]))
        atoms.info["walker"] = int(self.walkers[column])
        return atoms

    def write(self, path, walker: int, *, every: int = 1) -> None:
        """One walker in any format of ASE (``.extxyz``, ``.traj``, …), up to its loss."""
        from ase.io import write

        column = self._column(walker)
        positions = self.positions[::every, column]
        kept = np.flatnonzero(np.isfinite(positions).all(axis=(1, 2)))
        write(path, [self._atoms(n * every, column, positions[n]) for n in kept.tolist()])

    def _column(self, walker: int) -> int:
        found = np.flatnonzero(self.walkers == walker)
        if not len(found):
            raise LookupError(f"no walker {walker}: the file holds {self.walkers.tolist()}")
        return int(found[0])


def _open(path: Path) -> tuple[h5py.File, bool]:
    """The file for reading, and whether its writer closed it."""
    with path.open("rb") as raw:
        head = raw.read(36)
    # superblock of HDF5: signature (8), version, two sizes, flags of a writer that is at
    # work or was killed, two addresses (8, 8), and the address of the end of the file (8)
    if len(head) < 36 or head[:8] != b"\x89HDF\r\n\x1a\n":
        raise ValueError(f"{path} is not an HDF5 file; expected a trajectory of diffmd_ase")
    being_written = head[8] >= 3 and head[11] != 0
    try:
        if being_written:
            return h5py.File(path, "r", libver="latest", swmr=True), False
        return h5py.File(path, "r"), True
    except OSError as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None


def _create(path: Path, system: System, walkers: np.ndarray, info: RunInfo) -> None:
    count, n_atoms = len(walkers), len(system)
    if not count or len(set(walkers.tolist())) != count:
        raise ValueError(f"walkers {walkers.tolist()}: expected different ids, at least one")
    with h5py.File(path, "w", libver="v110") as file:
        header = file.create_group("h5md")
        header.attrs["version"] = np.array([1, 1])
        header.create_group("author").attrs["name"] = info.extra.get("author", "unknown")
        header.create_group("creator").attrs.update(name="diffmd_ase", version=info.package_version)
        root = file.create_group(_ROOT)
        root["species"] = np.tile(system.numbers, count)
        root["mass"] = np.tile(system.masses, count)
        root["id"] = np.repeat(walkers, n_atoms)
        box = root.create_group("box")
        box.attrs["dimension"] = 3
        boundary = ["periodic" if p else "none" for p in system.pbc]
        box.attrs["boundary"] = np.array(boundary, dtype="S8")
        rows = max(1, _CHUNK_BYTES // (12 * count * n_atoms))
        _grow(file, _POSITION, (count * n_atoms, 3), np.float32, rows)
        file[_POSITION].attrs["unit"] = "Angstrom"
        _grow(file, _STEP, (), np.int64, 1024)
        _grow(file, _ENERGY, (count,), np.float64, max(1, 8192 // count))
        file[_ENERGY].attrs["unit"] = "eV"
        file["observables/potential_energy/step"] = file[_STEP]  # one dataset, two names
        _grow(file, _TIME, (), np.float64, 1024)
        if info.timestep_fs is not None:
            file[_TIME].attrs["unit"] = "fs"
        if system.periodic:
            _grow(file, _EDGES, (3, 3), np.float64, 128)
            file[_EDGES].attrs["unit"] = "Angstrom"
            file[f"{_ROOT}/box/edges/step"] = file[_STEP]
        own = file.create_group("diffmd_ase")
        own.attrs["metadata"] = info.to_json()
        own["walkers"] = walkers
        if system.cell is not None:
            own.attrs["cell"] = system.cell


def _grow(file, name, shape, dtype, rows) -> None:
    file.create_dataset(
        name, (0, *shape), dtype=dtype, maxshape=(None, *shape), chunks=(rows, *shape)
    )


def _append(file, steps, positions, energies, system: System, info: RunInfo) -> None:
    start, count = file[_STEP].shape[0], len(steps)
    clock = info.h if info.timestep_fs is None else info.timestep_fs
    columns = [
        (_POSITION, positions.reshape(count, -1, 3)),
        (_ENERGY, energies),
        (_TIME, steps * clock),
    ]
    if system.periodic:
        columns.append((_EDGES, np.broadcast_to(system.cell, (count, 3, 3))))
    columns.append((_STEP, steps))  # last: from here on the frames exist
    for name, values in columns:
        dataset = file[name]
        dataset.resize(start + count, axis=0)
        dataset[start:] = values
        dataset.flush()


def _copy(old: Trajectory, path: Path, frames: int) -> None:
    rows = max(1, (1 << 26) // (12 * int(np.prod(old.positions.shape[1:]))))
    with h5py.File(path, "r+", libver="v110") as file:
        for start in range(0, frames, rows):
            part = slice(start, min(start + rows, frames))
            positions, energies = old.positions[part], old.energies[part]
            _append(file, old.steps[part], positions, energies, old.system, old.info)


class replacing:
    """Write a file beside ``path``, then put it in its place in one step."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(self, kind, *rest) -> None:
        if kind is None:
            sync(self._temporary)
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
