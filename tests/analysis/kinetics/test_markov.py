"""Correlation times and Markov models of chains that are known."""

import numpy as np
import pytest
from messages import names
from three_states import P, chain

from diffmd_ase.analysis.kinetics.correlations import autocorrelation
from diffmd_ase.analysis.kinetics.passages import ChainTooShort, passages


def linear(length: int, walkers: int, rho: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal(walkers)]
    for xi in rng.standard_normal((length - 1, walkers)):
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * xi)
    return np.array(x)


def test_correlation_of_a_linear_chain():
    """C(t) = ρ^t, τ = ½ + ρ/(1 - ρ), and not with half the spacing."""
    rho, spacing = 0.9, 0.2
    found = autocorrelation(linear(2000, 60, rho, 1), spacing)
    exact = rho ** np.arange(8)
    z = (found.values[1:8] - exact[1:]) / found.errors[1:8]
    assert np.abs(z).max() < 4
    tau = spacing * (0.5 + rho / (1 - rho))
    assert abs(found.time.value - tau) < 4 * found.time.error < 0.3 * tau
    assert abs(found.time.value - tau / 2) > 4 * found.time.error


def test_correlation_errors_are_errors():
    scores = []
    for seed in range(60):
        found = autocorrelation(linear(400, 30, 0.8, seed), 1.0)
        scores.append((found.values[3] - 0.8**3) / found.errors[3])
    assert 0.7 < np.std(scores) < 1.4 and abs(np.mean(scores)) < 0.6


def test_short_or_constant():
    with pytest.raises(ChainTooShort, match="integrated time"):
        autocorrelation(linear(60, 20, 0.99, 0), 1.0)
    with pytest.raises(ValueError, match="constant"):
        autocorrelation(np.ones((50, 3)), 1.0)
    with pytest.raises(ValueError, match=names("(50, 1)")):
        autocorrelation(np.ones((50, 1)), 1.0)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("deeptime", reason="Markov models need deeptime")
    from diffmd_ase.analysis.kinetics.markov import markov_model

    states = chain(3000, 20, 4)
    return states, markov_model(states, 2, 0.5)


def test_markov_model(model):
    """Timescales, populations and passage times of the exact chain; those of deeptime itself."""
    states, found = model
    eigenvalues = np.sort(np.linalg.eigvals(P).real)[::-1][1:]
    for estimate, exact in zip(found.timescales, -0.5 / np.log(eigenvalues), strict=True):
        assert abs(estimate.value - exact) < 4 * estimate.error < exact
    pi = np.linalg.matrix_power(P, 4000)[0]
    for estimate, exact in zip(found.populations, pi, strict=True):
        assert abs(estimate.value - exact) < 4 * estimate.error
    # at a lag of two frames a passage is seen every two frames
    two = P @ P
    exact = np.linalg.solve(np.eye(2) - two[:2, :2], np.ones(2))[0] * 2 * 0.5
    told = found.mfpt([0], [2])
    assert abs(told.value - exact) < 4 * told.error < 0.5 * exact
    direct = passages(states == 0, states == 2, 0.5).to_b
    assert abs(direct.value - told.value) < 0.3 * told.value
    with pytest.raises(ValueError, match="none in both"):
        found.mfpt([0], [0, 2])


def test_chapman_kolmogorov(model):
    """A Markov chain passes; one that is seen wrongly in a tenth of the frames does not."""
    from diffmd_ase.analysis.kinetics.markov import chapman_kolmogorov

    states, _ = model
    good = chapman_kolmogorov(states, 2, 0.5)
    wrong = np.random.default_rng(0).random(states.shape) < 0.1
    blurred = chapman_kolmogorov(np.where(wrong, 2 - states, states), 2, 0.5)
    assert [row.lag for row in good] == [2.0, 3.0, 4.0]
    assert max(row.z for row in good) < 4 < max(row.z for row in blurred)
    assert max(row.difference for row in good) < 0.03 < max(row.difference for row in blurred)


def test_states_that_do_not_do():
    pytest.importorskip("deeptime", reason="Markov models need deeptime")
    from diffmd_ase.analysis.kinetics.markov import markov_model

    states = chain(60, 3, 0)
    with pytest.raises(ValueError, match="one state only"):
        markov_model(0 * states, 1, 1.0)
    with pytest.raises(ValueError, match="numbers from 0"):
        markov_model(states - 1, 1, 1.0)
    with pytest.raises(ChainTooShort, match="transitions in or out"):
        markov_model(states, 1, 1.0)
    with pytest.raises(ValueError, match=names("lag=60")):
        markov_model(states, 60, 1.0)
