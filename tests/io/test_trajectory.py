"""Trajectories and checkpoints: exact restart, also after kill -9; readable; clear errors."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import checkpointed_run
import h5py
import numpy as np
import pytest
import torch
from ase.io import read
from checkpointed_run import EVERY, INFO, WATER, Harmonic, simulate
from messages import names

from diffmd_ase.io import h5md
from diffmd_ase.io.checkpoint import load_checkpoint, previous, save_checkpoint
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation, State
from diffmd_ase.system import System


def content(path):
    """Everything in the file, by name."""
    found = {}

    def visit(name, item):
        found[name, "attrs"] = {k: np.asarray(v).tobytes() for k, v in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            found[name] = item.dtype.str, item.shape, item[...].tobytes()

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


@pytest.fixture
def finished(tmp_path):
    return simulate(tmp_path, 300)


def test_one_that_another_program_wrote_anew_goes_on(finished):
    """Its frames are there, but none can be added to it as it is."""
    whole = content(finished)
    with h5py.File(finished, "r+") as file:
        values = file[h5md.ENERGY][:]
        del file[h5md.ENERGY]
        file[h5md.ENERGY] = values
    assert not Trajectory(finished).grows
    assert TrajectoryWriter.resume(finished, step=300).frames == 100
    assert content(finished) == whole


@pytest.mark.parametrize(
    "error", [RuntimeError("Can't destroy cache (slist already enabled?)"), OSError("Can't close")]
)
def test_a_disk_that_fails_in_the_middle_is_told_once(finished, monkeypatch, error):
    """HDF5 does not let go of such a file, and has other words each time it is asked again."""

    def fails(*args):
        try:
            raise OSError("Can't write data (file write failed: errno = 28, total)")
        finally:
            raise error  # of closing the file

    writer = TrajectoryWriter.resume(finished, step=300)
    monkeypatch.setattr("diffmd_ase.io.trajectory.append_frames", fails)
    state = State(torch.ones(4, 3, 3), torch.zeros(4), torch.zeros(4, 3, 3), step=303)
    with pytest.raises(OSError, match=names("frames from step 303", "are safe", "run.h5")) as told:
        with writer:
            writer.append(state)
            writer.flush()
    assert told.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="303"):
        writer.flush()
    assert len(Trajectory(finished)) == 100


def test_text_is_where_it_belongs(finished):
    """HDF5 never returns from a damaged heap of texts of any length: none that is read is there."""
    with h5py.File(finished) as file:
        own, checks = file["diffmd_ase"].attrs, file[h5md.CHECKS].attrs
        kinds = [own.get_id(name).get_type() for name in ("metadata", "columns")]
        kinds.append(checks.get_id("header").get_type())
        assert not any(kind.is_variable_str() for kind in kinds)
        # those of earlier versions are read
    with h5py.File(finished, "r+") as file:
        own = file["diffmd_ase"].attrs
        own["metadata"] = own["metadata"].decode()
        assert file["diffmd_ase"].attrs.get_id("metadata").get_type().is_variable_str()
    assert Trajectory(finished).info == INFO


def test_round_trip(finished):
    kernel = EulerMaruyama(Harmonic(), kT=0.025, h=1e-3)
    start = torch.ones(4, 3, 3, dtype=torch.float64)
    states = list(run(kernel, start, 300, noise=Noise(7), every=EVERY))
    t = Trajectory(finished)
    assert t.closed_cleanly and len(t) == 100 and t.positions.shape == (100, 4, 3, 3)
    assert t.system == WATER and t.info == INFO and t.walkers.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(t.steps, np.arange(EVERY, 301, EVERY))
    np.testing.assert_allclose(t.Dt, t.steps * 1e-3)
    for n, (state, _) in enumerate(states):
        np.testing.assert_array_equal(t.positions[n], state.x.numpy().astype(np.float32))
        np.testing.assert_array_equal(t.energies[n], state.energy.numpy())


@pytest.mark.parametrize(
    "key",
    [
        3, -1, slice(None), slice(5, 40, 7), slice(40, 5, -7), slice(0, 0), [4, 2, 9],
        (slice(None), 2), (slice(3, 9), -1), (4, 1), (slice(None), slice(1, 3)),
        (slice(None), [0, 3], 1), (5, slice(None), 0, 2), (slice(None, None, 10), 1, 2),
    ],
)  # fmt: skip
def test_lazy_positions_index_like_an_array(finished, key):
    t = Trajectory(finished)
    np.testing.assert_array_equal(t.positions[key], np.asarray(t.positions)[key])


def test_h5md_layout(finished):
    with h5py.File(finished) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        group = file["particles/trajectory"]
        assert group["position/value"].shape == (100, 12, 3)
        assert group["position/value"].attrs["unit"] == "Angstrom"
        np.testing.assert_allclose(group["position/time"][:], np.arange(3, 301, 3) * 0.5)
        assert group["species"][:].tolist() == [8, 1, 1] * 4
        assert group["box"].attrs["boundary"].tolist() == [b"none"] * 3
        meta = json.loads(file["diffmd_ase"].attrs["metadata"])
        assert meta["kinetics_valid"] is True and meta["clock"] == "fs"
        assert file["observables/potential_energy/step"] == group["position/step"]


def test_periodic_box(tmp_path):
    crystal = System(np.array([29, 29]), np.full(2, 63.5), 3.6 * np.eye(3), True)
    info = replace(INFO, timestep_fs=None)
    with TrajectoryWriter.create(tmp_path / "cu.h5", crystal, [0], info) as writer:
        writer.append(State(torch.zeros(2, 3), torch.tensor(1.5), torch.zeros(2, 3), step=4))
    t = Trajectory(tmp_path / "cu.h5")
    with h5py.File(tmp_path / "cu.h5") as file:
        assert t.system == crystal and t.energies.tolist() == [[1.5]]
        assert file["particles/trajectory/box/edges/value"].shape == (1, 3, 3)
        time = file["particles/trajectory/position/time"]  # no physical clock: D·t, no unit
        assert time[:] == pytest.approx([4 * INFO.h]) and "unit" not in time.attrs


@pytest.mark.parametrize("name", ["walker.extxyz", "walker.traj"])
def test_one_walker_to_ase(finished, tmp_path, name):
    t = Trajectory(finished)
    t.write(tmp_path / name, 2, every=10)
    frames = read(tmp_path / name, ":")
    assert len(frames) == 10 and frames[0].get_chemical_formula() == "H2O"
    np.testing.assert_allclose(frames[3].positions, t.positions[30, 2], atol=1e-7)
    assert frames[3].get_potential_energy() == pytest.approx(t.energies[30, 2])
    with pytest.raises(LookupError, match="no walker 9"):
        t.to_atoms(0, 9)


def test_restart_equals_uninterrupted(finished, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for stop in (100, 101, 190, 300):  # 100 and 190 end between two checkpoints
        path = simulate(folder, stop)
    assert content(path) == content(finished)


def test_lost_walkers_are_nan(tmp_path):
    kernel = EulerMaruyama(Harmonic(), kT=0.025, h=1e-3)
    state = kernel.init(torch.ones(3, 3, 3), walkers=torch.tensor([5, 6, 9]))
    with TrajectoryWriter.create(tmp_path / "t.h5", WATER, [5, 6, 9], INFO) as writer:
        writer.append(replace(state, step=1))
        kept = state.take(torch.tensor([True, False, True]))
        writer.append(replace(kept, step=2))
    t = Trajectory(tmp_path / "t.h5")
    assert t.lost.tolist() == [6]
    assert np.isnan(t.positions[1, 1]).all() and np.isnan(t.energies[1, 1])
    assert (t.positions[1][[0, 2]] == 1).all()
    t.write(tmp_path / "lost.xyz", 6)
    assert len(read(tmp_path / "lost.xyz", ":")) == 1


CHILD = """
import sys, pathlib
sys.path.insert(0, {oracles!r})
import torch
torch.set_num_threads(1)
from checkpointed_run import simulate
simulate(pathlib.Path({folder!r}), {n_steps}, {more})
"""


def kill_and_restart(folder, n_steps, kills, rng):
    """Start, kill -9 at a random moment and restart ``kills`` times; then finish."""
    code = CHILD.format(
        oracles=os.path.dirname(checkpointed_run.__file__),
        folder=str(folder),
        n_steps=n_steps,
        more="pause=1e-3",
    )
    steps_seen = []
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", code])
        mark = max((f.stat().st_mtime_ns for f in folder.iterdir()), default=0)
        while child.poll() is None:  # its first write
            if any(f.stat().st_mtime_ns > mark for f in folder.iterdir() if f.exists()):
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        if (folder / "run.h5").exists():
            t = Trajectory(folder / "run.h5")  # readable before any repair
            steps_seen.append(len(t))
            assert np.isfinite(t.positions[:]).all()
    return simulate(folder, n_steps), steps_seen


def test_kill_9_then_restart_equals_uninterrupted(tmp_path, rng):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = simulate(tmp_path / "whole", 1200)
    path, seen = kill_and_restart(tmp_path / "killed", 1200, 3, rng)
    assert any(0 < n < 400 for n in seen)  # some kill came in the middle
    assert content(path) == content(whole)


@pytest.mark.slow
def test_kill_9_many_times(tmp_path, rng):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = simulate(tmp_path / "whole", 6000)
    path, _ = kill_and_restart(tmp_path / "killed", 6000, 20, rng)
    assert content(path) == content(whole)


def test_killed_inside_a_block_is_read_and_repaired(finished):
    """The worst moment: positions written, steps not, file never closed."""
    code = f"""
