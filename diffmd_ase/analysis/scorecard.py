"""The card of a validation: entries with goals, and what they come to, in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .fidelity import Excess, Verdict, judged, saturated
from .page import plain, save

__all__ = ["Entry", "Goals", "Validation", "divergence_entry", "entry", "many_entry"]

_MANY = 3.0  # standard errors, where the worst of many is looked at


@dataclass(frozen=True)
class Goals:
    """What a faithful model reaches; deviations in size.

    Divergences in nats above their floor, energies in kT, ratios and correlations as
    deviations from 1.
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
class Entry:
    """One line of the card.

    Parameters
    ----------
    group, name : what it is
    value, error : as measured, with its standard error
    expected : of a perfect model: the sampling floor, 1, 0, the value of the data
    deviation : what is judged; ``value - expected`` where not said otherwise
    goal : for the size of the deviation; None: told, not judged
    verdict : None where it is not judged
    words : what a reader should know of it
    details : numbers behind it, for JSON
    """

    group: str
    name: str
    value: float
    error: float
    expected: float | None
    deviation: float
    goal: float | None
    verdict: Verdict | None
    words: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool | None:
        """True and False as the verdict says; None where it says nothing."""
        return {"pass": True, "above floor": False}.get(self.verdict or "")


def entry(
    group: str,
    name: str,
    value: float,
    error: float,
    *,
    expected: float = 0.0,
    goal: float | None,
    words: str = "",
    details: dict[str, Any] | None = None,
) -> Entry:
    """A number that should be ``expected`` within ``goal`` (see `judged`)."""
    deviation = float(value - expected)
    verdict = None if goal is None else judged(deviation, float(error), goal)
    value, error = float(value), float(error)
    return Entry(
        group, name, value, error, expected, deviation, goal, verdict, words, details or {}
    )


def divergence_entry(group: str, name: str, found: Excess, goal: float, words: str = "") -> Entry:
    """A divergence, judged by its excess over the sampling floor; from below it is never bad.

    Where the floor is above 0.1 nats bins are so empty that laws cannot be told apart.
    """
    verdict: Verdict = judged(max(found.excess, 0.0), found.error, goal)
    if saturated(found.floor):
        verdict = "cannot be told"
        words = f"too few frames: counting alone gives {found.floor:.2f} nats. {words}".strip()
    return Entry(
        group,
        name,
        found.js,
        found.error,
        found.floor,
        found.excess,
        goal,
        verdict,
        words,
        {"n_effective": round(found.n_effective, 1)},
    )


def many_entry(
    group: str, name: str, names: list[str], values, errors, *, goal: float, words: str = ""
) -> Entry:
    """Many ratios that should all be 1; the worst is shown, three errors count.

    Above the floor if any is for sure, a pass only if all pass.
    """
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    each = [judged(v - 1.0, e, goal, errors=_MANY) for v, e in zip(values, errors, strict=True)]
    order = np.argsort(-np.abs(values - 1.0))
    verdict: Verdict = "pass"
    worst = int(order[0])
    for bad in ("cannot be told", "above floor"):
        of = [int(n) for n in order if each[n] == bad]
        if of:
            verdict, worst = bad, of[0]  # type: ignore[assignment]
    counts = {v: each.count(v) for v in ("pass", "above floor", "cannot be told")}
    told = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    return Entry(
        group,
        name,
        float(values[worst]),
        float(errors[worst]),
        1.0,
        float(values[worst] - 1.0),
        goal,
        verdict,
        f"{names[worst]}; of {len(names)}: {told}" + (f". {words}" if words else ""),
        {n: [float(v), float(e)] for n, v, e in zip(names, values, errors, strict=True)},
    )


@dataclass(frozen=True)
class Validation:
    """What was found about a model and snapshots.

    Parameters
    ----------
    facts : of model, snapshots, sampling and seed
    entries : the lines of the card
    notes : (good, text); True, False, or None for what must be known
    left_out : what was not asked, and why
    """

    facts: dict[str, Any]
    entries: tuple[Entry, ...]
    notes: tuple[tuple[bool | None, str], ...]
    left_out: tuple[str, ...]

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name; ``KeyError`` with the names there are."""
        for line in self.entries:
            if line.name == name:
                return line
        raise KeyError(f"no entry {name!r}; there are {[line.name for line in self.entries]}")

    @property
    def good(self) -> bool | None:
        """False if anything is above its floor or a note is bad; None if some of it cannot
        be told; else True."""
        said = [line.good for line in self.entries if line.goal is not None]
        if False in said or any(good is False for good, _ in self.notes):
            return False
        return None if None in said or not said else True

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        lines = [line for line in self.entries if line.goal is not None]
        above = [line.name for line in lines if line.verdict == "above floor"]
        unknown = [line.name for line in lines if line.verdict == "cannot be told"]
        passed = len(lines) - len(above) - len(unknown)
        told = f"{passed} of {len(lines)} entries pass"
        if above:
            told += f"; {len(above)} miss their goal: {', '.join(above)}"
        if unknown:
            told += f"; {len(unknown)} cannot be told with so many frames: {', '.join(unknown)}"
        return told + "."

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers that are not finite are None."""
        values = {
            "verdict": {"good": self.good, "text": self.words},
            **self.facts,
            "entries": [asdict(line) for line in self.entries],
            "notes": [{"good": good, "text": text} for good, text in self.notes],
            "left_out": list(self.left_out),
        }
        return _finite(json.loads(json.dumps(values, default=plain)))

    def save(self, path: str | Path) -> Path:
        """Write the card as JSON, complete or not at all."""
        path = Path(path)
        save(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return path


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
