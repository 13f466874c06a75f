"""System: atoms without positions, and back."""

import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from argon_atoms import network
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, nanotube
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.io import read, write
from messages import names
from recorder import unlike, water

from diffmd_ase import ReverseDiffusion, Snapshots
from diffmd_ase.adapters.physics import OfKernel
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.biases.cv import join
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.ladder import Blend, Ladder
from diffmd_ase.potentials.named import find_potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.state import State
from diffmd_ase.system import System, carried_by, comparable


def with_cell(atoms):
    atoms.set_cell([9.0, 9.0, 9.0])
    atoms.pbc = True
    return atoms


def heavier(atoms):
    atoms.set_masses([15.999, 2.014, 2.014])
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), bulk("Cu", cubic=True) * (2, 1, 1)])
def test_round_trip(atoms):
    system = System.from_atoms(atoms)
    back = system.to_atoms(torch.tensor(atoms.positions))
    assert back == atoms
    assert System.from_atoms(back) == system
    assert len(system) == len(atoms)
    assert system.periodic == atoms.pbc.any()
    assert system.formula == atoms.get_chemical_formula()


def test_masses_are_kept():
    atoms = molecule("H2O")
    atoms.set_masses([15.999, 2.014, 2.014])
    system = System.from_atoms(atoms)
    np.testing.assert_array_equal(system.to_atoms(atoms.positions).get_masses(), system.masses)
    assert system != System.from_atoms(molecule("H2O"))


def test_it_is_a_copy():
    atoms = bulk("Cu")
    system = System.from_atoms(atoms)
    atoms.pbc = False
    atoms.cell *= 2
    atoms.numbers[:] = 1
    assert system == System.from_atoms(bulk("Cu"))


def test_equality():
    copper = System.from_atoms(bulk("Cu"))
    assert copper == System.from_atoms(bulk("Cu"))
    assert copper != System.from_atoms(bulk("Ag", a=3.61))
    assert copper != System.from_atoms(bulk("Cu", a=3.7))
    assert copper != System(copper.numbers, copper.masses)
    assert copper != System(copper.numbers, copper.masses, copper.cell, [True, True, False])
    assert copper != "Cu"


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (lambda a: a[:2], ("H2O", "3 atoms", "2 atoms")),
        (lambda a: a[[1, 0, 2]], ("the order of the atoms", "H2O", "atom 0")),
        (lambda a: molecule("CO2"), ("elements", "H2O", "CO2", "atom 0")),
        (heavier, ("masses of 2 atoms", "1.008", "2.014")),
        (with_cell, ("pbc", "the cell", "none", "9.0")),
    ],
)
def test_what_differs_is_named(other, facts):
    one = molecule("H2O")
    a, b = System.from_atoms(one), System.from_atoms(other(one.copy()))
    assert a != b and not a.difference(a)
    assert re.search(names(*facts), a.difference(b))
    assert re.search(names(*facts), b.difference(a)) or a.formula != b.formula or len(a) != len(b)


def test_whoever_binds_two_systems_names_what_differs():
    """Sums, ladders, blends and variables, targets and kernels alike."""
    light, heavy = (
        System([1, 1], masses, np.diag([6.0, 6, 6]), True) for masses in ([1.0, 1], [1.0, 2])
    )
    potentials = [LennardJones(s, epsilon=0.01, sigma=2.0) for s in (light, heavy)]
    said = names("masses of 1 atoms", "atom 1", "1 and 2 u")
    for bind in (
        lambda: potentials[0] + potentials[1],
        lambda: Ladder(potentials),
        lambda: Blend(potentials, [0.5, 0.5]),
        lambda: join([Distance(light, [0, 1], name="a"), Distance(heavy, [0, 1], name="b")]),
        lambda: OfKernel(EulerMaruyama(potentials[0], 0.025, 1e-3), heavy),
    ):
        with pytest.raises(ValueError, match=said):
            bind()
    larger = System([1, 1], [1.0, 1], np.diag([7.0, 6, 6]), True)
    with pytest.raises(ValueError, match=names("target", "the cell", "6.0", "7.0")):
        find_potential(potentials[0], larger)
    find_potential(potentials[0], heavy)  # masses are nothing to a potential


