"""``diffmd`` called as in a process of its own, and what it is called with."""

import numpy as np
import pytest
import torch
from peroxide import peroxide

from diffmd_ase.cli.main import main

TINY = ["--steps", "20", "--batch-size", "32", "--width", "8", "--processes", "1"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Snapshots and a hardly trained model; read only, for all tests."""
    place = tmp_path_factory.mktemp("cli")
    frames = {"positions": peroxide(300, np.random.default_rng(1)), "numbers": [1, 8, 8, 1]}
    np.savez(place / "data.npz", temperature_K=300.0, **frames)
    np.savez(place / "silent.npz", **frames)
    train = ["train", str(place / "data.npz"), "-o", str(place / "m.safetensors")]
    with pytest.raises(SystemExit) as done:
        main([*train, *TINY, "--no-progress"])
    assert not done.value.code
    return place


@pytest.fixture
def diffmd(capsys, tmp_path, monkeypatch):
    """Call ``diffmd`` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # as in a process of its own

    def call(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return call


@pytest.fixture
def model(folder):
    return folder / "m.safetensors"


@pytest.fixture
def start(folder, model):
    """The words of a short run."""
    words = ["run", model, "--start", folder / "data.npz", "--walkers", 3, "--every", 10]
    return [*words, "--no-progress"]
