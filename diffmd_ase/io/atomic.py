"""Files that appear whole or not at all, and room for what is to come."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["replacing", "reserve", "sync"]


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

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is not None:
                raise error
            sync(self._temporary)
            os.replace(self._temporary, self._path)
        except OSError as problem:
            self._temporary.unlink(missing_ok=True)
            if problem.errno is None or problem.filename not in (None, str(self._temporary)):
                raise
            words = f"{problem.strerror}: nothing was written, what was there before is as it was"
            raise OSError(problem.errno, words, str(self._path)) from problem
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Wait until the file is on the disk."""
    with path.open("rb+") as file:  # Windows refuses for files opened to be read only
        os.fsync(file.fileno())


def reserve(path: Path, count: int) -> None:
    """Take ``count`` more bytes of disk behind the end of the file at ``path``.

    For libraries that do not survive a full disk: what they write there next finds its room.

    Raises ``OSError`` with the path where there is none: the file is as it was.
    """
    with path.open("rb+") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), end, count)
            else:
                file.seek(end)
                file.write(bytes(count))
                file.flush()
        except OSError as error:
            os.ftruncate(file.fileno(), end)
            raise OSError(
                error.errno, f"no room for {count} more bytes: {error.strerror}", str(path)
            ) from error
