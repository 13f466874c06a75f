"""`ReverseDiffusion(parallel=…)`: the same positions, one evaluation for many steps."""

import numpy as np
import pytest
from argon_atoms import STEP, Counted, argon, cluster
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCom
from messages import names

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.system import System


def dynamics(*, constraint=None, **options):
    atoms = cluster()
    atoms.set_constraint(constraint)
    potential = Counted(argon(System.from_atoms(atoms)))
    atoms.calc = ScoreCalculator(potential)
    return ReverseDiffusion(atoms, **STEP, **options), potential


@pytest.mark.parametrize("target", [None, "model"])
@pytest.mark.parametrize("constraint", [None, FixAtoms([0, 3])])
def test_the_same_dynamics(target, constraint):
    (one, _), (many, potential) = (
        dynamics(parallel=parallel, target=target, constraint=constraint)
        for parallel in (False, True)
    )
    calls = []
    evaluate = potential.potential
    potential.potential = lambda x, **more: calls.append(len(x)) or evaluate(x, **more)
    for dyn in (one, many):
        dyn.run(60)
    np.testing.assert_allclose(many.atoms.positions, one.atoms.positions, rtol=0, atol=1e-9)
    energies = [dyn.atoms.get_potential_energy() for dyn in (many, one)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    assert many.nsteps == 60 and len(calls) < 30
    assert many.todict()["parallel"] and not one.todict()["parallel"]
    if target:
        assert many.acceptance == one.acceptance


def test_atoms_that_were_moved_begin_anew():
    (one, _), (many, _) = (dynamics(parallel=parallel) for parallel in (False, True))
    for dyn in (one, many):
        dyn.run(7)
        dyn.atoms.positions += 0.01
        dyn.run(20)
    np.testing.assert_allclose(many.atoms.positions, one.atoms.positions, rtol=0, atol=1e-9)


def test_auto_says_why():
    dyn, _ = dynamics(parallel="auto")
    assert "times the speed" in dyn.together and "walkers" in dyn.together
    dyn, _ = dynamics(parallel="auto", bias=Harmonic(0.1))
    assert dyn.chain.ahead is None and "without bias" in dyn.together
    dyn.run(3)


def test_refused():
    with pytest.raises(ValueError, match=names("without bias", "diffmd run --parallel")):
        dynamics(parallel=True, bias=Harmonic(0.1))
    with pytest.raises(ValueError, match=names("another target", "ScoreCalculator")):
        dynamics(parallel=True, target=EMT())
    with pytest.raises(ValueError, match=names("FixCom", "drop it")):
        dynamics(parallel=True, constraint=FixCom())
    with pytest.raises(ValueError, match=names("parallel='yes'", "auto")):
        dynamics(parallel="yes")
    with pytest.raises(TypeError, match=names("n_steps=2", "n_steps=1")):
        dynamics(parallel=True, target="model", proposal_steps=2)
