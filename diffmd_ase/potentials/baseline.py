"""A potential that a model corrects: found by what a user calls it, now and when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..score.baseline import Baseline
from ..score.model import ScoreModel
from ..system import System
from .base import Potential
from .named import Source, find_potential

__all__ = ["baseline_of", "find_baseline"]

_ROLE = "baseline"


def find_baseline(
    source: Source,
    system: System,
    *,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Baseline:
    """What ``source`` means, for `score.training.train`; it is made once, to see that it can be.

    Parameters
    ----------
    source : what `find_potential` takes: gfn1, emt, openmm, a model file, an ASE calculator, …
    system : of the snapshots
    options : of a name
    device : of the network of a model

    Raises
    ------
    ValueError, ImportError, TypeError : as of `find_potential`; a potential that learns
    """
    named = isinstance(source, str | Path)
    name = str(source) if named else type(source).__name__

    def bind(system: System) -> Potential:
        found = find_potential(
            source, system, role=_ROLE, options=dict(options or {}), device=device
        )
        if found.has_memory:
            raise ValueError(f"{name} learns as it runs; expected a baseline that stays the same")
        return found

    bind(system)
    return Baseline(name, dict(options or {}), named, bind)


def baseline_of(model: ScoreModel, system: System, *, device: str = "auto") -> Potential:
    """The potential of ``system`` that the energy of a ``model`` is added to, seen to be the same.

    Raises
    ------
    ValueError : it is not at hand, or has other forces than when the model was trained
    """
    card = model.card.baseline
    if card is None:
        raise ValueError("this model has no baseline")
    source = model.baseline
    if source is None and not card.by_name:
        raise ValueError(
            f"this model corrects a {card.name} that was given in Python: set model.baseline to it "
            "(a calculator, a potential, or a function System -> Potential)"
        )

    def found(system: System) -> Potential:
        if source is None:
            return find_potential(
                card.name, system, role=_ROLE, options=card.options, device=device
            )
        return find_potential(source, system, role=_ROLE)

    own = found(model.system)
    card.check(own)
    return own if model.system.difference(system) == "" else found(system)
