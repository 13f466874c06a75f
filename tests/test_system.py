"""System: atoms without positions, and back."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from messages import names

from diffmd_ase.state import State
from diffmd_ase.system import System


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
