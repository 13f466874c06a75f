"""What the user's `Atoms` carry, as text in a trajectory, for its restart.

Charges, spins, tags, arrays and ``info`` go to the calculator again, constraints hold again.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from ase.constraints import dict2constraint
from ase.io.jsonio import decode, encode

from ..system import System

__all__ = ["carried_text", "with_carried"]

_KNOWN = ("numbers", "positions", "masses", "momenta")  # the system has them, or frames do


def carried_text(system: System) -> str:
    """What the atoms of ``system`` carry besides elements and masses, as JSON.

    What JSON cannot hold is left out, with a warning that names it.
    """
    (atoms, *_) = system.carriers()
    arrays = {name: values for name, values in atoms.arrays.items() if name not in _KNOWN}
    return json.dumps(
        {
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
            "celldisp": atoms.get_celldisp().ravel().tolist(),
            "arrays": _encoded(arrays, "arrays"),
            "info": _encoded(atoms.info, "info"),
            "constraints": encode([constraint.todict() for constraint in atoms.constraints]),
        }
    )


def with_carried(system: System, text: str | None) -> System:
    """``system``, carrying what `carried_text` wrote as ``text``; unchanged for None.

    Raises ``ValueError`` for another text.
    """
    if text is None:
        return system
    try:
        return _with(system, json.loads(text))
    except Exception as error:  # of JSON, of ASE's objects and of its arrays
        raise ValueError(f"what its atoms carry is damaged: {error}") from error


def _with(system: System, saved: dict[str, Any]) -> System:
    atoms = system.to_atoms(np.zeros((len(system), 3)))
    atoms.set_cell(saved["cell"])
    atoms.pbc = saved["pbc"]
    atoms.set_celldisp(saved["celldisp"])
    for name, value in saved["arrays"].items():
        atoms.set_array(name, np.asarray(decode(value, always_array=False)))
    atoms.info |= {name: decode(value, always_array=False) for name, value in saved["info"].items()}
    atoms.set_constraint([dict2constraint(c) for c in decode(saved["constraints"])])
    return replace(system, carried=(atoms,))


def _encoded(values: dict[str, Any], place: str) -> dict[str, str]:
    encoded = {}
    for name, value in values.items():
        try:
            encoded[str(name)] = encode(value)
        except (TypeError, ValueError) as error:
            warnings.warn(
                f"atoms.{place}[{name!r}] is a {type(value).__name__}, which the trajectory cannot "
                f"keep ({error}): a calculator does not see it after a restart",
                stacklevel=2,
            )
    return encoded
