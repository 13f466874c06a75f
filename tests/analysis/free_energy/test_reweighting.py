"""Weights of biased runs: names, formulas, effective numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
from messages import names
from pesmd import double_well, pesmd

from diffmd_ase.analysis.free_energy.hills_files import Hills, bias_at
from diffmd_ase.analysis.free_energy.reweighting import (
    Samples,
    bias_columns,
    choose_method,
    effective_samples,
    keep_after,
    log_weights,
    variable_names,
)
from diffmd_ase.analysis.statistics import mean_estimate
from diffmd_ase.io.plumed_tables import read_plumed

METAD = """m: METAD ARG=x SIGMA=0.1 HEIGHT=0.3 PACE=20 BIASFACTOR=8 TEMP=1 {more}
wall: UPPER_WALLS ARG=x AT=1.2 KAPPA=20
PRINT ARG=x,m.*,wall.bias STRIDE=10 FILE=COLVAR FMT=%12.8f"""
GRID = "GRID_MIN=-3 GRID_MAX=3 GRID_BIN=600 CALC_RCT"


def table(tmp_path, fields, *rows):
    text = f"#! FIELDS {fields}\n" + "".join(f"{row}\n" for row in rows)
    (tmp_path / "COLVAR").write_text(text)
    return read_plumed(tmp_path / "COLVAR")


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "well"
    pesmd(folder, double_well(METAD.format(more=GRID)), steps=6000, seed=4)
    colvar, hills = read_plumed(folder / "COLVAR"), Hills.read(folder / "HILLS")
    # the same run as one that did not ask for CALC_RCT
    words = [n for n in colvar.fields if n not in ("m.rbias", "m.rct")]
    lines = ["#! FIELDS " + " ".join(words)]
    lines += [" ".join(f"{v:.8f}" for v in row) for row in colvar.columns(words)]
    text = "\n".join(lines) + "\n"
    (folder / "PLAIN").write_text(text.replace("m.bias", "metad.bias"))
    (folder / "UNNAMED").write_text(text)
    return SimpleNamespace(
        colvar=colvar,
        hills=hills,
        plain=read_plumed(folder / "PLAIN"),
        unnamed=read_plumed(folder / "UNNAMED"),
    )


# ------------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    "fields, kinds, names, method",
    [
        ("time d.x m.bias m.rbias m.rct", {"m": "metad"}, ["d.x"], "rbias"),
        ("time phi psi m.bias m.rct w.bias", {"m": "metad", "w": "bias"}, ["phi", "psi"], "rbias"),
        ("time s o.bias o.zed o.neff", {"o": "opes"}, ["s"], "opes"),
        ("time walker s bias rbias rct", {"": "metad"}, ["s"], "rbias"),
        ("time walker s bias rct zed neff nker", {"": "opes"}, ["s"], "opes"),
    ],
)
def test_what_the_columns_say(tmp_path, fields, kinds, names, method):
    t = table(tmp_path, fields, *(" ".join(["1"] * len(fields.split())) for _ in range(2)))
    assert bias_columns(t) == kinds and variable_names(t) == names
    assert choose_method(t, None) == method


def test_what_the_columns_do_not_say(tmp_path):
    t = table(tmp_path, "time s r.bias", "1 1 1")
    with pytest.raises(ValueError, match=r"columns r\.bias do not say .* restraint .* static"):
        choose_method(t, None)
    t = table(tmp_path, "time s", "1 1")
    for method in ("auto", "opes", "static"):
        with pytest.raises(ValueError, match="no bias column, only time, s"):
            choose_method(t, None) if method == "auto" else log_weights(t, method, 1.0)
    with pytest.raises(
        ValueError, match=names("'mbar'", "rbias", "last", "opes", "static", "none")
    ):
        log_weights(t, "mbar", 1.0)
    with pytest.raises(ValueError, match=names("rbias", "HILLS", "CALC_RCT")):
        log_weights(t, "rbias", 1.0)
    with pytest.raises(ValueError, match=names("last", "HILLS")):
        log_weights(t, "last", 1.0)


# ------------------------------------------------------------------------ weights


def test_weights_of_columns(tmp_path):
    t = table(tmp_path, "time s m.bias m.rbias m.rct w.bias", "0 0 3 2 1 .5", "1 0 5 3 2 .25")
    np.testing.assert_allclose(log_weights(t, "rbias", 0.5), [5.0, 6.5])
    np.testing.assert_allclose(log_weights(t, "opes", 0.5), [7.0, 10.5])
    np.testing.assert_allclose(log_weights(t, "static", 0.5), [7.0, 10.5])
    np.testing.assert_array_equal(log_weights(t, "none", 0.5), [0, 0])
    t = table(tmp_path, "time s bias rct", "0 0 3 1")  # without labels, rbias from rct
    np.testing.assert_allclose(log_weights(t, "rbias", 2.0), [1.0])


def test_c_of_the_hills_is_that_of_plumed(well):
    exact = log_weights(well.colvar, "rbias", 1.0)  # PLUMED's own rbias
    found = log_weights(well.plain, "rbias", 1.0, hills=well.hills)
    # our integrals end where the hills do and PLUMED's where its grid does: once all is
    # filled a constant, which weights do not see
    late = well.colvar.column("time") > 30
    difference = (found - exact)[late]
    assert difference.std() < 0.03 < np.std(exact[late])
    with pytest.raises(
        ValueError, match=names("m.bias", "wall.bias", "HILLS", "metad", "CALC_RCT")
    ):
        log_weights(well.unnamed, "rbias", 1.0, hills=well.hills)


def test_last_bias(well):
    found = log_weights(well.plain, "last", 1.0, hills=well.hills)
    expected = bias_at(well.hills, well.plain.columns(["x"])) + well.plain.column("wall.bias")
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert well.plain.column("wall.bias").max() > 0.1


# ------------------------------------------------------------------------ numbers


def ar1(rng, shape, rho):
    from scipy.signal import lfilter

    noise = rng.standard_normal(shape) * np.sqrt(1 - rho**2)
    noise[0] /= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=0)


@pytest.mark.parametrize("walkers", [1, 4])
def test_errors_of_weighted_means_cover(rng, walkers):
    """x ~ N(0,1) by AR(1), weights exp(0.8 x): the mean is 0.8; linearised, a correlated series."""
    z, naive = [], []
    for _ in range(120):
        x = ar1(rng, (4000 // walkers, walkers), 0.9)
        walker = np.tile(np.arange(walkers), len(x))
        samples = Samples.of(x.ravel(), 0.8 * x.ravel(), walker=walker)
        mean = np.mean(samples.weights * samples.s[:, 0])
        series = samples.series(samples.weights * (samples.s[:, 0] - mean))
        z.append((mean - 0.8) / mean_estimate(series).error)
        naive.append((mean - 0.8) * np.sqrt(effective_samples(samples).kish))
    assert abs(np.mean(z)) < 4 / np.sqrt(120) + 0.1
    assert 0.8 < np.std(z) < 1.25
    assert np.std(naive) > 3  # correlation left out


def test_effective_samples(rng):
    x = ar1(rng, (20_000, 1), 0.9)[:, 0]
    plain = effective_samples(Samples.of(x))
    assert plain.kish == pytest.approx(20_000)
    assert plain.inefficiency == pytest.approx(19, rel=0.25)  # (1+ρ)/(1-ρ)
    assert plain.independent == pytest.approx(20_000 / plain.inefficiency)
    weighted = effective_samples(Samples.of(x, x))
    assert weighted.kish == pytest.approx(20_000 / np.e, rel=0.3)  # ⟨w⟩²/⟨w²⟩ = exp(-1)
    # an angle that goes round is not slow for being near ±π
    around = (np.pi + 0.3 * rng.standard_normal(5000) + np.pi) % (2 * np.pi) - np.pi
    ring = Samples.of(around, periods=[2 * np.pi])
    assert effective_samples(ring).inefficiency < 1.5


def test_samples():
    samples = Samples.of([[1.0], [2.0], [3.0], [4.0]], [0, 0, 0, 700.0], walker=[0, 1, 0, 1])
    assert samples.weights.sum() == pytest.approx(4) and samples.weights[3] == pytest.approx(4)
    np.testing.assert_allclose(samples.progress(), [0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(samples.series(samples.s[:, 0]), [[1, 2], [3, 4]])
    assert samples.take(np.arange(3)).weights.tolist() == pytest.approx([1, 1, 1])
    uneven = samples.take(np.arange(3))
    np.testing.assert_array_equal(uneven.series(uneven.s[:, 0]), [1, 3, 2])
    with pytest.raises(ValueError, match=names("(2, 1)", "(1,)", "(2,)", "weights", "periods")):
        Samples.of([1.0, 2.0], [0.0])
    with pytest.raises(ValueError, match="not finite"):
        Samples.of([1.0, np.nan])
    with pytest.raises(ValueError, match="1 samples are left"):
        samples.take(np.array([0]))


def test_the_start_of_each_walker_is_left_out(tmp_path):
    t = table(tmp_path, "time s", *(f"{n // 2} {n}" for n in range(20)))
    assert t.walker.max() == 1
    assert t.column("s")[keep_after(t, 0.2)].tolist() == list(range(4, 20))
    assert keep_after(t, 0.0).all()
