"""Files of snapshots: NumPy archives by several names of their entries, and all that ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..system import System

__all__ = ["read_fields"]

_KEYS = {
    "positions": ("positions", "x", "R", "coords"),
    "numbers": ("numbers", "atomic_numbers", "z", "Z"),
    "temperature_K": ("temperature_K", "temperature"),
    "energies": ("energies", "energy", "E"),
    "forces": ("forces", "F"),
    "cell": ("cell",),
    "pbc": ("pbc",),
}


def read_fields(path: Path) -> dict[str, Any]:
    """What a file holds, by the names of `Snapshots`: system, positions, energies, forces.

    ``temperature_K`` is among them where the file states it.

    Raises
    ------
    ValueError : a file that is damaged, lacks what is needed or holds several systems
    """
    return _read_npz(path) if path.suffix == ".npz" else _read_ase(path)


def _read_npz(path: Path) -> dict:
    try:
        # opened here: of a damaged archive numpy leaves the file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            raw = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, pickle and OS errors alike mean an unusable file
        raise ValueError(f"{path.name} is not a readable .npz file: {error}") from error
    entries = {
        field: next((raw[key] for key in keys if key in raw), None) for field, keys in _KEYS.items()
    }
    for field in ("positions", "numbers"):
        if entries[field] is None:
            raise ValueError(
                f"{path.name} has no {field} (looked for {', '.join(_KEYS[field])}; it holds "
                f"{', '.join(sorted(raw)) or 'nothing'})"
            )
    positions = entries["positions"]
    if positions.dtype.kind in "iu":  # fixed point: positions in units of `scale`
        if "scale" not in raw:
            raise ValueError(f"{path.name}: integer positions need an entry 'scale' in Å")
        positions = positions * float(raw["scale"])
    numbers = entries["numbers"]
    if numbers.ndim == 2:
        if not (numbers == numbers[0]).all():
            raise ValueError(f"{path.name} mixes compositions; give each a file of its own")
        numbers = numbers[0]
    fields = {
        "system": _system(numbers, entries["cell"], entries["pbc"], path.name),
        "positions": positions,
        "energies": entries["energies"],
        "forces": entries["forces"],
    }
    if entries["temperature_K"] is not None:
        fields["temperature_K"] = float(entries["temperature_K"])
    return fields


def _system(numbers, cell, pbc, name) -> System:
    from ase import Atoms

    if cell is not None and cell.ndim == 3:
        if not np.allclose(cell, cell[0], atol=1e-6):
            raise ValueError(f"{name}: the cell varies; train on snapshots at constant cell")
        cell = cell[0]
    atoms = Atoms(numbers=numbers, cell=cell, pbc=False if pbc is None else pbc)
    return System.from_atoms(atoms)


def _read_ase(path: Path) -> dict:
    import ase.io

    try:
        frames: Any = ase.io.read(path, index=":")
    except Exception as error:  # every format has its own
        raise ValueError(f"ase.io cannot read {path.name}: {error!r}") from error
    if not frames:
        raise ValueError(f"{path.name} holds no frames")
    first = frames[0]
    for n, atoms in enumerate(frames):
        if sorted(atoms.numbers) != sorted(first.numbers):
            raise ValueError(
                f"{path.name}: frame {n} is {atoms.get_chemical_formula()} but frame 0 is "
                f"{first.get_chemical_formula()}; give each composition a file of its own"
            )
        if (atoms.numbers != first.numbers).any():
            raise ValueError(
                f"{path.name}: frame {n} has its atoms in another order than frame 0 "
                f"({atoms.symbols} and {first.symbols}); expected one order in all frames"
            )
        if (atoms.pbc != first.pbc).any() or not np.allclose(atoms.cell, first.cell, atol=1e-6):
            raise ValueError(
                f"{path.name}: cell or pbc of frame {n} differ from frame 0; train on "
                "snapshots at constant cell"
            )
    energies = None
    if all(a.calc is not None and "energy" in a.calc.results for a in frames):
        energies = np.array([a.get_potential_energy() for a in frames])
    forces = None
    if all(a.calc is not None and "forces" in a.calc.results for a in frames):
        forces = np.array([a.calc.results["forces"] for a in frames])
    return {
        "system": System.from_atoms(first),
        "positions": np.array([a.positions for a in frames]),
        "energies": energies,
        "forces": forces,
    }
