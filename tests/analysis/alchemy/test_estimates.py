"""Estimates of couplings whose free energy is known, their frames and their verdicts."""

import numpy as np
import pytest
from messages import names

from diffmd_ase.analysis.alchemy.estimates import closure, estimate
from diffmd_ase.analysis.alchemy.plots import alchemy_figure
from diffmd_ase.analysis.alchemy.samples import CoupledSamples, gathered
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.libraries import quiet_pymbar

alchemlyb = pytest.importorskip("alchemlyb")

KT, K_A, K_B, AWAY = 0.1, 1.0, 3.0, 0.5


def wells(lams, chains=2, frames=160, *, seed=0, away=AWAY, lag=0.0):
    """Exact samples of the linear mix of two isotropic wells, correlated in time by ``lag``."""
    rng = np.random.default_rng(seed)
    lam = np.tile(lams, chains)[None].repeat(frames, 0)
    xi = rng.standard_normal((frames, lam.shape[1], 3))
    for t in range(1, frames):
        xi[t] = lag * xi[t - 1] + np.sqrt(1 - lag**2) * xi[t]
    k = (1 - lam) * K_A + lam * K_B
    x = xi * np.sqrt(KT / k)[..., None]
    x[..., 0] += lam * K_B * away / k
    start = 0.5 * K_A * (x**2).sum(-1)
    x[..., 0] -= away
    return CoupledSamples(start, 0.5 * K_B * (x**2).sum(-1), lam, KT)


def exact(lam, away=AWAY):
    """F(λ) - F(0) in kT, in closed form."""
    k = (1 - lam) * K_A + lam * K_B
    return 1.5 * np.log(k / K_A) + 0.5 * lam * (1 - lam) * K_A * K_B * away**2 / k / KT


def test_two_wells_by_all_estimators():
    lams = np.linspace(0, 1, 6)
    result = estimate(wells(lams))
    for name, one in result.value.items():
        z = (one.value - exact(1.0)) / one.error
        assert abs(z) < 4 and one.error < 0.1, (name, one, z)
    inner = slice(1, None)
    z = (result.profile[inner] - exact(lams[inner])) / result.profile_error[inner]
    assert (np.abs(z) < 4).all()
    assert all(v["good"] for v in result.verdicts) and (result.settled > 0.3).all()
    numbers = result.numbers()
    assert numbers["dF_eV"] == pytest.approx(KT * numbers["MBAR_kT"])
    assert len(alchemy_figure(result).axes) == 4


def test_a_constant_between_two_programs_changes_nothing_else():
    samples = wells(np.linspace(0, 1, 3), frames=80)
    far = CoupledSamples(samples.start - 7e4, samples.end - 9e4, samples.lam, KT)
    near, away = estimate(samples), estimate(far)
    for name, one in away.value.items():
        assert one.value + 2e4 / KT == pytest.approx(near.value[name].value, abs=1e-5)
        assert one.error == pytest.approx(near.value[name].error, rel=1e-4)
    np.testing.assert_allclose(away.slope + 2e4 / KT, near.slope, atol=1e-5)
    np.testing.assert_allclose(away.overlap, near.overlap, atol=1e-6)
    assert [v["good"] for v in away.verdicts] == [v["good"] for v in near.verdicts]


def test_the_wrong_temperature_is_seen():
    """The negative control of the test above."""
    right = wells(np.linspace(0, 1, 6))
    wrong = estimate(CoupledSamples(right.start, right.end, right.lam, 1.3 * KT))
    assert abs(wrong.best.value - exact(1.0)) > 4 * wrong.best.error


def test_correlated_frames_have_larger_errors():
    lams = [0.0, 1.0]
    alone, slow = (wells(lams, frames=1000, lag=lag, seed=3) for lag in (0.0, 0.9))
    assert (slow.inefficiency > 5).all() and (alone.inefficiency < 2).all()
    errors = [estimate(s).best.error for s in (alone, slow)]
    assert 2 < errors[1] / errors[0] < 5
    kept = [sum(map(len, slow.u_nk(decorrelated=d))) for d in (True, False)]
    assert kept[0] < kept[1] / 5 and kept[1] == slow.lam.size


