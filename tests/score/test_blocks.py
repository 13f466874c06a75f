"""Passes over snapshots go in blocks: the same numbers, and little memory."""

import tracemalloc
import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule

from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import TrajectoryWriter
from diffmd_ase.score import snapshot_checks
from diffmd_ase.score.force_field_tables import term_tables
from diffmd_ase.score.plan import TrainConfig, plan
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.spacing import extent, pair_widths, vibration
from diffmd_ase.state import State
from diffmd_ase.system import System
from diffmd_ase.validation.distances import _limits, _rows

ETHANOL, COPPER = molecule("CH3CH2OH"), bulk("Cu", cubic=True) * (2, 2, 2)


def frames(rng, base, count=120):
    x = base.positions + 0.05 * rng.standard_normal((count, len(base), 3))
    return Snapshots(System.from_atoms(base), x, 300.0)


def everything(base, rng):
    """What is told of snapshots, as far as it is found in passes over them."""
    snapshots = frames(rng, base)
    system, x = snapshots.system, snapshots.positions
    copied = np.concatenate([x, x[:7]])
    limits = _limits(system, x)
    values = [
        snapshot_checks.correlation(system, x)[0],
        snapshot_checks.duplicates(copied),
        snapshot_checks.held_in_place(system, x),
        list(snapshots.sha256.encode()),
        limits,
        _rows(system, x, limits).toarray(),
    ]
    if system.periodic:
        return [*values, vibration(snapshots)]
    tables = term_tables(snapshots.topology, torch.as_tensor(x, dtype=torch.float32))
    names = ("bonds", "centres", "bond_mean", "angle_mean", "shortest", "least_volume")
    values += [tables[name].numpy() for name in names]
    return [*values, *pair_widths(snapshots), extent(snapshots)]


@pytest.mark.parametrize("base", [ETHANOL, COPPER], ids=["molecule", "crystal"])
def test_the_size_of_blocks_changes_nothing(monkeypatch, base):
    whole = everything(base, np.random.default_rng(1))
    monkeypatch.setattr(snapshot_checks, "_BLOCK", 500)
    parts = everything(base, np.random.default_rng(1))
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    assert whole[1] == 7


def test_all_frames_are_in_one_block():
    for count, numbers in ((1, 1), (1000, 1 << 15), (7, 1 << 30)):
        parts = list(snapshot_checks.blocks(count, numbers))
        assert [n for part in parts for n in range(count)[part]] == list(range(count))
        assert all((part.stop - part.start) * numbers <= max(1 << 21, numbers) for part in parts)


@pytest.mark.parametrize("periodic", [True, False])
def test_memory_does_not_grow_with_the_square_of_the_atoms(tmp_path, rng, periodic):
    """All pairs of 864 atoms in 60 frames would be 540 MB."""
    base = bulk("Cu", cubic=True) * (6, 6, 6)
    base.pbc = periodic
    x = base.positions + 0.05 * rng.standard_normal((60, len(base), 3))
    content = {"cell": base.cell.array} if periodic else {}
    np.savez(tmp_path / "s.npz", positions=x, numbers=base.numbers, pbc=periodic, **content)
    Snapshots.read(tmp_path / "s.npz", temperature_K=300)  # imports come first
    tracemalloc.start()
    read = Snapshots.read(tmp_path / "s.npz", temperature_K=300)
    plan(read, TrainConfig())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * x.nbytes + 60e6


def test_overlaps_of_many_atoms_are_found(rng):
    base = bulk("Cu", cubic=True) * (3, 3, 3)
    x = base.positions + 0.05 * rng.standard_normal((5, len(base), 3))
    cell = base.cell.array
    x[3, 7] = x[3, 40] + 2 * cell[0] + [0.1, 0, 0]  # of an image
    with pytest.raises(ValueError, match=r"overlap in 1 snapshots \(frame 3: 0\.100 Å\)"):
        Snapshots(System.from_atoms(base), x, 300)


def test_images_of_a_place_are_that_place(rng):
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    slab.pbc = True
    low = slab.positions[:, 2] < slab.positions[:, 2].min() + 0.1
    x = np.repeat(slab.positions[None], 60, axis=0)
    x[:, ~low] += 0.05 * rng.standard_normal((60, int((~low).sum()), 3))
    jumps = rng.integers(-1, 2, (*x.shape[:2], 3)) @ slab.cell.array
    system = System.from_atoms(slab)
    wrapped = Snapshots(system, x + jumps, 300)
    assert np.array_equal(wrapped.moving, ~low)
    assert vibration(wrapped) == pytest.approx(vibration(Snapshots(system, x, 300)))


def test_a_crystal_that_drifts_vibrates_as_one_that_does_not(rng):
    x = COPPER.positions + 0.05 * rng.standard_normal((80, len(COPPER), 3))
    drift = rng.standard_normal((80, 1, 3)).cumsum(axis=0)
    system = System.from_atoms(COPPER)
    wrapped = (x + drift) @ np.linalg.inv(system.cell) % 1.0 @ system.cell
    still, moved = (vibration(Snapshots(system, y, 300)) for y in (x, wrapped))
    assert moved == pytest.approx(still, rel=1e-6) and still == pytest.approx(0.05, rel=0.1)


def test_a_trajectory_of_a_run_is_a_file_of_snapshots(tmp_path, rng):
    system = System.from_atoms(ETHANOL)
    info = RunInfo(seed=0, kT=0.0258520, h=1e-4, kinetics_valid=True)
    x = ETHANOL.positions + 0.05 * rng.standard_normal((200, 2, len(ETHANOL), 3))
    with TrajectoryWriter.create(tmp_path / "t.h5", system, [0, 1], info) as writer:
        for step, frame in enumerate(x):
            if step == 20:
                frame[1] = np.nan  # a walker that was lost
            writer.append(State(x=torch.as_tensor(frame), energy=None, forces=None, step=step))
    read = Snapshots.read(tmp_path / "t.h5")
    assert len(read) == 399 and read.temperature_K == pytest.approx(300.0, abs=0.01)
    assert read.system == system and read.energies is None
    np.testing.assert_allclose(read.positions[:200], x[:, 0], atol=1e-5)


def test_one_atom_is_refused_in_words(tmp_path):
    ase.io.write(tmp_path / "s.extxyz", [ETHANOL[:1]] * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = Snapshots.read(tmp_path / "s.extxyz", temperature_K=300)
    with pytest.raises(ValueError, match=r"s\.extxyz holds one atom"):
        plan(read, TrainConfig())
