"""An OpenMM System as a potential and as an ASE calculator.

OpenMM gives energies in kJ/mol and forces in kJ/(mol nm) at positions in nm; here they
are eV, eV/Å and Å. A batch is a loop over one Context that is kept: for small molecules
the Reference platform is the quickest and the only one in double precision. There is no
stress. Dynamics are not OpenMM's, so constraints and virtual sites are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from torch import Tensor

from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

try:
    import openmm
    from openmm import app
except ImportError:  # reported where an object is made, with what to do
    openmm = app = None

__all__ = ["PHI", "PSI", "OpenMMCalculator", "OpenMMPotential", "alanine_dipeptide", "from_files"]

NM = units.nm
KJ_PER_MOL = units.kJ / units.mol
SHIPPED = "alanine-dipeptide"

#: atoms of the backbone torsions of `alanine_dipeptide`
PHI = (4, 6, 8, 14)
PSI = (6, 8, 14, 16)


class OpenMMPotential(Potential):
    """Energy (eV) and forces (eV/Å) of an ``openmm.System``, one structure after the other.

    A structure with positions that are not finite gets NaN for energy and forces, so that
    a run can name the walker and keep the others.

    Parameters
    ----------
    system : atoms, cell and pbc, in the order of the particles
    openmm_system : an ``openmm.System`` without constraints and virtual sites
    platform : name of an OpenMM platform; "Reference" is double precision

    Raises
    ------
    ImportError : OpenMM is not installed
    ValueError : the two systems do not fit each other, constraints, virtual sites, a
        platform that is not there, a cell too small for the cutoff
    RuntimeError : OpenMM failed; the message names the structure
    """

    def __init__(self, system: System, openmm_system, *, platform: str = "Reference"):
        _require_openmm()
        _check_fit(system, openmm_system)
        self.system, self.platform = system, platform
        # a copy: what is done to the other one later must not reach a copy of this one
        self.openmm_system = copy.deepcopy(openmm_system)
        if system.periodic:
            self.openmm_system.setDefaultPeriodicBoxVectors(*(system.cell / NM))
        self._context = self._make_context()

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        if x.shape[-2:] != (len(self.system), 3):
            raise ValueError(
                f"positions {tuple(x.shape)} do not fit the {len(self.system)} atoms of "
                f"{self.system.formula}: expected (*batch, {len(self.system)}, 3)"
            )
        frames = x.detach().reshape(-1, *x.shape[-2:]).double().cpu().numpy() / NM
        energies, forces = np.full(len(frames), np.nan), np.full_like(frames, np.nan)
        for index in np.flatnonzero(np.isfinite(frames).all((1, 2))):
            energies[index], forces[index] = self._evaluate(frames[index], index)
        return Evaluation(
            x.new_tensor(energies * KJ_PER_MOL).reshape(x.shape[:-2]),
            x.new_tensor(forces * (KJ_PER_MOL / NM)).reshape(x.shape),
        )

    def _evaluate(self, positions, index: int):
        """Energy in kJ/mol and forces in kJ/(mol nm) at positions in nm."""
        kJ = openmm.unit.kilojoule_per_mole
        try:
            self._context.setPositions(positions)
            state = self._context.getState(getEnergy=True, getForces=True)
        except openmm.OpenMMException as error:
            raise RuntimeError(
                f"OpenMM failed for structure {index} of the batch: {error}"
            ) from error
        return (
            state.getPotentialEnergy().value_in_unit(kJ),
            state.getForces(asNumpy=True).value_in_unit(kJ / openmm.unit.nanometer),
        )

    def _make_context(self):
        # a Context needs an integrator; this one never makes a step
        integrator = openmm.VerletIntegrator(0.001)
        platform = _platform(self.platform)
        try:
            return openmm.Context(self.openmm_system, integrator, platform)
        except openmm.OpenMMException as error:  # a cell too small for the cutoff, among others
            raise ValueError(
                f"OpenMM cannot use this openmm.System for {self.system.formula} on the "
                f"{self.platform} platform: {error}"
            ) from error

    def __getstate__(self) -> dict:
        # a Context lives in one process; the copy makes its own
        return {name: value for name, value in self.__dict__.items() if name != "_context"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._context = self._make_context()


class OpenMMCalculator(Calculator):
    """Energy, free_energy and forces of an ``openmm.System`` in ASE.

    Parameters
    ----------
    openmm_system, platform : as for `OpenMMPotential`; the atoms must be in the order
        of the particles

    Raises
    ------
    ImportError, ValueError : as `OpenMMPotential`, the latter when atoms are given
    CalculationFailed : energy or forces that are not finite
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012
    discard_results_on_any_change = True
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(self, openmm_system, *, platform: str = "Reference"):
        _require_openmm()
        super().__init__(platform=platform)
        self._openmm_system = openmm_system
        self._potential: OpenMMPotential | None = None

    def set(self, **changes):
        """Change the ``platform``."""
        for name in changes:
            if name != "platform":
                raise ValueError(f"{name!r} cannot be set, only 'platform' can")
        _platform(changes.get("platform", "Reference"))
        changed = super().set(**changes)
        if changed:
            self._potential = None
        return changed

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        system = System.from_atoms(self.atoms)
        if self._potential is None or system != self._potential.system:
            self._potential = OpenMMPotential(
                system, self._openmm_system, platform=self.parameters["platform"]
            )
        value = self._potential(torch.from_numpy(self.atoms.positions))
        energy, forces = float(value.energy), value.forces.numpy()
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise CalculationFailed(
                f"OpenMM: energy {energy} eV or forces are not finite: look for overlapping "
                "atoms or positions that are NaN"
            )
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def from_files(
    system: System,
    *,
    xml: str | Path | None = None,
    pdb: str | Path | None = None,
    force_field: Sequence[str] = ("amber14-all.xml",),
    platform: str = "Reference",
) -> OpenMMPotential:
    """The factory behind ``load_potential("openmm", system, ...)``.

    Parameters
    ----------
    xml : an ``openmm.System`` written by ``openmm.XmlSerializer``
    pdb : or topology of the atoms, parametrised with the ``force_field`` files: without
        constraints, all pairs interacting, or PME with a cutoff of 9 Å if periodic (the cell
        is that of ``system``). "alanine-dipeptide" is that of `alanine_dipeptide`
    force_field : files known to OpenMM, or paths
    platform : as of `OpenMMPotential`

    Raises
    ------
    ImportError : OpenMM is not installed
    ValueError : both or none of ``xml`` and ``pdb``, and as `OpenMMPotential`
    FileNotFoundError : no such file
    """
    _require_openmm()
    if (xml is None) == (pdb is None):
        raise ValueError(f"{xml=} and {pdb=}: give exactly one of them")
    if xml is not None:
        made = openmm.XmlSerializer.deserialize(Path(xml).read_text())
    else:
        topology = _read_pdb(pdb).topology
        if system.periodic:
            topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in system.cell / NM])
        made = _parametrise(topology, force_field, periodic=system.periodic)
    return OpenMMPotential(system, made, platform=platform)


