"""One writer for the files of a run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` while ``what`` is being written; it is removed at the end.

    The system gives the lock back when a process ends in any way, so that a file left by a kill
    keeps nobody out. Not on Windows, where nothing is locked.

    Raises
    ------
    BlockingIOError : another process holds it
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the one who held it may have removed it after it was opened here
            mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"another process writes {what}: wait for its end, or choose other files",
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
