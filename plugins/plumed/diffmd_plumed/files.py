"""Files of a run that goes on: lengths at a checkpoint, and cutting back to them."""

from __future__ import annotations

import os
import resource
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from .script import InputLine

__all__ = [
    "cut_back",
    "drop_repeated_headers",
    "empty_of",
    "lengths",
    "refuse_empty",
    "refuse_existing",
    "refuse_too_many",
]

_TAIL = 1024  # bytes that must be the same where a file is cut
_RESERVED = 64  # file descriptors left to everything else


def lengths(folder: str | Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Bytes of each of the files ``names`` in ``folder`` that exist, and a checksum of the last."""
    state = {}
    for name in sorted(names):
        path = Path(folder, name)
        if path.is_file():
            size = path.stat().st_size
            state[name] = [size, _checksum(path, size)]
    return state


def cut_back(folder: str | Path, saved: dict[str, list[int]], names: Iterable[str] = ()) -> None:
    """Remove what was written in ``folder`` after ``saved = lengths(...)`` was taken.

    A file that does not hold the saved bytes is one that PLUMED writes anew each time (a
    grid, a state) and is left alone. Files in ``names`` that did not exist then are emptied.

    Raises
    ------
    FileNotFoundError, ValueError : a file is missing, or shorter than it was
    """
    for name, (size, checksum) in saved.items():
        path = Path(folder, name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: written before the checkpoint, and now missing")
        now = path.stat().st_size
        if now < size:
            raise ValueError(
                f"{path} has {now} bytes, {size} at the checkpoint: it was replaced or edited; "
                "bring the file of the run back, or start a new run elsewhere"
            )
        if now > size and _checksum(path, size) == checksum:
            os.truncate(path, size)
    for name in set(names) - set(saved):
        if Path(folder, name).is_file():
            os.truncate(Path(folder, name), 0)


def drop_repeated_headers(folder: str | Path, saved: dict[str, list[int]]) -> list[str]:
    """Remove the header that PLUMED writes again where it goes on with a file in ``folder``.

    ``saved`` are the `lengths` at which it went on; the names that have grown since are returned.
    PLUMED may have the files open: it appends to them.
    """
    grown = []
    for name, (size, _) in saved.items():
        path = Path(folder, name)
        if not path.is_file() or path.stat().st_size <= size:
            continue
        grown.append(name)
        with open(path, "rb") as file:
            header = b""
            while (line := file.readline()).startswith(b"#!"):
                header += line
            file.seek(size)
            if not 0 < len(header) <= size or file.read(len(header)) != header:
                continue
            rows = file.read()
        os.truncate(path, size)
        with open(path, "ab") as file:
            file.write(rows)
    return grown


def refuse_existing(folder: str | Path, names: Iterable[str]) -> None:
    """Raise ``FileExistsError`` if one of the files ``names`` is in ``folder``."""
    there = [name for name in sorted(names) if Path(folder, name).exists()]
    if there:
        raise FileExistsError(
            f"{', '.join(there)} in {os.path.abspath(folder)} would be overwritten: restart that "
            "run (restart=True), remove them, or choose another directory"
        )


def refuse_empty(folder: str | Path, script: Sequence[InputLine]) -> None:
    """Raise ``ValueError`` where OPES would restart from nothing: PLUMED crashes on that.

    ``script`` are the actions of the input, whose files are in ``folder``.
    """
    for line, path in empty_of(folder, script):
        raise ValueError(
            f"{path} holds nothing for {line.name} (line {line.number}) to go on from: it had "
            "not learned yet; start a new run"
        )


def empty_of(folder: str | Path, script: Sequence[InputLine]) -> list[tuple[InputLine, Path]]:
    """The actions of OPES in ``script`` whose file in ``folder`` has no row, with that file."""
    empty = []
    for line in script:
        if not line.name.startswith("OPES_"):
            continue
        default = "DELTAFS" if line.name == "OPES_EXPANDED" else "KERNELS"
        name = line.keywords.get("STATE_RFILE") or line.keywords.get("FILE", default)
        path = Path(folder, name)
        rows = path.read_text().splitlines() if path.is_file() else []
        if all(row.startswith("#!") for row in rows):
            empty.append((line, path))
    return empty


def refuse_too_many(instances: int, each: int) -> None:
    """Raise ``ValueError`` if instances with ``each`` files pass the limit of open files."""
    needed = instances * each + _RESERVED
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > limit:
        raise ValueError(
            f"{instances} independent biases with {each} files each need {needed} open files, the "
            f"limit is {limit}: raise it (ulimit -n {needed}), or use walkers='shared'"
        )


def _checksum(path: Path, size: int) -> int:
    with open(path, "rb") as file:
        file.seek(max(0, size - _TAIL))
        return zlib.crc32(file.read(min(size, _TAIL)))
