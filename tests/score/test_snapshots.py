"""Snapshots: every source, every check, and the split."""

import re
import warnings

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import kB
from messages import names

from diffmd_ase.score import snapshot_checks
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

WATER = molecule("H2O")


def frames(rng, count=20, base=WATER, amplitude=0.03):
    """Independent rattled copies."""
    out = []
    for _ in range(count):
        atoms = base.copy()
        atoms.positions += amplitude * rng.normal(size=atoms.positions.shape)
        out.append(atoms)
    return out


def positions(some):
    return np.array([a.positions for a in some])


def with_energies(some):
    for n, atoms in enumerate(some):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - 0.0075 * n)
    return some


def fields(some, **more):
    return {"positions": positions(some), "numbers": some[0].numbers, **more}


# ------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    "keys",
    [
        ("positions", "numbers", "temperature_K", "energies"),
        ("x", "atomic_numbers", "temperature", "energy"),
        ("R", "z", "temperature_K", "E"),
        ("coords", "Z", "temperature", "energies"),
    ],
)
def test_npz_by_all_its_names(tmp_path, rng, keys):
    some = frames(rng)
    energies = 0.0075 * np.arange(20)  # eV, of the size that thermal ones have
    values = (positions(some), WATER.numbers, 300.0, energies)
    np.savez(tmp_path / "s.npz", **dict(zip(keys, values, strict=True)))
    read = Snapshots.read(tmp_path / "s.npz")
    assert np.array_equal(read.positions, positions(some))
    assert read.system == System.from_atoms(WATER)
    assert read.temperature_K == 300.0 and read.kT == pytest.approx(kB * 300)
    assert np.array_equal(read.energies, energies)
    assert read.source == "s.npz" and len(read) == 20


def test_npz_with_numbers_of_every_frame_and_a_cell(tmp_path, rng):
    copper = bulk("Cu", cubic=True)
    some = frames(rng, base=copper)
    np.savez(
        tmp_path / "s.npz",
        positions=positions(some),
        numbers=np.array([a.numbers for a in some]),
        cell=np.array([np.array(a.cell) for a in some]),
        pbc=np.array([True, True, False]),
    )
    read = Snapshots.read(tmp_path / "s.npz", temperature_K=300)
    assert np.allclose(read.system.cell, copper.cell)
    assert read.system.pbc.tolist() == [True, True, False]


def test_npz_in_fixed_point(tmp_path, rng):
    some = positions(frames(rng))
    np.savez(
        tmp_path / "s.npz",
        positions=np.round(some * 1000).astype(np.int32),
        scale=1e-3,
        numbers=WATER.numbers,
        temperature_K=300,
    )
    assert np.abs(Snapshots.read(tmp_path / "s.npz").positions - some).max() <= 0.5e-3 + 1e-12


@pytest.mark.parametrize("name", ["s.extxyz", "s.traj", "s.db", "s.xyz"])
def test_anything_ase_reads(tmp_path, rng, name):
    some = with_energies(frames(rng))
    if name == "s.db":
        from ase.db import connect

        with connect(tmp_path / name) as db:
            for atoms in some:
                db.write(atoms)
    elif name == "s.xyz":  # the plain format: neither energies nor a cell
        ase.io.write(tmp_path / name, [Atoms(a) for a in some], format="xyz")
    else:
        ase.io.write(tmp_path / name, some)
    read = Snapshots.read(tmp_path / name, temperature_K=298.15)
    assert np.allclose(read.positions, positions(some), atol=1e-6)
    assert np.array_equal(read.system.numbers, WATER.numbers)
    assert not read.system.periodic and read.temperature_K == 298.15
    if name == "s.xyz":
        assert read.energies is None
    else:
        assert np.allclose(read.energies, [-1.0 - 0.0075 * n for n in range(20)])


def test_periodic_frames_keep_cell_pbc_and_masses(tmp_path, rng):
    copper = bulk("Cu", cubic=True)
    copper.set_masses([60.0] * 4)
    some = frames(rng, base=copper)
    ase.io.write(tmp_path / "s.traj", some)
    read = Snapshots.read(tmp_path / "s.traj", temperature_K=300)
    assert read.system == System.from_atoms(copper)
    assert read.system.masses.tolist() == [60.0] * 4


def test_shipped_set_by_name():
    shipped = Snapshots.read("alanine-dipeptide")
    assert shipped.positions.shape[1:] == (22, 3) and len(shipped) > 10_000
    assert shipped.system.formula == "C6H12N2O2"
    assert shipped.temperature_K == 300.0
    assert shipped.correlation <= 2  # frames of the shipped set are in random order
    assert shipped.source == "alanine-dipeptide.npz"