import h5py, os
f = h5py.File({str(finished)!r}, "r+", libver="v110"); f.swmr_mode = True
d = f["particles/trajectory/position/value"]
d.resize(130, axis=0); d[100:] = 1.0; d.flush()
os.kill(os.getpid(), 9)
"""
    before = content(finished)
    subprocess.run([sys.executable, "-c", code], check=False)
    with pytest.raises(OSError):
        h5py.File(finished, "r")
    t = Trajectory(finished)
    assert len(t) == 100 and not t.closed_cleanly
    assert t.positions.shape[0] == 100
    TrajectoryWriter.resume(finished, step=300).close()
    assert content(finished) == before


def test_readable_at_every_moment_of_writing(tmp_path):
    """HDF5's flag of the file is never "written to, unreadable": a kill then would lose it."""
    code = CHILD.format(
        oracles=os.path.dirname(checkpointed_run.__file__),
        folder=str(tmp_path),
        n_steps=1500,
        more="block=1",
    )
    path, flags, frames = tmp_path / "run.h5", set(), [0]
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        while child.poll() is None:
            if not path.exists():
                continue
            with path.open("rb") as raw:
                for _ in range(200):
                    flags.add(os.pread(raw.fileno(), 1, 11)[0])
            frames.append(len(Trajectory(path)))
    assert child.returncode == 0
    assert flags == {0, 5}  # closed; written to by one and readable by others
    assert frames == sorted(frames) and len(set(frames)) > 5  # read while it grew


