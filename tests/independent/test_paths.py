"""Reverse diffusion paths: exact weights for right and wrong scores, an exact chain."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.independent.paths import Path, PathIndependence, ReversePaths, path_samples
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.combine import Sequence
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import (
    assert_zscore,
    check_kernel,
    check_kernel_exact,
    mutants,
    targets,
    zscores,
)

DT = torch.float64
MEANS = [[[-1.3, -0.4, 0.0]], [[1.0, -0.9, 0.0]], [[0.4, 1.4, 0.0]]]
LEVELS = torch.from_numpy(np.geomspace(3.0, 0.08, 16))


def crude(sigma):
    """Two of three modes, in the wrong places, of the wrong widths."""
    return GaussianMixture(
        [[[-1.2, -0.3, 0.1]], [[0.6, 0.3, 0.0]]],
        [0.35 + sigma**2, 0.9 + sigma**2],
        [0.6, 0.4],
        kT=0.7,
    )


def exact_score(sigma):
    return GaussianMixture(MEANS, [0.3 + sigma**2] * 3, [0.5, 0.2, 0.3], kT=0.7)


def like(n, atoms=1):
    return torch.zeros(n, atoms, 3, dtype=DT)


def test_the_exact_score_of_a_gaussian_gives_equal_weights_and_log_z():
    v, centre = 0.4, torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.0, 0.0]], dtype=DT)
    kT = 0.2

    def at(sigma):
        return GaussianMixture(centre[None], [v + sigma**2], kT=kT)

    end = v + float(LEVELS[-1]) ** 2  # the law at the last level is exact
    target = at(float(LEVELS[-1]))
    paths = ReversePaths(at, LEVELS, kT, variance=v, centre=centre)
    found = path_samples(paths, target, like(500, 2), noise=Noise(0))
    assert float(found.log_weights.std()) < 1e-10 and found.ess == pytest.approx(1.0)
    assert found.log_z[0] == pytest.approx(0.0, abs=1e-10)  # a normalised density
    mean, error = found.mean(found.x)
    assert_zscore(((mean - centre) / error).numpy().ravel(), 0.0, 1.0)
    square, error = found.mean((found.x - centre).square())
    assert_zscore(((square - end) / error).numpy().ravel(), 0.0, 1.0)


@pytest.mark.parametrize("score", [exact_score, crude], ids=["exact score", "wrong score"])
def test_z_and_means_of_a_mixture(score):
    case = targets.mixture()
    paths = ReversePaths(score, LEVELS, 0.7, variance=0.4)
    found = path_samples(paths, case.target, like(20_000), noise=Noise(1))
    w = found.log_weights.exp()
    assert_zscore(float(w.mean()), 1.0, float(w.std() / len(w) ** 0.5))  # normalised: Z = 1
    log_z, error = found.log_z
    assert_zscore(log_z, 0.0, error)
    assert found.ess > (0.75 if score is exact_score else 0.3)
    mean, error = found.mean(case.observables(found.x))
    assert_zscore(((mean - case.exact) / error).numpy(), 0.0, 1.0, limit=4.0)
    # without the weights the wrong score is seen
    plain = case.observables(found.x)
    z = (plain.mean(0) - case.exact) / (plain.std(0) / len(plain) ** 0.5)
    assert (float(z.abs().max()) > 20) is (score is crude)


def test_a_wrong_weight_is_seen():
    class Narrow(ReversePaths):
        """Weights for reverse steps of a tenth less variance than is drawn."""

        def _reverse(self, *args):
            mean, variance = super()._reverse(*args)
            return mean, variance * 0.9

        def _normal(self, *args):
            return super()._normal(*args) / 0.9**0.5

    paths = Narrow(crude, LEVELS, 0.7, variance=0.4)
    found = path_samples(paths, targets.mixture().target, like(20_000), noise=Noise(1))
    log_z, error = found.log_z
    assert abs(log_z) > 10 * error


def test_temperatures_of_target_and_score_may_differ():
    target, kT = Harmonic(2.0), 0.5
    paths = ReversePaths(crude, LEVELS, 0.7, variance=0.4)
    found = path_samples(paths, target, like(20_000), noise=Noise(2), kT=kT)
    log_z, error = found.log_z
    assert_zscore(log_z, 1.5 * math.log(2 * math.pi * kT / 2.0), error)
    assert error < 0.05


def test_mean_free_paths_live_in_fewer_dimensions():
    """A spring between two atoms: ``Z = (π kT/k)^{3/2}`` for U = k |x_1 - x_2|²/2, mean free."""

    class Spring(Potential):
        def __call__(self, x, *, stress=False):
            away = x - x.mean(-2, keepdim=True)
            return Harmonic(2 * 1.7)(away)  # Σ|x_i - c|² is half of |x_1 - x_2|²

    kT, target = 0.3, Spring()
    paths = ReversePaths(
        lambda sigma: Harmonic(kT / (0.15 + sigma**2)), LEVELS, kT, variance=0.05, mean_free=True
    )
    found = path_samples(paths, target, like(20_000, 2), noise=Noise(3))
    assert float(found.x.mean(-2).abs().max()) < 1e-12
    log_z, error = found.log_z
    # three orthonormal coordinates (x_1 - x_2)/√2
    assert_zscore(log_z, 1.5 * math.log(math.pi * kT / 1.7), error)


def chain(case, kT=None):
    return PathIndependence(ReversePaths(crude, LEVELS, 0.7, variance=0.4), case.target, kT)


@pytest.mark.slow
def test_the_chain_is_exact_with_a_wrong_score():
    case = targets.mixture()
    kernel = chain(case)
    check_kernel_exact(kernel, case, n=10_000)
    for bug in (mutants.NoRatio, mutants.ReversedRatio, mutants.HalfRatio, mutants.Unadjusted):
        assert np.abs(zscores(bug(kernel), case, n=5_000, steps=3)).max() > 5, bug.__name__


def test_an_upward_path_belongs_to_an_exact_draw():
    """The first path of a chain is drawn by the noising steps: E[1/w] = 1/Z from exact ends."""
    case = targets.mixture()
    paths = ReversePaths(exact_score, LEVELS, 0.7, variance=0.4)
    x = case.sample(20_000, 0)
    log_q = paths.retrace(x, 0, None, Noise(4))
    inverse = (log_q + case.target(x).energy / 0.7).exp()
    assert_zscore(float(inverse.mean()), 1.0, float(inverse.std() / len(x) ** 0.5))


def test_conformance_restart_and_combination():
    case = targets.mixture()
    x = case.sample(4, 0)
    check_kernel(chain(case), x)
    steps = Metropolis(EulerMaruyama(case.target, 0.7, 0.1))
    both = Sequence([chain(case), steps])
    check_kernel(Sequence([steps, chain(case)]), x)
    check_kernel_exact(both, case, n=4_000)
    kernel = chain(case)
    [(whole, _)] = run(kernel, x, 9, noise=Noise(0), every=9)
    [(part, _)] = run(kernel, x, 4, noise=Noise(0), every=4)
    [(rest, _)] = run(chain(case), part, 5, noise=Noise(0), every=5)
    assert torch.equal(whole.x, rest.x) and torch.equal(whole.record.log_q, rest.record.log_q)


def test_a_score_that_fails_is_a_rejection():
    case = targets.mixture()

    class Hole(Potential):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x, *, stress=False):
            energy, forces, _ = self.inner(x)
            return Evaluation(energy, torch.where(x[..., :1, :1] > 0.3, torch.nan, forces))

    paths = ReversePaths(lambda sigma: Hole(exact_score(sigma)), LEVELS, 0.7, variance=0.4)
    kernel = PathIndependence(paths, case.target)
    x = torch.tensor([[[-1.3, -0.4, 0.0]]], dtype=DT).expand(50, 1, 3)
    state = replace(kernel.init(x), record=Path(torch.zeros(50, dtype=DT)))
    state, info = kernel.step(state, Noise(0))
    assert info.divergent.any() and not info.accepted[info.divergent].any()
    assert torch.isfinite(state.x).all() and torch.isfinite(state.energy).all()


def test_bad_input():
    case = targets.mixture()
    for levels in ([1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match=names(f"sigmas={levels}", "decreasing", "Å")):
            ReversePaths(crude, levels, 0.7)
    with pytest.raises(ValueError, match=names("kT=0.0", "positive")):
        ReversePaths(crude, LEVELS, 0.0)
    with pytest.raises(ValueError, match=names("variance=-1.0", "not negative")):
        ReversePaths(crude, LEVELS, 0.7, variance=-1.0)
    paths = ReversePaths(crude, LEVELS, 0.7)
    with pytest.raises(ValueError, match="no energy"):
        path_samples(paths, case.drift, like(4), noise=Noise(0))
    with pytest.raises(ValueError, match="no energy"):
        PathIndependence(paths, case.drift)
    with pytest.raises(ValueError, match=names("temperature=0.0", "positive", "eV")):
        PathIndependence(paths, case.target, 0.0)
    far = GaussianMixture([[[1e200, 0, 0]]], [1.0], kT=0.7)
    with pytest.raises(ValueError, match="no sample has a finite weight"):
        path_samples(paths, far, like(4), noise=Noise(0))
    with pytest.warns(RuntimeWarning, match=names("400 samples", "5%", "more levels")):
        path_samples(
            paths, GaussianMixture([[[9.0, 0, 0]]], [0.02], kT=0.7), like(400), noise=Noise(0)
        )
