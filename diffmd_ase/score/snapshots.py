"""Equilibrium snapshots: read, check, split.

Everything that training needs to know of the data is decided here, with a clear word
where something looks wrong. Frames are taken as uncorrelated draws from one Boltzmann
distribution at one temperature.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Lattice
from ..system import System
from ..units import kT_from_temperature
from .topology import Topology

__all__ = ["Snapshots"]

_STILL = 1e-6  # Å; what text formats round to
_CLOSEST = 0.4  # Å; no two nuclei of an equilibrium frame come nearer
_KEYS = {
    "positions": ("positions", "x", "R", "coords"),
    "numbers": ("numbers", "atomic_numbers", "z", "Z"),
    "temperature_K": ("temperature_K", "temperature"),
    "energies": ("energies", "energy", "E"),
    "forces": ("forces", "F"),
    "cell": ("cell",),
    "pbc": ("pbc",),
}


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Uncorrelated equilibrium frames of one system at one temperature.

    Parameters
    ----------
    system : numbers, masses, cell, pbc
    positions : (M, N, 3) in Å
    temperature_K : of the distribution they were drawn from
    energies : (M,) in eV where the source has them, else None
    source : where they came from
    correlation : statistical inefficiency in frames if time-ordered; 1 if not
    forces : (M, N, 3) in eV/Å where the source has them, else None; to compare with
    """

    system: System
    positions: np.ndarray
    temperature_K: float
    energies: np.ndarray | None = None
    source: str = "memory"
    correlation: float = 1.0
    forces: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "positions", np.asarray(self.positions, dtype=np.float64))
        _check(self.system, self.positions, self.temperature_K, self.source)
        if self.energies is not None and np.shape(self.energies) != (len(self),):
            raise ValueError(
                f"{self.source}: energies have shape {np.shape(self.energies)}, expected "
                f"({len(self)},)"
            )
        if self.forces is not None and np.shape(self.forces) != self.positions.shape:
            raise ValueError(
                f"{self.source}: forces have shape {np.shape(self.forces)}, expected "
                f"{self.positions.shape}"
            )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def kT(self) -> float:
        """Thermal energy in eV."""
        return kT_from_temperature(self.temperature_K)

    @cached_property
    def topology(self) -> Topology:
        """Bonds, rotatable bonds, centres and symmetries, seen in the frames."""
        return Topology.from_positions(self.system.numbers, self.positions)

    @cached_property
    def moving(self) -> np.ndarray:
        """(N,) bool: False for atoms of a periodic system that have one place in all frames.

        So `ase.constraints.FixAtoms` leaves them, as the lower layers of a slab. Noise moves the
        others only: the density that is learned is theirs, given the places of those.
        """
        if not self.system.periodic or len(self) < 2:
            return np.ones(len(self.system), bool)
        return np.ptp(self.positions, axis=0).max(axis=-1) > _STILL

    @cached_property
    def sha256(self) -> str:
        """Hash of numbers, positions (as float32) and temperature."""
        digest = hashlib.sha256(self.system.numbers.tobytes())
        digest.update(self.positions.astype(np.float32).tobytes())
        digest.update(np.float64(self.temperature_K).tobytes())
        return digest.hexdigest()

    @classmethod
    def read(cls, path, *, temperature_K: float | None = None) -> Snapshots:
        """From ``.npz``, from anything ``ase.io`` reads (all frames), or a shipped name.

        Parameters
        ----------
        path : file, or the name of a shipped set (``"alanine-dipeptide"``)
        temperature_K : required unless the ``.npz`` states it

        Raises
        ------
        FileNotFoundError, ValueError : with what was found and what was expected
        """
        path = _find(path)
        fields = _read_npz(path) if path.suffix == ".npz" else _read_ase(path)
        stated = fields.pop("temperature_K", None)
        if temperature_K is None and stated is None:
            raise ValueError(
                f"{path.name} states no temperature: give temperature_K=…, a score is the "
                "force divided by kT and means nothing without it"
            )
        if temperature_K is not None and stated is not None and temperature_K != stated:
            raise ValueError(f"{temperature_K=} but {path.name} states {stated:g} K")
        chosen = float(stated if temperature_K is None else temperature_K)
        snapshots = cls(temperature_K=chosen, source=path.name, **fields)
        return snapshots._with_warnings()

    def split(self, fraction: float = 0.1, *, seed: int = 0) -> tuple[Snapshots, Snapshots]:
        """Training and held-out frames.

        Random frames are held out; of time-ordered data (``correlation`` > 2) the last
        block, since neighbours of training frames would hide overfitting.
        """
        count = round(len(self) * fraction)
        if not 0 < fraction < 1:
            raise ValueError(f"{fraction=} must lie between 0 and 1")
        if not 0 < count < len(self):
            raise ValueError(
                f"cannot hold out {fraction=} of {len(self)} snapshots: expected at least one on "
                f"either side, so {math.ceil(1 / min(fraction, 1 - fraction))} or more snapshots "
                "(a molecule takes thousands)"
            )
        order = np.arange(len(self))
        if self.correlation <= 2:
            order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:-count])), self.take(np.sort(order[-count:]))

    def take(self, index) -> Snapshots:
        """The frames at ``index``; structure found in all frames is kept."""
        energies = None if self.energies is None else self.energies[index]
        forces = None if self.forces is None else self.forces[index]
        part = replace(self, positions=self.positions[index], energies=energies, forces=forces)
        if not self.system.periodic:  # of crystals nobody asks
            part.__dict__["topology"] = self.topology
        part.__dict__["moving"] = self.moving
        return part

    def _with_warnings(self) -> Snapshots:
        copies = len(self) - len(np.unique(self.positions.reshape(len(self), -1), axis=0))
        if copies:
            warnings.warn(
                f"{self.source}: {copies} of {len(self)} snapshots are exact duplicates; "
                "remove them, they weigh some regions twice",
                stacklevel=3,
            )
        correlation = _correlation(self.positions, self.system)
        if correlation > 2:
            warnings.warn(
                f"{self.source}: the snapshots look time-ordered, statistical inefficiency "
                f"{correlation:.0f} frames: about {len(self) / correlation:.0f} independent "
                "ones; the last block will be held out for validation",
                stacklevel=3,
            )
        return replace(self, correlation=correlation)


