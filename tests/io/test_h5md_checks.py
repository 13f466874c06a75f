"""HDF5 that leads elsewhere, promises too much or does not fit together is refused, in words."""

import h5py
import numpy as np
import pytest
import torch

from diffmd_ase.io import h5md
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

WATER = System(np.array([8, 1, 1]), np.array([16.0, 1.0, 1.0]))


@pytest.fixture
def path(tmp_path):
    info = RunInfo(seed=7, kT=0.025, h=1e-3, kinetics_valid=True)
    with TrajectoryWriter.create(tmp_path / "md.h5", WATER, np.arange(2), info) as writer:
        for step in range(5):
            x = torch.full((2, 3, 3), float(step))
            writer.append(State(x, torch.zeros(2), torch.zeros_like(x), step))
    return tmp_path / "md.h5"


def refused(path, change, words):
    with h5py.File(path, "r+", libver="latest") as file:
        change(file)
        try:
            file[h5md.CHECKS].attrs["header"] = h5md.header_digest(file)
        except Exception:  # what cannot be summed up keeps the old one
            pass
    with pytest.raises(ValueError, match=words) as error:
        Trajectory(path)
    assert path.name in str(error.value)


def replaced(name, make):
    def change(file):
        values = file[name][()]
        del file[name]
        make(file, name, values)

    return change


def test_a_sound_file_is_read(path):
    assert len(Trajectory(path)) == 5


LINKS = {
    "external": lambda f, n, v: f.create_dataset(
        n, v.shape, v.dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    ),
    "link": lambda f, n, v: f.__setitem__(n, h5py.ExternalLink("other.h5", "secret")),
    "soft": lambda f, n, v: f.__setitem__(n, h5py.SoftLink("/observables")),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", [h5md.POSITION, h5md.ENERGY, "diffmd_ase/walkers"])
def test_what_leads_elsewhere(path, kind, name):
    refused(path, replaced(name, LINKS[kind]), "link to another place|stored in other files")


def test_virtual_datasets(path, tmp_path):
    def change(file, name, values):
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", values.shape)
        file.create_virtual_dataset(name, layout)

    refused(path, replaced(h5md.POSITION, change), "stored in other files")


@pytest.mark.parametrize("rows", [10**9, 10**12])
def test_frames_that_are_not_there(path, rows):
    def change(file):
        for name in (h5md.STEP, h5md.POSITION, h5md.ENERGY, h5md.TIME):
            file[name].resize(rows, axis=0)

    refused(path, change, "declares .* GB and holds")


DATASETS = [h5md.STEP, h5md.POSITION, h5md.ENERGY, h5md.TIME, h5md.CHECK_REST, h5md.CHECK_POSITIONS]
DATASETS += ["diffmd_ase/walkers", f"{h5md.ROOT}/species", f"{h5md.ROOT}/mass"]


@pytest.mark.parametrize("name", DATASETS)
def test_shapes_and_kinds(path, name):
    content = path.read_bytes()
    makes = {
        "scalar": lambda f, n, v: f.__setitem__(n, 1.0),
        "axis": lambda f, n, v: f.__setitem__(n, v[None]),
        "text": lambda f, n, v: f.__setitem__(n, np.full(v.shape, b"x")),
        "group": lambda f, n, v: f.create_group(n),
        "short": lambda f, n, v: f.__setitem__(n, v[:1]),
    }
    for kind, make in makes.items():
        if (kind, name) == ("short", h5md.STEP):
            continue  # a file of one frame
        path.write_bytes(content)
        words = "damaged|no trajectory"
        refused(path, replaced(name, make), words)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "7", "null", '{"seed": 1}', "[" * 50_000, '{"a": "\\u001b[2J"}'],
)
def test_metadata(path, text):
    def change(file):
        file["diffmd_ase"].attrs["metadata"] = text

    refused(path, change, "metadata|control characters")


@pytest.mark.parametrize("columns", ["{", "7", "[1]", '[""]', '{"a": 1}', '["nope"]'])
def test_columns(path, columns):
    def change(file):
        file["diffmd_ase"].attrs["columns"] = columns

    refused(path, change, "columns|no trajectory")