def test_the_oscillators_of_pymbar():
    """Their states are λ-mixes of nothing, but two of them are end states."""
    testsystems = pytest.importorskip("pymbar.testsystems")
    case = testsystems.HarmonicOscillatorsTestCase([0.0, 1.2], [1.0, 2.5], beta=1.0)
    _, u_kn, _, s_n = case.sample([600, 600], mode="u_kn", seed=5)
    columns = [u_kn[:, s_n == k] for k in (0, 1)]
    start, end = (np.stack([c[e] for c in columns], 1) for e in (0, 1))
    lam = np.tile([0.0, 1.0], (600, 1))
    result = estimate(CoupledSamples(start, end, lam, kT=1.0))
    truth = np.subtract(*case.analytical_free_energies()[::-1])
    for name in ("MBAR", "BAR"):
        one = result.value[name]
        assert abs(one.value - truth) < 4 * one.error < 0.4


def test_frames_are_those_of_alchemlyb(tmp_path):
    samples = wells(np.linspace(0, 1, 3), frames=50)
    frame = samples.u_nk(decorrelated=False)[1]
    assert list(frame.columns) == [0.0, 0.5, 1.0] and frame.index.names == ["time", "fep-lambda"]
    assert frame.attrs["energy_unit"] == "kT" and frame.attrs["temperature"] == pytest.approx(
        1160.45, abs=0.01
    )
    rows = samples.lam == 0.5
    gap = (samples.end - samples.start)[rows] / KT
    np.testing.assert_allclose(frame[1.0] - frame[0.0], gap)
    assert (frame[0.5] == 0).all()
    np.testing.assert_allclose(samples.dhdl(decorrelated=False)[1]["fep"], gap)
    from alchemlyb.parsing import parquet

    files = samples.write(tmp_path / "run")
    read = parquet.extract_u_nk(files[0], T=frame.attrs["temperature"])
    assert alchemlyb.estimators.MBAR().fit(read).delta_f_.shape == (3, 3)
    assert parquet.extract_dHdl(files[1], T=frame.attrs["temperature"]).shape[1] == 1


def test_poor_overlap_is_said_with_the_windows():
    result = estimate(wells([0.0, 0.1, 1.0], away=3.0))
    [bad] = [v["text"] for v in result.verdicts if v["good"] is False and "overlap" in v["text"]]
    assert "0.1" in bad and "1 overlap" in bad and "window between" in bad


def test_overlap_does_not_depend_on_how_many_samples_a_state_has():
    lams = [0.0, 1.0]
    few, many = (wells(lams, chains=c, seed=s, away=0.1) for c, s in ((1, 0), (9, 1)))
    # one chain at λ = 0 and nine at λ = 1
    parts = [np.concatenate((getattr(few, n)[:, :1], getattr(many, n)[:, 1::2]), 1)
             for n in ("start", "end", "lam")]  # fmt: skip
    uneven = estimate(CoupledSamples(*parts, KT)).neighbour_overlap
    even = estimate(many).neighbour_overlap
    assert uneven[0] == pytest.approx(even[0], abs=0.05) and even[0] > 0.15


def test_a_run_that_drifts_is_seen():
    samples = wells(np.linspace(0, 1, 3), chains=6, frames=200)
    late = np.arange(200)[:, None] > 100
    drifting = CoupledSamples(samples.start, samples.end + 0.5 * late, samples.lam, KT)
    texts = [v["text"] for v in estimate(drifting).verdicts if v["good"] is False]
    assert any("run longer" in t for t in texts)


def test_a_few_samples_are_no_verdict():
    result = estimate(wells([0.0, 1.0], chains=1, frames=12))
    assert any("effective samples" in v["text"] and not v["good"] for v in result.verdicts)
    assert not len(result.convergence)


def test_chains_that_visit_states():
    """An expanded ensemble: the states of a chain change, and samples go where they were made."""
    lams, rng = np.array([0.0, 0.4, 1.0]), np.random.default_rng(2)
    frames = wells(lams, chains=20, frames=60, seed=4)
    order = rng.permuted(np.tile(np.arange(60), (60, 1)), axis=1)
    mixed = [np.take_along_axis(v, order, 1) for v in (frames.start, frames.end, frames.lam)]
    result = estimate(CoupledSamples(*mixed, KT))
    assert abs(result.best.value - exact(1.0)) < 4 * result.best.error < 0.4


def test_failed_samples_are_left_out():
    samples = wells([0.0, 0.5, 1.0])
    start = samples.start.copy()
    start[::7] = np.nan
    result = estimate(CoupledSamples(start, samples.end, samples.lam, KT))
    assert abs(result.best.value - exact(1.0)) < 4 * result.best.error


