"""The demonstration end to end, tiny; its report; its processes."""

import json
import re

import numpy as np
import pytest
from messages import names
from peroxide import peroxide

from diffmd_ase.cli import demo_parts as demo
from diffmd_ase.io.trajectory import RunInfo, Trajectory, TrajectoryWriter
from diffmd_ase.report import make
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.state import State
from diffmd_ase.system import System

SYSTEM = System(np.array([1, 8, 1]), np.array([1.0, 16.0, 1.0]))


@pytest.fixture
def trajectory(tmp_path, rng):
    def make(name, walkers, *, frames=5, h=0.01, every=10):
        import torch

        path = tmp_path / name
        writer = TrajectoryWriter.create(path, SYSTEM, walkers, RunInfo(0, 0.025, h, True))
        with writer:
            for n in range(frames):
                x = torch.as_tensor(rng.normal(size=(len(walkers), 3, 3)))
                energy = x.square().sum((1, 2))
                writer.append(State(x, energy, -x, n * every, torch.as_tensor(walkers)))
        return path

    return make


@pytest.mark.parametrize(
    ("walkers", "processes", "shares"),
    [
        (64, 2, [(0, 32), (32, 32)]),
        (5, 2, [(0, 2), (2, 3)]),
        (1, 2, [(0, 1)]),
        (4, 1, [(0, 4)]),
    ],
)
def test_shares(walkers, processes, shares):
    assert demo._shares(walkers, processes) == shares


def test_side_by_side(trajectory):
    one, two = trajectory("a.h5", [0, 1]), trajectory("b.h5", [2], frames=7)
    x, steps, energies, info = make._side_by_side([one, two], 0.2)
    assert x.shape == (4, 3, 3, 3) and steps.tolist() == [10, 20, 30, 40] and info.h == 0.01
    # the longer share is cut at the end, not at the beginning
    assert np.array_equal(x[:, 2], Trajectory(two).positions[1:5, 0])
    assert np.allclose(energies, (x.astype(float) ** 2).sum((2, 3)), rtol=1e-5)


@pytest.mark.parametrize("changes", [{"h": 0.02}, {"every": 5}])
def test_side_by_side_refuses_other_runs(trajectory, changes):
    paths = [trajectory("a.h5", [0]), trajectory("b.h5", [1], **changes)]
    with pytest.raises(ValueError, match=r"b\.h5 and .*a\.h5 differ"):
        make._side_by_side(paths, 0.0)


def test_a_long_trajectory_is_thinned(trajectory, monkeypatch):
    path = trajectory("a.h5", [0, 1], frames=40)
    monkeypatch.setattr(make, "_MAX_STRUCTURES", 20)
    x, steps, _, _ = make._side_by_side([path], 0.5)
    assert steps.tolist() == [200, 240, 280, 320, 360] and len(x) == 5


def test_training_rows_are_uniform():
    class Expert:
        def __init__(self, name, steps):
            self.name = name
            self.history = [
                {"step": s, "training_loss": None if not s else 0.5 * s, "validation_loss": 1.0 * s}
                for s in steps
            ]

    class Model:
        class card:
            experts = (Expert("fine", [0, 2, 4]), Expert("broad", [0, 4, 8]))

    rows = make._training_rows(Model)
    names = {f"{e}: {k} loss" for e in ("fine", "broad") for k in ("training", "validation")}
    assert [row["step"] for row in rows] == [0, 2, 4, 8]
    assert all(set(row) == {"step", *names} for row in rows)
    assert rows[1]["fine: training loss"] == 1.0 and rows[1]["broad: training loss"] is None
    assert rows[3]["broad: validation loss"] == 8.0


@pytest.mark.slow
def test_a_part_that_fails_is_named(tmp_path, capfd):
    """The child says what is wrong; the command and its code follow."""
    with pytest.raises(RuntimeError, match=names("diffmd train no.npz", "code 1", "above")):
        demo.run_demo(tmp_path / "demo", snapshots="no.npz", progress=False)
    assert "no file 'no.npz'" in capfd.readouterr().err


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "data.npz",
        positions=peroxide(400, rng),
        numbers=[1, 8, 8, 1],
        temperature_K=300.0,
    )
    tiny = {"minutes": 0.05, "walkers": 3, "d_t": 0.1, "samples": 40, "progress": False}
    folder = tmp_path / "demo"
    summary = demo.run_demo(folder, snapshots=str(tmp_path / "data.npz"), **tiny)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary["times_s"]) == {"train", "sample", "run", "report"}
    assert summary["trajectory"]["walkers"] == 3 and summary["n_iid"] == 40
    assert summary["verdicts"] and summary["evaluations_per_s"] > 0
    h = 0.2 / ScoreModel.load(folder / "model.safetensors").card.lambda_max
    assert summary["steps"] * h >= 0.1
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained
    # finished parts are kept, and a longer run goes on
    before = (folder / "model.safetensors").read_bytes()
    longer = demo.run_demo(
        folder, snapshots=str(tmp_path / "data.npz"), **{**tiny, "d_t": 0.14, "samples": 10}
    )
    assert longer["steps"] > summary["steps"] and longer["n_iid"] == 40
    assert (folder / "model.safetensors").read_bytes() == before
    assert longer["times_s"]["train"] == summary["times_s"]["train"]
