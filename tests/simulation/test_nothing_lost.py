"""A full disk, two runs at once, walkers that diverge: what is safe stays, and is told."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.io import read

from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.lock import locked
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

WATER = System(np.array([8, 1, 1]), np.array([16.0, 1.0, 1.0]))
START = torch.ones(4, 3, 3, dtype=torch.float64)


def run(folder, n_steps, potential=None, **more):
    kernel = EulerMaruyama(Harmonic(1.0) if potential is None else potential, kT=0.025, h=1e-3)
    info = RunInfo(seed=7, kT=0.025, h=1e-3, kinetics_valid=True)
    files = Files(str(folder / "md"))
    x = None if more.get("restart") else START
    return simulate(kernel, WATER, x, n_steps, files=files, info=info, every=5, **more)


FULL = """
import pathlib, resource, sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_nothing_lost import run
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
run(pathlib.Path({folder!r}), 2000, restart={restart})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are those of Linux")
@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_run_can_go_on(tmp_path):
    """At any size of the first file that does not fit; then with room, as if never stopped."""
    here = str(__import__("pathlib").Path(__file__).parent)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, 2000)
    size = (whole / "md.h5").stat().st_size
    for limit in (500, 30_000, size - 1000):
        folder = tmp_path / str(limit)
        folder.mkdir()

        def go(limit, restart, folder=folder):
            code = FULL.format(here=here, limit=limit, folder=str(folder), restart=restart)
            return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        done = go(limit, False)
        assert done.returncode == 1, done.stderr  # no crash of HDF5
        assert "OSError" in done.stderr and "md." in done.stderr.splitlines()[-1]
        begun = (folder / "md.restart").exists()
        if not begun:
            assert not (folder / "md.h5").exists()
        done = go(10**8, begun)
        assert done.returncode == 0, done.stderr
        for name in ("positions", "energies", "steps"):
            a, b = (np.asarray(getattr(Trajectory(f / "md.h5"), name)) for f in (whole, folder))
            np.testing.assert_array_equal(a, b)


def test_two_at_once_are_refused(tmp_path):
    with (
        locked(tmp_path / "md.lock", "the files of md"),
        pytest.raises(BlockingIOError, match="another process writes.*md"),
    ):
        run(tmp_path, 10)
    assert not (tmp_path / "md.h5").exists()
    run(tmp_path, 10)
    assert not (tmp_path / "md.lock").exists()


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Its holder ends between the opening of the file here and the locking of it."""
    import fcntl

    path, lock = tmp_path / "md.lock", fcntl.flock

    def late(file, flags):
        path.unlink()
        lock(file, flags)

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(BlockingIOError), locked(path, "the files of md"):
        pass


class Cliff(Potential):
    """A harmonic well with NaN beyond a plane."""

    def __call__(self, x):
        forces = torch.where(x[..., :1, :1] > 1.05, torch.nan, -x)
        return Evaluation(0.5 * (x**2).sum((-1, -2)), forces)


def test_lost_walkers_are_kept_to_be_looked_at(tmp_path):
    told = run(tmp_path, 500, Cliff())
    assert told["lost"]
    frames = read(tmp_path / "md.lost.extxyz", ":")
    assert len(frames) == 2 * len(told["lost"])
    for before, after in zip(frames[::2], frames[1::2], strict=True):
        step = told["lost"][str(after.info["walker"])]
        assert (before.info["step"], after.info["step"]) == (step - 1, step)
        assert before.info["walker"] == after.info["walker"]
        assert np.isfinite(before.positions).all() and before.positions[0, 0] <= 1.05
        assert np.isfinite(before.arrays["forces_of_drift"]).all()
        assert after.positions[0, 0] > 1.05
        assert np.isnan(after.arrays["forces_of_drift"]).any()


def test_no_flipped_bit_is_read_as_a_number(tmp_path):
    """Of trajectory and checkpoint: either the same numbers, or an error that names the file."""

    def everything(path):
        if path.suffix == ".h5":
            t = Trajectory(path)
            parts = [np.asarray(t.positions), t.energies, t.steps, *t.columns.values()]
            return repr((t.info, t.walkers, t.system)), [part.tobytes() for part in parts]
        saved = load_checkpoint(path)
        values = [saved.state.x, saved.state.forces, saved.state.energy]
        return saved.seed, saved.parameters, saved.state.step, [v.numpy().tobytes() for v in values]

    run(tmp_path, 300)
    rng = np.random.default_rng(0)
    for name in ("md.h5", "md.restart"):
        good = (tmp_path / name).read_bytes()
        expected = everything(tmp_path / name)
        damaged = tmp_path / f"damaged{(tmp_path / name).suffix}"
        places = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of HDF5 is unused zeros
        noticed = 0
        for place in rng.choice(places, 60, replace=False):
            bad = bytearray(good)
            bad[place] ^= 1 << rng.integers(8)
            damaged.write_bytes(bad)
            try:
                assert everything(damaged) == expected
            except ValueError as error:
                assert "damaged" in str(error)
                noticed += 1
        assert noticed > 20
