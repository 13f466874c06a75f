"""``diffmd run --target``: accepted steps, restarted; what a target may not be."""

import json

import numpy as np
import pytest

from diffmd_ase.io.trajectory import Trajectory


@pytest.mark.parametrize(
    "target",
    [
        ["--target", "model", "--proposal-steps", 2],
        ["--target", "lj", "--target-options", '{"sigma": 0.8, "epsilon": 0.01}'],
    ],
)
def test_run_and_restart(diffmd, start, target):
    words = [*start, *target, "--adapt", 20, "--step-size", 1e-5]
    code, out, err = diffmd(*words, "--steps", 60, "--prefix", "whole", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert 0 < summary["acceptance"] < 1 and summary["adaptation"]["steps"] == 20
    assert diffmd(*words, "--steps", 30, "--prefix", "parts")[0] == 0
    code, _, err = diffmd(*words, "--steps", 60, "--prefix", "parts", "--restart")
    assert code == 0, err
    whole, parts = (Trajectory(f"{name}.h5") for name in ("whole", "parts"))
    assert whole.columns.keys() == parts.columns.keys() and "acceptance" in whole.columns
    for column in whole.columns:
        np.testing.assert_array_equal(whole.columns[column], parts.columns[column])
    np.testing.assert_array_equal(whole.positions[:], parts.positions[:])
    np.testing.assert_array_equal(whole.energies, parts.energies)
    assert whole.steps.tolist() == [20, 30, 40, 50, 60]
    assert not whole.info.kinetics_valid
    code, out, err = diffmd("analyze", "whole.h5", "--observe", "d=distance:0,1")
    assert code == 1 and "frames are too few" in err
    # another target is refused, and plain dynamics has none of it
    code, _, err = diffmd(*start, "--steps", 90, "--prefix", "parts", "--restart")
    assert code == 1 and "repeat its settings" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "nobody"], "neither 'model' nor an installed potential"),
        (["--target", "lj", "--target-options", "{"], "is not JSON"),
        (["--target", "lj", "--target-options", "[1]"], "expected an object"),
        (["--target", "model", "--target-options", '{"a": 1}'], "takes no options"),
        (["--target", "lj", "--target-options", '{"rc": "x"}'], "cannot be made with options"),
        (["--adapt", 5], "give --target"),
        (["--target", "model", "--adapt", 50], "first part of the run"),
    ],
)
def test_mistakes(diffmd, start, words, said):
    code, _, err = diffmd(*start, *words, "--steps", 40)
    assert code == 1 and said in err and "Traceback" not in err
