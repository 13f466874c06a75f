"""What is opened and made: plain files only, and only what fits into memory.

Sizes that a file or an option asks for are compared with what is there before anything is made.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = [
    "available_memory",
    "check_declared",
    "check_memory",
    "check_plain_file",
    "lacks_memory",
]

_LARGE = 1 << 28  # bytes: what is smaller is not looked at
_DENSEST = 100  # numbers of an experiment or a simulation compress no further


def available_memory() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not tell.

    The least of what is free, of the limit of its cgroup and of that of its addresses (Linux).
    """
    if sys.platform != "linux":
        return None
    import resource

    rooms = [_field("/proc/meminfo", "MemAvailable:")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = _field("/proc/self/status", "VmSize:")
        rooms.append(None if used is None else soft - used)
    try:  # a container's
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current")
        )
        rooms.append(limit - used)
    except (OSError, ValueError):
        pass
    return min((max(0, room) for room in rooms if room is not None), default=None)


def check_memory(need: float, what: str, remedy: str) -> None:
    """Before it is made: ``ValueError`` where ``what`` would need more than there is.

    Parameters
    ----------
    need : bytes
    remedy : what to do, for the message
    """
    if not need > _LARGE:
        return
    room = available_memory()
    if room is not None and need > room:
        raise ValueError(
            f"{what} would need {need / 1e9:.3g} GB of memory, {room / 1e9:.3g} GB are there: "
            f"{remedy}"
        )


def check_declared(declared: float, stored: int, what: str) -> None:
    """``ValueError`` where ``what`` has ``declared`` far more bytes than are ``stored``."""
    if declared > _LARGE and declared > _DENSEST * stored:
        raise ValueError(
            f"{what} declares {declared / 1e9:.3g} GB and holds {stored / 1e6:.3g} MB, which no "
            "numbers of a simulation do: it is damaged, or hostile"
        )


def check_plain_file(path: Path) -> None:
    """``ValueError`` for what is there and no plain file: a pipe or a device never ends.

    Folders are left to who reads them.
    """
    try:
        strange = path.exists() and not path.is_file() and not path.is_dir()
    except OSError as error:  # a name that is too long, a loop of links
        raise ValueError(f"{str(path)[:100]!r} cannot be looked at: {error.strerror}") from error
    if strange:
        raise ValueError(f"{path} is no plain file but a pipe or a device; give a file")


def _field(path: str, name: str) -> int | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith(name)), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` is torch's word for memory that it did not get, on a GPU or a host."""
    words = str(error)
    return "out of memory" in words or "can't allocate memory" in words
