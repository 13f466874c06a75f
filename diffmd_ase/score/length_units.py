"""Are positions in Å? By how much longer distances are than those that a model was trained on."""

from __future__ import annotations

import numpy as np
from ase.units import Bohr, nm

from ..system import System
from .card import Card

__all__ = ["cell_doubt", "length_doubt"]

_UNITS = {"Bohr": 1 / Bohr, "nm": 1 / nm, "pm": 100.0}  # so many to an Å
_NEAR = 0.05  # relative: vibrations, and other temperatures, change means by less


def length_doubt(ratio: float) -> str:
    """In which other unit positions seem to be, in words with the remedy; "" for none.

    ``ratio`` of distances to those they should have: a unit's number in an Å, or what is left of
    an Å where positions in Å were divided once more.
    """
    for unit, factor in _UNITS.items():
        for times, what, remedy in (
            (factor, f"as positions in {unit} are", f"divide them by {factor:.6g}"),
            (1 / factor, f"as if divided by those of an Å in {unit}", f"multiply by {factor:.6g}"),
        ):
            if abs(ratio / times - 1) < _NEAR:
                return (
                    f"distances are {ratio:.4g} times those of this model's snapshots, {what}: "
                    f"expected Å, {remedy}"
                )
    return ""


def cell_doubt(card: Card, system: System) -> str:
    """`length_doubt` of a periodic ``system``, by the volume of an atom in those of a ``card``."""
    if not system.pbc.all():
        return ""
    volume = abs(np.linalg.det(system.cell)) / len(system)
    known = [
        abs(np.linalg.det(np.array(part.cell))) / len(part.numbers)
        for part in card.systems
        if part.cell is not None and all(part.pbc)
    ]
    said = [length_doubt(float((volume / one) ** (1 / 3))) for one in known]
    return said[0] if said and all(said) else ""