def test_unknown_name_says_what_is_shipped():
    with pytest.raises(FileNotFoundError, match=r"'nothing'.*alanine-dipeptide"):
        Snapshots.read("nothing")


# ----------------------------------------------------------------------- bad input


def saved(tmp_path, **content):
    np.savez(tmp_path / "s.npz", **content)
    return tmp_path / "s.npz"


def test_missing_temperature(tmp_path, rng):
    path = saved(tmp_path, **fields(frames(rng)))
    with pytest.raises(ValueError, match=names("s.npz", "temperature_K=…")):
        Snapshots.read(path)
    ase.io.write(tmp_path / "s.extxyz", frames(rng))
    with pytest.raises(ValueError, match=names("s.extxyz", "temperature_K=…")):
        Snapshots.read(tmp_path / "s.extxyz")


def test_contradicting_temperature(tmp_path, rng):
    path = saved(tmp_path, **fields(frames(rng), temperature_K=300.0))
    with pytest.raises(ValueError, match=r"temperature_K=310.*states 300 K"):
        Snapshots.read(path, temperature_K=310)
    assert Snapshots.read(path, temperature_K=300).temperature_K == 300


@pytest.mark.parametrize("temperature_K", [0.0, -300.0, float("nan")])
def test_impossible_temperature(tmp_path, rng, temperature_K):
    path = saved(tmp_path, **fields(frames(rng)))
    with pytest.raises(ValueError, match="must be positive"):
        Snapshots.read(path, temperature_K=temperature_K)


def test_no_frames(tmp_path):
    path = saved(tmp_path, positions=np.zeros((0, 3, 3)), numbers=WATER.numbers)
    with pytest.raises(ValueError, match=r"s\.npz holds no snapshots"):
        Snapshots.read(path, temperature_K=300)
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(ValueError, match=r"empty\.extxyz"):
        Snapshots.read(tmp_path / "empty.extxyz", temperature_K=300)


def test_mixed_compositions(tmp_path, rng):
    mixed = [*frames(rng, 3), *frames(rng, 3, base=molecule("CO2"))]
    ase.io.write(tmp_path / "s.extxyz", mixed)
    with pytest.raises(
        ValueError, match=names("frame 3", "CO2", "frame 0", "H2O", "file of its own")
    ):
        Snapshots.read(tmp_path / "s.extxyz", temperature_K=300)
    reordered = [*frames(rng, 2), *frames(rng, 1, base=WATER[[1, 0, 2]])]
    ase.io.write(tmp_path / "s.extxyz", reordered)
    with pytest.raises(ValueError, match=names("frame 2", "frame 0", "HOH", "OH2", "one order")):
        Snapshots.read(tmp_path / "s.extxyz", temperature_K=300)
    numbers = np.array([[8, 1, 1], [1, 8, 1]])
    path = saved(tmp_path, positions=positions(frames(rng, 2)), numbers=numbers)
    with pytest.raises(ValueError, match="mixes compositions"):
        Snapshots.read(path, temperature_K=300)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, rng, value):
    x = positions(frames(rng))
    x[7, 1, 2] = x[9, 0, 0] = value
    path = saved(tmp_path, positions=x, numbers=WATER.numbers)
    with pytest.raises(ValueError, match=r"2 snapshots hold NaN.*number 7; remove"):
        Snapshots.read(path, temperature_K=300)


def test_overlapping_atoms(tmp_path, rng):
    x = positions(frames(rng))
    x[4, 2] = x[4, 1] + [0.1, 0, 0]
    path = saved(tmp_path, positions=x, numbers=WATER.numbers)
    with pytest.raises(ValueError, match=names("1 snapshots", "frame 4", "0.100 Å")):
        Snapshots.read(path, temperature_K=300)
    # positions in nm
    path = saved(tmp_path, positions=0.1 * positions(frames(rng)), numbers=WATER.numbers)
    with pytest.raises(ValueError, match=names("20 snapshots", "frame 10", "Å")):
        Snapshots.read(path, temperature_K=300)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, False)])
def test_overlap_across_a_periodic_boundary(rng, pbc):
    cell = np.array([[4.0, 0, 0], [1.5, 4.0, 0], [0.5, -1.0, 4.5]])
    atoms = Atoms("Ar2", scaled_positions=[[0.02, 0.5, 0.5], [0.98, 0.5, 0.5]], cell=cell, pbc=pbc)
    with pytest.raises(ValueError, match=r"overlap.*0\.160 Å"):
        Snapshots(System.from_atoms(atoms), atoms.positions[None], 100)
    # the same two atoms where the boundary is not periodic are far apart
    atoms.pbc = (False, True, True)
    assert len(Snapshots(System.from_atoms(atoms), atoms.positions[None], 100)) == 1


