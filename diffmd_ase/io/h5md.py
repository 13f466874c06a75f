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
    /observables/NAME/value               (frames, W) float64: ``acceptance`` since the frame
                                          before, and what a bias says of itself
    /diffmd_ase                           attribute ``metadata``: JSON; ``columns``: the NAMEs;
                                          ``carried``: what calculators are to see of the atoms
    /diffmd_ase/checks                    sums of each frame (`io.checksums`): ``positions``
                                          (frames, W), ``rest`` (frames,); attribute ``header``

A lost walker is NaN from the frame in which it was missing. The file is opened in HDF5's
single-writer mode for each block and closed again: a kill at any moment leaves it readable
up to the last block, and other programs can read while the run goes on. ``step`` is
written last, so a frame exists once its step does.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from ..system import System
from .carried import carried_text
from .checksums import digest, row_sums
from .limits import check_plain_file
from .run_info import RunInfo

__all__ = [
    "append_frames",
    "column",
    "create_file",
    "fixed",
    "growth",
    "grows",
    "header_digest",
    "open_to_append",
    "read_file",
    "rest",
    "sums_of_positions",
    "text",
]

T = TypeVar("T")

ROOT = "particles/trajectory"
STEP = f"{ROOT}/position/step"
POSITION = f"{ROOT}/position/value"
TIME = f"{ROOT}/position/time"
EDGES = f"{ROOT}/box/edges/value"
ENERGY = "observables/potential_energy/value"
CHECKS = "diffmd_ase/checks"
CHECK_POSITIONS = f"{CHECKS}/positions"
CHECK_REST = f"{CHECKS}/rest"
_CHUNK_BYTES = 1 << 18
_INDEX_BYTES = 1 << 16  # what HDF5 notes of new chunks


def read_file(path: Path, read: Callable[[h5py.File], T]) -> tuple[T, bool]:
    """``read(file)``, and whether the writer of the file had closed it.

    A run may begin or end a block at any moment, which HDF5 takes for damage: then again.

    Raises ``ValueError`` for what is damaged, no HDF5 or no trajectory.
    """
    check_plain_file(path)
    for attempt in range(20):
        with path.open("rb") as raw:
            head = raw.read(36)
            size = os.fstat(raw.fileno()).st_size
        if len(head) < 36 or head[:8] != b"\x89HDF\r\n\x1a\n":
            raise ValueError(f"{path} is not an HDF5 file; expected a trajectory of diffmd_ase")
        # superblock of HDF5: signature (8), version, two sizes, flags of a writer that is at
        # work or was killed, two addresses (8, 8), and the address of the end of the file (8)
        version, flags, end = head[8], head[11], int.from_bytes(head[28:36], "little")
        if version >= 2 and size < end:  # HDF5 would look for the missing part for hours
            raise ValueError(f"{path} is damaged or cut off: {size} bytes of {end}")
        closed = version < 3 or flags == 0
        # not for a closed file: where one is damaged, HDF5 would wait for a writer to mend it
        concurrent: dict[str, Any] = {} if closed else {"libver": "latest", "swmr": True}
        try:
            with h5py.File(path, "r", **concurrent) as file:
                return read(file), closed
        except (OSError, KeyError, RuntimeError) as error:  # h5py's words for one and the same
            problem = error
            time.sleep(0.001 * attempt)
    if isinstance(problem, KeyError):
        raise ValueError(
            f"{path} is an HDF5 file but no trajectory of diffmd_ase, or damaged ({problem})"
        )
    raise ValueError(f"{path} is damaged, or another program writes to it: {problem}")