def test_reader_may_be_open_while_a_run_writes(finished):
    t = Trajectory(finished)
    writer = TrajectoryWriter.resume(finished, step=300)
    with writer:
        writer.append(State(torch.zeros(4, 3, 3), None, torch.zeros(4, 3, 3), step=303))
    assert len(t) == 100 and np.isfinite(t.positions[:]).all()
    t = Trajectory(finished)
    assert len(t) == 101 and np.isnan(t.energies[-1]).all()


def test_writer_errors(finished, tmp_path):
    with pytest.raises(FileExistsError, match=names("run.h5", "restart")):
        TrajectoryWriter.create(finished, WATER, [0], INFO)
    with pytest.raises(ValueError, match=names("[0, 0]", "different ids")):
        TrajectoryWriter.create(tmp_path / "new.h5", WATER, [0, 0], INFO)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.prev", "run.h5"]
    writer = TrajectoryWriter.resume(finished, step=300)
    x = torch.zeros(4, 3, 3)
    with pytest.raises(ValueError, match=names("step 300", "resume(path, step=")):
        writer.append(State(x, None, x, step=300))
    with pytest.raises(ValueError, match="expected \\(3, 3\\)"):
        writer.append(State(torch.zeros(4, 5, 3), None, x, step=303))
    with pytest.raises(ValueError, match="the file holds"):
        writer.append(State(x, None, x, step=303, walkers=torch.arange(4, 8)))


