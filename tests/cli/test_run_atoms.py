"""``diffmd run``: a calculator as target sees the atoms of the start; what they hold is held."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import external_calculators, names, register_calculator_class
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane

from diffmd_ase.io.trajectory import Trajectory


class Recorder(EMT):
    """EMT that keeps what it was asked for."""

    seen: list = []  # noqa: RUF012

    def calculate(self, *args, **options):
        super().calculate(*args, **options)
        atoms = self.atoms
        self.seen.append(
            (atoms.info["charge"], atoms.get_tags().tolist(), atoms.get_initial_charges().tolist())
        )


@pytest.fixture
def recorder():
    register_calculator_class("recorder", Recorder)
    Recorder.seen.clear()
    yield Recorder.seen
    del external_calculators["recorder"]
    names.remove("recorder")


def crystal(*constraints):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    del atoms[0]
    atoms.rattle(0.03, seed=1)
    atoms.info["charge"] = 2
    atoms.set_tags(range(31))
    atoms.set_initial_charges(np.full(31, 0.1))
    atoms.set_constraint(constraints)
    return atoms


def test_through_the_target_and_a_restart(diffmd, recorder, tmp_path):
    plane = FixedPlane([2, 3], [1, 1, 0])
    atoms = crystal(FixAtoms([0, 1]), plane, FixCartesian([4], (True, False, False)))
    ase.io.write(tmp_path / "start.traj", atoms)
    words = ["run", "copper-vacancy", "--start", tmp_path / "start.traj", "--walkers", 2]
    words += ["--every", 2, "--target", "recorder", "--no-progress"]
    assert diffmd(*words, "--steps", 4, "--prefix", "whole")[0] == 0
    assert diffmd(*words, "--steps", 2, "--prefix", "parts")[0] == 0
    told = len(recorder)
    assert diffmd(*words, "--steps", 4, "--prefix", "parts", "--restart")[0] == 0
    expected = (2, list(range(31)), [0.1] * 31)
    assert len(recorder) > told and recorder == [expected] * len(recorder)
    whole, parts = (Trajectory(f"{name}.h5").positions[:] for name in ("whole", "parts"))
    assert np.array_equal(whole, parts)
    moved = whole[-1] - whole[0]
    assert (moved[:, :2] == 0).all() and (moved[:, 4, 0] == 0).all()
    assert abs(moved[:, 2:4] @ [1, 1, 0]).max() < 1e-6  # frames are float32
    assert (abs(moved[:, 2:]).max(-1) > 1e-4).all()


def test_what_does_not_hold_is_said(diffmd, tmp_path):
    ase.io.write(tmp_path / "start.traj", crystal(FixBondLength(0, 1)))
    words = ["run", "copper-vacancy", "--start", tmp_path / "start.traj", "--steps", 2]
    code, _, err = diffmd(*words, "--every", 1, "--no-progress")
    assert code == 0
    assert "FixBondLengths" in err and "not held" in err