class TestLowRank:
    """Cells without a third vector, or with one alone: slabs, sheets and wires of ASE."""

    @pytest.mark.parametrize(
        "atoms",
        [
            graphene(),
            fcc111("Cu", (2, 2, 2)),
            nanotube(3, 3),
            Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]], cell=[5, 0, 0], pbc=[1, 0, 0]),
        ],
        ids=str,
    )
    def test_they_have_the_meaning_of_ase(self, atoms):
        system = System.from_atoms(atoms)
        assert atoms.cell.rank < 3 and np.linalg.matrix_rank(system.cell) == 3
        np.testing.assert_allclose(system.cell, atoms.cell.complete())
        x = torch.tensor(atoms.positions)
        calculator = AseLennardJones(epsilon=0.1, sigma=1.2, rc=3.5)
        theirs = atoms.copy()
        theirs.calc = calculator
        for potential in (
            AsePotential(AseLennardJones(epsilon=0.1, sigma=1.2, rc=3.5), system),
            LennardJones(system, epsilon=0.1, sigma=1.2, rc=3.5),
        ):
            value = potential(x)
            assert float(value.energy) == pytest.approx(theirs.get_potential_energy())
            np.testing.assert_allclose(value.forces, theirs.get_forces(), atol=1e-10)
        # no volume of its own, no stress
        assert AsePotential(calculator, system)(x, stress=True).stress is None

    def test_dynamics_snapshots_and_networks(self, tmp_path):
        atoms = graphene(size=(2, 2, 1))
        atoms.calc = AseLennardJones(epsilon=0.1, sigma=1.2, rc=3.5)
        ReverseDiffusion(
            atoms, temperature_K=300, rng=1, trajectory=str(tmp_path / "sheet.traj")
        ).run(3)
        system = Snapshots.read(tmp_path / "sheet.traj", temperature_K=300).system
        assert not system.difference(System.from_atoms(atoms))
        padded = atoms.copy()
        padded.center(vacuum=20.0, axis=2)
        x = torch.tensor(atoms.positions)
        here, there = (
            network(system).potential(s, device="cpu", dtype=torch.float64)(x)
            for s in (system, System.from_atoms(padded))
        )
        torch.testing.assert_close(here.forces, there.forces)

    def test_nothing_to_repeat(self):
        for cell, missing in (
            ([5, 5, 0], "no vector 2"),
            ([0, 5, 0], "no vector 0 and 2"),
            (None, "there is none"),
        ):
            with pytest.raises(ValueError, match=names("pbc=[True, True, True]", missing)):
                System.from_atoms(Atoms("H", cell=cell, pbc=True))
        flat = [[1, 0, 0], [2, 0, 0], [0, 0, 0]]
        for pbc in ([True, True, False], [True, False, False]):
            with pytest.raises(ValueError, match=names("[2.0, 0.0, 0.0]", "one line")):
                System.from_atoms(Atoms("H", cell=flat, pbc=pbc))

    def test_the_dummy_of_pdb_files(self, tmp_path):
        """``CRYST1 1.000 1.000 1.000 90.00 90.00 90.00``: there is no crystal."""
        atoms = molecule("CH3CH2OH")
        atoms.set_cell(np.eye(3))
        atoms.pbc = True
        write(tmp_path / "a.pdb", [atoms, atoms])
        assert "CRYST1    1.000" in (tmp_path / "a.pdb").read_text()
        back = read(tmp_path / "a.pdb")
        assert back.pbc.all()
        system = System.from_atoms(back)
        assert not system.periodic and system.cell is None
        assert not system.carriers()[0].pbc.any()
        assert System.from_atoms(Atoms("H", cell=np.eye(3), pbc=True)).periodic  # one fits
        copper = Atoms("Cu3", [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0]], cell=np.eye(3), pbc=True)
        copper.calc = EMT()
        ReverseDiffusion(copper, temperature_K=300, spring=3000.0, rng=1).run(2)
        alone = Atoms("Cu3", copper.positions)
        alone.calc = EMT()
        assert copper.get_potential_energy() == pytest.approx(alone.get_potential_energy())


def test_what_is_carried_is_a_copy():
    atoms = water()
    system = System.from_atoms(atoms)
    atoms.info["charge"] = 7
    atoms.info["nested"]["a"].append(3)
    atoms.set_tags([0, 0, 0])
    (seen,) = system.carriers()
    assert unlike(seen, water()) == [] and seen is not system.carriers()[0]
    assert system == System(system.numbers, system.masses, system.cell, system.pbc)  # no part
    assert carried_by(seen) == carried_by(water()) != carried_by(atoms)
    assert carried_by(water(2), without=frozenset({"charge"})) == carried_by(
        water(3), without=frozenset({"charge"})
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (True, 1),
        (np.arange(3), np.arange(3.0)),
        (np.zeros(4), np.zeros((2, 2))),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ((1, 2), (2, 1)),
        (None, 0),
        ({1, 2}, {1, 3}),
    ],
)
def test_plain_values_compare(a, b):
    assert comparable(a) == comparable(deepcopy(a)) != comparable(b)
    assert hash(comparable(a)) == hash(comparable(deepcopy(a)))


def test_empty_cell_is_none():
    assert System.from_atoms(molecule("H2O")).cell is None
    assert System.from_atoms(Atoms("H", cell=[5, 5, 0])).cell is None


def test_refusals():
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        System([1, 1], [1.0])
    with pytest.raises(ValueError, match=r"expected \(3, 3\)"):
        System([1], [1.0], cell=np.eye(2))
    with pytest.raises(ValueError, match=names("pbc=[True, True, True]", "volume")):
        System([1], [1.0], pbc=True)
    with pytest.raises(ValueError, match=names("pbc=[True, True, True]", "volume")):
        System([1], [1.0], cell=np.diag([1.0, 1.0, 0.0]), pbc=True)
    with pytest.raises(AttributeError):
        System([1], [1.0]).numbers = np.array([2])


def test_state_defaults():
    state = State(torch.zeros(2, 3), None, torch.zeros(2, 3))
    assert state.step == 0 and state.walkers is None and state.record is None and state.fixed == {}


@pytest.mark.parametrize("number", [-1, 119, 1.5, np.nan])
def test_numbers_of_no_elements_are_refused(number):
    with pytest.raises(ValueError, match="atomic numbers .*: expected those of elements"):
        System(np.array([1, number]), np.ones(2))


@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan, np.inf])
def test_masses_that_are_none_are_refused(mass):
    with pytest.raises(ValueError, match="atom 1 has a mass of"):
        System(np.array([1, 8]), np.array([1.0, mass]))
    atoms = Atoms("HO", positions=np.eye(3)[:2])
    if mass <= 0:
        atoms.set_masses([1.0, mass])
        with pytest.raises(ValueError, match="to hold an atom, fix it"):
            System.from_atoms(atoms)
