"""Equilibrium snapshots: one set of frames, checked once, to be split and taken from.

Everything that training needs to know of the data is decided here, with a clear word
where something looks wrong (`snapshot_checks`). Frames are taken as uncorrelated draws from
one Boltzmann distribution at one temperature.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import InitVar, dataclass, replace
from functools import cached_property

import numpy as np

from ..system import System
from ..units import kT_from_temperature
from . import snapshot_checks as checks
from .baseline import BaselineValues
from .label_units import doubts
from .molecules import Kind, find_molecules
from .shipped import file_or_shipped
from .snapshot_files import read_fields
from .topology import Topology

__all__ = ["Snapshots"]

_COLDEST, _HOTTEST = 1e-2, 1e7  # K: beyond, a number is no temperature of atoms
_SAME_KELVIN = 1e-5  # relative: temperatures in single precision


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Uncorrelated equilibrium frames of one system at one temperature.

    Parameters
    ----------
    system : numbers, masses, cell, pbc
    positions : (M, N, 3) in Å
    temperature_K : of the distribution they were drawn from
    energies : (M,) or (M, 1) in eV where the source has them, else None
    source : where they came from
    correlation : statistical inefficiency in frames if time-ordered; 1 if not
    forces : (M, N, 3) in eV/Å where the source has them, else None; to compare with, and to learn
        from. Frames without energies or forces beside others that have some hold NaN
    baseline : what a potential that is known says of them, see `score.baseline`
    checked : the frames come from `Snapshots` and are not searched for overlaps again

    Raises
    ------
    ValueError : shapes that do not go together, no frames, numbers that are not finite,
        atoms that overlap, an impossible temperature
    """

    system: System
    positions: np.ndarray
    temperature_K: float
    energies: np.ndarray | None = None
    source: str = "memory"
    correlation: float = 1.0
    forces: np.ndarray | None = None
    baseline: BaselineValues | None = None
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool):
        object.__setattr__(self, "positions", np.asarray(self.positions, dtype=np.float64))
        if self.energies is not None and np.shape(self.energies) == (len(self), 1):
            object.__setattr__(self, "energies", np.reshape(self.energies, -1))
        checks.check_shapes(self.system, self.positions, self.energies, self.forces, self.source)
        if not self.system.numbers.all():
            raise ValueError(
                f"{self.source}: atoms of the element X, number 0, are none: leave them out, or "
                "give them their elements"
            )
        kT_from_temperature(self.temperature_K)
        if not _COLDEST <= self.temperature_K <= _HOTTEST:
            raise ValueError(
                f"{self.source}: snapshots at {self.temperature_K:g} K: expected kelvin, from "
                f"{_COLDEST:g} to {_HOTTEST:g}, of the distribution that they were drawn from"
            )
        if not checked:
            checks.check_positions(self.system, self.positions, self.source)
            checks.check_labels(self.energies, self.forces, self.source)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def kT(self) -> float:
        """Thermal energy in eV."""
        return kT_from_temperature(self.temperature_K)

    @property
    def reduced_forces(self) -> np.ndarray:
        """F/kT (M, N, 3) in 1/Å, of snapshots that carry forces."""
        return self.forces / self.kT

    @cached_property
    def labelled(self) -> np.ndarray:
        """(M,) bool: which frames carry forces."""
        if self.forces is None:
            return np.zeros(len(self), bool)
        return np.isfinite(self.forces[:, 0, 0])

    @cached_property
    def topology(self) -> Topology:
        """Bonds, rotatable bonds, centres and symmetries, seen in the frames."""
        return Topology.from_positions(self.system.numbers, self.positions)

    @cached_property
    def molecules(self) -> list[Kind] | None:
        """The kinds of molecules that bonds make; None where bonds go on without end."""
        return find_molecules(self.system, self.positions)

    @cached_property
    def moving(self) -> np.ndarray:
        """(N,) bool: False for atoms of a periodic system that have one place in all frames.

        Images of a place are that place, as where a layer lies on the boundary of the cell.

        So `ase.constraints.FixAtoms` leaves them, as the lower layers of a slab. Noise moves the
        others only: the density that is learned is theirs, given the places of those.
        """
        if not self.system.periodic or len(self) < 2:
            return np.ones(len(self.system), bool)
        return ~checks.held_in_place(self.system, self.positions)

    @cached_property
    def sha256(self) -> str:
        """Hash of numbers, positions (as float32) and temperature."""
        digest = hashlib.sha256(self.system.numbers.tobytes())
        for part in checks.blocks(len(self), self.positions[0].size):
            digest.update(self.positions[part].astype(np.float32).tobytes())
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
        path = file_or_shipped(path, folder="data", suffix=".npz")
        fields = read_fields(path)
        stated = fields.pop("temperature_K", None)
        if temperature_K is None and stated is None:
            raise ValueError(
                f"{path.name} states no temperature: give temperature_K=…, a score is the "
                "force divided by kT and means nothing without it"
            )
        chosen = float(stated if temperature_K is None else temperature_K)
        if None not in (stated, temperature_K) and not math.isclose(
            chosen, stated, rel_tol=_SAME_KELVIN
        ):
            raise ValueError(
                f"{temperature_K=} but {path.name} states {stated:g} K: give that, or mend the file"
            )
        snapshots = cls(temperature_K=chosen, source=path.name, **fields)
        moving = snapshots.moving
        looked = replace(snapshots, correlation=snapshots._looked_over(), checked=True)
        return looked.with_structure(None, moving)

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
                f"cannot hold out {fraction=} of {len(self)} snapshots of {self.source}: expected "
                "at least one on either side, so "
                f"{math.ceil(1 / min(fraction, 1 - fraction))} or more snapshots "
                "(a molecule takes thousands)"
            )
        order = np.arange(len(self))
        if self.correlation <= checks.ORDERED:
            order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:-count])), self.take(np.sort(order[-count:]))

    def take(self, index) -> Snapshots:
        """The frames at ``index``; structure found in all frames is kept."""
        energies = None if self.energies is None else self.energies[index]
        forces = None if self.forces is None else self.forces[index]
        part = replace(
            self,
            positions=self.positions[index],
            energies=energies,
            forces=forces,
            baseline=None if self.baseline is None else self.baseline.take(index),
            checked=True,
        )
        # of crystals nobody asks for a topology
        topology = None if self.system.periodic else self.topology
        return part.with_structure(topology, self.moving)

    def with_structure(self, topology: Topology | None, moving: np.ndarray) -> Snapshots:
        """These frames, with what was seen in more of them.

        Parameters
        ----------
        topology : None of periodic systems
        moving : (N,) bool, as the property
        """
        frames = replace(self, checked=True)
        if topology is not None:
            frames.__dict__["topology"] = topology
        frames.__dict__["moving"] = moving
        return frames

    def with_baseline(self, values: BaselineValues) -> Snapshots:
        """These frames, with the ``values`` of a baseline on them."""
        topology = None if self.system.periodic else self.topology
        return replace(self, baseline=values, checked=True).with_structure(topology, self.moving)

    def _looked_over(self) -> float:
        """The correlation; warns of it, of duplicates, and of labels that do not fit."""
        copies = checks.duplicates(self.positions)
        if copies:
            warnings.warn(
                f"{self.source}: {copies} of {len(self)} snapshots are exact duplicates; remove "
                "copies, which weigh some regions twice (those of a Monte Carlo chain, whose moves "
                "were rejected, are right)",
                stacklevel=3,
            )
        correlation, slowest = checks.correlation(self.system, self.positions)
        if correlation > checks.ORDERED:
            warnings.warn(
                f"{self.source}: the snapshots look time-ordered, statistical inefficiency "
                f"{correlation:.0f} frames: about {len(self) / correlation:.0f} independent "
                f"ones ({slowest}); the last block will be held out for validation",
                stacklevel=3,
            )
        for words in doubts(self, correlation):
            warnings.warn(words, stacklevel=3)
        return correlation