def test_reader_errors(finished, tmp_path):
    with pytest.raises(FileNotFoundError):
        Trajectory(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        Trajectory(tmp_path / "text.h5")
    (tmp_path / "cut.h5").write_bytes(finished.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or cut off|not an HDF5"):
        Trajectory(tmp_path / "cut.h5")
    with h5md.open_to_append(finished):  # copied while the run writes, not to the end
        (tmp_path / "cut.h5").write_bytes(finished.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut off: .* bytes of"):
        Trajectory(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=names("foreign.h5", "HDF5", "diffmd_ase")):
        Trajectory(tmp_path / "foreign.h5")
    with h5py.File(finished, "r+") as file:
        meta = json.loads(file["diffmd_ase"].attrs["metadata"]) | {"schema_version": 99}
        file["diffmd_ase"].attrs["metadata"] = json.dumps(meta)
    with pytest.raises(ValueError, match="schema 99"):
        Trajectory(finished)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_checkpoint_round_trip(tmp_path, dtype, batch, generator):
    x = torch.randn(*batch, 3, 3, generator=generator, dtype=dtype)
    walkers = torch.tensor([3, 1, 4, 8]) if batch else None
    cache = {0: Evaluation(x.sum((-1, -2)), -x)}
    state = State(x, x.sum((-1, -2)), -x, 1 << 40, walkers, momenta=x.flip(-1), fixed=cache)
    save_checkpoint(tmp_path / "c", state, seed=2**64 - 1, parameters={"h": [1e-4, 0.0]})
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.seed == 2**64 - 1 and loaded.parameters == {"h": [1e-4, 0.0]}
    for name in ("x", "energy", "forces"):
        a, b = getattr(loaded.state, name), getattr(state, name)
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert loaded.state.step == 1 << 40 and loaded.state.fixed == {}
    assert torch.equal(loaded.state.momenta, state.momenta)
    if batch:
        assert torch.equal(loaded.state.walkers, walkers)
    else:
        assert loaded.state.walkers is None


def test_checkpoint_without_energy(tmp_path):
    x = torch.zeros(2, 3)
    save_checkpoint(tmp_path / "c", State(x, None, x), seed=0)
    state = load_checkpoint(tmp_path / "c").state
    assert (
        state.energy is None
        and state.walkers is None
        and state.momenta is None
        and state.record is None
    )


def saved_twice(folder):
    x = torch.ones(2, 3, dtype=torch.float64)
    for step in (1, 2):
        save_checkpoint(folder / "c", State(step * x, None, x, step), seed=0)
    return folder / "c"


def test_checkpoint_keeps_the_one_before(tmp_path):
    path = saved_twice(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "c.prev"]
    assert load_checkpoint(path).state.step == 2
    assert load_checkpoint(previous(path)).state.step == 1


def test_a_lost_checkpoint_is_replaced_by_the_one_before(tmp_path):
    path = saved_twice(tmp_path)
    path.unlink()
    with pytest.warns(UserWarning, match="missing.*using the one before"):
        assert load_checkpoint(path).state.step == 1


def test_checkpoint_is_never_missing_nor_partial(tmp_path, monkeypatch):
    """Stop before each move of files: what is there then is whole, and loads silently."""
    path = saved_twice(tmp_path)
    moves = []

    def stop(source, target):
        moves.append(target)
        assert load_checkpoint(path).state.step == 2  # a warning would be an error here
        assert load_checkpoint(previous(path)).state.step in (1, 2)
        return replace_file(source, target)

    replace_file = os.replace
    monkeypatch.setattr("diffmd_ase.io.atomic.os.replace", stop)
    x = torch.zeros(2, 3)
    save_checkpoint(path, State(x, None, x, 3), seed=0)
    assert moves == [previous(path), path]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.6, 0.98])
def test_truncated_checkpoint(tmp_path, fraction):
    path = saved_twice(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.warns(UserWarning, match="using the one before"):
        assert load_checkpoint(path).state.step == 1
    previous(path).unlink()
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(path)


def test_every_flipped_payload_byte_is_noticed(tmp_path):
    path = saved_twice(tmp_path)
    previous(path).unlink()
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) - 2 * 6 * 8, len(whole)):  # x and forces
        broken = whole.copy()
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="checksum"):
            load_checkpoint(path)


def test_foreign_and_newer_checkpoints(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=names("model.safetensors", "'diffmd_ase checkpoint'", "--model")
    ):
        load_checkpoint(tmp_path / "model.safetensors")
    monkeypatch.setattr("diffmd_ase.io.checkpoint.SCHEMA_VERSION", 9)
    save_checkpoint(tmp_path / "c", State(torch.zeros(1, 3), None, torch.zeros(1, 3)), seed=0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema 9"):
        load_checkpoint(tmp_path / "c")
