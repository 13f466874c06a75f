"""What of ASE works with our calculator: the same numbers as from the calculator behind it.

`ours` is EMT behind a `ScoreCalculator`, `plain` is EMT; each use is made with both, in folders
of their own, and its numbers are compared.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial

import ase.db
import ase.io
import numpy as np
from ase import Atoms, filters, optimize, units
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.calculators.loggingcalc import LoggingCalculator
from ase.calculators.mixing import LinearCombinationCalculator, SumCalculator
from ase.constraints import FixAtoms
from ase.eos import calculate_eos
from ase.md import andersen, bussi, langevin, langevinbaoab, nose_hoover_chain, npt, verlet
from ase.md.contour_exploration import ContourExploration
from ase.md.nptberendsen import NPTBerendsen
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.mep import NEB, DimerControl, DyNEB, MinModeAtoms, MinModeTranslate
from ase.optimize import precon, sciopt
from ase.optimize.basin import BasinHopping
from ase.optimize.minimahopping import MinimaHopping
from ase.phonons import Phonons
from ase.vibrations import Infrared, Vibrations

from diffmd_ase import ScoreCalculator
from diffmd_ase.potentials.ase_calculator import AsePotential
from tried.outcome import DIFFERS, HOLDS, REFUSED, Outcome, Trial, said

__all__ = ["ours", "trials"]

Use = Callable[[Callable], object]


def ours() -> ScoreCalculator:
    """EMT behind our calculator."""
    return ScoreCalculator(lambda system: AsePotential(EMT(), system))


def trials() -> list[Trial]:
    """One for each use in `_uses`."""
    return [
        Trial(kind, name, partial(_same, use))
        for kind, uses in _uses().items()
        for name, use in uses.items()
    ]


def _same(use: Use) -> Outcome:
    answers, errors = [], []
    for make in (EMT, ours):
        answer, error = _in_a_folder(use, make)
        answers.append(answer)
        errors.append(error)
    if errors[1] is not None:
        words = said(errors[1])
        if errors[0] is not None:
            return Outcome(REFUSED, f"as EMT itself: {words}")
        kinds = (ValueError, NotImplementedError, PropertyNotImplementedError, TypeError)
        return Outcome(REFUSED if isinstance(errors[1], kinds) else DIFFERS, words)
    if errors[0] is not None:
        return Outcome(HOLDS, f"EMT itself refuses: {said(errors[0])}")
    plain, behind = (np.asarray(answer, float) for answer in answers)
    if plain.shape != behind.shape or not np.isfinite(plain).all():
        return Outcome(DIFFERS, f"{behind.shape} for {plain.shape}")
    wrong = np.abs(plain - behind).max() / max(1.0, np.abs(plain).max())
    return Outcome(HOLDS) if wrong < 1e-8 else Outcome(DIFFERS, f"by {wrong:.0e}")


def _in_a_folder(use: Use, make) -> tuple[object, Exception | None]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            return use(make), None
        except Exception as error:
            return None, error
        finally:
            os.chdir(before)


# ------------------------------------------------------------------ what is calculated


def copper(make, *, rattle: float = 0.1) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(rattle, seed=1)
    atoms.calc = make()
    return atoms


def cluster(make) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = make()
    return atoms


def everything(atoms: Atoms) -> np.ndarray:
    return np.concatenate(([atoms.get_potential_energy()], atoms.get_forces().ravel()))


def _property(name: str, make):
    return copper(make).calc.get_property(name, copper(make))


def _optimised(method, make, **options):
    atoms = cluster(make)
    method(atoms, logfile=None, **options).run(fmax=0.05, steps=40)
    return everything(atoms)


def _relaxed(kind, make):
    atoms = copper(make)
    with optimize.BFGS(kind(atoms), logfile=None) as method:
        method.run(fmax=0.01, steps=20)
    return [*atoms.cell.ravel(), *everything(atoms)]


def _cell_aware(make):
    atoms = copper(make)
    cell = filters.FrechetCellFilter(atoms, exp_cell_factor=1.0)
    method = optimize.CellAwareBFGS(cell, logfile=None)
    method.run(fmax=0.01, smax=0.01, steps=10)
    return [*atoms.cell.ravel(), *everything(atoms)]


def _dynamics(dynamics, make, **options):
    atoms = copper(make)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.RandomState(1))
    dynamics(atoms, timestep=2 * units.fs, **options).run(10)
    return np.concatenate((atoms.positions.ravel(), atoms.get_velocities().ravel()))


def _contour(make):
    atoms = copper(make)
    rng = np.random.RandomState(1)
    ContourExploration(atoms, maxstep=0.1, rng=rng, energy_target=atoms.get_potential_energy()).run(
        5
    )
    return everything(atoms)


def _path(make, kind, **options):
    slab = fcc100("Al", size=(2, 2, 2))
    add_adsorbate(slab, "Au", 1.7, "hollow")
    slab.center(axis=2, vacuum=4.0)
    slab.set_constraint(FixAtoms(mask=[atom.tag > 1 for atom in slab]))
    end = slab.copy()
    end[-1].x += end.get_cell()[0, 0] / 2
    images = [slab, *(slab.copy() for _ in range(2)), end]
    for image in images:
        image.calc = make()
    neb = kind(images, method="improvedtangent", **options)
    neb.interpolate()
    optimize.FIRE(neb, logfile=None).run(fmax=0.05, steps=5)
    return [image.get_potential_energy() for image in images]


def _dimer(make):
    atoms = cluster(make)
    control = DimerControl(
        logfile=None, initial_eigenmode_method="displacement", displacement_method="vector"
    )
    moved = MinModeAtoms(atoms, control, random_seed=1)
    displacement = np.zeros((len(atoms), 3))
    displacement[0] = 0.1
    moved.displace(displacement_vector=displacement)
    MinModeTranslate(moved, logfile=None).run(fmax=0.1, steps=3)
    return atoms.positions


def _hopping(kind, make, **options):
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.pbc = False
    atoms.calc = make()
    np.random.seed(1)  # noqa: NPY002 - both draw from the global generator
    kind(atoms, **options)
    return atoms.get_potential_energy()


def _basins(atoms: Atoms):
    BasinHopping(atoms, temperature=0.1, logfile=None, optimizer_logfile=None).run(3)


def _vibrations(kind, make):
    atoms = Atoms("N2", [(0, 0, 0), (0, 0, 1.0)], calculator=make())
    optimize.BFGS(atoms, logfile=None).run(fmax=0.01)
    analysis = kind(atoms)
    analysis.run()
    return np.real(analysis.get_energies()[-1:])


def _phonons(make):
    phonons = Phonons(bulk("Cu"), make(), supercell=(2, 2, 2), delta=0.05)
    phonons.run()
    phonons.read(acoustic=True)
    return phonons.get_force_constant()


def _eos(make):
    atoms = bulk("Cu")
    atoms.calc = make()
    return calculate_eos(atoms, npoints=5, eps=0.02).fit()


def _wrapped(wrap, make):
    atoms = copper(make)
    atoms.calc = wrap(make)
    return everything(atoms)


def _written(name: str, make):
    atoms = copper(make)
    everything(atoms), atoms.get_stress()
    ase.io.write(name, atoms)
    return everything(ase.io.read(name))


def _database(make):
    atoms = copper(make)
    everything(atoms)
    with ase.db.connect("some.db") as base:
        base.write(atoms, kind="copper")
        return everything(base.get_atoms(kind="copper"))


def _trajectory(make):
    atoms = copper(make)
    optimize.BFGS(atoms, trajectory="some.traj", logfile=None).run(fmax=0.01, steps=5)
    return [everything(frame) for frame in ase.io.read("some.traj", ":")]


def _uses() -> dict[str, dict[str, Use]]:
    names = ("energy", "free_energy", "forces", "stress", "energies", "stresses")
    methods = {name: getattr(optimize, name) for name in optimize.__all__}
    methods = {k: v for k, v in methods.items() if k not in ("RestartError", "CellAwareBFGS")}
    methods |= {"SciPyFminCG": sciopt.SciPyFminCG, "SciPyFminBFGS": sciopt.SciPyFminBFGS}
    kelvin = {"temperature_K": 300}
    rng = np.random.RandomState
    dynamics: dict[str, Use] = {
        "VelocityVerlet": partial(_dynamics, verlet.VelocityVerlet),
        "Langevin": lambda make: _dynamics(
            langevin.Langevin, make, friction=0.01, rng=rng(2), **kelvin
        ),
        "LangevinBAOAB": lambda make: _dynamics(
            langevinbaoab.LangevinBAOAB, make, T_tau=100 * units.fs, rng=rng(2), **kelvin
        ),
        "Andersen": lambda make: _dynamics(
            andersen.Andersen, make, andersen_prob=0.1, rng=rng(2), **kelvin
        ),
        "Bussi": lambda make: _dynamics(
            bussi.Bussi, make, taut=50 * units.fs, rng=rng(2), **kelvin
        ),
        "NVTBerendsen": lambda make: _dynamics(NVTBerendsen, make, taut=50 * units.fs, **kelvin),
        "NPTBerendsen": lambda make: _dynamics(
            NPTBerendsen, make, pressure_au=0.0, compressibility_au=1e-3, **kelvin
        ),
        "NPT": lambda make: _dynamics(
            npt.NPT, make, externalstress=0.0, ttime=50 * units.fs, pfactor=100.0, **kelvin
        ),
        "NoseHooverChainNVT": lambda make: _dynamics(
            nose_hoover_chain.NoseHooverChainNVT, make, tdamp=50 * units.fs, **kelvin
        ),
        "IsotropicMTKNPT": lambda make: _dynamics(
            nose_hoover_chain.IsotropicMTKNPT,
            make,
            tdamp=50 * units.fs,
            pdamp=500 * units.fs,
            pressure_au=0.0,
            **kelvin,
        ),
        "MTKNPT": lambda make: _dynamics(
            nose_hoover_chain.MTKNPT,
            make,
            tdamp=50 * units.fs,
            pdamp=500 * units.fs,
            pressure_au=0.0,
            **kelvin,
        ),
        "ContourExploration": _contour,
    }
    return {
        "Properties": {name: partial(_property, name) for name in names},
        "Optimisers": {name: partial(_optimised, method) for name, method in methods.items()}
        | {
            "CellAwareBFGS": _cell_aware,
            "PreconLBFGS": partial(_optimised, precon.PreconLBFGS, precon=None),
            "PreconFIRE": partial(_optimised, precon.PreconFIRE, precon=None),
        },
        "Filters of cells": {
            name: partial(_relaxed, getattr(filters, name))
            for name in ("UnitCellFilter", "FrechetCellFilter", "ExpCellFilter", "StrainFilter")
        },
        "Molecular dynamics": dynamics,
        "Paths and searches": {
            "NEB": partial(_path, kind=NEB),
            "NEB, climbing": partial(_path, kind=NEB, climb=True),
            "DyNEB": partial(_path, kind=DyNEB, fmax=0.05, dynamic_relaxation=True),
            "dimer": _dimer,
            "BasinHopping": partial(_hopping, _basins),
            "MinimaHopping": partial(_hopping, lambda a: MinimaHopping(a)(totalsteps=2)),
        },
        "Analysis": {
            "Vibrations": partial(_vibrations, Vibrations),
            "Infrared": partial(_vibrations, Infrared),
            "Phonons": _phonons,
            "equation of state": _eos,
        },
        "Calculators of calculators": {
            "SumCalculator": partial(_wrapped, lambda make: SumCalculator([make(), make()])),
            "LinearCombinationCalculator": partial(
                _wrapped, lambda make: LinearCombinationCalculator([make(), make()], [0.3, 0.7])
            ),
            "LoggingCalculator": partial(_wrapped, lambda make: LoggingCalculator(make())),
            "FiniteDifferenceCalculator": partial(
                _wrapped, lambda make: FiniteDifferenceCalculator(make())
            ),
        },
        "Results in files": {
            "Trajectory": _trajectory,
            "extxyz": partial(_written, "some.extxyz"),
            "traj": partial(_written, "some.traj"),
            "json": partial(_written, "some.json"),
            "database": _database,
        },
    }
