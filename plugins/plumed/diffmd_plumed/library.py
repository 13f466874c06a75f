"""The library of PLUMED, which it calls its kernel: found, loaded without noise, flushed."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from functools import cache
from threading import RLock

__all__ = ["command", "flush_files", "new_instance", "working_directory"]

INSTALL = (
    "no PLUMED here: `pip install --no-deps hillclimber` brings the module `plumed` with a "
    "kernel; with a PLUMED of your own `pip install plumed` and set PLUMED_KERNEL to its "
    "libplumedKernel.so"
)


def new_instance(path: str | None = None):
    """A ``plumed.Plumed`` of the library at ``path``, of PLUMED_KERNEL, or of the module `plumed`.

    Raises ``ImportError`` with the install line where there is none.
    """
    try:
        import plumed
    except ImportError:
        raise ImportError(INSTALL) from None
    # the wheel names its library in the environment at import, where it may not stay
    bundled = vars(plumed).get("BUNDLED_KERNEL_PATH")
    chosen = path or os.environ.get("PLUMED_KERNEL") or (bundled and str(bundled))
    if chosen and not os.path.exists(chosen):
        raise ImportError(f"PLUMED kernel {chosen!r} does not exist: correct PLUMED_KERNEL")
    try:
        with _quiet_stderr():
            return plumed.Plumed(kernel=chosen)
    except RuntimeError as error:
        raise ImportError(f"the PLUMED kernel did not load ({error}); {INSTALL}") from error


def flush_files() -> None:
    """Give what PLUMED has written to the system, for all instances.

    PLUMED flushes only inside an update (``doCheckPoint``, FLUSH), which would learn and
    print once more; its files are C streams, and C flushes them without asking it.
    """
    ctypes.CDLL(None).fflush(None)


class _Command(str):
    """The name of a command, whose bytes stay where they are.

    PLUMED's binding forgets those of the name when it encodes a text that goes with it, and
    then reads them: "cannot interpret cmd", once in many thousand times.
    """

    def __init__(self, name: str):
        self._kept = name.encode()

    def encode(self, *_, **__) -> bytes:
        return self._kept


@cache
def command(name: str) -> str:
    """The ``name`` of a command as the binding of PLUMED may have it, see `_Command`."""
    return _Command(name)


class working_directory:
    """Inside, relative file names mean ``path``: PLUMED opens and rewinds files by them.

    Where there is no such folder any more nothing is changed. Cheap inside of another one. A
    process has one working directory: other threads wait.
    """

    _alone = RLock()

    def __init__(self, path: str):
        self._path, self._before = path, ""

    def __enter__(self) -> None:
        self._alone.acquire()
        try:
            before = os.getcwd()
            if before != self._path and os.path.isdir(self._path):
                os.chdir(self._path)
                self._before = before
        except BaseException:
            self._alone.release()
            raise

    def __exit__(self, *_) -> None:
        try:
            if self._before:
                os.chdir(self._before)
        finally:
            self._alone.release()


@contextmanager
def _quiet_stderr():
    """The loader greets on the file descriptor of standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
