"""What biases deposited, against the real PLUMED: states, kernels of hills, independent walkers."""

import re
import shutil

import numpy as np
import pytest
from messages import names
from pesmd import double_well, pesmd
from plumed_command import plumed_sum_hills

from diffmd_ase.analysis.free_energy.from_files import Request, analyse
from diffmd_ase.analysis.free_energy.hills_files import (
    Hills,
    bias_at,
    free_energy_of_components,
    height_law,
    reweighting_factor,
    sum_hills,
)
from diffmd_ase.analysis.free_energy.reweighting import log_weights_of_each
from diffmd_ase.io.plumed_tables import read_plumed, read_state

OPES = """m: {action} ARG=x SIGMA=0.3 BARRIER=6 PACE=500 TEMP=1 STATE_WFILE=STATE STATE_WSTRIDE=2500 {more}
PRINT ARG=x,m.bias STRIDE=1 FILE=COLVAR FMT=%14.10f"""  # noqa: E501
METAD = """m: METAD ARG=x SIGMA=0.15 HEIGHT=0.4 PACE=50 BIASFACTOR=6 TEMP=1
PRINT ARG=x,m.* STRIDE=10 FILE=COLVAR"""
TILT = "V: CUSTOM ARG=x FUNC=0.75*x PERIODIC=NO\nBIASVALUE ARG=V\n"
BASINS = ("x:-2:0", "x:0:2")


def exact(low=-2.0, high=2.0):
    """ΔF in kT of the tilted double well that the independent walkers are in."""
    x = np.linspace(low, high, 4001)
    p = np.exp(-2.5 * (x**2 - 1) ** 2 - 0.75 * x)
    return -np.log(p[x > 0].sum() / p[x < 0].sum())


@pytest.fixture(scope="module")
def walkers(tmp_path_factory):
    """Four runs of metadynamics that know nothing of each other."""
    place = tmp_path_factory.mktemp("independent")
    for n in range(4):
        text = double_well(METAD, barrier=2.5) + TILT
        pesmd(place / f"run{n}", text, steps=20_000, seed=n + 1)
    return place


def asked(inputs, **more):
    return analyse(inputs, Request(unit="kT", basins=BASINS, **more))


def words(result):
    return " ".join(verdict["text"] for verdict in result.verdicts)


# ------------------------------------------------------------------------ OPES


@pytest.mark.parametrize("action", ["OPES_METAD", "OPES_METAD_EXPLORE"])
def test_a_state_is_that_of_the_bias(action, tmp_path):
    """V = (1-1/γ) kT ln(P/Z + ε), with γ-1 for EXPLORE, of all rows since the state was stored."""
    text = OPES.format(action=action, more="STORE_STATES")
    folder = pesmd(tmp_path / "run", double_well(text), steps=7900, seed=3)
    state, table = read_state(folder / "STATE"), read_plumed(folder / "COLVAR")
    stored = state.column("time")[0]
    assert stored == 150 and len(state) > 1
    late = table.take((table.column("time") > stored) & (table.column("time") < stored + 8))
    s, v = late.column("x"), late.column("m.bias")
    gamma, epsilon, zed = (float(state.constants[n]) for n in ("biasfactor", "epsilon", "zed"))
    explore = action.endswith("EXPLORE")
    measured = np.exp(v / (gamma - 1 if explore else 1 - 1 / gamma))
    energy = free_energy_of_components(state, 1.0, [s])
    density = np.exp(-energy / (gamma if explore else 1.0))
    slope, intercept = np.polyfit(density, measured, 1)
    np.testing.assert_allclose(slope * density + intercept, measured, rtol=1e-5)
    assert intercept == pytest.approx(epsilon, rel=1e-5) and np.ptp(v) > 0.2
    assert slope * zed > 0


