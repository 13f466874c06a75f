"""A model that is wrong by one kT at the barrier gives the reference's kinetics by weights."""

import numpy as np
import pytest
import torch
from line_chain import LINE, LineChain
from messages import names

from diffmd_ase.analysis.kinetics.path_reweighting import weigh_paths
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

KT, H, EVERY = 0.5, 0.02, 5
MODEL = DoubleWell(barrier=1.0, a=1.0, k=1.0)  # two kT
REFERENCE = DoubleWell(barrier=1.5, a=1.0, k=1.0)  # three


@pytest.fixture(scope="module")
def exact():
    return {name: LineChain(p, KT, H) for name, p in (("model", MODEL), ("ref", REFERENCE))}


def paths(stride: int, *, walkers=400, n_steps=1200, h=H):
    kernel = EulerMaruyama(MODEL, kT=KT, h=h, directions=LINE)
    x = torch.zeros(walkers, 1, 3, dtype=torch.float64)
    x[::2, 0, 0], x[1::2, 0, 0] = -1.0, 1.0
    *_, (state, _) = run(kernel, x, 200, noise=Noise(1))
    return weigh_paths(
        kernel,
        state.x,
        REFERENCE,
        n_steps,
        noise=Noise(2),
        observe=lambda x: x[:, 0, 0],
        every=EVERY,
        stride=stride,
    )


@pytest.fixture(scope="module")
def found():
    return paths(1)


def expected(exact, lag: int, *, of: str):
    """Of chains whose start has the model's law, times exp(-(U - E)/kT)."""
    states = (exact["model"].grid >= 0).astype(int)
    law = exact["model"].stationary()
    if of == "ref":
        law = law * np.exp(exact["model"].energy - exact["ref"].energy)
    return exact[of].transitions(law, states, lag * EVERY)


@pytest.mark.parametrize("lag", [1, 3, 8])
def test_transitions_of_the_reference(found, exact, lag):
    told = found.transitions((found.values >= 0).astype(int), lag)
    assert told.holds and told.lag == pytest.approx(lag * EVERY * H)
    for name, values, errors in (
        ("model", told.model, told.model_error),
        ("ref", told.reference, told.reference_error),
    ):
        z = (values - expected(exact, lag, of=name)) / errors
        assert np.abs(z).max() < 4, (name, z)
    # the plain counts are not those of the reference
    assert np.abs((told.model - expected(exact, lag, of="ref")) / told.model_error).min() > 6
    assert (told.reference_error < 0.1 * (1 - told.reference.diagonal())[:, None]).all()
    assert (told.effective < told.paths).all() and (told.effective > 1000).all()


def test_beyond_which_lag_weights_do_not_hold(found):
    """KL grows with the lag; at its limit that is said."""
    one, ten = found.kl(1), found.kl(10)
    assert ten.value == pytest.approx(10 * one.value, rel=0.05)
    longest = found.longest_lag()
    states = (found.values >= 0).astype(int)
    assert found.transitions(states, int(0.8 * longest / found.spacing)).kl.value < 2
    assert not found.transitions(states, int(1.5 * longest / found.spacing)).holds


def test_kl_is_that_of_the_weights_without_their_noise(found):
    """E[-log w] = KL, here from a few steps of a few walkers, where -log w may be below zero."""
    logs = -found.increments.mean(0)
    z = (logs.mean() - found.kl(1).value) / (logs.std() / len(logs) ** 0.5)
    assert abs(z) < 4 and (found.divergences > 0).all()
    assert found.kl(1).error < logs.std() / len(logs) ** 0.5


def test_weights_have_mean_one(found):
    for lag in (1, 8):
        sums = np.add.reduceat(found.increments[: lag * 20], np.arange(0, lag * 20, lag), axis=0)
        w = np.exp(sums)
        assert abs(w.mean() - 1) < 4 * w.mean(0).std() / w.shape[1] ** 0.5


def test_stride(found):
    """A held Δ is another reference: its distance is told, and nothing but that is lost."""
    assert found.stride_rate.value == 0
    held = paths(5, walkers=200)
    assert 0 < held.stride_rate.value < found.kl(1).value / found.spacing
    w = np.exp(held.increments[:40].sum(0))
    assert abs(w.mean() - 1) < 4 * w.std() / len(w) ** 0.5


def test_stride_rate_is_the_divergence():
    """Of a curvature that is off by δ: Δ = -δ x, and |Δ(x_k) - Δ(x_0)|² = δ² 2 k h d."""
    h, delta, stride = 1e-4, 0.3, 4
    kernel = EulerMaruyama(Harmonic(1.0), kT=1.0, h=h)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 1, 3)))
    found = weigh_paths(
        kernel,
        x,
        Harmonic(1.0 + delta),
        80,
        noise=Noise(0),
        observe=lambda x: x[:, 0],
        every=stride,
        stride=stride,
    )
    exact = delta**2 * 2 * h * 3 * np.arange(stride).mean() / 4
    assert abs(found.stride_rate.value - exact) < 4 * found.stride_rate.error
    assert found.stride_rate.error < 0.05 * exact


def test_bad_input(found):
    kernel = EulerMaruyama(MODEL, kT=KT, h=H)
    x = torch.zeros(2, 1, 3, dtype=torch.float64)
    options = {"noise": Noise(0), "observe": lambda x: x[:, 0, 0]}
    with pytest.raises(ValueError, match=names("n_steps=7", "every=5")):
        weigh_paths(kernel, x, REFERENCE, 7, every=5, **options)
    with pytest.raises(ValueError, match=names("stride=2")):
        weigh_paths(kernel, x, REFERENCE, 10, every=5, stride=2, **options)
    with pytest.raises(ValueError, match=names("(1, 3)")):
        weigh_paths(kernel, x[0], REFERENCE, 10, **options)
    states = (found.values >= 0).astype(int)
    with pytest.raises(ValueError, match="one state only"):
        found.transitions(0 * states, 1)
    with pytest.raises(ValueError, match=names("lag=0")):
        found.transitions(states, 0)
    with pytest.raises(ValueError, match="states"):
        found.transitions(states[1:], 1)
