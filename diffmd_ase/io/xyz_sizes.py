"""Whether the counts in a file of XYZ fit its size, before ASE makes room for them."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

__all__ = ["check_xyz"]

_LINE = 4  # bytes that an atom takes at least
_COLUMNS = re.compile(r":[RISLris]:(-?\d+)")
_MOST = 10_000  # columns


def check_xyz(path: Path) -> None:
    """``ValueError`` where a frame of the file at ``path`` counts what cannot be in it.

    Atoms that the rest of the file has no room for, and properties of more than 10 000 columns:
    readers take minutes and all memory for them. All else is left to the reader.
    """
    size = path.stat().st_size
    with path.open(errors="replace") as file:
        frame = 0
        while line := file.readline(1000):
            try:
                count = int(line)
            except ValueError:
                return
            if count < 0 or _LINE * count > size:
                raise ValueError(
                    f"{path.name}: frame {frame} says it has {line.strip()[:30]} atoms, in a file "
                    f"of {size} bytes; expected as many lines of atoms as it says"
                )
            columns = [int(n) for n in _COLUMNS.findall(file.readline())]
            if columns and not (min(columns) > 0 and sum(columns) <= _MOST):
                raise ValueError(
                    f"{path.name}: frame {frame} has properties of {min(columns)} to "
                    f"{max(columns)} columns; expected such as pos:R:3"
                )
            if sum(1 for _ in islice(file, count)) < count:
                return
            frame += 1