def test_the_free_energy_of_a_state(tmp_path):
    """Not that of hills: their sum would be a thousand times as high."""
    text = OPES.format(action="OPES_METAD", more="")
    folder = pesmd(tmp_path / "run", double_well(text, barrier=2.5) + TILT, steps=40_000, seed=5)
    state, kernels = (asked([folder / name]) for name in ("STATE", "KERNELS"))
    assert state.numbers["reweight"] == "state" and state.numbers["kernels"] < 20
    assert state.numbers["delta_F"][0] == pytest.approx(exact(), abs=0.5)
    assert state.numbers["delta_F"][0] == pytest.approx(kernels.numbers["delta_F"][0], abs=0.15)
    (folder / "COLVAR").unlink()
    assert asked([folder]).numbers["reweight"] == "kernels"
    shutil.copy(folder / "STATE", folder / "STATE.1")
    (folder / "KERNELS").unlink()
    with pytest.raises(ValueError, match=names("STATE", "STATE.1", "--independent")):
        asked([folder])
    assert asked([folder], independent=True).numbers["delta_F"][1] == 0.0


# ------------------------------------------------------------------------ kernels of hills


@pytest.mark.parametrize("factor", ["", " -1", " 1", " 8"], ids=["none", "-1", "1", "8"])
@pytest.mark.parametrize("kernel", [None, "gaussian", "stretched-gaussian"])
def test_kernels_are_those_that_plumed_sums(tmp_path, kernel, factor):
    """Also of files that name no kernel, or no bias factor."""
    head = f"#! FIELDS time x sigma_x height{' biasf' * bool(factor)}\n#! SET multivariate false\n"
    head += f"#! SET kerneltype {kernel}\n" if kernel else ""
    rows = "".join(f"{n} {c} 0.3 1.0{factor}\n" for n, c in enumerate([-0.5, 0.4, 0.7]))
    (tmp_path / "HILLS").write_text(head + rows)
    x = np.linspace(-2, 2, 401)
    theirs = plumed_sum_hills(tmp_path / "HILLS", [x], [0])
    ours = sum_hills(Hills.read(tmp_path / "HILLS"), [x])
    # PLUMED's grid lets Gaussians, which do not end at 0, reach to its next point
    same = np.abs(ours - theirs) < 1e-9
    assert same.mean() > 0.98 and same.all() == (kernel != "gaussian")
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("kernel", ["gaussian", "stretched-gaussian"])
@pytest.mark.parametrize("row", ["0 0 0.5 0.4 0.3", "0.5 -0.4 0.5 0.4 -0.2"])
def test_covariances_are_those_that_plumed_sums(tmp_path, kernel, row):
    head = "#! FIELDS time a b sigma_a_a sigma_b_b sigma_b_a height biasf\n"
    head += f"#! SET multivariate true\n#! SET kerneltype {kernel}\n"
    (tmp_path / "HILLS").write_text(head + f"1 {row} 1.0 -1\n")
    s = np.linspace(-3, 3, 61)
    theirs = plumed_sum_hills(tmp_path / "HILLS", [s, s], [0, 0])
    ours = sum_hills(Hills.read(tmp_path / "HILLS"), [s, s])
    inside = ours < -0.01
    assert inside.sum() > 300
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-9)


def test_other_kernels_are_refused(tmp_path):
    text = "#! FIELDS time x sigma_x height\n#! SET kerneltype triangular\n1 0 1 1\n"
    (tmp_path / "HILLS").write_text(text)
    with pytest.raises(ValueError, match=names("HILLS", "triangular", "gaussian")):
        Hills.read(tmp_path / "HILLS")


def test_a_bias_factor_of_one_does_not_act(tmp_path):
    """PLUMED then stores -F and biases nothing."""
    text = METAD.replace("BIASFACTOR=6", "BIASFACTOR=1")
    folder = pesmd(tmp_path / "run", double_well(text, barrier=1.0), steps=4000, seed=2)
    hills, table = Hills.read(folder / "HILLS"), read_plumed(folder / "COLVAR")
    assert hills.biasfactor == 1.0 and not table.column("m.bias").any()
    assert not bias_at(hills, table.columns(["x"])).any()
    assert not reweighting_factor(hills, 1.0).any()
    assert height_law(hills).kT == pytest.approx(1.0, rel=0.02)
    result = asked([folder], reweight="last")
    assert result.numbers["kish_samples"] == pytest.approx(result.numbers["rows"])


