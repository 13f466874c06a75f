"""Accepted steps on disk: adaptation, biases that learn, restarts equal to no restart."""

import json

import numpy as np
import pytest
import torch
from messages import names
from quartic_run import KT, SYSTEM, H, Quartic, info, same

from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation


class Hills(Potential):
    """``Σ_n w exp(-(s - s_n)²/2)`` of s = x of the first atom, one hill per walker and 3 steps."""

    has_memory = True

    def __init__(self):
        self.centres = torch.zeros(0, dtype=torch.float64)

    def __call__(self, x):
        s = x[..., 0, 0, None] - self.centres
        hills = 0.3 * torch.exp(-s.square() / 2)
        forces = torch.zeros_like(x)
        forces[..., 0, 0] = (hills * s).sum(-1)
        return Evaluation(hills.sum(-1), forces)

    def update(self, x, step):
        if step % 3:
            return False
        self.centres = torch.cat((self.centres, x[..., 0, 0].reshape(-1)))
        return True

    def describe(self, x):
        return {"s": x[..., 0, 0], "bias": self(x).energy}

    def checkpoint(self):
        return {"centres": self.centres.tolist()}

    def restore(self, saved, x, step):
        self.centres = torch.tensor(saved["centres"], dtype=torch.float64)


def kernel_of(kind):
    bias = Hills()
    if kind == "plain":
        return EulerMaruyama(Quartic() + bias, kT=KT, h=H), bias
    drift, target = Harmonic(2.0), Quartic()
    h = 0.05
    if kind == "reference":
        proposal = EulerMaruyama(drift + bias, kT=KT, h=h)
        return Metropolis(proposal, target + bias, 2), bias
    return Metropolis(EulerMaruyama(target + bias, kT=KT, h=h)), bias


def go(prefix, steps, kernel, *, restart=False, warm_up=0, every=5, bad=(), **changes):
    x = torch.full((4, 3, 3), 0.1)
    for walker in bad:
        x[walker] = 50.0
    return simulate(
        kernel,
        SYSTEM,
        None if restart else x,
        steps,
        files=Files(str(prefix)),
        info=info(**changes),
        every=every,
        walkers=torch.arange(4),
        restart=restart,
        warm_up=warm_up,
    )


def content(prefix):
    trajectory = Trajectory(f"{prefix}.h5")
    columns = [trajectory.columns[name] for name in sorted(trajectory.columns)]
    return trajectory.steps, trajectory.positions[:], trajectory.energies, *columns


@pytest.mark.parametrize("stop", [10, 13])
@pytest.mark.parametrize(
    ("kind", "warm_up"),
    [("plain", 0), ("model", 0), ("model", 7), ("reference", 0), ("reference", 7)],
)
def test_restart_is_the_uninterrupted_run(tmp_path, kind, stop, warm_up):
    kernel, bias = kernel_of(kind)
    whole = go(tmp_path / "whole", 40, kernel, warm_up=warm_up)
    first, _ = kernel_of(kind)
    go(tmp_path / "parts", stop, first, warm_up=warm_up)
    again, restored = kernel_of(kind)
    parts = go(tmp_path / "parts", 40, again, restart=True, warm_up=warm_up)
    assert same(content(tmp_path / "whole"), content(tmp_path / "parts"))
    assert torch.equal(bias.centres, restored.centres) and len(bias.centres) == 4 * 13
    first_frame = 10 if warm_up else 0  # at a multiple of `every`
    assert Trajectory(tmp_path / "whole.h5").steps.tolist() == list(range(first_frame, 41, 5))
    if kind != "plain":
        assert whole["acceptance"] == parts["acceptance"]
        assert whole["target_evaluations"] == parts["target_evaluations"]
        assert json.loads(json.dumps(whole["adaptation"])) == parts["adaptation"]
        assert (whole["adaptation"] is None) == (warm_up == 0)
    # the check can fail: a bias that forgets is another chain
    go(tmp_path / "forgets", stop, kernel_of(kind)[0], warm_up=warm_up)
    forgetful, lost = kernel_of(kind)
    lost.restore = lambda saved, x, step: None
    go(tmp_path / "forgets", 40, forgetful, restart=True, warm_up=warm_up)
    assert not same(content(tmp_path / "whole"), content(tmp_path / "forgets"))


