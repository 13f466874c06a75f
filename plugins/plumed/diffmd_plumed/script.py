"""What a PLUMED input says, as far as it must be known before PLUMED reads it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "RUN_CODE",
    "InputLine",
    "extended",
    "gated",
    "parse",
    "read_lines",
    "readable",
    "resolve",
    "words",
    "written_files",
]

_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\n"
_REPLICAS = "@replicas:"
# actions whose FILE is read, and keywords that name files to write
_READ_ACTIONS = {"EXTERNAL", "READ", "INCLUDE", "LOAD", "ANN", "PYTORCH_MODEL", "REFERENCE_GRID"}
RUN_CODE = {"LOAD", "PYCVINTERFACE", "PYFUNCTION", "PYTORCH_MODEL"}
"""Actions that run code of a file: C++, Python, TorchScript."""
_WRITE_KEYS = {"FILE", "GRID_WFILE", "GRID_WFILES", "STATE_WFILE", "OUT_RESTART", "OUT_OBSERVABLE"}
_WRITE_KEYS |= {"OUT_STATE", "HISTORY_FILE"}
_NO_FILE_WRITTEN = {"FLUSH"}


@dataclass(frozen=True)
class InputLine:
    """One action of an input.

    Attributes
    ----------
    number : of its first line, from 1; of INCLUDE for what is included
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

    Bytes of a file that are no UTF-8 (an old comment, a file name) are kept as they are, as
    surrogate escapes.

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
        lines = _LINE_END.split(_decoded(Path(input).read_bytes()))
    else:
        lines = list(input)
        if not all(isinstance(line, str) for line in lines):
            raise TypeError(f"a PLUMED input is a path or a list of lines, got {input!r}")
        lines = [part for line in lines for part in _LINE_END.split(line)]
    for number, line in enumerate(lines):
        if line.split("#")[0].strip() == "ENDPLUMED":
            return lines[:number]
    return lines


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PLUMED reads none
        return data.decode("utf-16")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


def readable(text: str) -> str:
    """``text`` without the bytes that are no characters: for a message, or for Python's PLUMED."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def words(text: str, separators: str = _BLANKS, *, bare: bool = False) -> list[str]:
    """The words of ``text`` as PLUMED splits it: not within braces, which nest.

    The outermost braces are removed if ``bare``.
    """
    found, word, depth = [], "", 0
    for letter in text:
        if letter in separators and depth == 0:
            found.append(word)
            word = ""
            continue
        depth += (letter == "{") - (letter == "}")
        outermost = (letter == "{" and depth == 1) or (letter == "}" and depth == 0)
        if not (bare and outermost):
            word += letter
    return [word for word in (*found, word) if word]


def _bare(text: str) -> str:
    return "".join(words(text, "", bare=True))


def parse(lines: Sequence[str]) -> list[InputLine]:
    """The actions of an input, continuation lines (``...``) joined.

    Only what PLUMED itself would read is looked at; errors are left to PLUMED. An element that
    has several lines is one that was included.
    """
    return [_action(start, tokens) for start, _, tokens in _blocks(lines)]


def _blocks(lines: Sequence[str]) -> list[tuple[int, int, list[str]]]:
    """Number of the first and of the last line, and tokens, of each action."""
    blocks = []
    gathered: list[str] | None = None
    start = 0
    numbered = [(n, part) for n, line in enumerate(lines, 1) for part in _LINE_END.split(line)]
    for number, line in numbered:
        text = line.split("#")[0]
        bits = text.split()
        if gathered is not None:
            if bits[:1] == ["..."]:
                blocks.append((start, number, words(" ".join(gathered))))
                gathered = None
            else:  # braces may reach over lines
                gathered.append(text)
        elif bits[-1:] == ["..."]:
            gathered, start = bits[:-1], number
        elif bits:
            blocks.append((number, number, words(text)))
    if gathered:
        blocks.append((start, len(lines), words(" ".join(gathered))))
    return blocks


def _action(number: int, tokens: list[str]) -> InputLine:
    label, name, rest = "", tokens[0], tokens[1:]
    if name.endswith(":") and rest:
        label, name, rest = name[:-1], rest[0], rest[1:]
    keywords = {}
    for token in rest:
        key, _, value = token.partition("=")
        keywords[key] = _bare(value)
    label = keywords.pop("LABEL", label)
    return InputLine(number, name, label, keywords, readable(" ".join(tokens)))


def written_files(actions: Sequence[InputLine]) -> set[str]:
    """Names of the files that actions say they write; defaults are PLUMED's own affair."""
    names = set()
    for action in actions:
        if action.name in _READ_ACTIONS | _NO_FILE_WRITTEN:
            continue
        for key in _WRITE_KEYS & set(action.keywords):
            names |= set(words(action.keywords[key], ","))
    return names


