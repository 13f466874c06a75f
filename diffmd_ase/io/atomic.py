"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replacing", "sync"]


class replacing:
    """Write a file beside ``path``, then put it in its place in one step.

    ``with replacing(path) as temporary:`` says where to write; after an error that file is
    removed, and what is at ``path`` stays.
    """

    def __init__(self, path: Path):
        self._path = Path(path).absolute()
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
    with path.open("rb+") as file:  # Windows refuses for files opened to be read only
        os.fsync(file.fileno())
