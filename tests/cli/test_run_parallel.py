"""``diffmd run --parallel``: the trajectory of one step at a time, drafts, restarts, refusals."""

import json

import numpy as np
import pytest

from diffmd_ase.io.trajectory import Trajectory

H = ["--step-size", "2e-5"]


def test_the_same_trajectory(diffmd, start):
    assert diffmd(*start, *H, "--steps", 60, "--prefix", "alone")[0] == 0
    code, out, err = diffmd(*start, *H, "--parallel", "--steps", 60, "--prefix", "all", "--json")
    assert code == 0, err
    count = json.loads(out)["together"]
    assert count["steps"] == 60 and count["rounds"] < 30
    one, many = (Trajectory(f"{name}.h5") for name in ("alone", "all"))
    assert one.steps.tolist() == many.steps.tolist()
    # networks in float32: 1e-4 of the noise of a step, 6e-3 Å
    np.testing.assert_allclose(one.positions[:], many.positions[:], rtol=0, atol=2e-6)
    np.testing.assert_allclose(one.energies, many.energies, rtol=0, atol=1e-3)


@pytest.mark.parametrize("more", [[], ["--draft", "linear"], ["--target", "model"]])
def test_restart(diffmd, start, more):
    """The run that wrote the checkpoint goes on as the one that reads it does."""
    words = [*start, *H, "--parallel", *more, "--prefix", "parts"]
    target = more if "--target" in more else []
    assert diffmd(*words, "--steps", 30)[0] == 0
    code, out, err = diffmd(*words, "--steps", 60, "--restart", "--json")
    assert code == 0, err
    assert json.loads(out)["together"]["steps"] == 60
    assert Trajectory("parts.h5").steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    code, _, err = diffmd(*start, *H, *target, "--prefix", "parts", "--steps", 90, "--restart")
    assert code == 1 and "parallel None now, but the run has True" in err


def test_drafts(diffmd, start, model):
    words = [*start, *H, "--parallel", "--steps", 20, "--json"]
    code, out, err = diffmd(*words, "--draft", model, "--prefix", "itself")
    assert code == 0, err
    assert json.loads(out)["together"]["rounds"] <= 3  # a perfect draft
    code, _, err = diffmd(*words, "--draft", "nobody", "--prefix", "none")
    assert code == 1 and "draft 'nobody' is neither" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--draft", "linear"], "add --parallel"),
        (["--parallel", "--draft", "copper-vacancy"], "this model knows Cu, not H, O"),
        (["--parallel", "--target", "model", "--proposal-steps", 2], "one after the other"),
    ],
)
def test_mistakes(diffmd, start, words, said):
    code, _, err = diffmd(*start, *words, "--steps", 40)
    assert code == 1 and said in err and "Traceback" not in err
