"""``diffmd alchemy`` as its users have it."""

import json

import pytest
from ase.build import bulk

pytest.importorskip("alchemlyb")

SHORT = ["--steps", "60", "--first-pass", "20", "--walkers", "1", "--every", "3", "--windows", "2"]


@pytest.fixture
def copper(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.write(tmp_path / "cu.xyz")
    atoms.repeat((2, 1, 1)).write(tmp_path / "two.xyz")
    atoms.symbols[0] = "Au"
    atoms.write(tmp_path / "cuau.xyz")
    return "cu.xyz"


def test_a_substitution_and_its_restart(diffmd, tmp_path, copper):
    words = ["alchemy", "emt", "emt", copper, "--end-structure", "cuau.xyz", *SHORT]
    code, out, err = diffmd(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["dF_error_kT"] > 0 and told["verdicts"]
    for name in told["files"]:
        assert (tmp_path / name).exists()
    code, _, err = diffmd(*words)
    assert code == 1 and "exists" in err
    code, out, err = diffmd(*words, "--restart", "--json")
    assert code == 0 and json.loads(out)["dF_kT"] == told["dF_kT"], err


@pytest.mark.parametrize("ideal", ["einstein", "harmonic"])
def test_a_crystal_has_an_absolute_free_energy(diffmd, copper, ideal):
    code, out, err = diffmd("alchemy", ideal, "emt", copper, *SHORT, "--no-progress")
    assert code == 0 and "F_eV_per_atom" in out and "effective samples" in out, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["emt", "nobody", "cu.xyz"], "end 'nobody'"),
        (["emt", "emt", "cu.xyz", "--windows", "1"], "--windows 1"),
        (["emt", "emt", "cu.xyz", "--protocol", "magic"], "--protocol"),
        (["emt", "emt", "nowhere.xyz"], "nowhere.xyz"),
        (["emt", "emt", "cu.xyz", "--start-options", "{"], "--start-options"),
        (["emt", "emt", "cu.xyz", "--temperature", "0"], "--temperature"),
        (["emt", "emt", "cu.xyz"], "differ by a constant"),
        (["emt", "alanine-dipeptide", "cu.xyz"], "same atoms"),
        (["emt", "emt", "cu.xyz", "--end-structure", "two.xyz"], "4 atoms"),
    ],
)
def test_mistakes_are_one_line(diffmd, copper, words, said):
    code, _, err = diffmd("alchemy", *SHORT[:6], *words, "--steps", 400, "--no-progress")
    assert code in (1, 2) and said in err, err
    assert "Traceback" not in err
