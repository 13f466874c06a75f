"""From the names of two end states to their coupling, and the kernels that sample it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ...geometry import minimum_image
from ...potentials.alchemical import Alchemical, Transmuted
from ...potentials.analytic import Harmonic, HarmonicCrystal
from ...potentials.base import Potential
from ...potentials.curvature import hessian, measured_stiffness
from ...potentials.named import Source, find_potential
from ...sampling.euler import EulerMaruyama
from ...sampling.metropolis import Metropolis
from ...system import System
from ...units import kT_from_temperature
from ..constraints import what_moves
from ..prepare import prepare

__all__ = ["EINSTEIN", "HARMONIC", "CoupledKernels", "couple"]

EINSTEIN, HARMONIC = "einstein", "harmonic"
IDEAL = {EINSTEIN, HARMONIC}
_SAME_PLACE = 0.5  # Å


@dataclass(frozen=True)
class CoupledKernels:
    """A coupling, where it starts, and a kernel at any λ."""

    coupling: Alchemical  # λ of it is not used
    system: System  # of A
    x: Tensor  # (N, 3) float64, Å
    temperature_K: float
    ends: tuple[EulerMaruyama, EulerMaruyama]  # steps that suit A and B; masks, directions
    plain: bool = False  # no Metropolis choice
    spent: int = 0  # evaluations that the Hessian of a harmonic crystal took

    @property
    def centre_held(self) -> bool:
        """The mean position of all atoms stays where it is."""
        return self.ends[0].mean_free and self.ends[0].directions is None

    @property
    def kT(self) -> float:
        """In eV."""
        return kT_from_temperature(self.temperature_K)

    def steps(self, lam: Tensor) -> Tensor:
        """h (K, N) in Å² at λ (K,), or (N,) at one: stiffness mixes as energies do.

        ``1/h = (1-λ)/h_A + λ/h_B``
        """
        both = [torch.as_tensor(end.h, dtype=torch.float64) for end in self.ends]
        h_a, h_b = (h.expand(len(self.system)) for h in both)
        moving = h_a > 0
        safe_a, safe_b = (torch.where(moving, h, 1.0) for h in (h_a, h_b))
        lam = lam[..., None]
        return torch.where(moving, 1.0 / ((1.0 - lam) / safe_a + lam / safe_b), 0.0)

    def kernel(self, lam: Tensor, *, factor: float = 1.0) -> Metropolis | EulerMaruyama:
        """Of walkers at λ (B,), or all at one, each with its step times ``factor``."""
        lam = torch.as_tensor(lam, dtype=torch.float64)
        drift = self.coupling.at(lam)
        proposal = replace(self.ends[0], potential=drift, h=factor * self.steps(lam))
        if self.plain:
            return proposal
        return Metropolis(proposal, None if drift.target is drift else drift.target)


def couple(
    start: Source,
    end: Source,
    atoms: Atoms | str | Path,
    *,
    temperature_K: float,
    end_atoms: Atoms | str | Path | None = None,
    soft: float | None = None,
    plain: bool = False,
    start_options: Mapping[str, Any] | None = None,
    end_options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> CoupledKernels:
    """The coupling of what ``start`` and ``end`` mean for these ``atoms``.

    Isolated molecules, and what is coupled to an ideal crystal, have their centre held; constraints
    of the atoms hold.

    Parameters
    ----------
    start, end : as of `potentials.named.find_potential`; or "einstein", whose option k is in eV/Å²
        (default: half the stiffness of the other end); or "harmonic", by the Hessian of the other
        end at these positions (6N evaluations), whose energy there is zero
    atoms : `Atoms` or a file, whose last frame counts
    end_atoms : those of the end, where elements change
    soft : E of the soft core in eV
    plain : steps without a Metropolis choice
    start_options, end_options : of what is named

    Raises
    ------
    ValueError : names that nobody knows, atoms that do not fit, no energy
    """
    atoms, last = _atoms(atoms), None if end_atoms is None else _atoms(end_atoms)
    system = System.from_atoms(atoms)
    if last is not None:
        _check_order(atoms, last, system)
    x = torch.tensor(atoms.positions, dtype=torch.float64)
    kT = kT_from_temperature(temperature_K)
    pair: list[Potential | None] = [None, None]
    sources, options = (start, end), (dict(start_options or {}), dict(end_options or {}))
    ideal = [isinstance(source, str) and source in IDEAL for source in sources]
    held = any(ideal)
    if all(ideal) and HARMONIC in sources:
        raise ValueError(f"{start!r} to {end!r}: the harmonic crystal is that of the other end")
    if all(ideal) and not all(options):
        raise ValueError('two Einstein crystals: give k of both, as options {"k": eV/Å²}')
    for place, source in enumerate(sources):
        if ideal[place]:
            continue
        own = system if place == 0 or last is None else System.from_atoms(last)
        role = ("start", "end")[place]
        found = find_potential(source, own, role=role, options=options[place], device=device)
        pair[place] = found if own is system else Transmuted(found, system)
    for place, other in ((0, 1), (1, 0)):
        if pair[place] is None:
            make = _einstein if sources[place] == EINSTEIN else _harmonic
            pair[place] = make(system, x, options[place], pair[other], kT)
    directions, centre = what_moves(atoms)
    alike = np.allclose(directions, directions[:1])
    free = bool(alike and not atoms.constraints and (held or not system.periodic))
    ends = []
    for potential in pair:
        prepared = prepare(
            potential,
            system,
            temperature_K=temperature_K,
            target="model",
            moving=directions,
            mean_free=centre or free,
            x=x,
        )
        kernel = prepared.kernel
        ends.append(kernel.proposal if isinstance(kernel, Metropolis) else kernel)
    coupling = Alchemical(pair[0], pair[1], 0.0, soft=soft)
    spent = 2 * x.numel() if HARMONIC in sources else 0
    return CoupledKernels(coupling, system, x, temperature_K, (ends[0], ends[1]), plain, spent)


def _einstein(system: System, x: Tensor, options: dict, other: Potential | None, kT: float):
    if strange := sorted(set(options) - {"k"}):
        raise ValueError(f"{EINSTEIN!r} has the option k (eV/Å²), not {strange}")
    k = options.get("k")
    if k is None:
        k = 0.5 * kT * measured_stiffness(other, x, kT)[0]
    return Harmonic(float(k), centre=x, system=system)


def _harmonic(system: System, x: Tensor, options: dict, other: Potential | None, kT: float):
    if options or other is None:
        raise ValueError(f"{HARMONIC!r} has no options, got {sorted(options)}")
    K = hessian(other, x)
    kappa = torch.linalg.eigvalsh(K)
    if not kappa[3] > 1e-6 * kappa[-1]:
        raise ValueError(
            f"{HARMONIC!r}: the fourth smallest eigenvalue of the Hessian is {float(kappa[3]):.3g} "
            f"eV/Å² of {float(kappa[-1]):.3g}, and all but the three of translations must be "
            "positive: relax the crystal at the other end first; a molecule, which rotates, has no "
            "such reference"
        )
    return HarmonicCrystal(K, centre=x, system=system)


def _check_order(first: Atoms, last: Atoms, system: System) -> None:
    """Raise ``ValueError`` where atoms of ``last`` are at the places of others of ``first``."""
    if len(first) != len(last):
        return  # another error, which says so
    apart = minimum_image(last.positions[:, None] - first.positions, system)
    apart = np.linalg.norm(apart, axis=-1)
    place = apart.argmin(1)
    moved = np.flatnonzero(place != np.arange(len(place)))
    one_each = len(np.unique(place)) == len(place)
    if len(moved) and one_each and apart.min(1).max() < _SAME_PLACE:
        i = int(moved[0])
        raise ValueError(
            f"the end structure has its atoms in another order: atom {i} is where atom {place[i]} "
            "of the start is; atoms keep their numbers from A to B, sort them alike"
        )


def _atoms(source: Atoms | str | Path) -> Atoms:
    if isinstance(source, Atoms):
        return source
    read: Any = ase.io.read(source)  # the last frame, one structure
    return read