@pytest.mark.parametrize("shape", [(20, 8), (20, 4, 3), (4, 3), (20, 3, 2)])
def test_wrong_shape(tmp_path, shape):
    path = saved(tmp_path, positions=np.ones(shape), numbers=WATER.numbers)
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}, expected (M, 3, 3)")):
        Snapshots.read(path, temperature_K=300)


def test_energies_of_another_length(tmp_path, rng):
    path = saved(tmp_path, **fields(frames(rng), energies=np.zeros(7)))
    with pytest.raises(ValueError, match=names("energies", "(7,)", "(20,)")):
        Snapshots.read(path, temperature_K=300)


def test_missing_entry_says_what_there_is(tmp_path, rng):
    path = saved(tmp_path, geometry=positions(frames(rng)), numbers=WATER.numbers)
    with pytest.raises(ValueError, match=r"no positions.*holds geometry, numbers"):
        Snapshots.read(path, temperature_K=300)
    path = saved(tmp_path, positions=positions(frames(rng)))
    with pytest.raises(ValueError, match=r"no numbers.*holds positions"):
        Snapshots.read(path, temperature_K=300)


def test_integers_without_a_scale(tmp_path):
    path = saved(tmp_path, positions=np.ones((5, 3, 3), int), numbers=WATER.numbers)
    with pytest.raises(ValueError, match="need an entry 'scale'"):
        Snapshots.read(path, temperature_K=300)


def test_varying_cell(tmp_path, rng):
    some = frames(rng, 4, base=bulk("Cu", cubic=True))
    some[2].set_cell(some[2].cell * 1.01, scale_atoms=False)
    ase.io.write(tmp_path / "s.extxyz", some)
    with pytest.raises(ValueError, match=r"frame 2 differ.*constant cell"):
        Snapshots.read(tmp_path / "s.extxyz", temperature_K=300)
    path = saved(tmp_path, **fields(some), cell=np.array([np.array(a.cell) for a in some]))
    with pytest.raises(ValueError, match="the cell varies"):
        Snapshots.read(path, temperature_K=300)


def test_truncated_and_foreign_files(tmp_path, rng):
    path = saved(tmp_path, **fields(frames(rng, 200)))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 10, 3, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"s\.npz is not a readable \.npz file"):
            Snapshots.read(path, temperature_K=300)
    other = tmp_path / "notes.txt"
    other.write_text("no frames here\n")
    with pytest.raises(ValueError, match=names("ase.io", "notes.txt")):
        Snapshots.read(other, temperature_K=300)


def test_objects_are_not_unpickled(tmp_path, rng):
    path = saved(tmp_path, positions=np.array([{"a": 1}], dtype=object), numbers=WATER.numbers)
    with pytest.raises(ValueError, match=names("s.npz", "object")):
        Snapshots.read(path, temperature_K=300)


# ------------------------------------------------------------ warnings and splitting


def test_duplicates_warn(tmp_path, rng):
    some = frames(rng)
    path = saved(tmp_path, **fields([*some, some[0], some[3]]))
    with pytest.warns(UserWarning, match="2 of 22 snapshots are exact duplicates"):
        read = Snapshots.read(path, temperature_K=300)
    assert len(read) == 22


def time_ordered(rng, count=2000, tau=20.0):
    """The OH stretch as a discrete Ornstein-Uhlenbeck process of correlation time tau."""
    a = np.exp(-1 / tau)
    series = np.empty(count)
    series[0] = rng.normal()
    for n in range(1, count):
        series[n] = a * series[n - 1] + np.sqrt(1 - a * a) * rng.normal()
    x = np.repeat(WATER.positions[None], count, axis=0)
    x[:, 2, 1] -= 0.05 * series
    return x


