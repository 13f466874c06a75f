"""Snapshots whose atoms stand in any of their images: nothing that is learned from them changes.

Programs of dynamics wrap atoms into the cell, each by itself: a molecule is cut, and an atom of a
layer on the boundary is now at one side and now at the other.
"""

import warnings
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from messages import names

from diffmd_ase.score.plan import TrainConfig, plan
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System
from diffmd_ase.validation.comparisons import Torsions


def scattered(snapshots, rng):
    """Every atom of every frame in another image."""
    system = snapshots.system
    steps = rng.integers(-1, 2, snapshots.positions.shape) * system.pbc
    return replace(snapshots, positions=snapshots.positions + steps @ system.cell, checked=True)


@pytest.fixture
def slab(rng):
    """Cu(111), whose lower layer is held and has atoms on the boundary of the cell."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8)
    atoms.positions -= atoms.positions[0] * [1, 1, 0]
    x = atoms.positions + 0.05 * rng.normal(size=(60, 12, 3)) * (np.arange(12) >= 4)[:, None]
    return Snapshots(System.from_atoms(atoms), x, 300.0)


def test_a_layer_on_the_boundary_is_held(slab, rng, tmp_path):
    held = np.arange(12) < 4
    assert np.array_equal(~slab.moving, held)
    assert np.array_equal(~scattered(slab, rng).moving, held)
    # as a script of ASE writes it, with noise of rounding on either side of the boundary
    frames = [slab.system.to_atoms(x + 1e-9 * rng.normal(size=x.shape)) for x in slab.positions]
    for atoms in frames:
        atoms.wrap(eps=0)
    ase.io.write(tmp_path / "slab.extxyz", frames)
    wrapped = Snapshots.read(tmp_path / "slab.extxyz", temperature_K=300)
    assert np.array_equal(~wrapped.moving, held)
    assert np.ptp(wrapped.positions[:, held], axis=0).max() > 1  # what a raw difference sees


def test_the_plan_is_that_of_whole_frames(slab, rng):
    [whole] = plan(slab, TrainConfig())
    [cut] = plan(scattered(slab, rng), TrainConfig())
    assert cut == whole and whole.sigma[0] == pytest.approx(0.05 * 0.05, rel=0.1)
    # a crystal that drifts through its cell
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    x = atoms.positions + 0.08 * rng.normal(size=(50, 32, 3))
    still = Snapshots(System.from_atoms(atoms), x, 300.0)
    drift = np.linspace(0, 30, 50)[:, None, None] * [1, 0.3, -0.2]
    moved = replace(still, positions=x + drift)
    [first], [second], [third] = (
        plan(s, TrainConfig()) for s in (still, moved, scattered(moved, rng))
    )
    assert first.sigma == second.sigma == third.sigma


def stretching(rng, count=2000, tau=20.0):
    """Water whose OH stretch is an Ornstein-Uhlenbeck process of correlation time tau."""
    a, water = np.exp(-1 / tau), molecule("H2O", cell=[7, 6, 5], pbc=True)
    water.cell[1, 0] = 3.0
    series = [rng.normal()]
    for _ in range(count - 1):
        series.append(a * series[-1] + np.sqrt(1 - a * a) * rng.normal())
    x = np.repeat(water.positions[None], count, axis=0)
    x[:, 2, 1] -= 0.05 * np.array(series)
    return Snapshots(System.from_atoms(water), x, 300.0)


def read(snapshots, path):
    system = snapshots.system
    fields = {"numbers": system.numbers, "cell": system.cell, "pbc": system.pbc}
    np.savez(path, positions=snapshots.positions, temperature_K=300.0, **fields)
    return Snapshots.read(path)


def test_order_in_time_is_seen_through_the_boundary(rng, tmp_path):
    whole = stretching(rng)
    for frames in (whole, scattered(whole, rng)):
        with pytest.warns(UserWarning, match=names("s.npz", "time-ordered")):
            found = read(frames, tmp_path / "s.npz").correlation
        # exact: (1 + a)/(1 - a) = 2 tau; its error for 2000 frames is about 30 %
        assert 20 < found < 80
    # and none where there is none: jumps of the drift from side to side are not memory
    order = rng.permutation(2000)
    drift = np.linspace(0, 40, 2000)[:, None, None] * [1, 0.5, 0.2]
    mixed = replace(whole, positions=whole.positions[order] + drift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(scattered(mixed, rng), tmp_path / "t.npz").correlation < 2


def test_torsions_of_a_validation(rng):
    """Of a molecule in a periodic cell that the boundary cuts."""
    ethanol = molecule("CH3CH2OH", cell=[6, 7, 8], pbc=True)
    x = ethanol.positions + 0.02 * rng.normal(size=(80, 9, 3))
    snapshots = Snapshots(System.from_atoms(ethanol), x, 300.0)
    named = {"phi": (2, 0, 1, 7)}
    whole = Torsions.find(snapshots.system, None, x, named)
    cut = scattered(snapshots, rng).positions
    same = Torsions.find(snapshots.system, None, cut, named)
    np.testing.assert_allclose(same(cut), whole(x), atol=1e-9)
    true = [np.radians((ethanol.get_dihedral(2, 0, 1, 7) + 180) % 360) - np.pi]
    assert same.modes[0][0](np.array(true)).all() and len(same.modes[0]) == 1
