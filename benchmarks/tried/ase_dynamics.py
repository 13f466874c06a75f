"""Our dynamics among ASE's: constraints, calculators and what every dynamics can do.

A constraint holds if twenty steps leave it as it was; a refusal names it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from functools import partial

import ase.io
import numpy as np
from ase import Atoms, constraints, units
from ase.build import bulk, molecule
from ase.calculators.acn import ACN
from ase.calculators.emt import EMT
from ase.calculators.harmonic import HarmonicCalculator, HarmonicForceField
from ase.calculators.idealgas import IdealGas
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from ase.calculators.tip3p import TIP3P
from ase.calculators.tip4p import TIP4P
from ase.md import MDLogger

from diffmd_ase import BatchReverseDiffusion, ReverseDiffusion
from tried.ase_features import ours
from tried.outcome import DIFFERS, HOLDS, REFUSED, Outcome, Trial, said

__all__ = ["trials"]

STEPS = 20


def trials() -> list[Trial]:
    """Constraints, calculators, and features of a dynamics."""
    kinds = {"Constraints": _constraints(), "Calculators": _calculators(), "Dynamics": _features()}
    return [Trial(kind, name, run) for kind, uses in kinds.items() for name, run in uses.items()]


def _dynamics(atoms: Atoms, **options) -> ReverseDiffusion:
    settings = {
        "timestep": 0.05 * units.fs,
        "friction": 0.05 / units.fs,
        "temperature_K": 300,
        "rng": 1,
    }
    return ReverseDiffusion(atoms, **(settings | options))


def _ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.02, seed=2)
    atoms.calc = EMT()
    return atoms


def _copper() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.calc = EMT()
    return atoms


# ------------------------------------------------------------------ constraints


def _constrained(make: Callable[[Atoms], object], atoms: Atoms) -> Outcome:
    """The positions after some steps are those that the constraint would make of them."""
    atoms.set_constraint(make(atoms))
    before = atoms.copy()
    try:
        _dynamics(atoms).run(STEPS)
    except (ValueError, NotImplementedError) as error:
        return Outcome(REFUSED, said(error))
    moved, wished = np.abs(atoms.positions - before.positions).max(), atoms.positions.copy()
    for constraint in before.constraints:
        constraint.adjust_positions(before, wished)
    off = np.abs(wished - atoms.positions).max()
    if not moved > 1e-4:
        return Outcome(DIFFERS, "nothing moved")
    return Outcome(HOLDS) if off < 1e-8 else Outcome(DIFFERS, f"broken by {off:.0e} Å")


def _related(make, atoms: Atoms):
    return make([0, 1], ["p"], ["p", "0", "0", "p", "0", "0"])


def _constraints() -> dict[str, Callable[[], Outcome]]:
    c = constraints
    names: dict[str, Callable[[Atoms], object]] = {
        "FixAtoms": lambda a: c.FixAtoms([0, 3]),
        "FixCom": lambda a: c.FixCom(),
        "FixSubsetCom": lambda a: c.FixSubsetCom([0, 1, 2]),
        "FixCartesian": lambda a: c.FixCartesian([0, 2], mask=(True, False, True)),
        "FixedPlane": lambda a: c.FixedPlane([0, 1], [0, 0, 1]),
        "FixedLine": lambda a: c.FixedLine([0, 1], [1, 0, 0]),
        "FixedPlane, oblique": lambda a: c.FixedPlane([0, 1], [1, 1, 0]),
        "FixedLine, oblique": lambda a: c.FixedLine([0, 1], [1, 2, 0]),
        "FixScaled": lambda a: c.FixScaled([0], mask=(True, True, False)),
        "FixedMode": lambda a: c.FixedMode(np.ones(3 * len(a))),
        "FixBondLengths": lambda a: c.FixBondLengths([(0, 1), (0, 2)]),
        "FixLinearTriatomic": lambda a: c.FixLinearTriatomic([(1, 0, 2)]),
        "FixInternals": lambda a: c.FixInternals(bonds=[[a.get_distance(0, 1), [0, 1]]]),
        "Hookean": lambda a: c.Hookean(0, 1, rt=1.0, k=5.0),
        "ExternalForce": lambda a: c.ExternalForce(0, 1, 0.5),
        "MirrorForce": lambda a: c.MirrorForce(0, 1),
        "MirrorTorque": lambda a: c.MirrorTorque(0, 1, 2, 3),
        "FixCartesianParametricRelations": partial(
            _related, c.FixCartesianParametricRelations.from_expressions
        ),
    }
    crystals = {
        "FixSymmetry": c.FixSymmetry,
        "FixScaledParametricRelations": partial(
            _related, c.FixScaledParametricRelations.from_expressions
        ),
        "FixScaled": names.pop("FixScaled"),
    }
    special = {"FixLinearTriatomic": molecule("CO2")}

    def of(name: str) -> Atoms:
        atoms = _copper() if name in crystals else special.get(name, _ethanol())
        atoms.calc = EMT()
        return atoms

    every = names | crystals
    return {name: partial(lambda n: _constrained(every[n], of(n)), name) for name in sorted(every)}


# ------------------------------------------------------------------ calculators


def _driven(atoms: Atoms) -> Outcome:
    """A few steps under the calculator, the first of which is x + h F/kT + noise of its forces."""
    start, forces = atoms.positions.copy(), atoms.get_forces()
    pair = []
    for scale in (1.0, 0.0):
        copy = atoms.copy()
        copy.calc = atoms.calc
        if not scale:
            copy.calc = HarmonicCalculator(_flat(start))
        dyn = _dynamics(copy, rng=3)
        dyn.run(1)
        pair.append(copy.positions.copy())
    drift = np.reshape(dyn.step_size.h, (-1, 1)) * forces / (units.kB * 300)
    off = np.abs(pair[0] - pair[1] - drift).max() / max(np.abs(drift).max(), 1e-3)
    return Outcome(HOLDS) if off < 1e-6 else Outcome(DIFFERS, f"drift by {off:.0e}")


def _flat(positions) -> HarmonicForceField:
    size = 3 * len(positions)
    reference = Atoms(f"X{len(positions)}", positions)
    return HarmonicForceField(reference, hessian_x=np.zeros((size, size)))


def _calculators() -> dict[str, Callable[[], Outcome]]:
    argon = bulk("Ar", cubic=True).repeat(2)
    argon.rattle(0.05, seed=1)
    water = molecule("H2O")
    second = water.copy()
    second.translate([0, 0, 3.0])
    pair = water + second
    nitrogen = Atoms("N2", [(0, 0, 0), (0, 0, 1.2)])
    acetonitrile = Atoms("CCN", [(0, 0, 0), (0, 0, 1.458), (0, 0, 2.615)])
    acetonitrile.set_masses([15.035, 12.011, 14.007])
    liquid = acetonitrile.copy()
    liquid.translate([4, 0, 0])
    liquid = acetonitrile + liquid
    smooth = {"sigma": 3.4, "epsilon": 0.0104, "rc": 8.0, "smooth": True}
    given = {
        "EMT": (_copper(), EMT()),
        "LennardJones": (argon, LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0)),
        "LennardJones, smooth": (argon.copy(), LennardJones(**smooth)),
        "MorsePotential": (nitrogen, MorsePotential(r0=1.1, epsilon=1.0)),
        "TIP3P": (pair, TIP3P(rc=9.0)),
        "TIP4P": (pair.copy(), TIP4P(rc=9.0)),
        "ACN": (liquid, ACN(rc=9.0)),
        "HarmonicCalculator": (nitrogen.copy(), HarmonicCalculator(_flat(nitrogen.positions))),
        "IdealGas": (argon.copy(), IdealGas()),
        "ScoreCalculator": (_copper(), ours()),
    }

    def run(name: str) -> Outcome:
        atoms, calculator = given[name]
        atoms.calc = calculator
        return _driven(atoms)

    return {name: partial(run, name) for name in given}


# ------------------------------------------------------------------ what a dynamics can do


def _observed() -> Outcome:
    atoms, seen = _ethanol(), []
    dyn = _dynamics(atoms)
    dyn.attach(lambda: seen.append(dyn.nsteps), interval=5)
    dyn.run(10)
    return _equal(seen, [0, 5, 10])


def _irun() -> Outcome:
    dyn = _dynamics(_ethanol())
    return _equal([dyn.nsteps for _ in dyn.irun(3)], [0, 1, 2, 3])


def _halves() -> Outcome:
    ends = []
    for parts in ((10,), (4, 6)):
        atoms = _ethanol()
        dyn = _dynamics(atoms)
        for steps in parts:
            dyn.run(steps)
        ends.append(atoms.positions.copy())
    return _equal(*ends)


def _trajectory(**options) -> Outcome:
    atoms = _ethanol()
    with _dynamics(atoms, trajectory="md.traj", loginterval=2, **options) as dyn:
        dyn.run(6)
    frames = ase.io.read("md.traj", ":")
    last = np.concatenate((frames[-1].positions.ravel(), [frames[-1].get_potential_energy()]))
    if len(frames) != 4:
        return Outcome(DIFFERS, f"{len(frames)} frames for 4")
    return _equal(last, np.concatenate((atoms.positions.ravel(), [atoms.get_potential_energy()])))


def _appended() -> Outcome:
    for append in (False, True):
        with _dynamics(_ethanol(), trajectory="md.traj", append_trajectory=append) as dyn:
            dyn.run(3)
    return _equal(len(ase.io.read("md.traj", ":")), 8)


def _log() -> Outcome:
    text = io.StringIO()
    with _dynamics(_ethanol(), logfile=text, loginterval=1) as dyn:
        dyn.run(3)
    rows = [row for row in text.getvalue().splitlines() if row[:1].isdigit() or row[:1] == " "]
    return Outcome(HOLDS) if "Epot" in text.getvalue() and len(rows) >= 4 else Outcome(DIFFERS)


def _logger() -> Outcome:
    atoms, text = _ethanol(), io.StringIO()
    dyn = _dynamics(atoms)
    dyn.attach(MDLogger(dyn, atoms, text, header=True, stress=False), interval=1)
    dyn.run(3)
    return _equal(len(text.getvalue().splitlines()), 5)


def _batched() -> Outcome:
    images = [_ethanol() for _ in range(3)]
    images[1].calc = images[2].calc = None  # that of the first serves all
    BatchReverseDiffusion(
        images, timestep=0.05 * units.fs, friction=0.05 / units.fs, temperature_K=300, rng=1
    ).run(5)
    alone = _ethanol()
    _dynamics(alone).run(5)
    return _equal(images[0].positions, alone.positions)


def _equal(found, expected) -> Outcome:
    same = np.shape(found) == np.shape(expected) and np.allclose(
        found, expected, rtol=0, atol=1e-10
    )
    return Outcome(HOLDS) if same else Outcome(DIFFERS, f"{found} for {expected}"[:100])


def _in_a_folder(run: Callable[[], Outcome]) -> Outcome:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return run()
        finally:
            os.chdir(before)


def _features() -> dict[str, Callable[[], Outcome]]:
    uses = {
        "attach": _observed,
        "irun": _irun,
        "run, and again": _halves,
        "trajectory and loginterval": _trajectory,
        "append_trajectory": _appended,
        "logfile": _log,
        "MDLogger": _logger,
        "target= another calculator": lambda: _trajectory(target=EMT()),
        "a batch of Atoms": _batched,
    }
    return {name: partial(_in_a_folder, run) for name, run in uses.items()}
