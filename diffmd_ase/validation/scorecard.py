"""The card of a validation: numbers with goals, and what they come to, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..io.atomic import replacing
from ..io.json_text import plain, to_json

__all__ = ["Goals", "Line", "Note", "Validation", "Verdict", "judged", "line", "worst_line"]

Verdict = Literal["pass", "fail", "cannot be told"]
Note = tuple[bool | None, str]  # good, bad, or to be known


@dataclass(frozen=True)
class Goals:
    """What a faithful model reaches: sizes of deviations.

    Parameters
    ----------
    reweighted, independent, dynamics : nats of a divergence above its floor, of reweighted frames,
        of i.i.d. samples, of walkers
    free_energy : kT, between modes
    width : ratios of standard deviations from 1
    offset, energy_std : kT, of the energy's error: between modes, and its spread
    energy_correlation, force_correlation : with the reference, from 1
    temperature : in the data over that of the model, from 1
    peak : place and height of peaks of g(r), as ratios from 1
    energy_width : ratio of the standard deviations of the energy from 1
    lost : fraction of samples or walkers that end where nothing can be right
    calibration : error over spread of a committee, from 1
    """

    reweighted: float = 0.005
    independent: float = 0.01
    dynamics: float = 0.01
    free_energy: float = 0.2
    width: float = 0.03
    offset: float = 0.2
    energy_std: float = 0.8
    energy_correlation: float = 0.01
    force_correlation: float = 0.002
    temperature: float = 0.03
    peak: float = 0.01
    energy_width: float = 0.05
    lost: float = 0.01
    calibration: float = 0.5


@dataclass(frozen=True)
class Line:
    """One line of the card; made by `line` or `worst_line`."""

    group: str  # that it is shown in
    name: str  # what it is
    value: float  # as measured
    error: float  # its standard error
    expected: float  # of a perfect model: the sampling floor of a divergence, 0, 1
    goal: float | None  # for the size of value - expected; None: told, not judged
    verdict: Verdict | None  # None where it is not judged
    words: str = ""  # what a reader should know of it
    details: dict[str, Any] = field(default_factory=dict)  # numbers behind it, for JSON

    @property
    def deviation(self) -> float:
        return self.value - self.expected

    @property
    def good(self) -> bool | None:
        """True and False as the verdict says; None where it says nothing."""
        return {"pass": True, "fail": False}.get(self.verdict or "")


def judged(deviation: float, error: float, goal: float, *, errors: float = 2.0) -> Verdict:
    """Of a ``deviation`` that should be 0 within ``goal``, known to within a standard ``error``.

    |d| ≤ goal and 2 error ≤ goal    pass
    |d| - 2 error > goal             fail
    else, or not finite              cannot be told: the noise is as large as the goal

    ``errors`` is how many standard errors count: by default 2, as above.
    """
    if not (np.isfinite(deviation) and np.isfinite(error)):
        return "cannot be told"
    if abs(deviation) - errors * error > goal:
        return "fail"
    if abs(deviation) <= goal and errors * error <= goal:
        return "pass"
    return "cannot be told"


def line(
    group: str,
    name: str,
    value: float,
    error: float,
    *,
    expected: float = 0.0,
    goal: float | None,
    words: str = "",
    details: dict[str, Any] | None = None,
) -> Line:
    """A number that should be ``expected`` within ``goal`` (see `judged`).

    ``group``, ``name``, ``value``, ``error``, ``words`` and ``details`` are those of the `Line`.
    """
    value, error, expected = float(value), float(error), float(expected)
    verdict = None if goal is None else judged(value - expected, error, goal)
    return Line(group, name, value, error, expected, goal, verdict, words, details or {})


def worst_line(group: str, name: str, names: list[str], values, errors, *, goal: float) -> Line:
    """Many ratios that should all be 1: fails if any fails, passes if all do; three errors count.

    The value is that of the worst.

    Parameters
    ----------
    group, name : of the `Line`
    names : of the ratios
    values, errors : of each, with one standard error
    goal : for the size of each ratio - 1
    """
    rows = sorted(zip(names, values, errors, strict=True), key=lambda r: -abs(r[1] - 1))
    each = [judged(v - 1.0, e, goal, errors=3.0) for _, v, e in rows]
    order: tuple[Verdict, ...] = ("fail", "cannot be told", "pass")
    verdict = next(v for v in order if v in each)
    worst, value, error = rows[each.index(verdict)]
    told = ", ".join(f"{each.count(v)} {v}" for v in order if v in each)
    words = f"worst is {worst}; of {len(rows)}: {told}"
    details = {n: [float(v), float(e)] for n, v, e in rows}
    return Line(group, name, float(value), float(error), 1.0, goal, verdict, words, details)


@dataclass(frozen=True)
class Validation:
    """What was found about a model and snapshots.

    ``validation[name]`` is one of its lines, else a ``KeyError``.
    """

    facts: dict[str, Any]  # of model, snapshots, sampling and seed
    lines: tuple[Line, ...]  # numbers, judged
    notes: tuple[Note, ...]  # good is None for what must be known, and for what was not asked

    def __getitem__(self, name: str) -> Line:
        """The line of this name; ``KeyError`` with the names there are."""
        for one in self.lines:
            if one.name == name:
                return one
        raise KeyError(f"no line {name!r}; there are {[one.name for one in self.lines]}")

    def named(self, verdict: Verdict) -> list[str]:
        """Names of the lines with this verdict."""
        return [one.name for one in self.lines if one.verdict == verdict]

    @property
    def good(self) -> bool | None:
        """False if a line fails or a note is bad; None if some of it cannot be told."""
        if self.named("fail") or any(good is False for good, _ in self.notes):
            return False
        return None if self.named("cannot be told") or not self.named("pass") else True

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        failed, unknown = self.named("fail"), self.named("cannot be told")
        told = f"{len(self.named('pass'))} of {sum(o.goal is not None for o in self.lines)} pass"
        if failed:
            told += f"; {len(failed)} fail: {', '.join(failed)}"
        if unknown:
            told += f"; {len(unknown)} cannot be told with so many frames: {', '.join(unknown)}"
        return told

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite are None."""
        values = {
            "verdict": {"good": self.good, "text": self.words},
            **self.facts,
            "lines": [{**asdict(one), "deviation": one.deviation} for one in self.lines],
            "notes": [{"good": good, "text": text} for good, text in self.notes],
        }
        return plain(values)

    def save(self, path: str | Path) -> Path:
        """Write the card as JSON, complete or not at all."""
        path, text = Path(path), to_json(self.to_dict())
        with replacing(path) as part:
            part.write_text(text + "\n", encoding="utf-8")
        return path
