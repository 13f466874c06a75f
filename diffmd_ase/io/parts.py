"""One trajectory in several files: an index, by which they are read as one.

Each rank of a run (`ranks`) writes the walkers that it has to a file of its own,
PREFIX.RofN.h5, and the index PREFIX.h5 is an H5MD file of all of them, whose numbers are virtual
datasets of HDF5: they are stored in those files. Programs that read H5MD read it as any other,
up to the frames that it was written for; `io.trajectory.Trajectory` opens the files themselves.
They must stay in the folder of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from ..system import System
from . import h5md
from .atomic import replacing
from .h5md import create_file
from .json_text import to_json
from .part_names import PART, part_path
from .run_info import RunInfo
from .schema import json_object

__all__ = ["parts_of", "write_index"]


def parts_of(file: h5py.File, path: Path) -> list[Path]:
    """The files that an index at ``path``, an open ``file``, names; none of a trajectory itself.

    Raises ``ValueError`` for names of what is no part of one run in the folder of ``path``.
    """
    own = file["diffmd_ase"].attrs
    if "parts" not in own:
        return []
    told = f'{{"names": {h5md.text(own["parts"])}}}'
    names = json_object(told, path, "list of parts")["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged: its list of parts is none of names")
    found = [PART.fullmatch(name) for name in names]
    order = [(str(rank), str(len(names))) for rank in range(len(names))]
    known = [name and name.groups()[1:] for name in found] == order
    parts = [path.with_name(name) for name in names] if known else []
    if not parts or PART.fullmatch(path.name) or any(part.is_symlink() for part in parts):
        raise ValueError(
            f"{path}: its parts {', '.join(map(repr, names[:4]))} are not those of one run, "
            "NAME.0ofN.h5 and so on, plain files beside it: nothing was read"
        )
    return parts


def write_index(
    path: Path,
    system: System,
    walkers: Sequence[np.ndarray],
    info: RunInfo,
    columns: Sequence[str],
    steps: np.ndarray,
) -> None:
    """Write the index of the `part_path` of each rank; what is at ``path`` is replaced.

    Parameters
    ----------
    walkers : global ids of each of them
    info : what the frames mean
    columns : names of further numbers, as of `h5md.create_file`
    steps : (frames,) of the frames that all of them have
    """
    names = [part_path(path, rank, len(walkers)).name for rank in range(len(walkers))]
    frames, n_atoms = len(steps), len(system)
    with replacing(path) as temporary:
        create_file(temporary, system, np.concatenate(walkers), info, columns)
        with h5py.File(temporary, "r+", libver="v110") as file:
            clock = info.h if info.timestep_fs is None else info.timestep_fs
            once = {h5md.STEP: steps, h5md.TIME: steps * clock}
            if system.periodic:
                once[h5md.EDGES] = np.broadcast_to(system.cell, (frames, 3, 3))
            for name, values in once.items():
                file[name].resize(frames, axis=0)
                file[name][:] = values
            rows = {h5md.POSITION: n_atoms, h5md.ENERGY: 1}
            rows |= {h5md.column(name): 1 for name in columns}
            for name, row in rows.items():
                _virtual(file, name, names, [row * len(own) for own in walkers], frames)
            del file[h5md.CHECKS]  # each part has its own
            file["diffmd_ase"].attrs["parts"] = h5md.fixed(to_json(names, indent=None))


def _virtual(
    file: h5py.File, name: str, parts: Sequence[str], counts: Sequence[int], frames: int
) -> None:
    """The dataset ``name``, side by side of those of ``parts``, in place of an empty one."""
    old = file[name]
    dtype, unit, rest = old.dtype, old.attrs.get("unit"), old.shape[2:]
    del file[name]
    layout = h5py.VirtualLayout((frames, sum(counts), *rest), dtype)
    first = 0
    for part, count in zip(parts, counts, strict=True):
        source = h5py.VirtualSource(part, name, (frames, count, *rest), dtype)
        layout[:, first : first + count] = source
        first += count
    made = file.create_virtual_dataset(name, layout, fillvalue=np.nan)
    if unit is not None:
        made.attrs["unit"] = unit
