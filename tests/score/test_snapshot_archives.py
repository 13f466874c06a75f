"""Archives of strangers: keys, shapes and kinds of numbers; what is refused names the file."""

import zipfile

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import kB
from messages import names

from diffmd_ase.score import snapshot_archives
from diffmd_ase.score.snapshots import Snapshots

WATER = molecule("H2O")
COUNT = 20


def positions(rng, base=WATER):
    return base.positions + 0.03 * rng.standard_normal((COUNT, len(base), 3))


def springs(x, kelvin=300.0):
    """Forces by which atoms on springs would spread as `positions` does."""
    return -kB * kelvin / 0.03**2 * (x - WATER.positions)


def saved(tmp_path, x, base=WATER, **content):
    content = {"positions": x, "numbers": base.numbers, "temperature": 300.0} | content
    np.savez(tmp_path / "s.npz", **{k: v for k, v in content.items() if v is not None})
    return tmp_path / "s.npz"


# ------------------------------------------------------------------------------ read


def test_revised_md17(tmp_path, rng):
    x = positions(rng)
    np.savez(
        tmp_path / "rmd17.npz",
        nuclear_charges=WATER.numbers.astype(np.uint8),
        coords=x,
        energies=0.0125 * np.arange(COUNT),
        forces=springs(x, 500),
        old_indices=np.arange(COUNT),
        old_energies=np.zeros(COUNT),
    )
    read = Snapshots.read(tmp_path / "rmd17.npz", temperature_K=500)
    assert np.array_equal(read.positions, x) and read.forces.shape == x.shape
    assert read.system.numbers.tolist() == [8, 1, 1] and read.temperature_K == 500


def test_md17(tmp_path, rng):
    x = positions(rng)
    np.savez(
        tmp_path / "md17.npz",
        R=x.astype(np.float32),
        z=WATER.numbers.astype(float),
        E=0.0075 * np.arange(COUNT)[:, None],
        theory="unknown",
        md5=np.array("0"),
        type="d",
    )
    read = Snapshots.read(tmp_path / "md17.npz", temperature_K=500)
    assert read.positions.dtype == np.float64 and read.energies.shape == (COUNT,)


@pytest.mark.parametrize(
    "stated",
    [
        300.0,
        300,
        np.float32(300),
        np.array([300.0]),
        np.array([[300]]),
        np.full(COUNT, 300.0),
        np.full((COUNT, 1), 300, np.float32),
    ],
)
def test_a_temperature_is_a_number_or_one_for_each_frame(tmp_path, rng, stated):
    path = saved(tmp_path, positions(rng), temperature=stated)
    assert Snapshots.read(path).temperature_K == 300.0
    assert Snapshots.read(path, temperature_K=300).temperature_K == 300.0


def test_single_precision_of_a_temperature(tmp_path, rng):
    path = saved(tmp_path, positions(rng), temperature=np.float32(298.15))
    assert Snapshots.read(path).temperature_K == 298.15  # as it was meant
    assert Snapshots.read(path, temperature_K=298.15).temperature_K == 298.15
    with pytest.raises(ValueError, match=names("temperature_K=298.2", "298.15", "s.npz")):
        Snapshots.read(path, temperature_K=298.2)


@pytest.mark.parametrize("kind", ["flat", "one frame", "list of one energy"])
def test_shapes_that_say_what_they_are(tmp_path, rng, kind):
    x = positions(rng)
    if kind == "flat":
        path = saved(tmp_path, x.reshape(COUNT, -1), forces=springs(x).reshape(COUNT, 9))
        read = Snapshots.read(path)
        assert read.forces.shape == x.shape
    elif kind == "one frame":
        x = x[:1]
        read = Snapshots.read(saved(tmp_path, x[0], forces=np.zeros((3, 3)), energies=-1.0))
        assert read.energies.tolist() == [-1.0] and read.forces.shape == x.shape
    else:
        energies = 0.0075 * np.arange(COUNT)
        read = Snapshots.read(saved(tmp_path, x, energies=energies[:, None]))
        assert np.array_equal(read.energies, energies)
    assert np.array_equal(read.positions, x)