def test_frames_say_what_there_is(tmp_path):
    kernel, bias = kernel_of("reference")
    summary = go(tmp_path / "a", 20, kernel, every=6)  # frames at multiples of the pace
    trajectory = Trajectory(tmp_path / "a.h5")
    assert trajectory.steps.tolist() == [0, 6, 12, 18]
    x = torch.tensor(trajectory.positions[:]).double()
    np.testing.assert_allclose(trajectory.columns["s"], x[..., 0, 0])
    # a frame has the bias that has learned from it: hills of steps 3, 6, …
    for frame, step in enumerate(trajectory.steps):
        then = Hills()
        then.centres = bias.centres[: 4 * (step // 3)]
        expected = then(x[frame]).energy
        np.testing.assert_allclose(trajectory.columns["bias"][frame], expected, rtol=1e-5)
        total = expected + Quartic()(x[frame]).energy
        np.testing.assert_allclose(trajectory.energies[frame], total, rtol=1e-5)
    acceptance = trajectory.columns["acceptance"]
    assert np.isnan(acceptance[0]).all()
    counts = acceptance[1:] * 6
    np.testing.assert_allclose(counts, counts.round())
    assert 0 < acceptance[1:].mean() < 1
    assert summary["acceptance"] == pytest.approx(counts.sum() / 72, abs=8 / 80)


def test_adaptation_is_warm_up(tmp_path):
    kernel = Metropolis(EulerMaruyama(Harmonic(1.0), kT=KT, h=1e-4))
    summary = go(tmp_path / "a", 160, kernel, warm_up=100, every=20, h=1e-4)
    factor = summary["adaptation"]["factor"]
    assert factor > 100 and summary["adaptation"]["steps"] == 100
    trajectory = Trajectory(tmp_path / "a.h5")
    assert trajectory.steps.tolist() == [100, 120, 140, 160]
    assert trajectory.info.h == pytest.approx(1e-4 * factor) == summary["h_A2"]
    assert 0.3 < summary["acceptance"] < 0.85
    saved = load_checkpoint(tmp_path / "a.restart").parameters
    assert sum(saved["tally"]["judged"]) == 4 * 60  # warm-up is not counted
    with pytest.raises(ValueError, match=names("adaptation 0", "has 100", "prefix")):
        go(tmp_path / "a", 200, kernel, restart=True, every=20, h=1e-4)
    with pytest.raises(ValueError, match=names("11 steps", "run of 10")):
        go(tmp_path / "b", 10, kernel, warm_up=11)


def test_another_target_is_another_run(tmp_path):
    kernel, _ = kernel_of("reference")
    go(tmp_path / "a", 10, kernel, extra={"target": "emt"})
    with pytest.raises(ValueError, match="target lj now, but the run has emt"):
        go(tmp_path / "a", 20, kernel_of("reference")[0], restart=True, extra={"target": "lj"})


def test_memory_of_lost_walkers_across_a_restart(tmp_path):
    kernel, bias = kernel_of("plain")
    go(tmp_path / "whole", 40, kernel, bad=(1,))
    go(tmp_path / "parts", 20, kernel_of("plain")[0], bad=(1,))
    again, restored = kernel_of("plain")
    assert go(tmp_path / "parts", 40, again, restart=True)["lost"].keys() == {"1"}
    assert same(content(tmp_path / "whole"), content(tmp_path / "parts"))
    assert torch.equal(bias.centres, restored.centres)


def test_flush_again_is_flush_once(tmp_path):
    """An interrupt between the file and the list of what is to be written costs nothing."""
    kernel = EulerMaruyama(Quartic(), kT=KT, h=H)
    state = kernel.init(torch.zeros(2, 3, 3))
    writer = TrajectoryWriter.create(tmp_path / "a.h5", SYSTEM, [0, 1], info(), columns=["q"])
    writer.append(state, {"q": torch.tensor([1.0, 2.0])})
    pending = list(writer._pending)
    writer.flush()
    writer._pending = pending
    writer.flush()
    trajectory = Trajectory(tmp_path / "a.h5")
    assert trajectory.steps.tolist() == [0] and trajectory.columns["q"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", ["a/b", ".", "potential_energy"])
def test_columns_that_are_paths(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name of a column"):
        TrajectoryWriter.create(tmp_path / "a.h5", SYSTEM, [0], info(), columns=[name])
