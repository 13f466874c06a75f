"""Errors that cover, and agreement with pymbar."""

import numpy as np
import pytest
from scipy.signal import lfilter

from diffmd_ase.analysis import statistics as st
from diffmd_ase.libraries import quiet_pymbar


def ar1(rng, shape, rho):
    """Stationary AR(1), unit variance: C(t) = ρ^t and g = (1+ρ)/(1-ρ)."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - rho**2)
    noise[0] /= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("walkers", [1, 5])
def test_inefficiency_is_that_of_pymbar(rng, walkers):
    timeseries = quiet_pymbar().timeseries
    a = ar1(rng, (700, walkers), 0.9)
    expected = timeseries.statistical_inefficiency_multiple(list(a.T))
    assert st.statistical_inefficiency(a) == pytest.approx(expected, rel=1e-9)


def test_inefficiency_of_ar1(rng):
    values = [st.statistical_inefficiency(ar1(rng, (20_000, 4), 0.8)) for _ in range(20)]
    error = np.std(values, ddof=1) / np.sqrt(20)
    # summing to the first zero crossing biases g upwards by a little
    assert abs(np.mean(values) - 9.0) < 4 * error + 0.15


def test_constant_series_says_nothing():
    assert st.statistical_inefficiency(np.ones(50)) == 50
    assert st.mean_estimate(np.ones(50)) == (1.0, 0.0, 1.0)


def test_walkers_stuck_in_their_basins_give_a_large_error(rng):
    a = np.where(np.arange(8) % 2, 1.0, -1.0) + 0.1 * rng.standard_normal((2000, 8))
    estimate = st.mean_estimate(a)
    assert estimate.error > 0.25  # 8 independent values of ±1: 1/sqrt(7)
    # the negative control: walker by walker the series look uncorrelated
    assert a.std() / np.sqrt(a.size) < 0.01
    assert st.statistical_inefficiency(a[:, 0]) < 2


def z_scores(rng, estimate, exact, shape=(2000, 8), rho=0.9, n=150):
    found = [estimate(ar1(rng, shape, rho)) for _ in range(n)]
    return np.array([(f.value - exact) / f.error for f in found])


@pytest.mark.parametrize("function, exact", [(st.mean_estimate, 0.0), (st.std_estimate, 1.0)])
@pytest.mark.parametrize("shape", [(2000, 8), (4000,)])
def test_errors_cover(rng, function, exact, shape):
    z = z_scores(rng, function, exact, shape)
    # 95 % nominal; 150 repeats; the larger of two errors covers a little more
    assert 0.88 <= np.mean(np.abs(z) < 1.96) <= 1.0
    assert 0.6 < z.std() < 1.25


def test_naive_error_does_not_cover(rng):
    def naive(a):
        return st.Estimate(a.mean(), a.std() / np.sqrt(a.size), a.size)

    assert z_scores(rng, naive, 0.0).std() > 3


@pytest.mark.parametrize("threshold, exact", [(0.0, 0.0), (1.0, -np.log(0.15865525 / 0.84134475))])
def test_basin_free_energy(rng, threshold, exact):
    z = []
    for _ in range(40):
        x = ar1(rng, (1500, 16), 0.9)
        found = st.basin_free_energy(x < threshold, x >= threshold, kT=0.5)
        z.append((found.value - 0.5 * exact) / found.error)
    assert abs(np.mean(z)) < 4 / np.sqrt(40) and 0.65 < np.std(z) < 1.35


def test_basin_free_energy_is_antisymmetric_and_owns_up(rng):
    x = ar1(rng, (500, 4), 0.9)
    swapped = st.basin_free_energy(x >= 1.0, x < 1.0, kT=0.5)
    assert swapped.value == pytest.approx(-st.basin_free_energy(x < 1.0, x >= 1.0, kT=0.5).value)
    empty = st.basin_free_energy(x < 99, x >= 99)
    assert empty.value == np.inf and np.isnan(empty.error)


def test_correlation_of_a_rotating_angle(rng):
    steps = 0.3 * rng.standard_normal((20_000, 8))
    phi = np.cumsum(steps, axis=0)
    c = st.correlation(np.stack((np.cos(phi), np.sin(phi)), -1))
    # rotational diffusion: C(t) = exp(-σ² t/2); the angle itself would not decay at all
    np.testing.assert_allclose(c[:40], np.exp(-0.045 * np.arange(40)), atol=0.03)