def open_to_append(path: Path) -> h5py.File:
    """The file for its one writer, readable by others and after a kill at any moment.

    Opened in single-writer mode at once: ``h5py.File(path, "r+")`` followed by
    ``swmr_mode = True`` marks the file as "written to, unreadable" in between, and a kill in
    that moment makes it so for good.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_file_locking(False, True)
    flags = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


def column(name: str) -> str:
    """Where the values of the column ``name`` are in the file."""
    return f"observables/{name}/value"


def create_file(
    path: Path, system: System, walkers: np.ndarray, info: RunInfo, columns: Sequence[str] = ()
) -> None:
    """An H5MD file without frames.

    Parameters
    ----------
    walkers : (W,) global ids
    info : what the frames will mean
    columns : names of further numbers of each walker and frame

    Raises
    ------
    ValueError : ids that do not differ, or none; names of columns that HDF5 reads as paths
    """
    count, n_atoms = len(walkers), len(system)
    if not count or len(set(walkers.tolist())) != count:
        raise ValueError(f"walkers {walkers.tolist()}: expected different ids, at least one")
    # in memory: HDF5 does not survive a disk that is full
    with h5py.File(path, "w", libver="v110", driver="core", backing_store=False) as file:
        header = file.create_group("h5md")
        header.attrs["version"] = np.array([1, 1])
        author, creator = header.create_group("author"), header.create_group("creator")
        author.attrs["name"] = fixed(info.extra.get("author", "unknown"))
        creator.attrs["name"] = fixed("diffmd_ase")
        creator.attrs["version"] = fixed(info.package_version)
        root = file.create_group(ROOT)
        root["species"] = np.tile(system.numbers, count)
        root["mass"] = np.tile(system.masses, count)
        root["id"] = np.repeat(walkers, n_atoms)
        box = root.create_group("box")
        box.attrs["dimension"] = 3
        boundary = ["periodic" if p else "none" for p in system.pbc]
        box.attrs["boundary"] = np.array(boundary, dtype="S8")
        rows = max(1, _CHUNK_BYTES // (12 * count * n_atoms))
        _grow(file, POSITION, (count * n_atoms, 3), np.float32, rows)
        file[POSITION].attrs["unit"] = "Angstrom"
        _grow(file, STEP, (), np.int64, 1024)
        _grow(file, ENERGY, (count,), np.float64, max(1, 8192 // count))
        file[ENERGY].attrs["unit"] = "eV"
        file["observables/potential_energy/step"] = file[STEP]  # one dataset, two names
        for name in columns:
            if name != name.strip("./ ") or "/" in name or column(name) == ENERGY:
                raise ValueError(f"{name!r} cannot be the name of a column: it is a path in HDF5")
            _grow(file, column(name), (count,), np.float64, max(1, 8192 // count))
            file[f"observables/{name}/step"] = file[STEP]
        _grow(file, TIME, (), np.float64, 1024)
        if info.timestep_fs is not None:
            file[TIME].attrs["unit"] = "fs"
        if system.periodic:
            _grow(file, EDGES, (3, 3), np.float64, 128)
            file[EDGES].attrs["unit"] = "Angstrom"
            file[f"{ROOT}/box/edges/step"] = file[STEP]
        own = file.create_group("diffmd_ase")
        own.attrs["metadata"] = fixed(info.to_json())
        own["walkers"] = walkers
        own.attrs["columns"] = fixed(json.dumps(list(columns)))
        if system.cell is not None:
            own.attrs["cell"] = system.cell
        if system.carried:
            own["carried"] = fixed(carried_text(system))
        _grow(file, CHECK_POSITIONS, (count,), np.uint64, max(1, 8192 // count))
        _grow(file, CHECK_REST, (), np.uint64, 1024)
        file[CHECKS].attrs["header"] = fixed(header_digest(file))
        file.flush()
        path.write_bytes(file.id.get_file_image())


def fixed(words: str) -> np.ndarray:
    """The text ``words`` for HDF5, stored where it belongs.

    Of variable length it would be in a heap, and HDF5 (2.0) never returns from a damaged one.
    """
    encoded = words.encode() or b" "
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))


def text(stored: bytes | str) -> str:
    """What `create_file` wrote as text; of variable length in files of earlier versions."""
    if isinstance(stored, str):
        return stored
    return np.asarray(stored).tobytes().decode(errors="replace")


def header_digest(file: h5py.File) -> str:
    """SHA-256 of all that an open ``file`` says once, for all frames."""
    own = file["diffmd_ase"].attrs
    arrays = {name: file[f"{ROOT}/{name}"][:] for name in ("species", "mass", "id")}
    arrays |= {"walkers": file["diffmd_ase/walkers"][:], "cell": np.asarray(own.get("cell", ()))}
    boundary = file[f"{ROOT}/box"].attrs["boundary"].astype(str).tolist()
    carried = text(file["diffmd_ase/carried"][()]) if "diffmd_ase/carried" in file else ""
    return digest(arrays, [text(own["metadata"]), text(own["columns"]), *boundary, carried])


def sums_of_positions(positions: np.ndarray) -> np.ndarray:
    """(frames, W) checksums of positions (frames, W, N, 3), float32."""
    frames, walkers, n_atoms, _ = positions.shape
    return row_sums(positions.reshape(frames * walkers, n_atoms * 3)).reshape(frames, walkers)


def rest(columns: Iterable[str], periodic: bool) -> list[str]:
    """Where all else is that a frame holds, in the order in which its checksum takes it.

    ``columns`` are the names of further numbers; ``periodic`` systems have edges of the box.
    """
    edges = [EDGES] if periodic else []
    return [STEP, TIME, ENERGY, *map(column, columns), *edges]


def grows(file: h5py.File, columns: Iterable[str], periodic: bool) -> bool:
    """Whether frames can be added to an open ``file``; other programs may have written it anew.

    ``columns`` and ``periodic`` as in `rest`.
    """
    parts = [POSITION, *rest(columns, periodic)]
    parts += [CHECK_POSITIONS, CHECK_REST] if CHECKS in file else []
    return all(file[name].maxshape[0] is None for name in parts)


def _grow(file, name, shape, dtype, rows) -> None:
    file.create_dataset(
        name, (0, *shape), dtype=dtype, maxshape=(None, *shape), chunks=(rows, *shape)
    )


def append_frames(
    file, steps, positions, energies, named: dict[str, np.ndarray], system: System, info: RunInfo
) -> None:
    """Add frames to a file of `create_file`; those that are there from ``steps[0]`` on go.

    Parameters
    ----------
    file : as `open_to_append` gives it
    steps : (n,) completed steps, increasing
    positions : (n, W, N, 3) in Å
    energies : (n, W) in eV
    named : {column: (n, W)}
    info : has the clock, ``timestep_fs`` or ``h``
    """
    # again after an interrupt in the middle: the same frames in the same place
    start, count = int(np.searchsorted(file[STEP][:], steps[0])), len(steps)
    clock = info.h if info.timestep_fs is None else info.timestep_fs
    values = {POSITION: positions.reshape(count, -1, 3), ENERGY: energies, TIME: steps * clock}
    values |= {column(name): of_column for name, of_column in named.items()}
    if system.periodic:
        values[EDGES] = np.broadcast_to(system.cell, (count, 3, 3))
    values[STEP] = steps  # last: from here on the frames exist
    values = {name: np.asarray(v, file[name].dtype) for name, v in values.items()}
    if CHECKS in file:  # not in those of earlier versions
        sums = row_sums(*(values[name] for name in rest(named, system.periodic)))
        values = {CHECK_REST: sums, CHECK_POSITIONS: sums_of_positions(positions)} | values
    for name, block in values.items():
        dataset = file[name]
        dataset.resize(start + count, axis=0)
        dataset[start:] = block
        dataset.flush()


def growth(file: h5py.File, frames: int) -> int:
    """Bytes by which so many more ``frames`` make ``file`` longer, at most."""
    total = _INDEX_BYTES
    there = len(file[STEP])

    def add(_, item) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset) and item.chunks:
            rows = item.chunks[0]
            chunks = -(-(there + frames) // rows) - -(-len(item) // rows)
            total += max(0, chunks) * math.prod(item.chunks) * item.dtype.itemsize

    file.visititems(add)
    return total
