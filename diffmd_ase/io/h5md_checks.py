"""Whether an HDF5 file is a trajectory of ours, before its numbers are read.

HDF5 can point to other files and promise what is not there; ours are plain: own datasets, of the
shapes that go together.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from . import h5md
from .limits import check_declared, check_memory
from .schema import json_object

__all__ = ["check_layout", "check_links"]

_OBSERVABLE = "energy and further columns"


def check_links(file: h5py.File, path: Path) -> None:
    """``ValueError`` where the ``file`` at ``path`` leads to other files, or by soft links."""
    found: list[tuple[str, int]] = []
    # what is raised in there is lost: names first
    file.id.links.visit(
        lambda name, info: found.append((name.decode(errors="replace"), info.type)), info=True
    )
    for name, kind in found:
        if kind != h5py.h5l.TYPE_HARD:
            raise _strange(path, f"{name} is a link to another place")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            continue
        plan = item.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
            raise _strange(path, f"{name} is stored in other files")
        if item.chunks is not None:
            stored = item.id.get_storage_size()
            check_declared(item.size * item.dtype.itemsize, stored, f"{path}: {name}")


def _strange(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: {what}, as in no trajectory of diffmd_ase: a file from others could show those "
        "of your own; nothing was read"
    )


def check_layout(file: h5py.File, path: Path) -> list[str]:
    """Names of the further columns of the ``file`` at ``path``, whose datasets fit together.

    Raises ``ValueError``, with what was found, where shapes or kinds of numbers are others than
    those that `h5md.create_file` gives them, or do not fit into memory.
    """
    names = _columns(file, path)
    walkers = _shape(file, path, "diffmd_ase/walkers", "iu", (), least=1)[0]
    particles = _shape(file, path, f"{h5md.ROOT}/species", "iu", (), least=walkers)[0]
    if particles % walkers:
        raise ValueError(f"{path} is damaged: {particles} particles of {walkers} walkers")
    for name, kind in (("mass", "f"), ("id", "iu")):
        _shape(file, path, f"{h5md.ROOT}/{name}", kind, (), least=particles)
    (frames,) = _shape(file, path, h5md.STEP, "iu", ())
    per_frame = {h5md.POSITION: (particles, 3), h5md.TIME: ()}
    per_frame |= {name: (walkers,) for name in (h5md.ENERGY, *map(h5md.column, names))}
    for name, shape in per_frame.items():
        _shape(file, path, name, "f", shape, least=frames)
    if h5md.CHECKS in file:
        _shape(file, path, h5md.CHECK_POSITIONS, "u", (walkers,), least=frames)
        _shape(file, path, h5md.CHECK_REST, "u", (), least=frames)
    check_memory(
        16.0 * frames * walkers * (len(names) + 2),
        f"{path}: {frames} frames of {_OBSERVABLE}",
        "cut the file into parts",
    )
    box = file[f"{h5md.ROOT}/box"].attrs
    own = file["diffmd_ase"].attrs
    if np.shape(box["boundary"]) != (3,) or np.shape(own.get("cell", np.eye(3))) != (3, 3):
        raise ValueError(f"{path} is damaged: its box has no three directions")
    if not np.isfinite(np.asarray(own.get("cell", 0.0), dtype=float)).all():
        raise ValueError(f"{path} is damaged: its cell is not finite")
    return names


def _columns(file: h5py.File, path: Path) -> list[str]:
    text = h5md.text(file["diffmd_ase"].attrs.get("columns", "[]"))
    names = json_object(f'{{"names": {text}}}', path, "list of columns")["names"]
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{path} is damaged: its columns {text[:40]!r} are no list of names")
    return names


def _shape(
    file: h5py.File, path: Path, name: str, kinds: str, row: tuple, *, least: int = 0
) -> tuple:
    """The shape of a dataset of one of these kinds of numbers: ``least`` rows of one, or more."""
    item = file[name]
    shape = item.shape if isinstance(item, h5py.Dataset) else None
    fits = shape is not None and len(shape) > 0 and item.dtype.kind in kinds
    if not fits or shape[1:] != row or shape[0] < least:
        found = "no dataset" if shape is None else f"{item.dtype} of shape {shape}"
        raise ValueError(f"{path} is damaged: {name} is {found}, which does not fit the rest")
    return shape
