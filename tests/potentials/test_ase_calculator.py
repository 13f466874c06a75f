"""Any ASE calculator as a potential."""

import multiprocessing

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones as AseLennardJones
from messages import names

from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.system import System


class ForcesOnly(Calculator):
    implemented_properties = ("forces",)

    def calculate(self, atoms=None, properties=("forces",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = -atoms.positions


class EnergyOnly(Calculator):
    implemented_properties = ("energy",)


class Fragile(ForcesOnly):
    """Fails where the first atom is at x > 10."""

    def calculate(self, atoms=None, properties=("forces",), system_changes=()):
        if atoms.positions[0, 0] > 10:
            raise ArithmeticError("SCF did not converge")
        super().calculate(atoms, properties, system_changes)


class Smeared(ForcesOnly):
    """Energy and free energy differ, as with electronic smearing."""

    implemented_properties = ("energy", "free_energy", "forces")

    def calculate(self, atoms=None, properties=("forces",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results["free_energy"] = 0.5 * (atoms.positions**2).sum()
        self.results["energy"] = self.results["free_energy"] + 1.0


class Brittle(Smeared):
    """As `Fragile`, with energies."""

    def calculate(self, atoms=None, properties=("forces",), system_changes=()):
        if atoms.positions[0, 0] > 10:
            raise ArithmeticError("SCF did not converge")
        super().calculate(atoms, properties, system_changes)


def copper():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    del atoms[0]
    return atoms


def frames(atoms, shape, seed=0):
    rng = np.random.default_rng(seed)
    moves = rng.normal(scale=0.05, size=(*shape, len(atoms), 3))
    return torch.from_numpy(atoms.positions + moves)


def test_equals_the_calculator():
    atoms = copper()
    potential = AsePotential(EMT(), System.from_atoms(atoms))
    x = frames(atoms, (2, 3))
    value = potential(x, stress=True)
    assert potential.conservative
    assert value.energy.shape == (2, 3) and value.stress.shape == (2, 3, 6)
    for index in np.ndindex(2, 3):
        atoms.positions = x[index].numpy()
        atoms.calc = EMT()
        assert value.energy[index] == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(value.forces[index], atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(value.stress[index], atoms.get_stress(), atol=1e-14)
    assert potential(x[0, 0]).energy.shape == ()
    assert potential(x[0, 0]).stress is None
    assert potential(x.float()).forces.dtype == torch.float32
    assert potential(x[:0]).forces.shape == (0, 3, len(atoms), 3)


def test_equals_our_lennard_jones():
    atoms = bulk("Ar", cubic=True, a=5.3)
    system = System.from_atoms(atoms)
    theirs = AsePotential(AseLennardJones(epsilon=0.01, sigma=3.4), system)
    ours = LennardJones(system, epsilon=0.01, sigma=3.4)
    x = frames(atoms, (3,))
    for a, b in zip(theirs(x, stress=True), ours(x, stress=True), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_processes_give_the_same():
    """Walkers by process: the same numbers, in the same order, whatever the split."""
    atoms = copper()
    system, x = System.from_atoms(atoms), frames(atoms, (5,))
    loop = AsePotential(EMT(), system)(x, stress=True)
    potential = AsePotential(EMT(), system, processes=2)
    try:
        for _ in range(2):  # the second batch reuses the processes
            pool = potential(x, stress=True)
            for a, b in zip(loop, pool, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        _, mine = multiprocessing.active_children()[-2:]
        mine.kill()
        mine.join()
        with pytest.warns(UserWarning, match=names("EMT", "evaluated again")):
            again = potential(x, stress=True)
        torch.testing.assert_close(again.forces, pool.forces, rtol=0, atol=1e-12)
    finally:
        potential.close()
    # one structure, and closed before: no process is started
    assert torch.equal(potential(x[0]).energy, loop.energy[0])


def test_failure_in_a_process_is_named():
    potential = AsePotential(Fragile(), System.from_atoms(molecule("H2O")), processes=2)
    x = torch.zeros(4, 3, 3)
    x[3, 0, 0] = 11.0
    try:
        with pytest.raises(
            RuntimeError, match=names("Fragile", "structure 3", "SCF did not converge")
        ):
            potential(x)
    finally:
        potential.close()


def test_without_energy_it_is_not_conservative():
    potential = AsePotential(ForcesOnly(), System.from_atoms(molecule("H2O")))
    value = potential(torch.ones(2, 3, 3))
    assert not potential.conservative
    assert value.energy is None
    assert torch.equal(value.forces, -torch.ones(2, 3, 3))


def test_energy_is_the_one_of_the_forces():
    potential = AsePotential(Smeared(), System.from_atoms(molecule("H2O")))
    assert potential(torch.ones(3, 3)).energy == 4.5


def test_stress_where_there_is_none():
    """A molecule has no stress, whatever the calculator implements."""
    atoms = molecule("CO2")
    value = AsePotential(EMT(), System.from_atoms(atoms))(
        torch.tensor(atoms.positions), stress=True
    )
    assert value.stress is None and value.energy is not None


def test_failures_are_clear():
    system = System.from_atoms(molecule("H2O"))
    with pytest.raises(ValueError, match=names("EnergyOnly", "'energy'", "forces")):
        AsePotential(EnergyOnly(), system)
    with pytest.raises(ValueError, match="at least 1"):
        AsePotential(EMT(), system, processes=0)
    with pytest.raises(ValueError, match=r"do not fit the 3 atoms of H2O"):
        AsePotential(EMT(), system)(torch.zeros(4, 3))
    unpicklable = ForcesOnly()
    unpicklable.hook = lambda: None
    with pytest.raises(TypeError, match="processes=1"):
        AsePotential(unpicklable, system, processes=2)
    x = torch.zeros(3, 3, 3)
    x[1, 0, 0] = 11.0
    with pytest.raises(
        RuntimeError, match=names("Fragile", "structure 1", "ArithmeticError: SCF did not converge")
    ) as info:
        AsePotential(Fragile(), system)(x)
    assert isinstance(info.value.__cause__, ArithmeticError)


@pytest.mark.parametrize("processes", [1, 2])
def test_failures_can_be_rejections(processes):
    """NaN for what failed, counted; the others as ever."""
    system = System.from_atoms(molecule("H2O"))
    potential = AsePotential(Brittle(), system, processes=processes, failures="reject")
    x = torch.zeros(4, 3, 3)
    x[1, 0, 0], x[3, 0, 0], x[2] = 11.0, 12.0, 1.0
    try:
        value = potential(x)
    finally:
        potential.close()
    assert torch.isnan(value.energy).tolist() == [False, True, False, True]
    assert torch.isnan(value.forces).all((-1, -2)).tolist() == [False, True, False, True]
    assert value.energy[2] == 4.5 and torch.equal(value.forces[2], -torch.ones(3, 3))
    assert potential.failed == 2
    assert "Brittle failed for structure 3" in potential.last_failure
    assert "SCF did not converge" in potential.last_failure
    with pytest.raises(ValueError, match="expected 'raise' or 'reject'"):
        AsePotential(Brittle(), system, failures="ignore")


def test_a_failure_does_not_spoil_the_next_structure():
    """The calculator's cache may hold the failed structure; the next is computed anew."""
    system = System.from_atoms(molecule("H2O"))
    potential = AsePotential(Brittle(), system, failures="reject")
    bad = torch.zeros(3, 3)
    bad[0, 0] = 11.0
    for x, expected in ((torch.ones(3, 3), 4.5), (bad, np.nan), (torch.ones(3, 3), 4.5)):
        assert float(potential(x).energy) == pytest.approx(expected, nan_ok=True)


def test_a_calculator_that_is_broken_is_said():
    """Rejections for ever would be a run of walkers that stay where they are."""
    potential = AsePotential(Brittle(), System.from_atoms(molecule("H2O")), failures="reject")
    x = torch.zeros(2, 3, 3)
    x[:, 0, 0] = 11.0
    part = x.clone()
    part[0] = 0.0
    many = [x] * 49
    # one that comes out, or all: patience begins anew
    for batch in [*many, part, *many, torch.zeros_like(x), *many]:
        potential(batch)
    with pytest.raises(
        RuntimeError, match=names("Brittle", "50 batches in a row", "SCF did not", "restart")
    ):
        potential(x)
    assert potential.failed == 2 * 148 + 1
