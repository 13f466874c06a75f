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

__all__ = ["bring", "mentioned", "mirror", "renamed", "written"]

_SEPARATORS = " \t\n,"
_MOST_LINKS = 500  # in a larger folder what is mentioned must do
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
    absolute = {name for name in names if os.path.isabs(name)}
    moved = {n: os.path.relpath(n, directory) for n in absolute if _has_folder(n)}
    files, folders = set(), {directory}
    for name in {moved.get(name, name) for name in names - (absolute - set(moved))}:
        path = os.path.normpath(directory / name)
        # of os.path: a formula is no name, and may be too long for one
        if os.path.isdir(path):
            folders.add(Path(path))
        elif os.path.isfile(path) or (os.sep in name and _has_folder(path)):
            folders.add(Path(path).parent)
            if os.path.isfile(path):
                files.add(Path(path))
    # folders and copies first: nothing may go through a link
    for folder in folders:
        _below(root, folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, _below(root, file))
    for folder in folders:
        _link_rest(folder, _below(root, folder))
    return _below(root, directory), renamed(lines, moved)


def _has_folder(name: str) -> bool:
    folder = os.path.dirname(name)
    return folder != os.sep and os.path.isdir(folder)


def _below(root: Path, path: Path) -> Path:
    return Path(root, *path.parts[1:])


def _link_rest(directory: Path, folder: Path) -> None:
    """Links in ``folder`` to what is in ``directory`` and not there yet."""
    names = set(os.listdir(directory)) if directory.is_dir() else set()
    if len(names) > _MOST_LINKS:
        return
    # PLUMED opens its log without a look
    for name in names - set(os.listdir(folder)) - {LOG}:
        os.symlink(directory / name, folder / name)


def written(root: Path) -> dict[Path, tuple[int, int, int]]:
    """The files below ``root`` that are no links; another value: it was written meanwhile."""
    found = {}
    for entry in os.scandir(root):
        if entry.is_dir(follow_symlinks=False):
            found |= written(Path(entry))
        elif not entry.is_symlink():
            facts = entry.stat()
            found[Path(entry)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def bring(directory: Path, folder: Path, lines: Sequence[str], outputs: Set[str]) -> Sequence[str]:
    """Have what the lines mention in ``directory``, and do not write, in ``folder`` too.

    Files there are linked to; those above it are named as seen from ``folder``, in the lines that
    are given back.
    """
    above = {}
    for name in mentioned(lines) - outputs:
        source, place = directory / name, folder / name
        if os.path.isabs(name) or not name.strip("./") or not os.path.exists(source):
            continue
        if os.pardir in Path(name).parts:
            above[name] = os.path.relpath(source, folder)
        elif not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
    return renamed(lines, above)
