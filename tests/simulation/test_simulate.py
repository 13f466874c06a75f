"""Runs that leave files: restart, lost walkers, shares of a batch, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import quartic_run
import torch
from messages import names
from quartic_run import KERNEL, KT, SYSTEM, H, Quartic, go, info, same

from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.simulation.frames import frame_writer, states_temperature
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.signals import Deferred
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation


def content(prefix):
    trajectory = Trajectory(f"{prefix}.h5")
    return trajectory.steps, trajectory.positions[:], trajectory.energies


def test_files_and_summary(tmp_path):
    done = []
    ids = torch.arange(2)
    summary = simulate(
        KERNEL,
        SYSTEM,
        torch.zeros(2, 3, 3),
        23,
        files=Files(str(tmp_path / "a")),
        info=info(),
        every=5,
        walkers=ids,
        progress=lambda step, alive: done.append((step, alive)),
    )
    assert done == [(5, 2), (10, 2), (15, 2), (20, 2), (23, 2)]
    assert json.loads((tmp_path / "a.json").read_text()) == summary
    assert summary["steps"] == 23 and summary["lost"] == {} and summary["walkers"] == 2
    assert summary["D_t_per_walker_A2"] == pytest.approx(23 * H)
    trajectory = Trajectory(tmp_path / "a.h5")
    assert trajectory.steps.tolist() == [0, 5, 10, 15, 20]
    assert trajectory.info.seed == 3 and trajectory.system == SYSTEM
    final = ase.io.read(tmp_path / "a.extxyz", index=":")
    saved = load_checkpoint(tmp_path / "a.restart").state
    assert saved.step == 23
    assert np.allclose([a.positions for a in final], saved.x.numpy(), atol=1e-7)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.extxyz",
        "a.h5",
        "a.json",
        "a.restart",
        "a.restart.prev",
    ]


@pytest.mark.parametrize("bad", [(), (1,)], ids=["all alive", "one lost before the stop"])
@pytest.mark.parametrize("stop", [0, 10, 13])
def test_restart_is_the_uninterrupted_run(tmp_path, stop, bad):
    go(tmp_path / "whole", 40, bad=bad)
    go(tmp_path / "parts", stop, bad=bad)
    first = load_checkpoint(tmp_path / "parts.restart").parameters
    summary = go(tmp_path / "parts", 40, restart=True)
    assert same(content(tmp_path / "whole"), content(tmp_path / "parts"))
    whole, parts = (load_checkpoint(tmp_path / f"{n}.restart") for n in ("whole", "parts"))
    assert torch.equal(whole.state.x, parts.state.x)
    assert parts.parameters["seconds"] > first["seconds"]
    if not bad:  # the block in which a walker is lost does not count
        assert whole.parameters["evaluations"] == parts.parameters["evaluations"] == 160
    assert (tmp_path / "whole.extxyz").read_bytes() == (tmp_path / "parts.extxyz").read_bytes()
    assert summary["steps"] == 40 and set(summary["lost"]) == {str(w) for w in bad}
    # the check can fail: another seed is another chain
    go(tmp_path / "other", 40, bad=bad, seed=4)
    assert not same(content(tmp_path / "whole"), content(tmp_path / "other"))


def test_shares_of_a_batch(tmp_path):
    go(tmp_path / "all", 30)
    go(tmp_path / "low", 30, walkers=(0, 1))
    go(tmp_path / "high", 30, walkers=(2, 3))
    _, positions, _ = content(tmp_path / "all")
    shares = [content(tmp_path / name)[1] for name in ("low", "high")]
    assert np.array_equal(positions, np.concatenate(shares, axis=1))
    assert not np.array_equal(shares[0], shares[1])


def test_lost_walkers_are_named_and_the_others_go_on(tmp_path):
    go(tmp_path / "fine", 30)
    summary = go(tmp_path / "some", 30, bad=(1, 3))
    assert set(summary["lost"]) == {"1", "3"} and summary["walkers"] == 2
    assert all(0 < step < 30 for step in summary["lost"].values())
    trajectory = Trajectory(tmp_path / "some.h5")
    assert trajectory.lost.tolist() == [1, 3]
    fine, some = content(tmp_path / "fine")[1], trajectory.positions[:]
    assert np.array_equal(fine[:, [0, 2]], some[:, [0, 2]])
    assert len(ase.io.read(tmp_path / "some.extxyz", index=":")) == 2


HOT = torch.tensor([0.5, 1.0, 2.0, 4.0])


def test_temperatures_go_on_with_the_walkers_that_are_left(tmp_path):
    """kT of each walker: the survivors are bitwise those of a run without the lost one."""

    def kernel(kT):
        return EulerMaruyama(Quartic(), kT=kT, h=H)

    summary = go(tmp_path / "some", 30, bad=(1,), kernel=kernel(HOT))
    assert set(summary["lost"]) == {"1"} and summary["walkers"] == 3
    rows = torch.tensor([0, 2, 3])
    go(tmp_path / "never", 30, walkers=(0, 2, 3), kernel=kernel(HOT[rows]))
    some, never = content(tmp_path / "some"), content(tmp_path / "never")
    assert np.array_equal(some[1][:, rows], never[1])
    assert np.array_equal(some[2][:, rows], never[2])
    # and across a restart, which is given the kernel of all who began
    go(tmp_path / "parts", 13, bad=(1,), kernel=kernel(HOT))
    go(tmp_path / "parts", 30, restart=True, kernel=kernel(HOT))
    assert same(some, content(tmp_path / "parts"))
    # the check can fail: one temperature for all is another chain
    go(tmp_path / "one", 30, walkers=(0, 2, 3), kernel=kernel(1.0))
    assert not np.array_equal(never[1], content(tmp_path / "one")[1])


def test_all_lost_leaves_readable_files(tmp_path):
    with pytest.raises(DivergedError, match=names("walkers [0]", "diverged", "smaller step h")):
        go(tmp_path / "a", 30, walkers=(0,), bad=(0,), every=10)
    assert Trajectory(tmp_path / "a.h5").steps.tolist() == [0]
    assert load_checkpoint(tmp_path / "a.restart").parameters["lost"].keys() == {"0"}
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed 4 now, but the run has 3"),
        ({"kT": 2.0}, "kT"),
        ({"h": 0.02}, "step size"),
        ({"every": 7}, "steps between frames 7"),
        ({"model_sha256": "xyz"}, "model xyz now"),
        ({"walkers": (0, 1)}, "walkers"),
        ({"steps": 5}, "5 steps in all asked for"),
    ],
)
def test_restart_refuses_other_settings(tmp_path, changes, words):
    go(tmp_path / "a", 10)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=words):
        go(tmp_path / "a", **{"steps": 20, "restart": True, **changes})
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_restart_with_lost_walkers_knows_their_ids(tmp_path):
    go(tmp_path / "a", 10, bad=(0,))
    assert go(tmp_path / "a", 15, restart=True)["lost"].keys() == {"0"}


def test_refuses_to_overwrite(tmp_path):
    go(tmp_path / "a", 5)
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.h5 exists"):
        go(tmp_path / "a", 5)
    (tmp_path / "a.restart").rename(tmp_path / "c.restart")
    (tmp_path / "a.restart.prev").unlink()
    with pytest.raises(FileExistsError, match=r"a\.h5 exists: remove it \(no checkpoint"):
        go(tmp_path / "a", 5)
    (tmp_path / "c.restart").rename(tmp_path / "a.restart")
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    with pytest.raises(FileExistsError, match=r"a\.restart exists"):
        go(tmp_path / "a", 5)
    assert (tmp_path / "b.h5").read_bytes() == before


def test_nothing_to_start_from(tmp_path):
    with pytest.raises(ValueError, match="no starting positions"):
        simulate(KERNEL, SYSTEM, None, 5, files=Files(str(tmp_path / "a")), info=info(), every=1)
    with pytest.raises(FileNotFoundError):
        go(tmp_path / "a", 5, restart=True)
    assert not list(tmp_path.iterdir())


KILLED = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {oracles!r})
import torch
torch.set_default_dtype({dtype})
import diffmd_ase.simulation.pace as pace
from quartic_run import go
pace._CHECKPOINT_SECONDS = 0.05
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
print("ready", flush=True)
go(Path(sys.argv[1]), 10**9, every=20)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_goes_on(tmp_path, number, default_dtype):
    script = KILLED.format(oracles=str(Path(quartic_run.__file__).parent), dtype=default_dtype)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "cut")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # until some checkpoint is past the start
        time.sleep(0.1)
        path = tmp_path / "cut.restart"
        if path.exists() and load_checkpoint(path).state.step > 0:
            break
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    step = load_checkpoint(tmp_path / "cut.restart").state.step
    assert step > 0
    total = step + 45
    go(tmp_path / "cut", total, restart=True, every=20)
    go(tmp_path / "whole", total, every=20)
    assert same(content(tmp_path / "whole"), content(tmp_path / "cut"))


class Interrupting(Quartic):
    """Sends itself a signal in its n-th evaluation, or in what it learns from that step."""

    def __init__(self, number, n, has_memory):
        self.number, self.left, self.has_memory = number, n, has_memory
        self.height = 0.0

    def __call__(self, x):
        self.left -= 1
        if self.left == 0 and not self.has_memory:
            signal.raise_signal(self.number)
        value = super().__call__(x)
        scale = 1 + self.height
        return Evaluation(scale * value.energy, scale * value.forces)

    def update(self, x, step):
        self.height += 0.01 * float(x.square().mean())
        if self.left <= 0:
            self.left = 10**9
            signal.raise_signal(self.number)
        return True

    def checkpoint(self):
        return {"height": self.height}

    def restore(self, saved, x, step):
        self.height = saved["height"]


@pytest.mark.parametrize("has_memory", [False, True])
@pytest.mark.parametrize("n", [5, 6, 7, 8])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_anywhere_goes_on(tmp_path, number, n, has_memory):
    def kernel(n):
        return EulerMaruyama(Interrupting(number, n, has_memory), kT=KT, h=H)

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut", 30, every=3, kernel=kernel(n))
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    go(tmp_path / "cut", 30, every=3, kernel=kernel(10**9), restart=True)
    go(tmp_path / "whole", 30, every=3, kernel=kernel(10**9))
    assert same(content(tmp_path / "whole"), content(tmp_path / "cut"))


def test_a_second_signal_does_not_wait():
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal waits")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Deferred():
            twice()
        with pytest.raises(KeyboardInterrupt), Deferred() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.pending == signal.SIGINT  # acts at the end at the latest
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["x.npz", "x.extxyz", "x.traj"])
def test_frame_writer(tmp_path, name, rng):
    positions = rng.normal(size=(4, 3, 3))
    frame_writer(tmp_path / name)(SYSTEM, positions, 300.0)
    if name == "x.npz":
        read = np.load(tmp_path / name)
        assert read["temperature_K"] == 300 and np.array_equal(read["positions"], positions)
    else:
        frames = ase.io.read(tmp_path / name, index=":")
        assert np.allclose([a.positions for a in frames], positions, atol=1e-7)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert states_temperature(tmp_path / name) == (name == "x.npz")


@pytest.mark.parametrize("name", ["x.nonsense", "x", "POSCAR"])
def test_frame_writer_refuses_early(tmp_path, name):
    with pytest.raises(ValueError, match=r"use \.extxyz"):
        frame_writer(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_states_temperature(tmp_path):
    np.savez(tmp_path / "without.npz", positions=np.zeros((1, 3, 3)), numbers=SYSTEM.numbers)
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    assert not states_temperature(tmp_path / "without.npz")
    assert states_temperature(tmp_path / "broken.npz")
    assert states_temperature("alanine-dipeptide")
