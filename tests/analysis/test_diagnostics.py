"""Diagnostics of chains whose mixing is known exactly, and what they say of bad ones."""

import numpy as np
import pytest
from scipy.special import i0, i1

from diffmd_ase.analysis.diagnostics import diagnose, diagnose_angle, verdict


def autoregressive(rng, frames, walkers, rho, start=None):
    """x' = ρx + sqrt(1-ρ²) ξ, stationary unless started: g = (1+ρ)/(1-ρ), unit variance."""
    x = np.empty((frames, walkers))
    x[0] = rng.normal(size=walkers) if start is None else start
    for t in range(1, frames):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=walkers)
    return x


def test_independent_draws(rng):
    x = 5.0 + 2.0 * rng.normal(size=(1000, 4))
    found = diagnose("x", x)
    assert found.good is True and (found.frames, found.walkers) == (1000, 4)
    assert abs(found.mean - 5.0) < 4 * 2.0 / np.sqrt(x.size)
    assert found.error == pytest.approx(2.0 / np.sqrt(x.size), rel=0.1)
    assert found.ess_bulk == pytest.approx(x.size, rel=0.15)
    assert found.rhat == pytest.approx(1.0, abs=0.005)
    assert found.inefficiency == pytest.approx(1.0, abs=0.15)
    assert found.rhat_nested is None


@pytest.mark.parametrize("walkers", [1, 8])
def test_correlated_draws(rng, walkers):
    """g = 19 exactly, for the effective samples of arviz and for our own estimator alike."""
    x = autoregressive(rng, 40_000 // walkers, walkers, 0.9)
    found = diagnose("x", x)
    assert found.ess_bulk == pytest.approx(x.size / 19, rel=0.2)
    assert found.error == pytest.approx(np.sqrt(19 / x.size), rel=0.12)
    assert found.inefficiency == pytest.approx(19, rel=0.1)
    assert found.good is True


def test_error_bars_cover(rng):
    """Means of 200 chains, in their own errors, are standard normal; naive errors are not."""
    z, naive = [], []
    for _ in range(200):
        x = autoregressive(rng, 400, 4, 0.8)
        z.append(diagnose("x", x).mean / diagnose("x", x).error)
        naive.append(x.mean() / (x.std() / np.sqrt(x.size)))
    assert abs(np.std(z) - 1.0) < 4 / np.sqrt(2 * len(z))
    assert np.std(naive) > 2.5


def test_walkers_that_disagree(rng):
    x = rng.normal(size=(1000, 4)) + np.array([0.0, 0.0, 0.0, 2.0])
    found = diagnose("x", x)
    assert found.good is False and found.rhat > 1.05
    assert "walkers disagree (R-hat" in found.words


def test_one_walker_that_drifts(rng):
    assert diagnose("x", rng.normal(size=1000)).rhat == pytest.approx(1.0, abs=0.01)
    found = diagnose("x", rng.normal(size=1000) + np.linspace(0, 3, 1000))
    assert found.rhat > 1.05
    assert found.good is False and "halves of the run disagree" in found.words


def test_too_few(rng):
    found = diagnose("x", rng.normal(size=(10, 4)))
    assert found.good is False and found.words.endswith("times longer")
    rough = diagnose("x", rng.normal(size=(60, 4)))
    assert rough.good is None


def test_many_short_chains(rng):
    """Nested R-hat: 8 starts with 32 walkers each; at rest, and on their way from the starts."""
    groups = np.repeat(np.arange(8), 32)
    start = np.repeat(rng.normal(size=8), 32)
    mixed = autoregressive(rng, 60, 256, 0.8, start)[30:]
    found = diagnose("x", mixed, groups=groups)
    # at rest it is about 1; rank R-hat of so short chains says nothing
    assert found.rhat_nested < 1.02 < found.rhat
    assert found.good is not False or "nested" not in found.words
    stuck = autoregressive(rng, 30, 256, 0.99, start)
    found = diagnose("x", stuck, groups=groups)
    assert found.rhat_nested > 1.05 and "nested R-hat" in found.words and found.good is False


@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 3]])
def test_groups_that_cannot_be(rng, groups):
    with pytest.raises(ValueError, match="of one size"):
        diagnose("x", rng.normal(size=(20, 4)), groups=np.array(groups))


def test_angles_across_the_border(rng):
    """Von Mises about 180°: R = I₁/I₀, error 1/sqrt(N κ R) for independent draws."""
    kappa = 4.0
    phi = (rng.vonmises(np.pi, kappa, size=(2000, 4)) + np.pi) % (2 * np.pi) - np.pi
    found = diagnose_angle("phi", phi)
    R = i1(kappa) / i0(kappa)
    error = np.degrees(1 / np.sqrt(phi.size * kappa * R))
    assert found.error == pytest.approx(error, rel=0.1)
    off = (found.mean - 180 + 180) % 360 - 180
    assert abs(off) < 4 * error
    assert found.std == pytest.approx(np.degrees(np.sqrt(-2 * np.log(R))), rel=0.03)
    assert found.good is True
    # as a plain number it would be nonsense
    assert abs(diagnose("phi", phi).mean) < 1


def test_angle_that_hides_in_the_cosine(rng):
    """Walkers at φ and -φ have one cosine: the sine tells them apart."""
    phi = np.array([1.0, 1.0, -1.0, -1.0]) + 0.1 * rng.normal(size=(500, 4))
    assert diagnose("cos", np.cos(phi)).good is True
    assert diagnose_angle("phi", phi).good is False


def test_constant_short_and_not_finite(rng):
    found = diagnose("x", np.full((20, 2), 3.0))
    assert found.mean == 3.0 and found.error == 0.0 and "constant" in found.words
    assert "constant" in diagnose_angle("x", np.full((20, 2), 3.0)).words
    with pytest.raises(ValueError, match="at least 8|at least one walker"):
        diagnose("x", rng.normal(size=(7, 2)))
    x = rng.normal(size=(20, 3))
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"columns \[1\]"):
        diagnose("x", x)


def test_verdict(rng):
    fine = diagnose("fine", rng.normal(size=(1000, 4)))
    rough = diagnose("rough", rng.normal(size=(60, 4)))
    bad = diagnose("bad", rng.normal(size=(1000, 4)) + np.arange(4))
    still = diagnose("still", np.ones(20))
    assert verdict([fine, still]) == (
        True, "converged: all 1 observables have enough independent samples"
    )  # fmt: skip
    good, words = verdict([fine, rough])
    assert good is None and "rough of" not in words and "1 of 2" in words and "rough" in words
    good, words = verdict([fine, rough, bad])
    assert good is False and "worst bad (walkers disagree" in words
    assert verdict([still])[0] is None
