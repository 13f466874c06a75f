"""What is said to be JSON is JSON: jq, JavaScript, Go and Rust refuse NaN and Infinity."""

import json
from pathlib import Path

import numpy as np
import pytest

HILLS = "#! FIELDS time d sigma_d height biasf\n#! SET kerneltype stretched-gaussian\n"


def strict(text):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def told(diffmd):
    def call(*words):
        code, out, err = diffmd(*words)
        assert code == 0, err
        return strict(out)

    return call


def test_runs_models_and_reports(told, start, model, folder):
    told(*start, "--steps", 200, "--json")  # plain dynamics has no acceptance
    strict(Path("md.json").read_text())
    rows = told("analyze", "md.h5", "--json")["rows"]
    assert {row["name"] for row in rows} >= {"energy", "torsion:0,1,2,3"}
    told("info", model, "--json")
    told("doctor", "--json")
    words = ["--snapshots", folder / "data.npz", "--trajectory", "md.h5", "--json"]
    assert told("report", model, *words)["verdicts"]


def test_a_series_that_does_not_change(told, diffmd, tmp_path):
    """Its R-hat and effective samples are not numbers."""
    from ase import Atoms
    from ase.io import write

    write("still.traj", [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.0]])] * 20)
    [row] = told("analyze", "still.traj", "--observe", "d=distance:0,1", "--json")["rows"]
    assert row["mean"] == 3.0 and row["rhat"] is None and row["ess_bulk"] is None


def test_free_energies(told, diffmd, rng):
    d = rng.normal(size=200)
    rows = "".join(f"{n + 1} {v} 0.2 1.0 -1\n" for n, v in enumerate(d))
    Path("HILLS").write_text(HILLS + rows)
    words = ["fes", "HILLS", "--temperature", 300, "--json", "--no-progress", "--basin", "d:-2:-1"]
    found = told(*words, "--basin", "d:1:2")
    assert found["biasfactor"] is None and np.isfinite(found["delta_F"][0])
    found = told(*words, "--basin", "d:30:31")
    assert found["delta_F"] == [None, None] and found["late_range"] is None
    assert any("unknown" in v["text"] and v["good"] is False for v in found["verdicts"])
    # an error is one on standard error, and no result
    Path("COLVAR").write_text("#! FIELDS time d\n" + "".join(f"{n} {v}\n" for n, v in enumerate(d)))
    words = ["fes", "COLVAR", "--reweight", "none", *words[2:]]
    code, out, err = diffmd(*words, "--basin", "d:30:31")
    assert code == 1 and not out and "no sample in the basin" in err
