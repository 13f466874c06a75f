"""Two calculators as one: values, a cache that can be trusted, and what frames keep."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.test import gradient_test
from ase.io import read, write
from ase.md.langevin import Langevin
from messages import names

from diffmd_ase import AlchemicalCalculator, ReverseDiffusion
from diffmd_ase.potentials.alchemical import Alchemical


def copper(lam=0.3, **options):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    pair = LennardJones(epsilon=0.2, sigma=2.3, rc=5.0)
    atoms.calc = AlchemicalCalculator(EMT(), pair, lam, **options)
    return atoms, pair


def alone(atoms, calculator):
    other = atoms.copy()
    other.calc = calculator
    return other.get_potential_energy(), other.get_forces()


@pytest.mark.parametrize("soft", [None, 0.4])
def test_energies_forces_and_derivative(soft):
    atoms, pair = copper(soft=soft)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    (a, f_a), (b, f_b) = alone(atoms, EMT()), alone(atoms, pair)
    if soft is None:
        assert energy == pytest.approx(0.7 * a + 0.3 * b)
        np.testing.assert_allclose(forces, 0.7 * f_a + 0.3 * f_b, atol=1e-12)
        assert atoms.calc.results["dudl"] == pytest.approx(b - a)
    analytic, numerical = gradient_test(atoms)[:2]
    np.testing.assert_allclose(analytic, numerical, atol=1e-5)
    slope = atoms.calc.results["dudl"]
    energies = []
    for lam in (0.3 + 1e-5, 0.3 - 1e-5):
        atoms.calc.lam = lam
        energies.append(atoms.get_potential_energy())
    assert (energies[0] - energies[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends(end):
    atoms, pair = copper(lam=end)
    assert abs(atoms.get_potential_energy() - alone(atoms, (EMT(), pair)[end])[0]) < 1e-12


def test_the_cache_follows_lambda_and_both_calculators():
    atoms, pair = copper()
    before = atoms.get_potential_energy()
    assert not atoms.calc.calculation_required(atoms, ["energy"])
    atoms.calc.lam = 0.6
    second = atoms.get_potential_energy()
    assert second != before
    pair.set(epsilon=0.4)  # what ASE's MixedCalculator does not see
    third = atoms.get_potential_energy()
    (a, _), (b, _) = alone(atoms, EMT()), alone(atoms, pair)
    assert third == pytest.approx(0.4 * a + 0.6 * b) and third != second
    atoms.calc.calc_a = LennardJones(epsilon=0.4, sigma=2.3, rc=5.0)
    assert atoms.get_potential_energy() == pytest.approx(b)
    atoms.calc.soft = 0.1
    assert atoms.get_potential_energy() == pytest.approx(b)  # both ends alike: no gap
    atoms.positions[0] += 0.1
    assert atoms.get_potential_energy() != pytest.approx(b)


def test_nothing_is_calculated_twice():
    class Counted(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            Counted.calls += 1
            super().calculate(*args, **kwargs)

    atoms, pair = copper()
    atoms.calc = AlchemicalCalculator(Counted(), pair, 0.3)
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.calc.lam = 0.9  # other weights of the same numbers
    atoms.get_forces()
    assert Counted.calls == 1


def test_frames_keep_lambda_and_dudl(tmp_path):
    atoms, _ = copper(lam=0.25)
    frames = []
    dyn = Langevin(
        atoms, 1 * units.fs, temperature_K=300, friction=0.01, fixcm=False,
        rng=np.random.default_rng(0), trajectory=str(tmp_path / "a.traj"),
    )  # fmt: skip
    dyn.attach(lambda: frames.append(atoms.copy()))
    dyn.run(3)
    write(tmp_path / "a.extxyz", frames)
    for name in ("a.extxyz", "a.traj"):
        kept = read(tmp_path / name, ":")
        assert [f.info["lambda"] for f in kept] == [0.25] * 4
        assert len({f.info["dudl"] for f in kept}) == 4


def test_our_dynamics_take_its_coupling():
    atoms, _ = copper(lam=0.25)
    assert isinstance(atoms.calc.potential(atoms), Alchemical)
    dyn = ReverseDiffusion(atoms, temperature_K=300, rng=1)
    dyn.run(3)
    assert dyn.nsteps == 3
    (a, _), (b, _) = alone(atoms, EMT()), alone(atoms, copper()[1])
    assert atoms.get_potential_energy() == pytest.approx(0.75 * a + 0.25 * b)


def test_what_does_not_fit_is_refused():
    atoms, pair = copper()
    for lam in (-0.1, 1.1, np.nan, [0.2, 0.3]):
        with pytest.raises(ValueError, match=names("lam=", "[0, 1]")):
            AlchemicalCalculator(EMT(), pair, lam)
        with pytest.raises(ValueError, match=names("lam=", "[0, 1]")):
            atoms.calc.lam = lam
    with pytest.raises(ValueError, match=names("soft=-1", "positive")):
        atoms.calc.soft = -1
    with pytest.raises(TypeError, match=names("str", "calculator")):
        AlchemicalCalculator("emt", pair, 0.5)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = AlchemicalCalculator(pair, EMT(), 0.5)
    with np.errstate(all="ignore"), pytest.raises((CalculationFailed, ZeroDivisionError)):
        atoms.get_potential_energy()
