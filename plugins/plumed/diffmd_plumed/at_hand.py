"""Files that an input mentions, at hand where PLUMED runs in another folder than the user's.

No list of keywords says which values are names of files: whatever is mentioned and is there, in
any keyword, list or braces, is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence, Set
from pathlib import Path

from .driver import LOG
from .script import words

__all__ = ["link_inputs", "mentioned", "mirror", "renamed", "written"]

_SEPARATORS = " \t\n,"
_KEPT = "LOAD"  # a library finds others beside it, and is never written


def mentioned(lines: Sequence[str]) -> set[str]:
    """All that may be a name in the values of the input: values, and parts of lists."""
    found: set[str] = set()
    for line in lines:
        for token in words(line.split("#")[0]):
            found |= _parts(token.partition("=")[2] or token)
    return found


def _parts(text: str) -> set[str]:
    """``text`` without outer braces or ``@ndx:``, and the parts of it as a list."""
    bare = "".join(words(text, "", bare=True))
    bare = bare.removeprefix("@ndx:")
    parts = words(bare, _SEPARATORS)
    inner = [part for part in parts if part != text]
    return {bare}.union(*map(_parts, inner))


def renamed(lines: Sequence[str], names: dict[str, str]) -> list[str]:
    """The lines with other ``names`` for files."""
    if not names:
        return list(lines)
    longest = sorted(names, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<=[=,{{\s:])(?:{'|'.join(map(re.escape, longest))})(?=[,}}\s]|$)", re.MULTILINE
    )
    return [
        line if _KEPT in line.split() else pattern.sub(lambda found: names[found[0]], line)
        for line in lines
    ]


def mirror(directory: Path, lines: Sequence[str], root: Path) -> tuple[Path, list[str]]:
    """A folder below ``root`` that looks like ``directory``, where PLUMED may write.

    What the lines mention is copied, all else is linked; folders outside of ``directory`` have
    their place below ``root`` as well, so that nothing is written elsewhere. Gives the folder, and
    the lines with names that lead there: absolute ones are relative to it.
    """
    names = mentioned(lines)
    absolute = {name for name in names if os.path.isabs(name) and Path(name).parent != Path("/")}
    moved = {n: os.path.relpath(n, directory) for n in absolute if Path(n).parent.is_dir()}
    folder = _below(root, directory)
    folder.mkdir(parents=True)
    for name in {moved.get(name, name) for name in names - (absolute - set(moved))}:
        source = Path(os.path.normpath(directory / name))
        # of os.path: a formula is no name, and may be too long for one
        if os.path.isfile(source):
            _like(source.parent, root)
            _below(root, source).unlink()
            shutil.copy(source, _below(root, source))
        elif os.path.isdir(source):
            _like(source, root)
        elif os.sep in name and os.path.isdir(source.parent):
            _like(source.parent, root)
    _like(directory, root)
    return folder, renamed(lines, moved)


def _below(root: Path, path: Path) -> Path:
    return Path(root, *path.parts[1:])


def _like(directory: Path, root: Path) -> None:
    """Make the folder of ``directory`` below ``root``, with links to what is not there yet."""
    folder = _below(root, directory)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in directory.iterdir() if directory.is_dir() else ():
        place = folder / entry.name
        # PLUMED opens its log without a look at what is there
        if entry.name != LOG and not os.path.lexists(place):
            place.symlink_to(entry)


def written(root: Path) -> dict[Path, tuple[int, int, int]]:
    """The files below ``root`` that are no links; another value: it was written meanwhile."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                facts = path.stat()
                found[path] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def link_inputs(directory: Path, folder: Path, lines: Sequence[str], outputs: Set[str]) -> None:
    """Have what the lines mention in ``directory``, and do not write, in ``folder`` too."""
    for name in mentioned(lines) - outputs:
        source, place = directory / name, folder / name
        if os.path.isabs(name) or ".." in Path(name).parts or not name.strip("./"):
            continue
        if os.path.exists(source) and not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
