"""Frames outside of a model's snapshots: warned of once, counted, collected, ended."""

import json

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from chains import chains

from diffmd_ase import ScoreCalculator
from diffmd_ase.geometry import dihedrals
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.simulation.planned import PlannedRun
from diffmd_ase.simulation.settings import RunSettings
from diffmd_ase.system import System


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of trans chains, three of these and two cis ones to start from."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("outside")
    x = chains(np.random.default_rng(2), 4000)
    angle = np.abs(dihedrals(x, np.array([[0, 1, 2, 3]]))[:, 0])
    trans, cis = x[angle > 2.0], x[angle < 1.0]
    data = Snapshots(System(np.full(4, 6), np.full(4, 12.0)), trans[:1000], 300)
    config = TrainConfig(steps=1, batch_size=8, width=4, evaluations=1, processes=1)
    train(data, config=config, device="cpu").save(folder / "m.safetensors")
    start = np.concatenate([trans[1000:1003], cis[:2]])
    np.savez(folder / "s.npz", positions=start, numbers=data.system.numbers, temperature_K=300.0)
    return folder


def ran(place, tmp_path, steps=20, restart=False, **more):
    settings = RunSettings(
        model=str(place / "m.safetensors"),
        start=str(place / "s.npz"),
        walkers=5,
        steps=steps,
        every=10,
        step_size=1e-7,
        prefix=str(tmp_path / "md"),
        device="cpu",
        **more,
    )
    planned = PlannedRun.of(settings, restart=restart)
    return planned.run(planned.start(), extra={})


def test_they_are_counted_and_collected(place, tmp_path):
    with pytest.warns(
        UserWarning, match="outside of the snapshots.*torsion C1-C2 .*never seen"
    ) as w:
        summary = ran(place, tmp_path, collect=tmp_path / "outside.extxyz")
    assert len(w) == 1
    told = json.loads((tmp_path / "md.json").read_text())
    cis = [atoms.info["extrapolation"] for atoms in ase.io.read(tmp_path / "outside.extxyz", ":")]
    # of three frames of five walkers, two of them cis
    assert summary["frames_outside"] == told["frames_outside"] == "4 of 10"
    assert len(cis) == 4 and min(cis) > 1
    assert "never seen" in ase.io.read(tmp_path / "outside.extxyz").info["outside"]


def test_a_walker_ends_there(place, tmp_path):
    with pytest.warns(UserWarning, match="outside of the snapshots"):
        summary = ran(place, tmp_path, stop_outside=True)
    assert summary["walkers"] == 3 and len(summary["ended_outside"]) == 2
    assert set(summary["ended_outside"].values()) == {10} and not summary["lost"]
    # the others go on, also from the file
    again = ran(place, tmp_path, steps=40, restart=True, stop_outside=True)
    assert again["walkers"] == 3 and again["steps"] == 40
    assert again["ended_outside"] == summary["ended_outside"]
    assert again["frames_outside"].startswith("2 of ")


def test_a_run_ends_where_nobody_goes_on(place, tmp_path):
    with np.load(place / "s.npz") as start:
        cis = {**start, "positions": start["positions"][3:]}
    folder = tmp_path / "cis"
    folder.mkdir()
    np.savez(folder / "s.npz", **cis)
    (folder / "m.safetensors").write_bytes((place / "m.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="outside of the snapshots"):
        summary = ran(folder, tmp_path, steps=1000, stop_outside=True)
    assert summary["steps"] == 10 and len(summary["ended_outside"]) == 5


def test_a_calculator_says_it(place):
    with np.load(place / "s.npz") as start:
        trans, cis = start["positions"][0], start["positions"][3]
    atoms = Atoms("C4", trans)
    atoms.calc = ScoreCalculator(place / "m.safetensors", device="cpu")
    atoms.get_forces()
    assert atoms.calc.details["extrapolation"] < 1
    atoms.positions = cis
    with pytest.warns(UserWarning, match="outside of the snapshots"):
        atoms.get_forces()
    assert atoms.calc.details["extrapolation"] > 1
    potential = atoms.calc.potential(atoms)
    errors = potential.force_errors(torch.tensor(np.stack([trans, cis])))
    assert errors.shape == (2, 4, 3) and errors[1].norm() > 1.5 * errors[0].norm()