def alanine_dipeptide() -> tuple[Atoms, openmm.System]:
    """L-alanine dipeptide in vacuum, 22 atoms, amber14, flexible bonds, no cutoff.

    Atoms at a minimum of the energy, and the ``openmm.System``; the potential is
    ``OpenMMPotential(System.from_atoms(atoms), openmm_system)``. Order of the atoms: ACE
    (CH3 0, H 1–3, C 4, O 5), ALA (N 6, H 7, CA 8, HA 9, CB 10, HB 11–13, C 14, O 15), NME
    (N 16, H 17, C 18, H 19–21); torsions `PHI` and `PSI`.
    """
    _require_openmm()
    pdb = _read_pdb(SHIPPED)
    atoms = Atoms(
        numbers=[atom.element.atomic_number for atom in pdb.topology.atoms()],
        positions=pdb.getPositions(asNumpy=True).value_in_unit(openmm.unit.angstrom),
    )
    return atoms, _parametrise(pdb.topology, ("amber14-all.xml",), periodic=False)


def _read_pdb(name: str | Path):
    """A file, or the one that comes with the package."""
    if str(name) == SHIPPED:
        with resources.as_file(resources.files(__name__) / f"{SHIPPED}.pdb") as path:
            return app.PDBFile(str(path))
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file {str(name)!r} to take the topology from")
    return app.PDBFile(str(name))


def _parametrise(topology, force_field, *, periodic: bool):
    return app.ForceField(*force_field).createSystem(
        topology,
        nonbondedMethod=app.PME if periodic else app.NoCutoff,
        nonbondedCutoff=0.9,
        constraints=None,
        rigidWater=False,
        removeCMMotion=False,
    )


def _require_openmm() -> None:
    if openmm is None:
        raise ImportError("OpenMM is not installed: pip install openmm")


def _platform(name: str):
    known = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if name not in known:
        raise ValueError(f"OpenMM has no platform {name!r} here, only {', '.join(known)}")
    return openmm.Platform.getPlatformByName(name)


def _check_fit(system: System, openmm_system) -> None:
    count = openmm_system.getNumParticles()
    if count != len(system):
        raise ValueError(
            f"the openmm.System has {count} particles, {system.formula} has {len(system)} atoms"
        )
    if any(openmm_system.isVirtualSite(i) for i in range(count)):
        raise ValueError("the openmm.System has virtual sites: use a model without them")
    if openmm_system.getNumConstraints():
        raise ValueError(
            f"the openmm.System has {openmm_system.getNumConstraints()} constraints, whose bonds "
            "have no energy: create it with constraints=None, rigidWater=False"
        )
    periodic = openmm_system.usesPeriodicBoundaryConditions()
    if periodic != system.periodic or (periodic and not system.pbc.all()):
        raise ValueError(
            f"the openmm.System is {'' if periodic else 'not '}periodic but the atoms have "
            f"pbc={system.pbc.tolist()}: OpenMM knows all three directions or none"
        )
    if periodic and not _is_reduced(system.cell):
        raise ValueError(
            f"cell {system.cell.tolist()} is not in OpenMM's reduced form: rotate the atoms "
            "into atoms.cell.standard_form(), or reduce the cell (ase.build.minkowski_reduce)"
        )


def _is_reduced(cell) -> bool:
    """a along x, b in the xy plane, and each off-diagonal at most half its diagonal."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = cell
    slack = 1e-9 * np.abs(cell).max()
    return (
        max(abs(ay), abs(az), abs(bz)) <= slack
        and min(ax, by, cz) > 0
        and abs(bx) <= ax / 2 + slack
        and abs(cx) <= ax / 2 + slack
        and abs(cy) <= by / 2 + slack
    )
