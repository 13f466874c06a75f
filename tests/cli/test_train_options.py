"""``diffmd train`` above a baseline, and with forces of some frames."""

import json

import numpy as np
import pytest
from ase import units
from ase.build import molecule

TINY = ["--steps", "20", "--batch-size", "32", "--width", "8", "--processes", "1"]

KT = 300 * units.kB


@pytest.fixture
def frames(tmp_path):
    """Water of a spring to each place: positions and forces of every fifth frame."""
    atoms = molecule("H2O")
    u = 0.03 * np.random.default_rng(0).normal(size=(200, 3, 3))
    forces = np.full_like(u, np.nan)
    forces[::5] = -KT * u[::5] / 0.03**2
    entries = {"positions": atoms.positions + u, "numbers": atoms.numbers, "temperature_K": 300.0}
    np.savez(tmp_path / "all.npz", **entries)
    np.savez(tmp_path / "mixed.npz", forces=forces, **entries)
    return tmp_path


def test_above_a_baseline(diffmd, frames):
    words = ["train", frames / "all.npz", *TINY, "--no-progress", "--directory", frames / "run"]
    words += ["--baseline", "emt", "-o", frames / "m.safetensors"]
    code, out, err = diffmd(*words)
    assert not code, err
    assert "baseline" in out and "emt" in out and (frames / "run/baseline.0.npz").exists()
    code, out, _ = diffmd("info", frames / "m.safetensors", "--json")
    card = json.loads(out)
    assert card["baseline"]["name"] == "emt" and np.shape(card["baseline"]["forces"]) == (3, 3)
    assert [e["network"].get("depth") for e in card["experts"]] == [0, 3]
    code, _, err = diffmd(*words[:-1], frames / "n.safetensors", "--baseline", "nobody")
    assert code == 1 and "baseline 'nobody' is neither" in err
    code, _, err = diffmd("train", frames / "all.npz", *TINY, "--baseline-options", "[]")
    assert code == 1 and "--baseline-options" in err


def test_forces_of_some_frames(diffmd, frames):
    words = ["train", frames / "mixed.npz", *TINY, "--no-progress", "-o", frames / "m.safetensors"]
    code, _, err = diffmd(*words, "--force-weight", "auto")
    assert not code and "200 snapshots of H2O at 300 K, 40 with forces" in err
    for wrong in ("much", "-1"):
        code, _, err = diffmd(*words, "--force-weight", wrong)
        assert code == 2 and "--force-weight" in err and wrong in err
