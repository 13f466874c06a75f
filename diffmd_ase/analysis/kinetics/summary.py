"""The kinetics of trajectories: what they say, how well, and what they cannot say."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from ...io.atomic import replacing
from ...io.json_text import to_json
from ..statistics import Estimate, mean_estimate
from .correlations import Autocorrelation, autocorrelation
from .markov import Consistency, MarkovModel, chapman_kolmogorov, markov_model
from .passages import ChainTooShort, passages
from .slow_modes import slow_modes
from .states import States
from .variables import Variables

__all__ = ["Kinetics", "Passage", "kinetics"]

_MOST_PAIRS = 6  # states, beyond which passages of all pairs are too many to read
_SHORTEST = 5  # lags that a walker must last
_SHOWN = 3  # implied timescales


@dataclass(frozen=True)
class Passage:
    """Mean first passage from one state to another, by both ways; None where too rare."""

    start: str  # name of the state it comes from
    end: str  # and of the one it goes to
    counted: Estimate | None  # by the state visited last
    markov: Estimate | None  # of the Markov model


@dataclass(frozen=True, eq=False)
class Kinetics:
    """Made by `kinetics`; times in ``unit``."""

    unit: str
    spacing: float  # between frames
    frames: int  # of each walker
    walkers: int  # side by side, or parts of one
    correlations: dict[str, Autocorrelation]  # by variable, those that were long enough
    states: tuple[str, ...] = ()  # (S,) names
    populations: list[Estimate] = field(default_factory=list)  # (S,) fractions of the frames
    counts: np.ndarray | None = None  # (S, S) changes of state from frame to frame
    passages: list[Passage] = field(default_factory=list)
    models: list[MarkovModel] = field(default_factory=list)  # at growing lags
    model: MarkovModel | None = None  # the one that is used
    consistency: list[Consistency] = field(default_factory=list)  # Chapman–Kolmogorov, of it
    modes: list[Estimate] = field(default_factory=list)  # times of TICA at its lag
    notes: tuple[str, ...] = ()  # what could not be said, and why

    def to_dict(self) -> dict[str, Any]:
        """All numbers for JSON."""
        model = self.model
        return {
            "unit": self.unit,
            "spacing": self.spacing,
            "frames": self.frames,
            "walkers": self.walkers,
            "correlation": {
                name: c.time.to_dict() | {"n_effective": c.time.n_effective}
                for name, c in self.correlations.items()
            },
            "states": [
                {"name": n, "population": p.to_dict()}
                for n, p in zip(self.states, self.populations, strict=True)
            ],
            "transitions": None if self.counts is None else self.counts.tolist(),
            "passages": [
                {
                    "from": p.start,
                    "to": p.end,
                    "counted": _told(p.counted),
                    "markov": _told(p.markov),
                }
                for p in self.passages
            ],
            "implied": [
                {"lag": m.lag, "timescales": [t.to_dict() for t in m.timescales]}
                for m in self.models
            ],
            "lag": None if model is None else model.lag,
            "timescales": [] if model is None else [t.to_dict() for t in model.timescales],
            "markov_populations": [] if model is None else [p.to_dict() for p in model.populations],
            "chapman_kolmogorov": [asdict(row) for row in self.consistency],
            "tica": [t.to_dict() for t in self.modes],
            "notes": list(self.notes),
        }

    def write(self, path: Path) -> list[Path]:
        """JSON to ``path``, every number also to .csv, and a picture to .png; gives the files."""
        from .plots import kinetics_figure

        table, picture = path.with_suffix(".csv"), path.with_suffix(".png")
        with replacing(path) as part:
            part.write_text(to_json(self.to_dict()) + "\n")
        with replacing(table) as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["what", "name", "at", "value", "error"])
            writer.writerows(self._rows())
        kinetics_figure(self).savefig(picture, dpi=150)
        return [path, table, picture]

    def _rows(self) -> Iterator[tuple]:
        for name, c in self.correlations.items():
            yield "integrated time", name, "", c.time.value, c.time.error
        for name, c in self.correlations.items():
            for at, value, error in zip(c.lags, c.values, c.errors, strict=True):
                yield "autocorrelation", name, at, value, error
        for name, population in zip(self.states, self.populations, strict=True):
            yield "population", name, "", population.value, population.error
        for pair in self.passages:
            for way, e in (("passage", pair.counted), ("passage, Markov", pair.markov)):
                if e is not None:
                    yield way, f"{pair.start} -> {pair.end}", "", e.value, e.error
        for m in self.models:
            for n, time in enumerate(m.timescales, 1):
                yield "implied timescale", n, m.lag, time.value, time.error
        for row in self.consistency:
            yield "Chapman-Kolmogorov", "largest difference", row.lag, row.difference, row.error


def kinetics(
    variables: Variables,
    states: States | None,
    *,
    lag: float | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Kinetics:
    """What ``variables`` and ``states`` say of the kinetics; what they cannot say is a note.

    The lag of the Markov model is, unless given, the first of growing ones (factors of two) at
    which the slowest time is within two errors of those at the next two.

    Parameters
    ----------
    variables : of two walkers at least (`Variables.in_parts`)
    states : of the same frames; None, correlations only
    lag : of the Markov model, in the unit of the clock
    notes : to begin with
    seed : of the bootstrap

    Raises
    ------
    ValueError : another number of frames, a lag beyond the walkers
    ImportError : no deeptime
    """
    told = [*variables.notes, *notes]
    frames, walkers = variables.values.shape[:2]
    found: dict[str, Autocorrelation] = {}
    for name in variables.names:
        try:
            found[name] = autocorrelation(variables.series(name), variables.spacing)
        except ValueError as error:  # too short, or a constant
            told.append(f"{name}: {error}")
    whole = Kinetics(variables.unit, variables.spacing, frames, walkers, found, notes=tuple(told))
    if states is None:
        return whole
    numbers = states.numbers
    if numbers.shape != (frames, walkers):
        raise ValueError(f"states {numbers.shape} of variables {variables.values.shape}")
    given = None if lag is None else max(1, round(lag / variables.spacing))
    if given is not None and given * _SHORTEST > frames:
        raise ValueError(
            f"a lag of {lag:g} {variables.unit}, walkers of {frames * variables.spacing:.4g}: "
            f"expected a {_SHORTEST}th of that at most"
        )
    models = _models(numbers, variables.spacing, given, seed, told)
    model = _settled(models, given is not None, told)
    count = len(states.names)
    inside = [numbers == n for n in range(count)]
    consistency: list[Consistency] = []
    modes: list[Estimate] = []
    if model is not None:
        longest = max(2, frames // (model.frames * 2))
        multiples = [k for k in (2, 3, 4) if k <= longest]
        consistency = chapman_kolmogorov(
            numbers, model.frames, variables.spacing, multiples=multiples, seed=seed
        )
        modes = _modes(variables, model.frames, seed, told)
    return Kinetics(
        variables.unit,
        variables.spacing,
        frames,
        walkers,
        found,
        states.names,
        [mean_estimate(of) for of in inside],
        _changes(numbers, count),
        _passages(states.names, inside, model, variables.spacing, told),
        models,
        model,
        consistency,
        modes,
        tuple(told),
    )


def _models(
    numbers: np.ndarray, spacing: float, given: int | None, seed: int, told: list[str]
) -> list[MarkovModel]:
    """At growing lags as long as the data can support them."""
    models: list[MarkovModel] = []
    lag = 1 if given is None else given
    while lag * _SHORTEST <= len(numbers):
        try:
            models.append(markov_model(numbers, lag, spacing, posterior=30, seed=seed))
        except ValueError as error:  # too few transitions, one state
            if not models:
                told.append(f"Markov model: {error}")
            break
        slowest = models[-1].timescales[0]
        if not slowest.value > 0.3 * models[-1].lag:  # all is forgotten within the lag
            break
        lag *= 2
        if given is not None and len(models) == 3:
            break
    return models


def _settled(models: list[MarkovModel], given: bool, told: list[str]) -> MarkovModel | None:
    if not models or given:
        return models[0] if models else None
    for n, model in enumerate(models):
        here, later = model.timescales[0], [m.timescales[0] for m in models[n + 1 : n + 3]]
        if later and all(
            abs(t.value - here.value) < 2 * np.hypot(t.error, here.error) for t in later
        ):
            return model
    told.append(
        "the slowest implied timescale still changes with the lag: these states are not Markovian "
        "at the lags that the walkers allow; run longer, or choose states that are parted by the "
        "barriers"
    )
    return models[-1]


def _modes(variables: Variables, lag: int, seed: int, told: list[str]) -> list[Estimate]:
    features = variables.features()
    count = min(2, features.shape[-1])
    try:
        return slow_modes(features, lag, variables.spacing, count=count, seed=seed).timescales
    except ValueError as error:
        told.append(f"TICA: {error}")
        return []


def _changes(numbers: np.ndarray, count: int) -> np.ndarray:
    moves = np.zeros((count, count), int)
    np.add.at(moves, (numbers[:-1].ravel(), numbers[1:].ravel()), 1)
    return moves


def _passages(
    names: Sequence[str],
    inside: list[np.ndarray],
    model: MarkovModel | None,
    spacing: float,
    told: list[str],
) -> list[Passage]:
    if len(names) > _MOST_PAIRS:
        told.append(f"passages are listed for {_MOST_PAIRS} states at most, these are {len(names)}")
        return []
    rows = []
    for i, j in permutations(range(len(names)), 2):
        try:
            counted = passages(inside[i], inside[j], spacing).to_b
        except ChainTooShort as error:
            counted = None
            if i < j:
                told.append(f"{names[i]} and {names[j]}: {error}")
        markov = None if model is None else model.mfpt([i], [j])
        rows.append(Passage(names[i], names[j], counted, markov))
    return rows


def _told(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate.to_dict()
