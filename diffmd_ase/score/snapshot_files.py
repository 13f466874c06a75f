"""Files of snapshots: NumPy archives, trajectories of this package, and all that ASE reads.

Frames are read one after the other: of a long file no more is in memory than its numbers.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import kB

from ..io.ase_frames import iterate
from ..io.trajectory import Trajectory
from ..system import System
from .snapshot_archives import read_archive, warn_of_unread

__all__ = ["TRAJECTORIES", "read_fields"]

TRAJECTORIES = (".h5", ".hdf5", ".h5md")  # suffixes of files of HDF5

# by the names of ASE, and numbers for each atom; 0: one for the frame
_LABELS = {"energies": ("energy", 0), "forces": ("forces", 3)}


def read_fields(path: Path) -> dict[str, Any]:
    """What a file holds, by the names of `Snapshots`: system, positions, energies, forces.

    ``temperature_K`` is among them where the file states it.

    Raises
    ------
    ValueError : a file that is damaged, lacks what is needed or holds several systems
    """
    if path.is_dir() and path.suffix != ".bundle":  # one of ASE's formats is a folder
        raise ValueError(f"{path} is a folder; expected a file of snapshots")
    if path.suffix == ".npz":
        return read_archive(path)
    if path.suffix == ".npy":
        raise ValueError(
            f"{path.name} holds an array without the elements of its atoms; write an .npz with "
            "np.savez(path, positions=…, numbers=…, temperature_K=…)"
        )
    if path.suffix in TRAJECTORIES:
        return _read_hdf5(path)
    return _read_ase(path)


def _read_hdf5(path: Path) -> dict:
    """All frames of all walkers, one walker after the other, as far as they go."""
    try:
        trajectory = Trajectory(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; of other HDF5 files write an .npz with positions (M, N, 3) in Å, numbers "
            "(N,) and temperature_K"
        ) from error
    kelvins = {round(float(kT / kB), 6) for kT in np.atleast_1d(trajectory.info.kT)}
    if len(kelvins) > 1:
        raise ValueError(
            f"{path.name} has walkers at {len(kelvins)} temperatures, snapshots have one: write "
            "the walkers of each to a file of their own"
        )
    x, energies = array("d"), array("d")
    for walker in range(len(trajectory.walkers)):
        own = trajectory.positions[:, walker]
        kept = np.isfinite(own).all((1, 2))
        x.frombytes(own[kept].astype(float).tobytes())
        energies.frombytes(trajectory.energies[kept, walker].astype(float).tobytes())
    values = np.array(energies)
    return {
        "system": trajectory.system,
        "positions": _array(x, len(trajectory.system), 3),
        "energies": values if np.isfinite(values).all() else None,
        "forces": None,
        "temperature_K": kelvins.pop(),
    }


def _read_ase(path: Path) -> dict:
    first: Any = None
    x, labels, count = array("d"), {name: array("d") for name in _LABELS}, 0
    known = dict.fromkeys(_LABELS, 0)
    for count, atoms in enumerate(iterate(path), 1):
        first = atoms if first is None else first
        _check_alike(atoms, first, count - 1, path.name)
        x.frombytes(np.ascontiguousarray(atoms.positions, dtype=float).tobytes())
        results = {} if atoms.calc is None else atoms.calc.results
        for name, (key, each) in _LABELS.items():
            value = np.array(results.get(key, ()), dtype=float)
            size = (len(atoms) if each else 1) * max(each, 1)
            # an energy may be an array of one; a frame without is NaN, beside those that have one
            known[name] += value.size == size
            value = value if value.size == size else np.full(size, np.nan)
            labels[name].frombytes(value.tobytes())
    if first is None:
        raise ValueError(f"{path.name} holds no frames")
    fields = {"system": _system(first, path.name), "positions": _array(x, len(first), 3)}
    for name, (key, each) in _LABELS.items():
        fields[name] = None
        if known[name]:
            values = _array(labels[name], len(first), each) if each else np.array(labels[name])
            fields[name] = values
        else:
            warn_of_unread(path.name, name, (*first.info, *first.arrays), repr(key))
    return fields


def _check_alike(atoms: Atoms, first: Atoms, count: int, name: str) -> None:
    """``ValueError`` unless a frame has the atoms, the cell and pbc of the first."""
    if not np.array_equal(atoms.numbers, first.numbers):
        if sorted(atoms.numbers) == sorted(first.numbers):
            raise ValueError(
                f"{name}: frame {count} has its atoms in another order than frame 0 "
                f"({atoms.symbols} and {first.symbols}); expected one order in all frames"
            )
        raise ValueError(
            f"{name}: frame {count} is {atoms.get_chemical_formula()} but frame 0 is "
            f"{first.get_chemical_formula()}; give each composition a file of its own"
        )
    far = np.abs(atoms.cell.array - first.cell.array).max() > 1e-5
    if far or (atoms.pbc != first.pbc).any():
        raise ValueError(
            f"{name}: cell or pbc of frame {count} differ from frame 0; train on snapshots at "
            "constant cell"
        )


def _system(atoms: Atoms, name: str) -> System:
    try:
        return System.from_atoms(atoms)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _array(values: array, *shape: int) -> np.ndarray:
    """The ``values``, not copied, as frames of a ``shape``."""
    flat = np.frombuffer(values) if values else np.zeros(0)
    return flat.reshape(-1 if np.prod(shape) else 0, *shape)