@pytest.mark.parametrize("numbers", [["O", "H", "H"], [b"O", b"H", b"H"], [8.0, 1.0, 1.0]])
@pytest.mark.parametrize("each", [False, True])
def test_elements(tmp_path, rng, numbers, each):
    numbers = np.array(numbers)
    path = saved(
        tmp_path, positions(rng), numbers=np.tile(numbers, (COUNT, 1)) if each else numbers
    )
    assert Snapshots.read(path).system.numbers.tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    "shape", ["number", "(1,)", "(3,)", "(6,)", "(3, 3)", "(M, 3)", "(M, 6)", "(M, 3, 3)"]
)
@pytest.mark.parametrize("pbc", [True, (True, True, True), "(M,)", "(M, 1)", "(M, 3)"])
def test_cells(tmp_path, rng, shape, pbc):
    crystal = bulk("Cu", cubic=True)
    a = crystal.cell[0, 0]
    cell = {
        "number": a,
        "(1,)": [a],
        "(3,)": [a] * 3,
        "(6,)": [a] * 3 + [90] * 3,
        "(3, 3)": a * np.eye(3),
        "(M, 3)": np.full((COUNT, 3), a),
        "(M, 6)": np.tile([a] * 3 + [90] * 3, (COUNT, 1)),
        "(M, 3, 3)": np.tile(a * np.eye(3), (COUNT, 1, 1)),
    }[shape]
    each = {"(M,)": (COUNT,), "(M, 1)": (COUNT, 1), "(M, 3)": (COUNT, 3)}
    flags = np.ones(each[pbc], bool) if pbc in each else pbc
    path = saved(tmp_path, positions(rng, crystal), crystal, cell=np.array(cell, float), pbc=flags)
    read = Snapshots.read(path)
    assert np.allclose(read.system.cell, a * np.eye(3)) and read.system.pbc.all()


def test_a_cell_that_is_not_said_to_be_periodic(tmp_path, rng):
    path = saved(tmp_path, positions(rng), cell=9 * np.eye(3))
    with pytest.warns(UserWarning, match=names("s.npz", "pbc=True")):
        assert not Snapshots.read(path).system.periodic


def test_entries_that_are_not_asked_for_are_not_read(tmp_path, rng):
    path = saved(tmp_path, positions(rng), notes=np.array([{"a": 1}], dtype=object))
    assert len(Snapshots.read(path)) == COUNT


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_entries_stay_on_disk(tmp_path, rng, monkeypatch, order):
    monkeypatch.setattr(snapshot_archives, "_LARGE", 100)
    x = positions(rng)
    path = saved(tmp_path, np.asarray(x, order=order), forces=springs(x))
    read = Snapshots.read(path)
    assert np.array_equal(read.positions, x)
    base = read.positions
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    # what is compressed cannot be mapped, and is read
    np.savez_compressed(path, positions=x, numbers=WATER.numbers, temperature=300.0)
    assert np.array_equal(Snapshots.read(path).positions, x)


def test_what_is_mapped_was_checked(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snapshot_archives, "_LARGE", 100)
    path = saved(tmp_path, positions(rng))
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("positions.npy").header_offset
    raw = bytearray(path.read_bytes())
    raw[begin + 300] ^= 1  # one bit of a number
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=names("s.npz", "'positions'", "CRC")):
        Snapshots.read(path)


