"""Displacements against tidynamics and a loop; diffusion coefficients of Brownian motion."""

import numpy as np
import pytest

from diffmd_ase.analysis.kinetics.diffusion import diffusion, mean_squared_displacement
from diffmd_ase.analysis.kinetics.motion import motion
from diffmd_ase.analysis.kinetics.passages import ChainTooShort

D, SPACING, NOISE = 0.3, 0.5, 1.0


def brownian(seed, frames=200, walkers=4, atoms=2):
    """Of that D, seen with a noise of that standard deviation: a cage that moves."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(frames, walkers, atoms, 3)) * np.sqrt(2 * D * SPACING)
    return np.cumsum(steps, 0) + NOISE * rng.normal(size=steps.shape)


def caged(seed, frames=2000, walkers=8, a=0.9):
    """x' = a x + noise, variance 1: C(n) = aⁿ, integrated time SPACING (½ + a/(1 - a))."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(walkers, 3, 3))]
    for _ in range(frames - 1):
        x.append(a * x[-1] + np.sqrt(1 - a * a) * rng.normal(size=x[0].shape))
    return np.array(x)


def test_displacements_are_those_of_a_loop():
    x = brownian(0, frames=40) + 1e3
    found = mean_squared_displacement(x, SPACING)
    direct = [((x[n:] - x[: 40 - n]) ** 2).sum(-1).mean() for n in range(21)]
    np.testing.assert_allclose(found.values, direct, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.lags, SPACING * np.arange(21))
    one = mean_squared_displacement(x[:, :1], SPACING, lags=np.array([3]))
    assert np.isnan(one.errors).all()


def test_displacements_are_those_of_tidynamics():
    tidynamics = pytest.importorskip("tidynamics", reason="an oracle: pip install tidynamics")
    x = brownian(1)
    theirs = [tidynamics.msd(x[:, w, a]) for w in range(4) for a in range(2)]
    ours = mean_squared_displacement(x, SPACING).values
    np.testing.assert_allclose(ours, np.mean(theirs, 0)[: len(ours)], rtol=1e-9, atol=1e-9)


def test_diffusion_of_brownian_motion_and_its_errors():
    found = [diffusion(brownian(seed), SPACING) for seed in range(40)]
    z = np.array([(f.coefficient.value - D) / f.coefficient.error for f in found])
    assert abs(z.mean()) < 4 / np.sqrt(40) and 0.6 < z.std() < 1.4
    offsets = np.array([(f.offset.value - 6 * NOISE**2) / f.offset.error for f in found])
    assert abs(offsets.mean()) < 4 / np.sqrt(40) and 0.6 < offsets.std() < 1.4
    assert 0.3 < np.mean([f.quality for f in found]) < 0.7
    # one walker alone: the error is that of the fit
    alone = [diffusion(brownian(seed, walkers=1, atoms=8), SPACING) for seed in range(40)]
    z = np.array([(f.coefficient.value - D) / f.coefficient.error for f in alone])
    assert abs(z.mean()) < 4 / np.sqrt(40) and 0.6 < z.std() < 1.4


def test_a_line_of_independent_means_has_a_wrong_error():
    """The control: least squares without the covariance says three times less than the spread."""
    lags = np.arange(1, 51)
    moved = [mean_squared_displacement(brownian(s), SPACING, lags=lags) for s in range(60)]
    fits = [np.polyfit(m.lags, m.values, 1, cov=True) for m in moved]
    slopes = np.array([line[0] for line, _ in fits])
    told = np.sqrt([covariance[0, 0] for _, covariance in fits])
    assert slopes.std() > 3 * told.mean()
    best = [diffusion(brownian(s), SPACING).coefficient for s in range(60)]
    assert np.std([c.value for c in best]) < 0.8 * slopes.std() / 6


def test_atoms_in_cages_have_a_plateau():
    a, found = 0.9, motion(caged(0), SPACING, name="Cu")
    assert abs(found.plateau.value - 6) < 4 * found.plateau.error < 1
    exact = SPACING * (0.5 + a / (1 - a))
    assert abs(found.relaxation.value - exact) < 4 * found.relaxation.error < exact
    late = found.displacements.lags > 10 * exact
    np.testing.assert_allclose(found.displacements.values[late], 6, atol=0.6)
    free = motion(brownian(2), SPACING)
    assert free.plateau is None and "no plateau" in free.notes[0]


def test_too_short():
    with pytest.raises(ChainTooShort, match="still changes"):
        diffusion(caged(0, frames=64, a=0.9, walkers=200), SPACING)
    with pytest.raises(ValueError, match="expected"):
        diffusion(np.zeros((10, 2, 1, 3)), SPACING)
    with pytest.raises(ValueError, match="lags"):
        mean_squared_displacement(brownian(0), SPACING, lags=np.array([300]))
