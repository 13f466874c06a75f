"""``--compile``: on, off, or where it pays; a restart of a run goes on as it began."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffmd_ase.io.trajectory import Trajectory


def summary(diffmd, *words):
    code, out, err = diffmd(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_short_run_is_not_compiled(diffmd, start):
    assert summary(diffmd, *start, "--steps", 20)["compiled"] is False


@pytest.mark.slow
def test_compiled_and_restarted(diffmd, start):
    on = [*start, "--compile", "on"]
    assert summary(diffmd, *on, "--steps", 40, "--prefix", "whole")["compiled"] is True
    assert summary(diffmd, *on, "--steps", 20, "--prefix", "parts")["compiled"] is True
    # what was chosen stays, whatever is asked for now
    again = summary(diffmd, *start, "--steps", 40, "--prefix", "parts", "--restart")
    assert again["compiled"] is True
    whole, parts = Trajectory("whole.h5"), Trajectory("parts.h5")
    assert np.array_equal(whole.positions[:], parts.positions[:])
    assert whole.info.extra["compiled"] is True
    assert summary(diffmd, *start, "--steps", 40, "--prefix", "off")["compiled"] is False
    assert np.allclose(whole.positions[:], Trajectory("off.h5").positions[:], atol=1e-3)


@pytest.mark.slow
def test_samples_compiled(diffmd, folder):
    command = ["sample", folder / "m.safetensors", "-n", 6, "--levels", 12, "--relax-steps", 3]
    drawn = {}
    for word in ("on", "off"):
        code, _, err = diffmd(*command, "-o", f"{word}.npz", "--compile", word)
        assert code == 0, err
        drawn[word] = np.load(f"{word}.npz")["positions"]
    assert np.allclose(drawn["on"], drawn["off"], atol=1e-3)
    assert not np.array_equal(drawn["on"], drawn["off"])  # it was compiled


@pytest.mark.slow
def test_validation_compiled(diffmd, folder):
    command = ["validate", folder / "m.safetensors", folder / "data.npz", "--effort", 0.02]
    found = {}
    for word in ("on", "off"):
        code, _, err = diffmd(*command, "-o", f"{word}.json", "--compile", word)
        assert code == 0, err
        found[word] = json.loads(Path(f"{word}.json").read_text())
    names = [[one["name"] for one in card["lines"]] for card in found.values()]
    assert names[0] == names[1]


@pytest.mark.parametrize("command", ["run", "sample", "validate"])
def test_another_word_is_refused(diffmd, folder, command):
    files = {"validate": [folder / "data.npz"], "sample": ["-o", "out.npz"]}
    code, _, err = diffmd(
        command, folder / "m.safetensors", *files.get(command, []), "--compile", "perhaps"
    )
    assert code == 2
    assert "compile" in err and "'auto', 'on'" in err