def _find(path) -> Path:
    found = Path(path)
    if found.exists():
        return found
    data = Path(str(resources.files("diffmd_ase") / "data"))
    shipped = data / f"{path}.npz"
    if shipped.exists():
        return shipped
    names = sorted(p.stem for p in data.glob("*.npz"))
    raise FileNotFoundError(f"no file {str(path)!r} and no shipped set of that name ({names})")


def _read_npz(path: Path) -> dict:
    try:
        # opened here: of a damaged archive numpy leaves the file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            raw = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, pickle and OS errors alike mean an unusable file
        raise ValueError(f"{path.name} is not a readable .npz file: {error}") from error
    found = {
        field: next((raw[key] for key in keys if key in raw), None) for field, keys in _KEYS.items()
    }
    for field in ("positions", "numbers"):
        if found[field] is None:
            raise ValueError(
                f"{path.name} has no {field} (looked for {', '.join(_KEYS[field])}; it holds "
                f"{', '.join(sorted(raw)) or 'nothing'})"
            )
    positions = found["positions"]
    if positions.dtype.kind in "iu":  # fixed point: positions in units of `scale`
        if "scale" not in raw:
            raise ValueError(f"{path.name}: integer positions need an entry 'scale' in Å")
        positions = positions * float(raw["scale"])
    numbers = found["numbers"]
    if numbers.ndim == 2:
        if not (numbers == numbers[0]).all():
            raise ValueError(f"{path.name} mixes compositions; give each a file of its own")
        numbers = numbers[0]
    fields = {
        "system": _system(numbers, found["cell"], found["pbc"], path.name),
        "positions": positions,
        "energies": found["energies"],
        "forces": found["forces"],
    }
    if found["temperature_K"] is not None:
        fields["temperature_K"] = float(found["temperature_K"])
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


def _check(system: System, positions, temperature_K, source) -> None:
    if positions.ndim != 3 or positions.shape[1:] != (len(system), 3):
        raise ValueError(
            f"{source}: positions have shape {positions.shape}, expected (M, {len(system)}, 3)"
        )
    if len(positions) == 0:
        raise ValueError(f"{source} holds no snapshots")
    kT_from_temperature(temperature_K)
    bad = ~np.isfinite(positions).all(axis=(1, 2))
    if bad.any():
        raise ValueError(
            f"{source}: {bad.sum()} snapshots hold NaN or infinite positions, the first is "
            f"number {int(bad.argmax())}; remove them"
        )
    close = _closest(system, positions)
    if (close < _CLOSEST).any():
        worst = int(close.argmin())
        raise ValueError(
            f"{source}: atoms overlap in {(close < _CLOSEST).sum()} snapshots (frame {worst}: "
            f"{close[worst]:.3f} Å); are the positions in Å? Equilibrium frames are needed"
        )


def _closest(system: System, positions) -> np.ndarray:
    """Smallest distance of each frame (M,), with minimum images where periodic."""
    i, j = np.triu_indices(len(system), 1)
    smallest = np.full(len(positions), np.inf)
    if not len(i):
        return smallest
    lattice = Lattice(system) if system.periodic else None
    for first in range(0, len(positions), 2000):
        part = slice(first, first + 2000)
        d = positions[part][:, i] - positions[part][:, j]
        # wrapping finds every pair this near
        d = lattice.wrap(d) if lattice is not None else d
        smallest[part] = np.sqrt(np.einsum("mpd,mpd->mp", d, d).min(axis=1))
    return smallest


def _correlation(positions, system) -> float:
    """Statistical inefficiency of the slowest of a few collective distances."""
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it advertises when imported
    from pymbar.timeseries import statistical_inefficiency

    if len(positions) < 50:
        return 1.0
    d = positions - positions.mean(axis=1, keepdims=True)
    size = np.sqrt((d**2).sum((1, 2)))
    ends = [
        np.linalg.norm(positions[:, a] - positions[:, b], axis=-1)
        for a, b in ((0, -1), (0, len(system) // 2), (len(system) // 2, -1))
        if len(system) > 2
    ]
    worst = 1.0
    for series in (size, *ends):
        if series.std() > 1e-9:
            worst = max(worst, statistical_inefficiency(series))
    return float(worst)
