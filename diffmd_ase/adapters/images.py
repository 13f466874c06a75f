"""What the `Atoms` of the walkers of a batch have in common, calculators included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ..system import System, comparable
from .calculator import ScoreCalculator

__all__ = ["check_calculators", "check_images", "constraints_of"]

# what a calculator has of its last calculation, or for its files
_PASSING = ("atoms", "results", "label", "prefix", "_directory")


def constraints_of(atoms: Atoms) -> tuple:
    """The constraints of ``atoms`` as plain values that compare, whoever has changed them how."""
    return tuple((type(c), comparable(vars(c))) for c in atoms.constraints)


def check_images(images: Sequence[Atoms]) -> None:
    """Raise ``ValueError`` unless the images can be walkers of one batch."""
    if not images:
        raise ValueError("no images: expected a list of Atoms, one for each walker")
    first = images[0]
    if len({id(image) for image in images}) < len(images):
        raise ValueError("the same Atoms object appears twice: use atoms.copy() for each walker")
    system, constraints = System.from_atoms(first), constraints_of(first)
    for i, image in enumerate(images[1:], start=1):
        difference = system.difference(System.from_atoms(image))
        if not difference and not np.array_equal(image.cell.array, first.cell.array):
            difference = f"the cell ({first.cell.tolist()} and {image.cell.tolist()} Å)"
        if difference:
            raise ValueError(
                f"image {i} differs from image 0 in {difference}; a batch is of one system"
            )
        if constraints_of(image) != constraints:
            raise ValueError(f"image {i} and image 0 have different constraints")


def check_calculators(images: Sequence[Atoms]) -> None:
    """Raise ``ValueError`` unless the calculator of the first image can serve all.

    The others have the same one, an equal one, none, or the results of one that have been read.
    """
    first = images[0]
    for i, image in enumerate(images[1:], start=1):
        if image.calc is None or isinstance(image.calc, SinglePointCalculator):
            continue
        if unlike := _unlike(first.calc, image.calc):
            raise ValueError(
                f"image {i} has a calculator of its own, which differs from that of image 0 in "
                f"{unlike}; the one of image 0 serves the batch: attach that one, or none, to the "
                "others"
            )


def _unlike(a, b) -> str:
    """In what calculators differ as far as can be seen; "" where one can do for the other."""
    if a is b:
        return ""
    if type(a) is not type(b):
        return f"class ({type(a).__name__} and {type(b).__name__})"
    if isinstance(a, ScoreCalculator):
        return "" if a.computes_as(b) else "model, bias or settings"
    if comparable(dict(a.parameters)) != comparable(dict(b.parameters)):
        return f"parameters ({dict(a.parameters)} and {dict(b.parameters)})"
    fresh = not (a.results or b.results)
    mine, other = (_settings(vars(calculator), arrays=fresh) for calculator in (a, b))
    # a calculation may have added some of its own
    return ", ".join(name for name in mine if name in other and mine[name] != other[name])


def _settings(values: dict[str, Any], *, arrays: bool) -> dict[str, Any]:
    """Attributes that a user may have set, to compare: words and numbers, also of what is inside.

    ``arrays`` too where they are no results of a calculation.
    """
    found = {}
    for name, value in values.items():
        if name in _PASSING:
            continue
        if isinstance(value, str | bool | int | float | Path) or (
            arrays and isinstance(value, np.ndarray)
        ):
            found[name] = comparable(value)
        elif isinstance(value, list | tuple | dict):
            parts = value if isinstance(value, dict) else dict(enumerate(value))
            found[name] = _settings({str(k): part for k, part in parts.items()}, arrays=arrays)
        elif type(value).__module__.startswith("ase.calculators"):  # of a sum of calculators
            found[name] = type(value).__name__, _settings(vars(value), arrays=arrays)
    return found
