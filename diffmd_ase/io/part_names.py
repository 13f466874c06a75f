"""Names of the files that ranks write, beside the index that names them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PART", "part_path", "parts_beside"]

PART = re.compile(r"([^/\\\0]+)\.(\d+)of(\d+)\.h5")
"""Name of an index, rank and number of ranks."""


def part_path(index: Path, rank: int, size: int) -> Path:
    """Where the walkers of ``rank``, one of ``size``, are: beside the ``index``."""
    return index.with_name(f"{index.stem}.{rank}of{size}.h5")


def parts_beside(index: Path) -> list[Path]:
    """The files of ranks, of however many, that lie beside the ``index``, there or not."""
    found = ((PART.fullmatch(path.name), path) for path in index.parent.glob("*.h5"))
    return sorted(path for name, path in found if name is not None and name[1] == index.stem)
