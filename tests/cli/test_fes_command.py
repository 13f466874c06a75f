"""``diffmd fes`` on files of the real PLUMED and on a trajectory, against what is known."""

import csv
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from ase import units
from pesmd import double_well, pesmd

from diffmd_ase.analysis.free_energy.from_files import Request, analyse
from diffmd_ase.cli.main import main
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import TrajectoryWriter
from diffmd_ase.sampling.kernels import State
from diffmd_ase.system import System

BASINS = ["--basin", "x:-2:0", "--basin", "x:0:2"]
METAD = """m: METAD ARG=x SIGMA=0.1 HEIGHT=0.3 PACE=100 BIASFACTOR=8 TEMP=1 {more}
PRINT ARG=x,m.* STRIDE=10 FILE=COLVAR"""
GRID = "GRID_MIN=-3 GRID_MAX=3 GRID_BIN=300 CALC_RCT"
OPES = """m: OPES_METAD ARG=x SIGMA=0.1 BARRIER={barrier} PACE=100 TEMP=1
PRINT ARG=x,m.* STRIDE=10 FILE=COLVAR"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("fes")
    pesmd(place / "metad", double_well(METAD.format(more=GRID), barrier=2.5), steps=30_000, seed=5)
    pesmd(place / "opes", double_well(OPES.format(barrier=4), barrier=2.5), steps=30_000, seed=6)
    return place


@pytest.fixture
def diffmd(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as done:
            main(["fes", *(str(a) for a in arguments), "--no-progress"])
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return call


def surface(path):
    with np.load(path) as saved:
        return saved["centres_0"], saved["free_energy"], saved["error"]


@pytest.mark.parametrize(
    "name, method, inputs",
    [
        ("metad", "rbias", ["metad"]),
        ("metad", "rbias", ["metad/COLVAR"]),
        ("metad", "last", ["metad", "--reweight", "last"]),
        ("opes", "opes", ["opes/COLVAR"]),
    ],
)
def test_reweighted_runs(runs, diffmd, name, method, inputs):
    words = [runs / inputs[0], *inputs[1:], "--cv", "x", "--energy-unit", "kT", *BASINS]
    code, out, err = diffmd(*words, "--json", "-o", "f.png", "--bins", 40)
    assert code == 0, err
    found = json.loads(out)
    assert found["reweight"] == method and found["skip"] == 0.2 and found["rows"] == 2400
    value, error = found["delta_F"]
    assert abs(value) < 3 * error and 0.05 < error < 1
    height, doubt = found["barrier"]["from_first"]
    x, f, error = surface("f.npz")
    exact = 2.5 * (x**2 - 1) ** 2
    low = np.isfinite(f) & (exact < 3)
    z = (f - exact)[low]
    assert z.std() < 0.5 < f[low].std()
    words = " ".join(v["text"] for v in found["verdicts"])
    assert ("final bias is taken for exact" in words) == (method == "last")
    if method != "last":
        assert abs(height - 2.5) < 3 * doubt + 0.2  # the highest of noisy bins
        z = (z - np.average(z, weights=error[low] ** -2)) / error[low]
        assert np.sqrt(np.mean(z**2)) < 2  # neighbours err together
    assert found["basin_changes"] > 10 and found["independent_samples"] < found["kish_samples"]


def test_files_written(runs, diffmd):
    code, out, err = diffmd(runs / "metad", "--energy-unit", "kT", *BASINS)
    assert code == 0 and "wrote fes.png, fes.npz, fes.csv" in err
    assert "ΔF = F(second) − F(first)" in out and "The hills decay as kT = " in out
    picture = matplotlib.image.imread("fes.png")
    assert picture.shape[1] > 2.5 * picture.shape[0] and picture[..., :3].std() > 0.05
    x, f, error = surface("fes.npz")
    with open("fes.csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["x", "F (kT)", "error (kT)"] and len(rows) == len(x)
    np.testing.assert_allclose(np.array(rows, float), np.stack([x, f, error], -1))
    saved = yaml.safe_load(Path("fes.png.yml").read_text())
    assert saved["energy-unit"] == "kT" and saved["basin"] == ["x:-2:0", "x:0:2"]
    assert diffmd("--config", "fes.png.yml", "-o", "again.png")[0] == 0
    np.testing.assert_array_equal(surface("again.npz")[1], f)


def test_sums_have_no_error_bar(runs, diffmd):
    code, out, _ = diffmd(runs / "metad/HILLS", "--energy-unit", "kT", *BASINS, "-o", "h.png")
    assert code == 0 and "has no error bar" in out and "over the second half" in out
    hills = surface("h.npz")
    code, out, _ = diffmd(runs / "opes/KERNELS", "--energy-unit", "kT", *BASINS, "-o", "k.png")
    assert code == 0 and "no error bar" in out
    for x, f, error in (hills, surface("k.npz")):
        assert np.isnan(error).all()
        low = np.abs(x) < 1.2
        gap = (f - 2.5 * (x**2 - 1) ** 2)[low]
        assert gap.std() < 0.6 < f[low].std()
    code, out, _ = diffmd(runs / "metad/HILLS", "--energy-unit", "kT")
    assert code == 0


def test_a_wrong_unit_is_seen(runs, diffmd):
    """The files are in units of kT; taken for kJ/mol the hills decay as for another kT."""
    code, out, _ = diffmd(runs / "metad", "--temperature", 300, *BASINS)
    assert code == 0 and "✗ The hills decay as for kT = 1" in out and "2.494 kJ/mol" in out
    code, out, _ = diffmd(runs / "opes/COLVAR", "--cv", "x", "--temperature", 300)
    assert code == 0


def test_two_variables(tmp_path, diffmd, rng):
    """Walkers in turn, uniform on a torus; weights of exp(-cos a)."""
    rows = []
    for n, s in enumerate(rng.uniform(-np.pi, np.pi, (20_000, 2))):
        rows.append(f"{n // 4} {s[0]:.6f} {s[1]:.6f} {-2 * np.cos(s[0]):.6f}")
    head = "#! FIELDS time a b r.bias\n"
    head += "".join(f"#! SET min_{n} -pi\n#! SET max_{n} pi\n" for n in "ab")
    (tmp_path / "COLVAR").write_text(head + "\n".join(rows) + "\n")
    words = ["COLVAR", "--cv", "a", "--cv", "b", "--energy-unit", "kT", "--reweight", "static"]
    words += ["--basin", "a:-1:1", "--basin", "a:2.1:-2.1", "--bins", 8, "--json"]
    code, out, err = diffmd(*words)
    assert code == 0 and "4 walkers in turn" in err
    found = json.loads(out)
    a = np.linspace(-np.pi, np.pi, 100_001)
    p = np.exp(-2 * np.cos(a))
    exact = -np.log(p[np.abs(a) > 2.1].sum() / p[np.abs(a) < 1].sum())
    assert abs(found["delta_F"][0] - exact) < 4 * found["delta_F"][1] < 0.3
    assert found["walkers"] == 4 and found["visited_bins"] == 1.0
    assert surface("fes.npz")[1].shape == (8, 8)


@pytest.fixture
def trajectory(tmp_path):
    """H2O2 whose torsion is uniform and whose bond is N(1.5, 0.1²); 300 K, two walkers."""
    rng = np.random.default_rng(3)
    info = RunInfo(seed=1, kT=300 * units.kB, h=1e-4, kinetics_valid=True)
    system = System(np.array([1, 8, 8, 1]), np.array([1.0, 16.0, 16.0, 1.0]))
    with TrajectoryWriter.create(tmp_path / "md.h5", system, [0, 1], info) as writer:
        for step in range(1, 1501):
            t, d = rng.uniform(-np.pi, np.pi, 2), 1.5 + 0.1 * rng.standard_normal(2)
            x = np.zeros((2, 4, 3))
            x[:, 0, 0], x[:, 2, 2] = 1.0, d
            x[:, 3] = np.stack([np.cos(t), np.sin(t), d], -1)
            if step > 1490:
                x[1] = np.nan
            writer.append(State(torch.tensor(x), torch.zeros(2), torch.zeros(2, 4, 3), step=step))
    return tmp_path / "md.h5"


def test_a_trajectory(trajectory, diffmd):
    words = ["md", "--cv", "t=torsion:0,1,2,3", "--basin", "t:-1:1", "--basin", "t:2:-2", "--json"]
    code, out, err = diffmd(*words, "--bins", 10)
    assert code == 0 and "10 frames of lost walkers" in err
    found = json.loads(out)
    assert found["walkers"] == 2 and found["temperature_K"] == pytest.approx(300, rel=1e-6)
    exact = -2.494338 * np.log((np.pi - 2) / 1)
    assert abs(found["delta_F"][0] - exact) < 4 * found["delta_F"][1] < 1.5
    code, out, _ = diffmd("md.h5", "--cv", "d=distance:1,2", "--range", "d:1.3:1.7", "--bins", 8)
    assert code == 0
    d, f, error = surface("fes.npz")
    gap = f - 2.494338 * 0.5 * ((d - 1.5) / 0.1) ** 2
    assert (np.abs(gap - gap.mean()) < 4 * error + 0.05).all()


HEAD = "#! FIELDS time x y m.bias\n"
MISTAKES = [
    ("none.dat", "no such file, folder or prefix"),
    (". --cv x", "holds no COLVAR, HILLS or KERNELS"),
    ("T --energy-unit kT --reweight static", "which variable? T has x, y: give --cv"),
    ("T --energy-unit kT --cv x", "do not say what bias this is"),
    ("T --cv x --reweight none", "no temperature: give --temperature"),
    ("T --cv x --reweight none --temperature -3", "must be positive"),
    ("T --cv x --reweight none --temperature 300 --energy-unit kj", "expected one of kJ/mol"),
    ("T --cv z --reweight none --energy-unit kT", "no column 'z', only time, x, y, m.bias"),
    ("T --cv x --reweight mbar --energy-unit kT", "expected one of rbias, last"),
    ("T --cv x --cv y --cv x --energy-unit kT", "a surface has one or two"),
    ("T --cv x --basin x:0:1 --energy-unit kT", "1 basins: give two"),
    ("T --cv x --reweight none --energy-unit kT --basin x:0 --basin x:1:2", "name:low:high"),
    ("T --cv y --reweight none --energy-unit kT", "y is 2.0 throughout"),
    ("T --cv x --reweight none --energy-unit kT -o no/f.png", "does not exist"),
    ("H3 --energy-unit kT", "a, b, c: a surface has one or two variables"),
    ("H2 --energy-unit kT --cv a", "HILLS on a, b give the surface of all"),
    ("text", "no line '#! FIELDS"),
    ("md.h5 --cv x", "expected name=torsion:i,j,k,l"),
    ("md.h5", "a trajectory needs variables"),
    ("md.h5 --cv t=torsion:0,1,2,9", "atoms 0, 1, 2, 9 must differ and lie in 0…3"),
    ("md.h5 --cv d=distance:0,1 --temperature 310", "ran at 300 K"),
    ("md.h5 --cv d=distance:0,1 --reweight opes", "it holds no bias"),
    ("md.h5 T --cv x", "give one or the other"),
]


@pytest.mark.parametrize("words, message", MISTAKES)
def test_mistakes_are_one_line(trajectory, diffmd, tmp_path, words, message):
    (tmp_path / "T").write_text(HEAD + "".join(f"{n} {n % 7} 2 0\n" for n in range(60)))
    for name, cvs in (("H2", "a b"), ("H3", "a b c")):
        sigmas = " ".join(f"sigma_{c}" for c in cvs.split())
        row = " ".join(["1"] * (3 + 2 * len(cvs.split())))
        text = f"#! FIELDS time {cvs} {sigmas} height biasf\n{row}\n"
        (tmp_path / name).write_text(text)
    (tmp_path / "text").write_text("1 2 3\n")
    before = sorted(tmp_path.iterdir())
    code, out, err = diffmd(*words.split())
    assert code == 1 and not out, err
    [line] = err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before  # nothing half-written


@pytest.mark.slow
@pytest.mark.parametrize("method", ["metad", "opes"])
def test_double_well_of_8_kT(tmp_path, method):
    """One walker, 200 000 steps: barrier, ΔF and the surface below 8 kT."""
    more = METAD.format(more=GRID).replace("BIASFACTOR=8", "BIASFACTOR=10")
    bias = {"metad": more, "opes": OPES.format(barrier=10)}[method]
    pesmd(tmp_path / "run", double_well(bias, barrier=8.0), steps=200_000, seed=1)
    request = Request(cvs=("x",), unit="kT", basins=("x:-2:0", "x:0:2"), bins=60)
    found = analyse([tmp_path / "run" / "COLVAR"], request)
    value, error = found.numbers["delta_F"]
    assert abs(value) < 3 * error < 1.2
    height, doubt = found.numbers["barrier"]["from_first"]
    assert abs(height - 8) < 3 * doubt < 1.5
    x, f = found.axes[0].centres, found.free_energy
    low = np.isfinite(f) & (8 * (x**2 - 1) ** 2 < 8)
    gap = (f - 8 * (x**2 - 1) ** 2)[low]
    assert gap.std() < 0.25
