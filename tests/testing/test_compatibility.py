"""The page of what was tried says what its script says, and the script can tell a difference."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"


@pytest.fixture
def compatibility(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return pytest.importorskip("compatibility", reason="an installed package has no benchmarks")


@pytest.fixture
def tried(compatibility):
    """All trials but those of test suites, by kind and name."""
    from tried import ase_dynamics, ase_features, ase_formats, mdanalysis, plumed

    parts = (plumed, ase_features, ase_dynamics, ase_formats, mdanalysis)
    return {(trial.kind, trial.name): trial for part in parts for trial in part.trials()}


def rows() -> dict[tuple[str, str], str]:
    found, kind = {}, ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("### "):
            kind = line[4:].lower()
        elif line.startswith("| ") and kind:
            found[kind, line.split(" | ")[0][2:]] = line
    return found


def test_every_trial_is_in_the_page_and_none_besides(tried):
    own = {key for key in rows() if "own" not in key[0] and key[1] != "tried"}
    assert own == {(kind.lower(), name) for kind, name in tried}


@pytest.mark.parametrize(
    "kind, name",
    [
        ("Properties", "stress"),
        ("Optimisers", "FIRE"),
        ("Molecular dynamics", "VelocityVerlet"),
        ("Constraints", "FixAtoms"),
        ("Constraints", "Hookean"),
        ("Calculators", "LennardJones"),
        ("Dynamics", "irun"),
        ("Formats", "extxyz"),
        ("Formats", "vasp-xdatcar"),
        ("variables", "TORSION"),
        ("variables", "Q6 (periodic)"),
        ("biases", "METAD, well-tempered"),
    ],
)
def test_rows_are_as_they_were_written(kind, name, tried, compatibility):
    if kind in ("variables", "biases"):
        pytest.importorskip("plumed", reason="pip install --no-deps hillclimber")
        pytest.importorskip("diffmd_plumed", reason="plugins/plumed is not installed")
    trial = tried[kind, name]
    assert compatibility.row(trial, trial.outcome()) == rows()[kind.lower(), name]


def test_the_counts_are_those_of_the_rows():
    """In the table at the top, and above each table."""
    words = PAGE.read_text()
    verdicts = [line.split(" | ")[1] for line in rows().values() if "| tried |" not in line]
    table = words[words.index("|---") : words.index("\n## ")].splitlines()[1:]
    numbers = np.array([[int(cell) for cell in row.split("|")[2:-1]] for row in table if row])
    total = [
        len(verdicts),
        *(verdicts.count(v) for v in ("holds", "differs", "refused", "not here")),
    ]
    assert numbers.sum(0).tolist() == total and (numbers[:, 0] == numbers[:, 1:].sum(1)).all()


def test_what_differs_is_said(compatibility):
    """Numbers of our calculator, files of PLUMED, errors of any kind."""
    from tried.ase_features import EMT, _same
    from tried.outcome import Trial
    from tried.plumed import _difference

    assert _same(lambda make: [2.0, 1.0]).verdict == "holds"
    assert _same(lambda make: [2.0, 1.0 if make is EMT else 1.0 + 1e-7]).words == "by 5e-08"
    text = "#! FIELDS time d\n 0.0 0.25\n 1.0 0.5\n"
    assert _difference(text, text.replace("0.25", "-0.25")).startswith("!numbers to 5e-01")
    assert _difference(text, text.replace("0.25", "0.250001")) == "numbers to 1e-06"
    assert _difference(text, text.replace(" 0.0 0.25\n", "")) == "!without the row of the start"
    assert _difference(text, text + " 2.0 0.5\n") == "!3 rows for 2"

    def told(error: Exception) -> tuple[str, str]:
        def fail():
            raise error

        return Trial("a", "b", fail).outcome().row

    assert told(ValueError("no /tmp/a/b.xyz | here")) == ("refused", "no b.xyz / here")
    assert told(KeyError("x")) == ("differs", "KeyError: 'x'")
    assert told(ImportError("No module named 'y'")) == ("not here", "No module named 'y'")


SOME = """
import compatibility
from tried import ase_formats

some = [trial for trial in ase_formats.trials() if trial.name in ("traj", "elk-in", "json")]
alone = list(compatibility.outcomes(some))
assert list(compatibility.outcomes(some, 2)) == alone, alone
assert [outcome.verdict for outcome in alone] == ["not here", "holds", "holds"], alone
"""


def test_processes_give_the_same_in_the_same_order(compatibility):
    """In a process of its own: it forks, which libraries of other tests warn of."""
    place = Path(compatibility.__file__).parent
    done = subprocess.run([sys.executable, "-c", SOME], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
