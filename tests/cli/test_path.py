"""``diffmd converge`` and ``diffmd path``."""

import json

import numpy as np
import pytest
from ase.io import read, write

from diffmd_ase.score.snapshots import Snapshots


def test_converge(diffmd, model, folder, tmp_path):
    """Orders of one, in a table, JSON and a picture."""
    more = ["--start", folder / "data.npz", "--walkers", 24, "--steps", 5, "--levels", 3]
    code, out, err = diffmd("converge", model, *more)
    assert code == 0, err
    assert "order" in out and "weak" in out
    told = json.loads((tmp_path / "converge.json").read_text())
    strong = told["strong_order"]
    assert abs(strong["value"] - 1) < 0.3 and strong["error"] < 0.2
    assert told["h_A2"][0] == pytest.approx(2 * told["h_A2"][1])
    assert (tmp_path / "converge.png").stat().st_size > 5000
    code, out, err = diffmd("converge", model, *more, "--json")
    assert code == 0 and json.loads(out)["strong_order"] == strong
    code, _, err = diffmd("converge", model, "-o", "x.txt")
    assert code == 1 and ".json" in err


@pytest.fixture
def ends(folder, tmp_path):
    """Two snapshots of peroxide, with torsions of either sign."""
    from diffmd_ase.geometry import dihedrals

    snapshots = Snapshots.read(folder / "data.npz")
    phi = dihedrals(np.asarray(snapshots.positions), [[0, 1, 2, 3]])[:, 0]
    for name, n in (("a", np.abs(phi + 1.2).argmin()), ("b", np.abs(phi - 1.2).argmin())):
        write(tmp_path / f"{name}.xyz", snapshots.system.to_atoms(snapshots.positions[n]))
    return tmp_path / "a.xyz", tmp_path / "b.xyz"


def test_path(diffmd, model, ends, tmp_path):
    states = ["--cv", "phi=torsion:0,1,2,3", "--start-range=-180:0", "--end-range=0:180"]
    code, out, err = diffmd(
        "path",
        model,
        *ends,
        "--images",
        9,
        "--evaluations",
        30,
        *states,
        "--shots",
        4,
        "--most",
        20,
    )
    assert code == 0, err
    assert "action" in out and "committor" in out
    told = json.loads((tmp_path / "path.json").read_text())
    assert len(told["energy_kT"]) == len(told["committor"]) == 9
    assert told["committor"][0]["value"] == 0 and told["committor"][-1]["value"] == 1
    energy = np.array(told["energy_kT"])
    assert energy.max() >= energy[0] and energy.max() >= energy[-1]
    frames = read(tmp_path / "path.extxyz", ":")
    assert [f.info["energy_kT"] for f in frames] == pytest.approx(energy.tolist())
    assert (tmp_path / "path.png").stat().st_size > 5000


def test_ends_that_do_not_fit(diffmd, model, ends, tmp_path):
    shooting = ["path", model, *ends, "--shots", 3]
    code, _, err = diffmd(*shooting)
    assert code == 1 and "--start-range" in err
    states = ["--cv", "phi=torsion:0,1,2,3", "--start-range=0:180", "--end-range=0:180"]
    code, _, err = diffmd(*shooting, *states)
    assert code == 1 and "outside its range" in err
    code, _, err = diffmd(*shooting, *states[:2], "--start-range=zero", "--end-range=0:180")
    assert code == 1 and "low:high" in err
    frame = read(ends[1])
    write(tmp_path / "other.xyz", frame[[1, 0, 2, 3]])
    code, _, err = diffmd("path", model, ends[0], tmp_path / "other.xyz")
    assert code == 1 and "order of the atoms" in err
    (tmp_path / "none.xyz").write_text("")
    code, _, err = diffmd("path", model, ends[0], tmp_path / "none.xyz")
    assert code == 1 and "none.xyz" in err