def test_runs_are_put_together():
    parts = [wells([0.0, 0.5, 1.0], chains=2, seed=s) for s in (0, 1)]
    assert gathered(parts).lam.shape == (160, 12)
    hot = CoupledSamples(parts[1].start, parts[1].end, parts[1].lam, 2 * KT)
    with pytest.raises(ValueError, match=names("temperatures", "kT=0.2")):
        gathered([parts[0], hot])


def test_cycles_close_or_do_not():
    legs = [Estimate(1.0, 0.03, 9.0), Estimate(0.5, 0.04, 9.0), Estimate(-1.45, 0.0, 9.0)]
    total, z, verdict = closure(legs)
    assert total.error == pytest.approx(0.05) and z == pytest.approx(1.0) and verdict["good"]
    assert not closure([Estimate(1.0, 0.03, 9.0), Estimate(-0.8, 0.0, 9.0)])[2]["good"]


def well_to_well(start, end, seed):
    """Exact samples between two wells, each ``(k, centre)``, 3 windows of 1000."""
    rng, lam = np.random.default_rng(seed), np.tile([0.0, 0.5, 1.0], (500, 2))
    both = [(np.array(k), np.array(c)) for k, c in (start, end)]
    share = (1 - lam) * both[0][0], lam * both[1][0]
    k = (share[0] + share[1])[..., None]
    mean = (share[0][..., None] * both[0][1] + share[1][..., None] * both[1][1]) / k
    x = mean + rng.standard_normal((*lam.shape, 3)) * np.sqrt(KT / k)
    energies = [0.5 * k * ((x - c) ** 2).sum(-1) for k, c in both]
    return CoupledSamples(*energies, lam, KT)


def test_a_cycle_of_three_wells_closes():
    ends = (1.0, [0.0, 0.0, 0.0]), (2.0, [0.2, 0.0, 0.0]), (3.0, [0.0, 0.2, 0.0])
    other = 2.5, [0.0, 0.0, 0.0]  # where a leg ends that is none of the cycle
    pairs = [(ends[0], ends[1]), (ends[1], ends[2]), (ends[2], ends[0]), (ends[2], other)]
    legs = []
    for seed, (start, end) in enumerate(pairs):
        one = estimate(well_to_well(start, end, seed)).best
        assert abs(one.value - 1.5 * np.log(end[0] / start[0])) < 4 * one.error
        legs.append(one)
    total, z, verdict = closure(legs[:3])
    assert abs(z) < 4 and total.error <= 0.05 and verdict["good"], verdict
    assert not closure([legs[0], legs[1], legs[3]])[2]["good"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kT": np.array([0.1, 0.2])}, "temperatures that differ"),
        ({"lam": np.full((3, 2), 0.5)}, "at least two"),
        ({"lam": np.array([[0.0, 1.2]] * 3)}, "[0, 1]"),
        ({"start": np.zeros((4, 2))}, "(T, B)"),
        ({"states": np.array([0.0, 0.5])}, "none of the states"),
        ({"states": np.array([0.5, 0.0, 1.0])}, "increasing"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = {"start": np.zeros((3, 2)), "end": np.zeros((3, 2)), "kT": KT}
    with pytest.raises(ValueError, match=names(said)):
        CoupledSamples(**(given | {"lam": np.array([[0.0, 1.0]] * 3)} | change))


def test_a_state_without_samples_is_named():
    samples = wells([0.0, 1.0], frames=20)
    lonely = CoupledSamples(samples.start, samples.end, samples.lam, KT, states=[0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=names("no samples at", "0.5")):
        estimate(lonely)


@pytest.mark.slow
def test_intervals_of_95_per_cent_cover_as_much():
    covered = {"MBAR": 0, "BAR": 0}
    for seed in range(200):
        samples = wells([0.0, 1.0], chains=2, frames=100, seed=seed, away=0.2)
        result = estimate(samples)
        for name in covered:
            one = result.value[name]
            covered[name] += bool(abs(one.value - exact(1.0, 0.2)) < 1.96 * one.error)
    # TI has an error of quadrature besides, which no interval knows
    assert all(180 <= count <= 198 for count in covered.values()), covered


def test_pymbar_comes_without_jax():
    solvers = quiet_pymbar().mbar_solvers
    assert "jax" not in solvers.logsumexp.__module__
