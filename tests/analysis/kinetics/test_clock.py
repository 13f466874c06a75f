"""Which trajectories have a clock."""

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.analysis.kinetics.clock import clock_of
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

ATOM = System(np.array([18]), np.array([40.0]), None, np.zeros(3, bool))


def trajectory(path, *, valid=True, accepted=None, steps=(0, 10, 20), **extra):
    fs = extra.pop("timestep_fs", None)
    info = RunInfo(0, 0.025, 2e-4, valid, timestep_fs=fs, extra=extra)
    columns = () if accepted is None else ("acceptance",)
    with TrajectoryWriter.create(path, ATOM, [0, 1], info, columns=columns) as writer:
        for step in steps:
            state = State(torch.zeros(2, 1, 3), torch.zeros(2), torch.zeros(2, 1, 3), step)
            value = torch.full((2,), float("nan") if step == 0 else accepted or 0.0)
            writer.append(state, {"acceptance": value})
    return Trajectory(path)


def test_plain_steps(tmp_path):
    clock = clock_of(trajectory(tmp_path / "a.h5"))
    assert clock.spacing == pytest.approx(2e-3) and clock.unit == "Å²"
    clock = clock_of(trajectory(tmp_path / "b.h5", timestep_fs=0.5))
    assert clock.spacing == pytest.approx(5.0) and clock.unit == "fs"


def test_accepted_steps(tmp_path):
    told = {"valid": False, "target": "model"}
    assert clock_of(trajectory(tmp_path / "a.h5", accepted=0.995, **told)).unit == "Å²"
    with pytest.warns(UserWarning, match=names("97.0%")):
        clock_of(trajectory(tmp_path / "b.h5", accepted=0.97, **told))
    slow = trajectory(tmp_path / "c.h5", accepted=0.9, **told)
    with pytest.raises(ValueError, match=names("90.0%", "95%")):
        clock_of(slow)
    with pytest.warns(UserWarning, match="90.0%"):
        clock_of(slow, force=True)
    with pytest.raises(ValueError, match="nan%"):
        clock_of(trajectory(tmp_path / "d.h5", **told))
    with pytest.raises(ValueError, match="proposals of 4 steps"):
        clock_of(trajectory(tmp_path / "e.h5", accepted=1.0, **told, **{"proposal-steps": 4}))


def test_no_clock(tmp_path):
    for number, extra in enumerate(({}, {"plumed": "p.dat"}, {"target": "m", "plumed": "p.dat"})):
        run = trajectory(tmp_path / f"{number}.h5", valid=False, accepted=1.0, **extra)
        with pytest.raises(ValueError, match="no clock"):
            clock_of(run, force=True)


def test_frames(tmp_path):
    with pytest.raises(ValueError, match=names("10", "20")):
        clock_of(trajectory(tmp_path / "a.h5", steps=(0, 10, 30)))
    with pytest.raises(ValueError, match="two or more frames"):
        clock_of(trajectory(tmp_path / "b.h5", steps=(0,)))
