"""``diffmd run``: accepted steps, restarted; what a target may not be; one kernel for a run."""

import json

import numpy as np
import pytest

from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.simulation import planned


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


@pytest.mark.parametrize(
    "words", [[], ["--target", "model"], ["--plumed", "p.dat"], ["--plumed", "p.dat", "--dry-run"]]
)
def test_the_command_builds_one_kernel(diffmd, start, monkeypatch, words):
    made, biases = [], []
    inner = EulerMaruyama.__post_init__

    def counted(kernel):
        inner(kernel)
        made.append(kernel)

    def bias(name, system, **options):
        biases.append((name, options["kT"], options["timestep"]))
        return Harmonic(0.1)

    monkeypatch.setattr(EulerMaruyama, "__post_init__", counted)
    monkeypatch.setattr(planned, "load_potential", bias)
    # its own samples would be drawn by kernels of other kinds
    code, _, err = diffmd(*start, *words, "--steps", 3)
    assert code == 0, err
    assert len(made) == 1
    wet = "--plumed" in words and "--dry-run" not in words
    assert [name for name, *_ in biases] == ["plumed"] * wet
    assert len(made[0].potential.terms) == 1 + wet