def test_time_ordered_frames_warn_and_hold_out_the_last_block(tmp_path, rng):
    x = time_ordered(rng)
    path = saved(tmp_path, positions=x, numbers=WATER.numbers)
    with pytest.warns(UserWarning, match=names("s.npz", "time-ordered", "held out", "independent")):
        read = Snapshots.read(path, temperature_K=300)
    # exact: (1 + a)/(1 - a) = 2 tau; its error for 2000 frames is about 30 %
    assert 20 < read.correlation < 80
    training, held_out = read.split(0.1)
    assert np.array_equal(training.positions, x[:1800])
    assert np.array_equal(held_out.positions, x[1800:])
    # the same frames in random order are as good as independent ones
    path = saved(tmp_path, positions=rng.permutation(x), numbers=WATER.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Snapshots.read(path, temperature_K=300).correlation < 2


def test_like_atoms_that_change_places_are_no_motion(tmp_path, rng):
    """A methyl group turns by a third now and then: labels of its hydrogens, no other structure."""
    methanol = molecule("CH3OH")
    like = [n for n in np.flatnonzero(methanol.numbers == 1) if methanol.get_distance(0, n) < 1.2]
    x = methanol.positions + 0.01 * rng.normal(size=(2000, 6, 3))
    turned = np.arange(6)
    turned[like] = np.roll(like, 1)
    slow = np.repeat(rng.integers(2, size=20), 100).astype(bool)
    x[slow] = x[slow][:, turned]
    path = saved(tmp_path, positions=x, numbers=methanol.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Snapshots.read(path, temperature_K=300).correlation < 2
    # the hydroxyl group does not: what it does is a motion, and named
    x[slow, np.setdiff1d(np.flatnonzero(methanol.numbers == 1), like)] += [0.0, 0.3, 0.0]
    path = saved(tmp_path, positions=x, numbers=methanol.numbers)
    with pytest.warns(UserWarning, match=r"independent ones \((size|mean 1/r of H and \w)\)"):
        assert Snapshots.read(path, temperature_K=300).correlation > 20


def test_random_split(rng):
    some = positions(frames(rng, 100))
    whole = Snapshots(System.from_atoms(WATER), some, 300, energies=np.arange(100.0))
    training, held_out = whole.split(0.2, seed=3)
    assert (len(training), len(held_out)) == (80, 20)
    both = np.concatenate([training.energies, held_out.energies])
    assert sorted(both) == list(range(100))
    assert not np.array_equal(held_out.energies, np.arange(80, 100))
    for part in (training, held_out):
        assert np.array_equal(part.positions, some[part.energies.astype(int)])
        assert part.topology is whole.topology
        assert part.temperature_K == 300
    again = whole.split(0.2, seed=3)[1]
    assert np.array_equal(again.energies, held_out.energies)
    assert not np.array_equal(whole.split(0.2, seed=4)[1].energies, held_out.energies)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.01])
def test_impossible_split(rng, fraction):
    whole = Snapshots(System.from_atoms(WATER), positions(frames(rng)), 300)
    with pytest.raises(ValueError, match="cannot hold out|between 0 and 1"):
        whole.split(fraction)


def test_hash_sees_positions_numbers_and_temperature(rng):
    system, x = System.from_atoms(WATER), positions(frames(rng))
    hashes = {Snapshots(system, x, 300).sha256, Snapshots(system, x, 301).sha256}
    other = System(np.array([16, 1, 1]), system.masses)
    hashes |= {Snapshots(other, x, 300).sha256, Snapshots(system, x + 0.1, 300).sha256}
    assert len(hashes) == 4
    assert Snapshots(system, x.copy(), 300).sha256 in hashes


@pytest.fixture
def searched(monkeypatch):
    """How many frames were searched for overlaps, in each search."""
    counts = []
    search = snapshot_checks.check_positions

    def counted(system, positions, source):
        counts.append(len(positions))
        search(system, positions, source)

    monkeypatch.setattr(snapshot_checks, "check_positions", counted)
    return counts


def test_overlaps_are_searched_once(tmp_path, rng, searched):
    read = Snapshots.read(saved(tmp_path, **fields(frames(rng, 40))), temperature_K=300)
    assert searched == [40]
    training, held_out = read.split(0.2)
    assert len(training.take([0, 3])) == 2 and len(held_out) == 8
    assert searched == [40]
    Snapshots(read.system, read.positions, 300)
    assert searched == [40, 40]


@pytest.mark.parametrize("index", [[], 3, slice(40, None)])
def test_what_cannot_be_taken(rng, index):
    whole = Snapshots(System.from_atoms(WATER), positions(frames(rng)), 300)
    with pytest.raises(ValueError, match=r"no snapshots|shape \(3, 3\), expected"):
        whole.take(index)


def test_reading_leaves_nothing_behind(tmp_path, rng):
    path = saved(tmp_path, **fields(frames(rng)))
    before = path.read_bytes()
    Snapshots.read(path, temperature_K=300)
    with pytest.raises(ValueError, match="temperature_K="):
        Snapshots.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"] and path.read_bytes() == before
