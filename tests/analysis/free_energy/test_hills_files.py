"""Sums of hills, c(t) and components against the real PLUMED and against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from pesmd import PI, double_well, pesmd
from plumed_command import plumed_sum_hills

from diffmd_ase.analysis.free_energy.hills_files import (
    Hills,
    bias_at,
    free_energy_of_components,
    height_law,
    reweighting_factor,
    sum_hills,
)
from diffmd_ase.io.plumed_tables import read_plumed

TORUS = """
d: DISTANCE ATOMS=1,2 COMPONENTS
a: CUSTOM ARG=d.x FUNC=x PERIODIC=-pi,pi
b: CUSTOM ARG=d.y FUNC=x PERIODIC={domain}
U: CUSTOM ARG=a,b FUNC=2*cos(x)+cos(y) VAR=x,y PERIODIC=NO
BIASVALUE ARG=U
m: METAD ARG=a,b SIGMA=0.4,0.3 HEIGHT=0.3 PACE=20 BIASFACTOR=6 TEMP=1
PRINT ARG=a,b,m.bias STRIDE=10 FILE=COLVAR
"""
METAD = """m: METAD ARG=x SIGMA=0.1 HEIGHT=0.3 PACE=20 BIASFACTOR=8 TEMP=1 {more}
PRINT ARG=x,m.* STRIDE=10 FILE=COLVAR FMT=%12.8f"""
GRID = "GRID_MIN=-3 GRID_MAX=3 GRID_BIN=600 CALC_RCT"
OPES = """m: {action} ARG=x SIGMA=0.3 BARRIER=6 PACE=500 TEMP=1 COMPRESSION_THRESHOLD=0
PRINT ARG=x,m.bias STRIDE=1 FILE=COLVAR FMT=%14.10f"""


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hills") / "well"
    return pesmd(folder, double_well(METAD.format(more=GRID)), steps=8000, seed=1)


@pytest.fixture(scope="module", params=["-pi,pi", "NO"], ids=["periodic", "mixed"])
def surface(request, tmp_path_factory):
    """Both variables periodic, or the first only."""
    folder = tmp_path_factory.mktemp("hills") / "torus"
    text = TORUS.format(domain=request.param)
    return pesmd(folder, text, steps=6000, seed=2, dimension=2, periodic=True)


def one_hill(**changes):
    settings = {
        "names": ("s",),
        "time": np.array([1.0]),
        "centres": np.array([[0.5]]),
        "precision": np.array([[[4.0]]]),
        "heights": np.array([3.0]),
        "biasfactor": 10.0,
        "periods": np.zeros(1),
        "lows": np.zeros(1),
    }
    return Hills(**(settings | changes))


def test_one_hill_is_a_stretched_gaussian():
    s = np.array([0.5, 1.0, 0.5 + 0.5 * np.sqrt(12.49), 0.5 + 0.5 * np.sqrt(12.51)])
    q = 2.0 * (s - 0.5) ** 2
    expected = -3.0 * (np.exp(-q) - np.exp(-6.25)) / (1 - np.exp(-6.25))
    expected[-1] = 0.0  # beyond the cut-off
    np.testing.assert_allclose(sum_hills(one_hill(), [s]), expected, rtol=1e-12, atol=1e-15)
    plain = sum_hills(one_hill(stretched=False), [s])
    np.testing.assert_allclose(plain[:3], -3.0 * np.exp(-q[:3]), rtol=1e-12)
    # on a circle of length 1.2 the hill is felt from the other side
    ring = one_hill(periods=np.array([1.2]))
    np.testing.assert_allclose(sum_hills(ring, [s + 1.2]), sum_hills(ring, [s]), atol=1e-12)
    with pytest.raises(ValueError, match="2 axes for hills on s"):
        sum_hills(one_hill(), [s, s])


def test_sum_is_that_of_plumed(well, surface):
    for folder in (well, surface):
        hills = Hills.read(folder / "HILLS")
        points = [np.linspace(-1.5, 1.5, 41) for _ in hills.names]
        for n, period in enumerate(hills.periods):
            if period:
                points[n] = -PI + 2 * PI * np.arange(40) / 40
        ours = sum_hills(hills, points)
        theirs = plumed_sum_hills(folder / "HILLS", points, hills.periods)
        assert np.ptp(ours) > 1
        # PLUMED puts hills on grids only where a kernel is above 1e-6 of its height
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_bias_is_that_plumed_printed(well, surface):
    for folder in (well, surface):
        hills, table = Hills.read(folder / "HILLS"), read_plumed(folder / "COLVAR")
        # a row shows the bias before the hill of its own step
        before = hills.first(len(hills) - 1)
        last = np.flatnonzero(np.isclose(table.column("time"), hills.time[-1]))
        s = table.columns(hills.names)[last]
        np.testing.assert_allclose(bias_at(before, s), table.column("m.bias")[last], atol=2e-3)
        assert abs(bias_at(hills, s) - bias_at(before, s)) > 0.01


def test_bias_between_grid_points(surface, rng):
    hills = Hills.read(surface / "HILLS")
    s = hills.centres[rng.integers(len(hills), size=200)] + rng.normal(size=(200, 2)) * 0.3
    exact = [-sum_hills(hills, [np.array([a]), np.array([b])])[0, 0] for a, b in s]
    exact = np.array(exact) * hills.bias_scale
    np.testing.assert_allclose(bias_at(hills, s), exact, atol=1e-4 * exact.max())


def test_reweighting_factor_is_that_of_plumed(well):
    hills, table = Hills.read(well / "HILLS"), read_plumed(well / "COLVAR")
    c = reweighting_factor(hills, 1.0, [np.linspace(-3, 3, 601)])
    done = np.searchsorted(hills.time, table.column("time") - 1e-6)
    printed = table.column("m.bias") - table.column("m.rbias")  # rct is that of the next row
    np.testing.assert_allclose(c[done], printed, atol=2e-4)
    assert c[-1] > 2
    # the negative control: the range of the integrals matters
    wide = reweighting_factor(hills, 1.0, [np.linspace(-6, 6, 1201)])
    assert not np.allclose(wide[-1], c[-1], atol=1e-6)


def test_reweighting_factor_of_one_hill():
    # high and narrow against kT: c = kT ln of a ratio of integrals, by quadrature here
    hills = one_hill()
    s = np.linspace(-3, 4, 7001)
    g = -sum_hills(hills, [s])
    expected = 0.7 * np.log(np.exp(g / 0.7).sum() / np.exp(g / 7.0).sum())
    assert reweighting_factor(hills, 0.7, [s])[1] == pytest.approx(expected, rel=1e-12)
    # without tempering the denominator is the length
    plain = replace(hills, biasfactor=np.inf)
    expected = 0.7 * np.log(np.exp(g / 0.7).mean())
    assert reweighting_factor(plain, 0.7, [s])[1] == pytest.approx(expected, rel=1e-12)


def test_long_files_are_interpolated(monkeypatch, well):
    hills = Hills.read(well / "HILLS")
    every = reweighting_factor(hills, 1.0)
    monkeypatch.setattr("diffmd_ase.analysis.free_energy.hills_files._MAX_EVALUATIONS", 100)
    np.testing.assert_allclose(reweighting_factor(hills, 1.0), every, atol=0.08)


def test_heights_tell_kT(well, surface):
    for folder in (well, surface):
        law = height_law(Hills.read(folder / "HILLS"))
        assert law.kT == pytest.approx(1.0, rel=0.02) and law.correlation < -0.99
    hills = Hills.read(well / "HILLS")
    assert height_law(replace(hills, heights=4.184 * hills.heights)).kT == pytest.approx(
        4.184, rel=0.02
    )
    assert height_law(replace(hills, biasfactor=np.inf)) is None
    assert height_law(hills.first(5)) is None


def test_walkers_are_merged_in_time(well, tmp_path):
    head, body = [], []
    for line in (well / "HILLS").read_text().splitlines():
        (head if line.startswith("#") else body).append(line)
    for n in range(2):
        (tmp_path / f"HILLS.{n}").write_text("\n".join([*head, *body[n::2]]) + "\n")
    whole = Hills.read(well / "HILLS")
    parts = Hills.read([tmp_path / "HILLS.0", tmp_path / "HILLS.1"])
    np.testing.assert_array_equal(parts.time, whole.time)
    np.testing.assert_array_equal(parts.centres, whole.centres)


@pytest.mark.parametrize("action", ["OPES_METAD", "OPES_METAD_EXPLORE"])
def test_components_are_those_of_the_bias(action, tmp_path):
    """V = (1-1/γ) kT ln(P/Z + ε), with γ-1 for EXPLORE, of every row since the last component."""
    folder = pesmd(tmp_path / "run", double_well(OPES.format(action=action)), steps=8000, seed=3)
    kernels, table = read_plumed(folder / "KERNELS"), read_plumed(folder / "COLVAR")
    gamma, epsilon = (float(kernels.constants[name]) for name in ("biasfactor", "epsilon"))
    time = kernels.column("time")
    late = table.take((table.column("time") > time[-2]) & (table.column("time") < time[-1]))
    assert len(late) == 499
    s, v = late.column("x"), late.column("m.bias")
    energy = free_energy_of_components(kernels.take(time < time[-1]), 1.0, [s])
    explore = action.endswith("EXPLORE")
    measured = np.exp(v / (gamma - 1 if explore else 1 - 1 / gamma))
    density = np.exp(-energy / (gamma if explore else 1.0))
    slope, intercept = np.polyfit(density, measured, 1)
    np.testing.assert_allclose(slope * density + intercept, measured, rtol=1e-5)
    assert intercept == pytest.approx(epsilon, rel=1e-6)
    assert np.ptp(v) > 0.2


def test_components_at_one_place(tmp_path):
    text = "#! FIELDS time s sigma_s height logweight\n#! SET action {0}\n#! SET biasfactor 5\n"
    text += "#! SET kernel_cutoff 4\n1 0.0 0.5 2.0 0.0\n2 0.0 0.5 1.0 0.0\n"
    s = np.array([0.0, 0.5, 1.0, 3.0])
    q = 2 * s[:3] ** 2
    f = -1.5 * np.log((np.exp(-q) - np.exp(-8)) / (1 - np.exp(-8)))
    for action, factor in (("OPES_METAD_kernels", 1.0), ("OPES_METAD_EXPLORE_kernels", 5.0)):
        (tmp_path / "K").write_text(text.format(action))
        found = free_energy_of_components(read_plumed(tmp_path / "K"), 1.5, [s])
        np.testing.assert_allclose(found[:3], factor * f, atol=1e-12)
        assert found[3] == np.inf


def test_covariances_of_an_adaptive_run(tmp_path):
    head = "#! FIELDS time a b sigma_a_a sigma_b_b sigma_b_a height biasf\n"
    (tmp_path / "H").write_text(head + "#! SET kerneltype gaussian\n1 0 0 0.5 0.4 0.3 1.0 -1\n")
    hills = Hills.read(tmp_path / "H")
    factor = np.array([[0.5, 0.0], [0.3, 0.4]])
    precision = np.linalg.inv(factor @ factor.T)
    s = np.array([0.3, -0.2])
    expected = -np.exp(-0.5 * s @ precision @ s)
    assert sum_hills(hills, [s[:1], s[1:]])[0, 0] == pytest.approx(expected, rel=1e-12)
    assert hills.biasfactor == np.inf and hills.bias_scale == 1.0


@pytest.mark.parametrize(
    "text, words",
    [
        ("#! FIELDS time s m.bias\n1 2 3\n", "HILLS has time"),
        ("#! FIELDS time s height biasf\n1 2 3 4\n", "no columns sigma_"),
        ("#! FIELDS time s sigma_s height biasf\n1 0 1 1 5\n2 0 1 1 9\n", "cannot be summed"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "H").write_text(text)
    with pytest.raises(ValueError, match=words):
        Hills.read(tmp_path / "H")
    with pytest.raises(ValueError, match="no column logweight"):
        free_energy_of_components(read_plumed(tmp_path / "H"), 1.0, [np.zeros(2)])
