"""What files cannot be analysed, or not wholly, is said in a line; for variables as for motion."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from messages import names

from diffmd_ase.analysis.kinetics.motion import read_motion
from diffmd_ase.analysis.kinetics.states import Box, boxes
from diffmd_ase.analysis.kinetics.summary import kinetics
from diffmd_ase.analysis.kinetics.variables import Variables, read_variables
from diffmd_ase.io.trajectory import RunInfo, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

CRYSTAL = System(np.array([29] * 4), np.full(4, 63.5), np.eye(3) * 8, np.ones(3, bool))
READERS = [partial(read_variables, wanted=["d=distance:0,1"]), partial(read_motion, symbol="all")]


@pytest.fixture
def x(rng):
    return 2.0 * np.arange(12.0).reshape(4, 3) + 0.1 * rng.normal(size=(60, 3, 4, 3))


def written(path, x, *, h=1e-3, valid=True, system=CRYSTAL, every=5):
    info = RunInfo(seed=1, kT=0.025, h=h, kinetics_valid=valid)
    with TrajectoryWriter.create(path, system, range(x.shape[1]), info) as writer:
        for t, positions in enumerate(x):
            here = torch.tensor(positions)
            writer.append(State(here, torch.zeros(len(here)), here, step=every * t))
    return path


@pytest.mark.parametrize("read", READERS)
def test_refused(read, x, tmp_path):
    one = written(tmp_path / "a.h5", x)
    other_clock = written(tmp_path / "b.h5", x, every=10)
    gold = System(np.array([79] * 4), np.full(4, 197.0), CRYSTAL.cell, CRYSTAL.pbc)
    other_atoms = written(tmp_path / "c.h5", x, system=gold)
    larger = System(CRYSTAL.numbers, CRYSTAL.masses, 1.1 * CRYSTAL.cell, CRYSTAL.pbc)
    other_cell = written(tmp_path / "d.h5", x, system=larger)
    biased = written(tmp_path / "e.h5", x, valid=False)
    lost = written(tmp_path / "f.h5", x * np.nan)
    for files, words in (
        ([one, other_clock], names("b.h5", "one by one")),
        ([one, other_atoms], "different systems, which differ in"),
        ([one, other_cell], "different systems, which differ in .*cell"),
        ([one, biased], "has no clock"),
        ([lost], "all walkers were lost"),
        ([], "no files"),
    ):
        with pytest.raises(ValueError, match=words):
            read(files)
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "none.h5"])
    torn = tmp_path / "torn.h5"
    torn.write_bytes(one.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut off|damaged|not an HDF5"):
        read([torn])


@pytest.mark.parametrize("read", READERS)
def test_constant_pressure_has_no_clock(read, x, tmp_path):
    """Cells that change come from other programs, whose files say nothing of a step."""
    frames = [Atoms("Cu4", p, cell=[8 + 0.01 * n] * 3, pbc=True) for n, p in enumerate(x[:, 0])]
    write(tmp_path / "npt.traj", frames)
    with pytest.raises(ValueError, match="nothing of its time step"):
        read([tmp_path / "npt.traj"])


@pytest.mark.parametrize("read", READERS)
def test_what_is_left_out_is_said(read, x, tmp_path):
    x[30:, 1] = np.nan
    path = written(tmp_path / "a.h5", x)
    code = f"""
import h5py, os
file = h5py.File({str(path)!r}, "r+", libver="v110"); file.swmr_mode = True
file["particles/trajectory/position/value"].resize(70, axis=0); file.flush()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)  # positions, and no steps of them
    told = " ".join(read([path]).notes)
    assert "its 60 whole frames are used" in told and "1 lost walkers are left out" in told
    assert "left out" not in " ".join(read([written(tmp_path / "b.h5", x[:, ::2])]).notes)


def test_no_topology(x, tmp_path):
    path = written(tmp_path / "a.h5", x)
    with pytest.raises(ValueError, match="no torsion of heavy atoms turns in this system: name"):
        read_variables([path])
    with pytest.raises(ValueError, match="there are Cu, or all"):
        read_motion([path], "Ag")


def test_one_state(rng):
    """No Markov model, no passages: each a line, and no exception."""
    values = rng.uniform(0.1, 1.0, size=(400, 6, 1))
    values[:5, 0] = -1.0
    variables = Variables(("t",), values, (False,), 1.0, "Å²")
    with pytest.raises(ValueError, match="no frame is in it"):
        boxes(variables, [Box("a", {"t": (0, 2)}), Box("b", {"t": (3, 4)})])
    states = boxes(variables, [Box("a", {"t": (0, 2)}), Box("b", {"t": (-2, 0)})])
    found = kinetics(variables, states)
    told = " ".join(found.notes)
    assert found.model is None and "Markov model: a state with" in told and "passages" in told
    assert all(p.counted is None and p.markov is None for p in found.passages)