# --------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"temperature": "300 K"}, ["300 K"]),
        ({"temperature": np.zeros(0)}, ["temperature"]),
        ({"temperature": np.array([300.0, 400.0])}, ["300", "400", "file of its own"]),
        ({"temperature": np.nan}, ["nan K"]),
        ({"numbers": [8.5, 1, 1]}, ["numbers", "(N,)"]),
        ({"numbers": [8, 1, 800]}, ["800"]),
        ({"numbers": [-8, 1, 1]}, ["-8"]),
        ({"numbers": ["O", "H", "Hx"]}, ["Hx"]),
        ({"numbers": np.ones((2, 3, 3))}, ["numbers", "(2, 3, 3)"]),
        ({"numbers": 8}, ["numbers", "()"]),
        ({"positions": 3.0}, ["positions", "()"]),
        ({"positions": np.full((4, 3, 3), "x")}, ["positions", "real numbers"]),
        ({"positions": np.ones((4, 3, 3), complex)}, ["positions", "complex128"]),
        ({"forces": np.full((COUNT, 3, 3), "x")}, ["forces", "real numbers"]),
        ({"forces": np.zeros((COUNT, 2, 3))}, ["forces", "(20, 3, 3)"]),
        ({"energies": np.zeros((COUNT, 2))}, ["energies", "(20,)"]),
        ({"cell": np.zeros(5), "pbc": True}, ["ell"]),
        ({"cell": "cubic", "pbc": True}, ["cell"]),
        ({"cell": np.full((3, 3), np.nan), "pbc": True}, ["cell", "NaN"]),
        ({"cell": np.ones((7, 3)), "pbc": True}, ["cell", "(7, 3)"]),
        ({"pbc": True}, ["cell"]),
        ({"pbc": np.arange(COUNT) % 2 == 0, "cell": 9 * np.eye(3)}, ["pbc", "varies"]),
    ],
)
def test_mistakes_name_file_and_entry(tmp_path, rng, content, facts):
    path = saved(tmp_path, **{"x": positions(rng), **content})
    with pytest.raises(ValueError) as told:
        Snapshots.read(path)
    assert all(fact in str(told.value) for fact in ["s.npz", *facts])


@pytest.mark.parametrize("label", ["energies", "forces"])
def test_labels_that_are_not_finite(tmp_path, rng, label):
    values = {"energies": np.zeros(COUNT), "forces": np.zeros((COUNT, 3, 3))}[label]
    values[7, ...] = 0.0
    # a frame of NaN alone would be one without a label
    values[(7,) if label == "energies" else (7, 2, 1)] = np.inf if label == "energies" else np.nan
    path = saved(tmp_path, positions(rng), **{label: values})
    facts = ["s.npz", label, "frame 7", *(["atom 2"] if label == "forces" else [])]
    with pytest.raises(ValueError, match=names(*facts)):
        Snapshots.read(path)


def test_files_of_one_array(tmp_path, rng):
    np.save(tmp_path / "x.npy", positions(rng))
    with pytest.raises(ValueError, match=names("x.npy", "numbers=…")):
        Snapshots.read(tmp_path / "x.npy", temperature_K=300)
    with pytest.raises(ValueError, match="is a folder"):
        Snapshots.read(tmp_path, temperature_K=300)


# ----------------------------------------------------------------- labels of other names


@pytest.mark.parametrize("key", ["REF_forces", "dft_forces", "force", "MACE_forces"])
def test_forces_of_another_name_are_pointed_out(tmp_path, rng, key):
    some = []
    for x in positions(rng):
        atoms = Atoms(WATER.numbers, x)
        atoms.arrays[key] = np.zeros_like(x)
        some.append(atoms)
    ase.io.write(tmp_path / "s.extxyz", some)
    with pytest.warns(UserWarning, match=names("s.extxyz", key, "'forces'", "eV/Å", "rename")):
        read = Snapshots.read(tmp_path / "s.extxyz", temperature_K=300)
    assert read.forces is None


def test_energies_of_another_name(tmp_path, rng):
    some = [Atoms(WATER.numbers, x, info={"REF_energy": -1.0}) for x in positions(rng)]
    ase.io.write(tmp_path / "s.extxyz", some)
    with pytest.warns(UserWarning, match=names("s.extxyz", "REF_energy", "'energy'")):
        assert Snapshots.read(tmp_path / "s.extxyz", temperature_K=300).energies is None
    with pytest.warns(UserWarning, match=names("s.npz", "dft_energy", "energies")):
        Snapshots.read(saved(tmp_path, positions(rng), dft_energy=np.zeros(COUNT)))


def test_labels_of_some_frames(tmp_path, rng):
    from ase.calculators.singlepoint import SinglePointCalculator

    some = [Atoms(WATER.numbers, x) for x in positions(rng)]
    energies = 0.05 * rng.normal(size=5)
    for atoms, energy in zip(some, energies, strict=False):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    ase.io.write(tmp_path / "s.extxyz", some)
    read = Snapshots.read(tmp_path / "s.extxyz", temperature_K=300).energies
    np.testing.assert_allclose(read[:5], energies)
    assert np.isnan(read[5:]).all()
