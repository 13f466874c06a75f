"""A relative path is that of the folder where it was given, wherever the process works later.

So for models, logs, trajectories, hills and checkpoints.
"""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read

import diffmd_ase
from diffmd_ase.adapters.batch import BatchReverseDiffusion, MonteCarlo
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.potentials.biases.recorded import Recorded
from diffmd_ase.potentials.named import in_its_place
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.simulation.planned import PlannedRun
from diffmd_ase.simulation.settings import Files, RunSettings
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import State
from diffmd_ase.system import System

SHIPPED = Path(diffmd_ase.__file__).parent / "models"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """``go()`` from where the test is to another folder, which must stay empty."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    yield lambda: os.chdir(there)
    os.chdir(here)
    assert not list(there.iterdir())


def copper():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    del atoms[0]
    atoms.rattle(0.05, seed=1)
    atoms.calc = ScoreCalculator("copper-vacancy", device="cpu")
    return atoms


def test_models(elsewhere):
    shutil.copy(SHIPPED / "copper-vacancy.safetensors", "model.safetensors")
    atoms, calc = copper(), ScoreCalculator("model.safetensors", device="cpu")
    committee = ScoreCalculator(["model.safetensors", "copper-vacancy"], device="cpu")
    expected = atoms.get_potential_energy()
    saved = pickle.dumps(calc)
    elsewhere()
    for one in (calc, committee, pickle.loads(saved)):
        atoms.calc = one
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-6)
    assert calc.parameters["model"] == "model.safetensors"  # as it was called


@pytest.mark.parametrize("kind", [str, Path])
def test_logs_and_trajectories(elsewhere, kind):
    files = {"trajectory": kind("md.traj"), "logfile": kind("md.log"), "loginterval": 1}
    with ReverseDiffusion(copper(), temperature_K=900, rng=1, **files) as dyn:
        elsewhere()
        dyn.run(2)
        dyn.run(2)
    os.chdir(Path("..") / "here")
    assert len(Path("md.log").read_text().splitlines()) == 6 and len(read("md.traj", ":")) == 5


def test_logs_and_trajectories_of_walkers(elsewhere):
    images = [copper(), copper()]
    images[1].calc = images[0].calc
    paths = ["0.traj", Path("1.traj")]
    kernel = EulerMaruyama(Harmonic(1.0), kT=0.025, h=1e-4)
    with (
        BatchReverseDiffusion(
            images, temperature_K=900, rng=1, logfile="b.log", trajectory=paths
        ) as dyn,
        MonteCarlo(copper(), kernel, rng=1, logfile="m.log", trajectory="m.traj") as chain,
    ):
        elsewhere()
        dyn.run(2)
        chain.run(2)
    os.chdir(Path("..") / "here")
    assert [len(read(f"{name}.traj", ":")) for name in "01m"] == [3, 3, 3]
    assert {len(Path(f"{name}.log").read_text().splitlines()) for name in "bm"} == {4}


def test_hills_and_records(elsewhere):
    system = System(np.array([18, 18]), np.array([39.9, 39.9]))
    cv = Distance(system, [0, 1], name="d")
    metad = {"kT": 0.025, "sigma": 0.1, "height": 0.01, "pace": 1}
    biases = [
        Metadynamics(cv, **metad, file="HILLS"),
        Metadynamics(cv, **metad, file="OWN", walkers="independent"),
        OPES(cv, kT=0.025, sigma=0.1, barrier=0.1, pace=1, file="KERNELS"),
        Recorded(Metadynamics(cv, **metad), "COLVAR", every=1),
    ]
    x = torch.tensor([[[0.0, 0, 0], [2.0, 0, 0]], [[0.0, 0, 0], [3.0, 0, 0]]]).double()
    elsewhere()
    for step in (1, 2):
        for bias in biases:
            bias.update(x, step)
    os.chdir(Path("..") / "here")
    there = sorted(path.name for path in Path(".").iterdir())
    assert there == ["COLVAR", "HILLS", "KERNELS", "OWN.0", "OWN.1"]
    rows = [line for line in Path("HILLS").read_text().splitlines() if line[0] != "#"]
    assert len(rows) == 4


def test_trajectories_of_our_own(elsewhere):
    system = System(np.array([18]), np.array([39.9]))
    info = RunInfo(seed=1, kT=0.025, h=1e-3, kinetics_valid=True)
    writer = TrajectoryWriter.create("a.h5", system, [0], info)
    elsewhere()
    for step in range(3):
        x = torch.full((1, 1, 3), float(step))
        writer.append(State(x, torch.zeros(1), torch.zeros_like(x), step=step))
    writer.close()
    os.chdir(Path("..") / "here")
    lazy = Trajectory("a.h5")
    elsewhere()
    assert lazy.positions[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]


def test_files_of_a_run(elsewhere):
    """The folder changes while it goes on, as a callback may do."""
    system = System(np.array([18]), np.array([39.9]))
    kernel = EulerMaruyama(Harmonic(1.0), kT=0.025, h=1e-4)
    info = RunInfo(seed=1, kT=0.025, h=1e-4, kinetics_valid=True)
    x = torch.zeros(1, 1, 3, dtype=torch.float64)
    settings = {"files": Files("md"), "info": info, "every": 5}
    simulate(kernel, system, x, 10, **settings, progress=lambda *_: elsewhere())
    os.chdir(Path("..") / "here")
    there = {path.name for path in Path(".").iterdir()}
    assert {"md.h5", "md.restart", "md.json", "md.extxyz"} <= there
    assert len(Trajectory("md.h5")) == 3


def test_a_planned_run(elsewhere):
    shutil.copy(SHIPPED / "alanine-dipeptide.safetensors", "model.safetensors")
    settings = RunSettings(
        model="model.safetensors", start="alanine-dipeptide", steps=4, every=2, device="cpu"
    )
    planned = PlannedRun.of(settings)
    x = planned.start()
    elsewhere()
    planned.run(x, extra={})
    os.chdir(Path("..") / "here")
    trajectory = Trajectory("md.h5")
    assert len(trajectory) == 3 and len(trajectory.info.model_sha256) == 64


def test_a_prefix_may_name_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Files("runs/").absolute().trajectory == tmp_path / "runs" / ".h5"
    assert Files(str(tmp_path / "a")).absolute().prefix == str(tmp_path / "a")
    assert Files("md_0.1").absolute().summary == tmp_path / "md_0.1.json"


def test_targets(elsewhere):
    """A target is found again when the cell has changed."""
    shutil.copy(SHIPPED / "copper-vacancy.safetensors", "model.safetensors")
    atoms = copper()
    dyn = ReverseDiffusion(atoms, temperature_K=900, rng=1, target="model.safetensors")
    dyn.run(1)
    elsewhere()
    atoms.set_cell(atoms.cell * 1.001, scale_atoms=True)
    dyn.run(1)
    assert np.isfinite(atoms.info["target_energy"])
    assert in_its_place("emt") == "emt" and in_its_place(atoms) is atoms


def test_names_are_no_files(elsewhere):
    for name in ("emt", "model", "alanine-dipeptide"):
        Path(name).touch()
    assert in_its_place("emt") == "emt" and in_its_place("model") == "model"
    assert in_its_place("alanine-dipeptide") == str(Path("alanine-dipeptide").resolve())
    assert in_its_place(Path("nowhere")) == "nowhere"
