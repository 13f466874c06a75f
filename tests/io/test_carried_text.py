"""What atoms carry, in a trajectory and out of it."""

import json

import numpy as np
import pytest
from ase.constraints import FixAtoms, FixedPlane
from recorder import unlike, water

from diffmd_ase.io.carried import carried_text, with_carried
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.system import System


def bare(system):
    return System(system.numbers, system.masses, system.cell, system.pbc)


def test_there_and_back():
    atoms = water()
    atoms.set_constraint([FixAtoms([0]), FixedPlane(1, [1.0, 2.0, 3.0])])
    del atoms.arrays["momenta"]
    system = System.from_atoms(atoms)
    text = carried_text(system)
    json.loads(text)
    (back,) = with_carried(bare(system), text).carriers()
    assert unlike(back, atoms) == []
    assert [c.todict() for c in back.constraints] == [c.todict() for c in atoms.constraints]
    assert with_carried(bare(system), None).carried == ()


def test_what_cannot_be_kept_is_named():
    atoms = water()
    atoms.info["odd"] = object()
    with pytest.warns(UserWarning, match=r"atoms.info\['odd'\] is a object"):
        text = carried_text(System.from_atoms(atoms))
    (back,) = with_carried(bare(System.from_atoms(atoms)), text).carriers()
    assert back.info["charge"] == 1 and "odd" not in back.info


def test_in_a_trajectory(tmp_path):
    atoms = water(3)
    info = RunInfo(seed=0, kT=0.025, h=1e-3, kinetics_valid=True)
    for system in (System.from_atoms(atoms), bare(System.from_atoms(atoms))):
        path = tmp_path / f"{len(system.carried)}.h5"
        with TrajectoryWriter.create(path, system, np.arange(2), info):
            pass
        back = Trajectory(path).system
        assert back == system
        assert back.carriers()[0].info.get("charge") == (3 if system.carried else None)
