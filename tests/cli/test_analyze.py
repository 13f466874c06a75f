"""``diffmd analyze``: from files to a verdict."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from ase.io.trajectory import Trajectory as AseTrajectory
from messages import names
from peroxide import peroxide

from diffmd_ase.io.read_trajectories import read_series
from diffmd_ase.io.trajectory import RunInfo, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.system import System

HOOH = System(np.array([1, 8, 8, 1]), np.array([1.0, 16.0, 16.0, 1.0]))
INFO = RunInfo(seed=1, kT=0.025, h=1e-3, kinetics_valid=True)


def frames_of(count, walkers, seed=1):
    """Independent structures (T, W, 4, 3) with a free torsion."""
    x = peroxide(count * walkers, np.random.default_rng(seed))
    return x.reshape(count, walkers, 4, 3)


def h5(path, x, *, energy=None, columns=None, walkers=None, system=HOOH):
    columns = columns or {}
    ids = range(x.shape[1]) if walkers is None else walkers
    with TrajectoryWriter.create(path, system, ids, INFO, columns=list(columns)) as writer:
        for t, positions in enumerate(x):
            here = torch.tensor(positions)
            e = torch.zeros(len(here)) if energy is None else torch.tensor(energy[t])
            named = {name: torch.tensor(values[t]) for name, values in columns.items()}
            writer.append(State(here, e, here, step=t), named)
    return path


def test_table_and_verdict(diffmd, tmp_path, rng, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    x = frames_of(400, 4)
    acceptance = np.vstack((np.full((1, 4), np.nan), rng.uniform(0.4, 0.7, (399, 4))))
    path = h5(tmp_path / "a.h5", x, energy=rng.normal(size=(400, 4)),
              columns={"acceptance": acceptance, "phi": rng.normal(size=(400, 4))})  # fmt: skip
    code, out, _ = diffmd("analyze", path)
    assert code == 0
    for word in ("energy", "acceptance", "phi", "torsion:0,1,2,3", "distance:1,2", "R-hat"):
        assert word in out
    assert "converged: all 7 observables" in out
    facts = json.loads(diffmd("analyze", path, "--json")[1])
    assert facts["good"] is True and facts["left_out"] == 0
    rows = {row["name"]: row for row in facts["rows"]}
    bond = rows["distance:1,2"]
    exact = np.linalg.norm(x[:, :, 2] - x[:, :, 1], axis=-1)
    assert bond["mean"] == pytest.approx(exact.mean(), abs=1e-5)
    assert abs(bond["mean"] - 1.46) < 4 * bond["error"] and bond["walkers"] == 4
    assert rows["acceptance"]["mean"] == pytest.approx(np.nanmean(acceptance))


def test_what_is_not_converged_is_said(diffmd, tmp_path):
    """The same frames, sorted by their torsion: each walker saw a part."""
    from diffmd_ase.geometry import dihedrals

    x = frames_of(400, 4).reshape(-1, 4, 3)
    order = np.argsort(dihedrals(x, [[0, 1, 2, 3]])[:, 0])
    path = h5(tmp_path / "a.h5", x[order].reshape(4, 400, 4, 3).swapaxes(0, 1))
    facts = json.loads(diffmd("analyze", path, "--json")[1])
    assert facts["good"] is False
    out = diffmd("analyze", path)[1]
    assert "✗ torsion:0,1,2,3: walkers disagree (R-hat" in out and "✗ not converged" in out
    assert "not converged" in facts["verdict"] and "torsion:0,1,2,3" in facts["verdict"]
    only = json.loads(diffmd("analyze", path, "--observe", "bonds", "--json")[1])
    assert only["good"] is True


def test_named_observables(diffmd, tmp_path):
    path = h5(tmp_path / "a.h5", frames_of(100, 2))
    words = ["phi=torsion:0,1,2,3", "d=0,3", "angle:0,1,2"]
    options = [part for word in words for part in ("--observe", word)]
    rows = json.loads(diffmd("analyze", path, *options, "--json")[1])["rows"]
    assert [row["name"] for row in rows] == ["phi", "d", "angle:0,1,2"]
    assert abs(rows[2]["mean"] - 100) < 4 * rows[2]["error"] + 1e-9  # degrees, by construction


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "expected energy"),
        ("d=distance:0", "distance:0,5"),
        ("d=distance:0,9", "lie in 0…3"),
        ("d=distance:1,1", "must differ"),
        ("d=distance:0,x", "expected energy"),
    ],
)
def test_mistakes(diffmd, tmp_path, words, said):
    path = h5(tmp_path / "a.h5", frames_of(20, 2))
    code, _, err = diffmd("analyze", path, "--observe", words)
    assert code == 1 and said in err and "Traceback" not in err


def test_skip_and_lost_walkers(diffmd, tmp_path):
    x = frames_of(100, 3)
    x[60:, 1] = np.nan
    x[:50, :, 0, 0] += 100.0
    path = h5(tmp_path / "a.h5", x)
    facts = json.loads(diffmd("analyze", path, "--skip", 0.5, "--json")[1])
    assert facts["left_out"] == 1
    assert all(row["frames"] == 50 and row["walkers"] == 2 for row in facts["rows"])
    assert all(row["mean"] < 10 for row in facts["rows"] if row["name"].startswith("distance"))


def test_ase_trajectories(diffmd, tmp_path, rng):
    """One walker, a batch with info, and several files side by side."""
    x = frames_of(50, 2)
    batch = [
        Atoms("HOOH", x[t, w], info={"walker": w, "step": t, "bias": float(t + 1000 * w)})
        for t in range(50)
        for w in range(2)
    ]
    write(tmp_path / "batch.traj", batch)
    series = read_series([tmp_path / "batch.traj"])
    np.testing.assert_allclose(series.positions, x)
    assert set(series.columns) == {"energy", "bias"}
    np.testing.assert_array_equal(series.columns["bias"][:, 1], 1000 + np.arange(50))
    for w in range(2):
        with AseTrajectory(tmp_path / f"{w}.traj", "w") as file:
            for t in range(50 - w):
                file.write(Atoms("HOOH", x[t, w]))
    both = read_series([tmp_path / "0.traj", tmp_path / "1.traj"])
    np.testing.assert_allclose(both.positions, x[:49])
    code, out, _ = diffmd("analyze", tmp_path / "0.traj", tmp_path / "1.traj", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["walkers"] == 2


def test_files_that_do_not_fit(tmp_path):
    write(tmp_path / "a.traj", [Atoms("H2", [[0, 0, 0], [0, 0, 1.0]])] * 9)
    write(tmp_path / "b.traj", [Atoms("He2", [[0, 0, 0], [0, 0, 1.0]])] * 9)
    with pytest.raises(ValueError, match="He2"):
        read_series([tmp_path / "a.traj", tmp_path / "b.traj"])
    with pytest.raises(FileNotFoundError):
        read_series([tmp_path / "c.traj"])
    x = np.full((9, 1, 4, 3), np.nan)
    with pytest.raises(ValueError, match=names("d.h5", "lost")):
        read_series([h5(tmp_path / "d.h5", x)])


def test_common_starts_make_superchains(diffmd, tmp_path):
    x = frames_of(40, 8)
    x[0] = np.repeat(x[0, :2], 4, axis=0)
    path = h5(tmp_path / "a.h5", x)
    assert read_series([path]).groups.tolist() in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    rows = json.loads(diffmd("analyze", path, "--json")[1])["rows"]
    assert all(row["rhat_nested"] for row in rows if row["std"] > 0)
    assert read_series([h5(tmp_path / "b.h5", frames_of(40, 8))]).groups is None


def test_constant_pressure(diffmd, tmp_path, rng):
    frames = []
    for _ in range(200):
        length = 10 + 4 * rng.random()
        x = [[0.5, 5, 5], [length - 0.5 + 0.05 * rng.normal(), 5, 5]]
        frames.append(Atoms("Ar2", positions=x, cell=[length] * 3, pbc=True))
    write(tmp_path / "npt.traj", frames)
    code, out, err = diffmd("analyze", "npt.traj", "--observe", "d=distance:0,1", "--json")
    true = np.mean([atoms.get_distance(0, 1, mic=True) for atoms in frames])
    assert code == 0 and json.loads(out)["rows"][0]["mean"] == pytest.approx(true, abs=1e-9)
    code, _, err = diffmd("analyze", "npt.traj", "--observe", "d=distance:0,1")
    assert code == 0 and "the cell changes" in err


def test_kinetics_of_files(diffmd, tmp_path):
    """States that jump at random each frame: no memory; JSON, CSV and a picture are left."""
    pytest.importorskip("deeptime", reason="Markov models need deeptime")
    path = h5(tmp_path / "a.h5", frames_of(300, 6))
    words = ["--observe", "t=torsion:0,1,2,3", "--state", "a=t:0:180", "--state", "b=t:180:360"]
    out = tmp_path / "k.json"
    code, text, errors = diffmd("analyze", path, "--kinetics", *words, "-o", out)
    assert code == 0 and "a → b" in text and "implied timescales" in text, errors
    facts = json.loads(out.read_text())
    population = facts["states"][0]["population"]
    assert abs(population["value"] - 0.5) < 4 * population["error"]
    time = facts["correlation"]["t"]
    assert abs(time["value"] - 0.5e-3) < 4 * time["error"] < 2e-3
    assert (
        out.with_suffix(".png").exists() and "passage,a -> b" in out.with_suffix(".csv").read_text()
    )
    told = json.loads(diffmd("analyze", path, "--kinetics", "--observe", words[1], "--json")[1])
    assert told["states"] == [] and "no torsion has two modes" in " ".join(told["notes"])
    for extra, words in [
        (["--lag", "0.01"], "go with --kinetics"),
        (["--kinetics", "--observe", "gyration", "--clusters", "900"], "expected 2 to a tenth"),
        (
            ["--kinetics", "--observe", "gyration", "--clusters", "2", "--state", "a=b:0:1"],
            "one of",
        ),
    ]:
        code, _, errors = diffmd("analyze", path, *extra)
        assert code and words in errors


def test_displacements_of_files(diffmd, tmp_path, rng):
    """Atoms in harmonic cages: no other numbers than those asked for, and words for the rest."""
    x = frames_of(1, 1)[:, :1] + 0.1 * rng.normal(size=(400, 5, 4, 3))
    path, out = h5(tmp_path / "a.h5", x), tmp_path / "m.json"
    code, text, errors = diffmd("analyze", path, "--kinetics", "--msd", "O", "--msd", "all",
                                "-o", out)  # fmt: skip
    assert code == 0 and "plateau of cages" in text, errors
    one, both = json.loads(out.read_text())["motion"]
    # about the mean of four atoms: a noise of variance 3/4
    assert abs(one["plateau"]["value"] - 6 * 0.01 * 0.75) < 4 * one["plateau"]["error"] < 0.01
    assert one["name"] == "O" and both["name"] == "all" and out.with_suffix(".csv").exists()
    assert json.loads(diffmd("analyze", path, "--kinetics", "--msd", "H", "--json")[1])["motion"]
    for extra, words in [
        (["--msd", "O"], "go with --kinetics"),
        (["--kinetics", "--msd", "Xx"], "there are H, O"),
        (["--kinetics", "--msd", "O", "--lag", "1"], "without --observe"),
    ]:
        code, _, errors = diffmd("analyze", path, *extra)
        assert code and words in errors
