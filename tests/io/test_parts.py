"""An index of trajectories: read as one, and no way to the files of others."""

import h5py
import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.io import h5md
from diffmd_ase.io.part_names import part_path, parts_beside
from diffmd_ase.io.parts import write_index
from diffmd_ase.io.trajectory import RunInfo, Trajectory, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

SYSTEM = System(np.array([29, 29]), np.full(2, 63.5), 5.0 * np.eye(3), np.array([True] * 3))
INFO = RunInfo(seed=1, kT=1.0, h=0.01, kinetics_valid=True)
WALKERS = [np.array([4, 5]), np.array([6, 7, 8])]
STEPS = np.arange(6) * 5
X = torch.arange(6 * 5 * 6.0).reshape(6, 5, 2, 3)


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "md.h5"
    for rank, (walkers, rows) in enumerate(zip(WALKERS, (slice(0, 2), slice(2, 5)), strict=True)):
        file = part_path(path, rank, 2)
        with TrajectoryWriter.create(file, SYSTEM, walkers, INFO, columns=["phi"]) as writer:
            for x, step in zip(X[:, rows], STEPS.tolist(), strict=True):
                state = State(x, x.sum((1, 2)), x, step, torch.as_tensor(walkers))
                writer.append(state, {"phi": x[:, 0, 0]})
    write_index(path, SYSTEM, WALKERS, INFO, ["phi"], STEPS)
    return path


def test_an_index_is_a_trajectory_of_all_walkers(index):
    trajectory = Trajectory(index)
    assert trajectory.walkers.tolist() == [4, 5, 6, 7, 8] and trajectory.system == SYSTEM
    assert np.array_equal(trajectory.positions[:], X.numpy())
    assert np.array_equal(trajectory.energies, X.sum((2, 3)).numpy())
    assert np.array_equal(trajectory.columns["phi"], X[:, :, 0, 0].numpy())
    assert trajectory.has_checksums and trajectory.closed_cleanly and not trajectory.grows
    assert parts_beside(index) == trajectory.parts
    with h5py.File(index) as file:
        assert np.array_equal(file[h5md.EDGES][:], np.broadcast_to(SYSTEM.cell, (6, 3, 3)))
        assert file[h5md.POSITION].is_virtual and file[h5md.POSITION].attrs["unit"] == "Angstrom"


def test_frames_that_only_one_part_has_do_not_count(index):
    first = part_path(index, 0, 2)
    with TrajectoryWriter.resume(first, step=25) as writer:
        x = X[0, :2] + 1
        writer.append(State(x, x.sum((1, 2)), x, 30, torch.as_tensor(WALKERS[0])))
    assert len(Trajectory(first)) == 7 and len(Trajectory(index)) == 6
    assert Trajectory(index).positions[-1].shape == (5, 2, 3)


def test_copied_walkers(index, tmp_path):
    new = TrajectoryWriter.copied(tmp_path / "b.h5", Trajectory(index), [5, 6], step=17)
    copy = Trajectory(new.path)
    assert copy.steps.tolist() == [0, 5, 10, 15] and copy.walkers.tolist() == [5, 6]
    assert np.array_equal(copy.positions[:], X[:4, 1:3].numpy())
    assert np.array_equal(copy.columns["phi"], X[:4, 1:3, 0, 0].numpy())


def test_damage_of_a_part_is_seen(index):
    with h5py.File(part_path(index, 1, 2), "r+") as file:
        file[h5md.POSITION][3, 0, 0] += 1
    trajectory = Trajectory(index)
    assert len(trajectory.positions[:3]) == 3
    with pytest.raises(ValueError) as error:
        trajectory.positions[:]
    assert names(error.value, "md.1of2.h5 is damaged", "differ from their checksums")


def test_a_part_that_is_missing(index):
    part_path(index, 1, 2).unlink()
    with pytest.raises(FileNotFoundError) as error:
        Trajectory(index)
    assert names(error.value, "md.1of2.h5")


def test_a_part_of_another_run(index):
    part = part_path(index, 1, 2)
    part.unlink()
    other = RunInfo(seed=2, kT=1.0, h=0.01, kinetics_valid=True)
    TrajectoryWriter.create(part, SYSTEM, WALKERS[1], other)
    with pytest.raises(ValueError) as error:
        Trajectory(index)
    assert names(error.value, "md.1of2.h5 is of another run")


@pytest.mark.parametrize(
    "parts",
    [
        '["/etc/md.0of1.h5"]',
        '["../md.0of1.h5"]',
        '["secret.h5"]',
        '["md.1of2.h5", "md.0of2.h5"]',
        '["md.0of2.h5"]',
        "[]",
        "[3]",
        "{}",
        "[[",
    ],
)
def test_an_index_leads_nowhere_else(index, parts):
    with h5py.File(index, "r+") as file:
        file["diffmd_ase"].attrs["parts"] = h5md.fixed(parts)
    with pytest.raises(ValueError):
        Trajectory(index)


def test_no_links_and_no_circles(index, tmp_path):
    part = part_path(index, 1, 2)
    part.rename(tmp_path / "elsewhere.h5")
    part.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(ValueError) as error:
        Trajectory(index)
    assert names(error.value, "plain files beside it")
    circle = tmp_path / "md.0of1.h5"
    circle.write_bytes(index.read_bytes())
    with h5py.File(circle, "r+") as file:
        file["diffmd_ase"].attrs["parts"] = h5md.fixed('["md.0of1.h5"]')
    with pytest.raises(ValueError):
        Trajectory(circle)


def test_virtual_numbers_without_a_list_are_refused(index):
    with h5py.File(index, "r+") as file:
        del file["diffmd_ase"].attrs["parts"]
    with pytest.raises(ValueError) as error:
        Trajectory(index)
    assert names(error.value, "stored in other files")
