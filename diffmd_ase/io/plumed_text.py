"""The text of PLUMED's files: headers and rows, plain or compressed, whole or cut off."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .limits import check_plain_file

__all__ = ["Segment", "kind", "number", "parse"]

_HEAD = 200  # lines in which a header must begin
_NO_HEADER = (
    "{} has no line '#! FIELDS time …': it is no file of PLUMED's PRINT, METAD or OPES, or its "
    "header was cut off; put it back from the run's first file"
)
_NUMBER = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)?(e[+-]?\d+)?\*?(pi)?(?:/(\d+\.?\d*))?")


@dataclass
class Segment:
    """What stands below one header.

    Attributes
    ----------
    fields : names of the columns
    constants : the ``#! SET`` lines, as text
    rows : the complete ones
    lines : their numbers in the file, from 1
    strange : numbers of the lines that do not fit
    """

    fields: tuple[str, ...]
    constants: dict[str, str] = field(default_factory=dict)
    rows: list[list[float]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    strange: list[int] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How many lines do not fit."""
        return len(self.strange)


def kind(path: str | Path) -> str:
    """``colvar``, ``hills``, ``kernels``, ``state``, ``grid`` or ``trajectory`` (HDF5).

    By what is in the file. Raises ``ValueError`` for one without a header of PLUMED.
    """
    check_plain_file(Path(path))
    with open(path, "rb") as file:
        if file.read(4) == b"\x89HDF":
            return "trajectory"
    fields: list[str] = []
    constants: dict[str, str] = {}
    for place, line in enumerate(_lines(path)):
        what, values = _header(line)
        if what == "FIELDS" and not fields:
            fields = values
        elif what == "SET":
            constants[values[0]] = " ".join(values[1:])
        elif fields or place > _HEAD:
            break
    if not fields:
        raise ValueError(_NO_HEADER.format(path))
    if constants.get("action", "").endswith("_state"):
        return "state"
    if any(name.startswith("nbins_") for name in constants):
        return "grid"
    if "logweight" in fields:
        return "kernels"
    if "height" in fields and any(name.startswith("sigma_") for name in fields):
        return "hills"
    return "colvar"


def parse(path: str | Path) -> list[Segment]:
    """The segments of a file, one for each header, of which there is at least one.

    A line that a kill has cut off is left out, and counted: half a row or half a header at the
    end or, in the middle, before the header that a restart has added.

    Raises ``ValueError`` for a file without a header.
    """
    segments: list[Segment] = []
    early: dict[str, str] = {}
    for place, line in enumerate(_lines(path), 1):
        before, mark, _ = line.rpartition("#!")
        what, values = _header(line)
        if segments and (before.strip() if mark else not _is_row(segments[-1], line, place)):
            segments[-1].strange.append(place)
        if segments and mark and not line.endswith("\n"):
            segments[-1].strange.append(place)
        elif what == "FIELDS":
            segments.append(Segment(tuple(values), early))
            early = {}
        elif what == "SET":
            constants = segments[-1].constants if segments else early
            constants[values[0]] = " ".join(values[1:])
    if not segments:
        raise ValueError(_NO_HEADER.format(path))
    return segments


def _header(line: str) -> tuple[str, list[str]]:
    """FIELDS or SET and the words behind it; "" of a line that is neither, or cut off."""
    _, mark, text = line.rpartition("#!")
    what, *values = text.split() or [""]
    known = mark and line.endswith("\n") and len(values) > (what == "SET")
    return (what, values) if known and what in ("FIELDS", "SET") else ("", [])


def _is_row(segment: Segment, line: str, place: int) -> bool:
    """Whether a ``line`` is a row, which is kept, or a comment; the last number may be cut."""
    words = line.partition("#")[0].split()
    try:
        row = [float(word) for word in words]
    except ValueError:
        return False
    if row and line.endswith("\n") and len(row) == len(segment.fields):
        segment.rows.append(row)
        segment.lines.append(place)
        return True
    return not words


def _lines(path: str | Path) -> Iterator[str]:
    """Lines of a file that may be compressed (gzip), as far as it can be read."""
    check_plain_file(Path(path))
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if not compressed:
        with open(path, errors="replace") as text:
            yield from text
        return
    with gzip.open(path, "rt", errors="replace") as text:
        try:
            yield from text
        except EOFError:
            yield "#!"  # a kill has cut it off, in the middle of a line
        except zlib.error as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def number(text: str) -> float:
    """PLUMED's numbers may hold pi: ``-pi``, ``2pi``, ``0.5*pi``, ``pi/2``.

    Raises ``ValueError`` for what is none.
    """
    found = _NUMBER.fullmatch(text.strip().lower())
    if found is None or not (found[2] or found[4]):
        return float(text)
    sign, digits, power, circle, divisor = found.groups()
    value = float(f"{digits or 1}{power or ''}") * (math.pi if circle else 1.0)
    return (-value if sign == "-" else value) / float(divisor or 1)
