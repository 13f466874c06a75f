"""Frames of a file, one after the other, in any format that ASE reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import ase.io
from ase import Atoms

from .limits import check_plain_file
from .xyz_sizes import check_xyz

__all__ = ["iterate"]


_XYZ = (".xyz", ".extxyz", ".exyz")


def iterate(path: Path) -> Iterator[Atoms]:
    """All frames of the file ``path``; formats that ASE reads as a whole are read as a whole.

    Raises
    ------
    ValueError : a pipe or a device; what ASE says of a file that it cannot read, with its name
    """
    check_plain_file(path)
    if path.suffix in _XYZ and path.is_file():
        check_xyz(path)
    frames = iter(ase.io.iread(path, index=":"))
    for count in itertools.count():
        try:
            atoms = next(frames, None)
        except Exception as error:  # every format has its own
            where = f"after frame {count - 1} of {path.name}" if count else path.name
            said = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"ase.io cannot read {where} ({said}); expected frames in one of its formats, "
                "such as .extxyz or .traj, that is not cut off"
            ) from error
        if atoms is None:
            return
        yield atoms