def gated(lines: Sequence[str], names: Set[str], gate: str) -> list[str]:
    """The lines with the updates of actions ``names`` made only while the EXTRACV ``gate`` is 1."""
    flat = [part for line in lines for part in _LINE_END.split(line)]
    for start, end, tokens in reversed(_blocks(flat)):
        if _action(start, tokens).name in names:
            flat.insert(end, f"UPDATE_IF ARG={gate} END")
            flat.insert(start - 1, f"UPDATE_IF ARG={gate} MORE_THAN=0.5")
    first = next((n for n, _, tokens in _blocks(flat) if _action(n, tokens).name == "UPDATE_IF"), 0)
    return [*flat[: first - 1], f"{gate}: EXTRACV NAME={gate}", *flat[first - 1 :]]


def extended(lines: Sequence[str], more: Callable[[InputLine], str | None]) -> list[str]:
    """The lines with one more keyword, ``KEY=value``, for actions that have no such ``KEY``.

    ``more`` gives it for an action, or None.
    """
    flat = [part for line in lines for part in _LINE_END.split(line)]
    for start, end, tokens in _blocks(flat):
        action = _action(start, tokens)
        word = more(action)
        if word is not None and word.partition("=")[0] not in action.keywords:
            flat[start - 1 : end] = [" ".join([*tokens, word]), *[""] * (end - start)]
    return flat


# ---------------------------------------------------------------------- for one walker


def resolve(lines: Sequence[str], folder: Path, walker: int) -> tuple[list[str], set[int]]:
    """The lines for one ``walker``, and how many values ``@replicas:`` has in them.

    PLUMED itself would read the first value where there is no MPI, silently. Files of INCLUDE in
    ``folder`` take the place of its line, so that all actions are known; other lines keep their
    numbers.
    """
    changed, counts = list(lines), set()
    for start, end, tokens in _blocks(lines):
        chosen = [_chosen(token, walker, counts) for token in tokens]
        action = _action(start, chosen)
        included = Path(folder, action.keywords.get("FILE", ""))
        if action.name == "INCLUDE" and included.is_file():
            inner, more = resolve(read_lines(included), folder, walker)
            counts |= more
            changed[start - 1 : end] = ["\n".join(inner), *[""] * (end - start)]
        elif chosen != tokens:
            changed[start - 1 : end] = [" ".join(chosen), *[""] * (end - start)]
    return changed, counts


def _chosen(token: str, walker: int, counts: set[int]) -> str:
    """A token with the value of ``walker`` for each ``@replicas:``, as PLUMED chooses it."""
    key, equals, value = token.partition("=")
    if _REPLICAS not in value:
        return token

    def pick(text: str) -> str:
        values = words(text.removeprefix(_REPLICAS), f"{_BLANKS},", bare=True)
        counts.add(len(values))
        return values[min(walker, len(values) - 1)] if values else text

    value = _bare(value)
    if value.startswith(_REPLICAS):
        new = pick(value)
    else:
        parts = words(value, f"{_BLANKS},")
        new = ",".join(pick(_bare(p)) if p.startswith(_REPLICAS) else p for p in parts)
    return f"{key}{equals}{{{new}}}" if set(new) & set(_BLANKS) else f"{key}{equals}{new}"
