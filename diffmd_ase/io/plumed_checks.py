"""What can be checked of numbers in PLUMED's text, which has no checksums.

A changed digit of a variable or a bias is a number like others, and nobody can see it. What must
hold in any file is checked: time does not go back, periodic variables are in their domains, the
widths and the bias factor of hills are what they are in all other rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .plumed_text import Segment, number

__all__ = ["check_segment"]

_MOST = 0.9  # of the rows: then those that differ are wrong, and not those of an adaptive width
_FEW = 20  # rows: no judgement on fewer
_ROUNDING = 1e-5  # of a domain: files have six decimals


def check_segment(path: str | Path, segment: Segment) -> list[str]:
    """Notes on rows of the ``segment`` that look strange, with the file's ``path`` and the line.

    Raises
    ------
    ValueError : a row that cannot be right, with its line: time that goes back, a periodic
        variable outside its domain, a hill with other widths or bias factor than all others
    """
    fields = segment.fields
    values = np.array(segment.rows, float).reshape(-1, len(fields))
    notes = []
    with np.errstate(invalid="ignore"):
        for place, name in enumerate(fields):
            column = values[:, place]
            if name == "time":
                _refuse(path, segment, name, column, np.diff(column, prepend=-np.inf) < 0, "before")
                notes += _off_the_grid(path, segment, column)
            domain = _domain(segment, name)
            if domain is not None:
                margin = _ROUNDING * (domain[1] - domain[0])
                outside = (column < domain[0] - margin) | (column > domain[1] + margin)
                _refuse(path, segment, name, column, outside, f"not in {domain}")
            if "height" in fields and (name == "biasf" or name.startswith("sigma_")):
                kinds, counts = np.unique(column, return_counts=True)
                if len(column) >= _FEW and _MOST * len(column) < counts.max() < len(column):
                    usual = kinds[counts.argmax()]
                    words = f"{usual:g} in the other rows"
                    _refuse(path, segment, name, column, column != usual, words)
    return notes


def _domain(segment: Segment, name: str) -> tuple[float, float] | None:
    texts = [segment.constants.get(f"{side}_{name}") for side in ("min", "max")]
    if None in texts or segment.constants.get(f"periodic_{name}", "true") != "true":
        return None
    try:
        low, high = (number(str(text)) for text in texts)
    except ValueError:  # told where domains are read
        return None
    return low, high


def _refuse(path, segment: Segment, name, column, wrong, words: str) -> None:
    found = np.flatnonzero(wrong)
    if not len(found):
        return
    first = int(found[0])
    if words == "before":
        words = f"after {column[first - 1]:g}"
    raise ValueError(
        f"{path}, line {segment.lines[first]}: {name} {column[first]:g}, {words}: the file was "
        "edited or damaged; remove that line, or take a copy of the file"
    )


def _off_the_grid(path, segment: Segment, time: np.ndarray) -> list[str]:
    """A note on times that are no multiple of what nearly all of them are multiples of."""
    steps = np.diff(time)
    steps = steps[steps > 0]
    if len(steps) < _FEW:
        return []
    spacing = float(np.median(steps))
    apart = (time - time[len(time) // 2]) / spacing
    apart = np.abs(apart - np.round(apart))
    off = np.flatnonzero(apart > 1e-3 + 2e-6 / spacing)
    if not 0 < len(off) < (1 - _MOST) * len(time):
        return []
    line = segment.lines[int(off[0])]
    return [
        f"{path}: {len(off)} rows are between the times of the others, every {spacing:g}; the "
        f"first is line {line}: was it damaged?"
    ]
