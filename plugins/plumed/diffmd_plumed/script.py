"""What a PLUMED input says, as far as it must be known before PLUMED reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["InputLine", "absolute_inputs", "parse", "read_lines", "written_files"]

_TOKEN = re.compile(r"(?:[^\s{}]|\{[^{}]*\})+")
# keywords that name files to read, and actions whose FILE is read
_READ_KEYS = {"REFERENCE", "STRUCTURE", "NDX_FILE", "PARAM_FILE", "GRID_RFILE", "STATE_RFILE"}
_READ_KEYS |= {"ACCELERATION_RFILE", "IN_RESTART", "TEMPLATE", "DIHLIB", "MAPFILE", "SELECTOR_FILE"}
_READ_ACTIONS = {"EXTERNAL", "READ", "INCLUDE", "LOAD", "ANN", "PYTORCH_MODEL", "REFERENCE_GRID"}
_WRITE_KEYS = {"FILE", "GRID_WFILE", "GRID_WFILES", "STATE_WFILE", "OUT_RESTART", "OUT_OBSERVABLE"}
_WRITE_KEYS |= {"OUT_STATE", "HISTORY_FILE"}
_NO_FILE_WRITTEN = {"FLUSH"}


@dataclass(frozen=True)
class InputLine:
    """One action of an input.

    Attributes
    ----------
    number : of its first line, from 1
    name : as METAD
    label : or ""
    keywords : values by key; a flag has "", braces round a value are removed
    text : the action on one line
    """

    number: int
    name: str
    label: str
    keywords: dict[str, str] = field(default_factory=dict)
    text: str = ""


def read_lines(input: str | Path | Sequence[str]) -> list[str]:
    """Lines of ``input``, a file or the lines; what follows ENDPLUMED is dropped.

    Raises
    ------
    FileNotFoundError : no such file, with a hint where lines were meant
    TypeError : neither a path nor strings
    """
    if isinstance(input, str | Path):
        if not Path(input).is_file():
            raise FileNotFoundError(
                f"no PLUMED input {str(input)!r}: give the path of a file, or a list of lines"
            )
        lines = Path(input).read_text().splitlines()
    else:
        lines = list(input)
        if not all(isinstance(line, str) for line in lines):
            raise TypeError(f"a PLUMED input is a path or a list of lines, got {input!r}")
        lines = [part for line in lines for part in (line.splitlines() or [""])]
    for number, line in enumerate(lines):
        if line.split("#")[0].strip() == "ENDPLUMED":
            return lines[:number]
    return lines


def parse(lines: Sequence[str]) -> list[InputLine]:
    """The actions of an input, continuation lines (``...``) joined.

    Only what PLUMED itself would read is looked at; errors are left to PLUMED.
    """
    actions = []
    gathered: list[str] | None = None
    start = 0
    for number, line in enumerate(lines, 1):
        tokens = _TOKEN.findall(line.split("#")[0])
        if gathered is not None:
            if tokens and tokens[0] == "...":
                actions.append(_action(start, gathered))
                gathered = None
            else:
                gathered += tokens
        elif tokens and tokens[-1] == "...":
            gathered, start = tokens[:-1], number
        elif tokens:
            actions.append(_action(number, tokens))
    if gathered:
        actions.append(_action(start, gathered))
    return actions


def _action(number: int, tokens: list[str]) -> InputLine:
    label, name, rest = "", tokens[0], tokens[1:]
    if name.endswith(":") and rest:
        label, name, rest = name[:-1], rest[0], rest[1:]
    keywords = {}
    for token in rest:
        key, _, value = token.partition("=")
        keywords[key] = value[1:-1] if value.startswith("{") and value.endswith("}") else value
    label = keywords.pop("LABEL", label)
    return InputLine(number, name, label, keywords, " ".join(tokens))


def written_files(actions: Sequence[InputLine]) -> set[str]:
    """Names of the files that actions say they write; defaults are PLUMED's own affair."""
    names = set()
    for action in actions:
        if action.name in _READ_ACTIONS | _NO_FILE_WRITTEN:
            continue
        for key in _WRITE_KEYS & set(action.keywords):
            names |= set(filter(None, action.keywords[key].split(",")))
    return names


def absolute_inputs(lines: Sequence[str], folder: str | Path) -> list[str]:
    """The lines with files to *read* that exist in ``folder`` named absolutely.

    So that an input means the same files when PLUMED runs in another folder.
    """
    changed = list(lines)
    for action in parse(lines):
        for key, value in action.keywords.items():
            if not (key in _READ_KEYS or (key == "FILE" and action.name in _READ_ACTIONS)):
                continue
            path = Path(folder, value)
            if not value or os.path.isabs(value) or not path.exists():
                continue
            for place in range(action.number - 1, len(changed)):
                old = f"{key}={value}"
                pattern = re.compile(rf"(?<!\S){re.escape(old)}(?!\S)")
                if pattern.search(changed[place]):
                    new = f"{key}={os.path.abspath(path)}"
                    changed[place] = pattern.sub(new.replace("\\", r"\\"), changed[place])
                    break
    return changed