# ------------------------------------------------------------------------ independent walkers


def test_independent_walkers_are_one_bias_each(walkers):
    hills = [walkers / f"run{n}/HILLS" for n in range(4)]
    each = [asked([path]).numbers["delta_F"][0] for path in hills]
    result = asked(hills, independent=True)
    value, error = result.numbers["delta_F"]
    assert value == pytest.approx(np.mean(each), abs=0.02)
    assert error == pytest.approx(np.std(each, ddof=1) / 2, abs=0.02)
    assert abs(value - exact()) < 4 * error and result.numbers["independent"] == 4
    assert "spread of 4 independent walkers" in words(result) and result.verdicts[0]["good"]
    x = result.axes[0].centres
    low = np.abs(x) < 1.2
    f = 2.5 * (x**2 - 1) ** 2 + 0.75 * x
    gap = (result.free_energy - f)[low]
    assert (gap - gap.mean()).std() < 0.5 and 0 < np.median(result.error[low]) < 1
    # the control: one bias of all of them is four times as deep
    wrong = asked(hills)
    assert abs(wrong.numbers["delta_F"][0] - exact()) > 2


def test_who_takes_them_for_one_bias_is_told(walkers):
    hills = [walkers / f"run{n}/HILLS" for n in range(4)]
    first = asked(hills).verdicts[0]
    assert first["good"] is False
    assert re.search(names("4", "independent", "--independent"), first["text"])
    # a wrong unit and several files: both are named
    both = analyse(hills, Request(temperature_K=300)).verdicts
    assert not any("--independent" in v["text"] and v["good"] for v in both)
    assert "--independent" not in words(asked([walkers / "run0"]))


def test_samples_are_weighted_by_their_own_bias(walkers):
    folders = [walkers / f"run{n}" for n in range(4)]
    result = asked(folders, independent=True)
    value, error = result.numbers["delta_F"]
    assert abs(value - exact()) < 3 * error < 1 and result.numbers["walkers"] == 4
    wrong = asked(folders)
    assert wrong.numbers["kish_samples"] < 0.2 * result.numbers["kish_samples"]
    last = asked(folders, independent=True, reweight="last").numbers["delta_F"]
    assert abs(last[0] - exact()) < 4 * last[1]
    with pytest.raises(ValueError, match=names("4 walkers", "HILLS of 3")):
        asked([*folders[:3], walkers / "run3/COLVAR"], independent=True)


def test_walkers_go_by_their_number(walkers, tmp_path):
    """HILLS.2 before HILLS.10, as a column ``walker`` has them."""
    rows = []
    for n in range(11):
        shutil.copy(walkers / f"run{n % 4}/HILLS", tmp_path / f"HILLS.{n}")
        own = read_plumed(walkers / f"run{n % 4}/COLVAR").columns(["time", "x", "m.bias"])[400:]
        rows += [(t, n, x, v) for t, x, v in own.tolist()]
    rows.sort(key=lambda row: row[:2])
    body = "\n".join(" ".join(map(repr, row)) for row in rows)
    (tmp_path / "COLVAR").write_text(f"#! FIELDS time walker x m.bias\n{body}\n")
    request = Request(unit="kT", cvs=("x",), basins=BASINS, independent=True, skip=0.0)
    value = analyse([tmp_path], request).numbers["delta_F"][0]
    table = read_plumed(tmp_path / "COLVAR")

    def by(order):
        biases = [Hills.read(tmp_path / f"HILLS.{n}") for n in order]
        w = np.exp(log_weights_of_each(table, "rbias", 1.0, biases))
        right = table.column("x") > 0
        return -np.log(w[right].sum() / w[~right].sum())

    assert value == pytest.approx(by(range(11)), rel=1e-6)
    assert value != pytest.approx(by(sorted(range(11), key=str)), rel=1e-3)


def test_what_independent_is_not_of(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=names("--independent", "trajectory")):
        asked([tmp_path / "a.h5"], independent=True)
