"""Annealing with weights: exact Z, exact means, resampling, restarts."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.independent.smc import _resample, smc, smc_levels
from diffmd_ase.independent.switching import switch
from diffmd_ase.independent.weights import Weighted
from diffmd_ase.libraries import quiet_pymbar
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.ladder import Blend
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import assert_zscore, targets

DT = torch.float64
KT = 0.7
START = Harmonic(0.3)  # broad


def mala(potential, h, kT=KT):
    return Metropolis(EulerMaruyama(potential, kT, h))


def draws(n, k=0.3, kT=KT, atoms=1, seed=0):
    xi = torch.randn(n, atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=DT)
    return xi * (kT / k) ** 0.5


def annealed(target, levels=10, h=0.2):
    """From the broad well to the target."""
    return [mala(Blend([START, target], [1 - s, s]), h) for s in np.linspace(0, 1, levels) ** 1.5]


def test_z_of_a_harmonic_well():
    kernels = [mala(Harmonic(k), 0.3 / k) for k in np.geomspace(0.3, 6.0, 7)]
    found = smc(kernels, draws(4000, atoms=2), noise=Noise(0), populations=16)
    log_z, error = found.log_z
    assert_zscore(log_z, -3.0 * math.log(20.0), error)
    assert 0 < error < 0.1
    square, error = found.mean(found.x.square())
    assert_zscore(((square - KT / 6.0) / error).numpy().ravel(), 0.0, 1.0)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_z_and_means_of_a_mixture(threshold):
    """Normalised, so that log Z/Z₀ is that of the start with the other sign."""
    case = targets.mixture()
    found = smc(
        annealed(case.target), draws(8000), noise=Noise(1), populations=20, threshold=threshold,
        n_steps=2,
    )  # fmt: skip
    log_z, error = found.log_z
    assert_zscore(log_z, -1.5 * math.log(2 * math.pi * KT / 0.3), error)
    assert error < 0.05
    mean, error = found.mean(case.observables(found.x))
    assert_zscore(((mean - case.exact) / error).numpy(), 0.0, 1.0, limit=4.0)


def test_temperature_is_a_level_like_another_and_evaluates_nothing():
    """log Z(kT)/Z(kT₀) of a harmonic well, and one evaluation of the energy for each step."""
    calls = []

    class Counted(Harmonic):
        def __call__(self, x, *, stress=False):
            calls.append(1)
            return super().__call__(x)

    well = Counted(0.3)
    kernels = [mala(well, 0.5 * kT / KT, kT) for kT in np.geomspace(KT, 0.1, 6)]
    found = smc(kernels, draws(4000), noise=Noise(2), populations=16, n_steps=2)
    log_z, error = found.log_z
    assert_zscore(log_z, 1.5 * math.log(0.1 / KT), error)
    assert len(calls) == 2 + 5 * 2  # the start is evaluated twice, by design


class Greedy(EulerMaruyama):
    """Claims what it does not do."""

    exact = True


def test_kernels_that_are_not_exact_are_seen_or_refused():
    kernels = [EulerMaruyama(Harmonic(k), KT, 0.9 * KT / k) for k in np.geomspace(0.3, 6.0, 7)]
    with pytest.raises(ValueError, match="unadjusted"):
        smc(kernels, draws(800), noise=Noise(0))
    kernels = [Greedy(k.potential, KT, k.h) for k in kernels]
    log_z, error = smc(kernels, draws(4000), noise=Noise(0), populations=16).log_z
    assert abs(log_z + 1.5 * math.log(20.0)) > 6 * error


def test_weights_of_the_new_positions_are_seen():
    """The classic mistake: the step first, then the weight."""
    kernels = [mala(Harmonic(k), 0.3 / k) for k in np.geomspace(0.3, 6.0, 7)]
    noise, x = Noise(3), draws(8000)
    log_w, state = torch.zeros(8000, dtype=DT), kernels[0].init(x)
    for old, new in pairwise(kernels):
        state = new.adopt(replace(state, energy=new.potential(state.x).energy))
        state, _ = new.step(state, noise)
        log_w -= (new.potential(state.x).energy - old.potential(state.x).energy) / KT
    log_z, error = Weighted(state.x, log_w, 16).log_z
    assert abs(log_z + 1.5 * math.log(20.0)) > 6 * error


def test_works_of_both_directions_in_pymbar():
    ks = np.geomspace(0.3, 3.0, 6)
    kernels = [mala(Harmonic(k), 0.3 / k) for k in ks]
    forward, back = (
        -smc(order, draws(2000, k=k), noise=Noise(seed), threshold=0.0).log_weights.numpy()
        for order, k, seed in ((kernels, ks[0], 4), (kernels[::-1], ks[-1], 5))
    )
    found = quiet_pymbar().bar(forward, back)
    assert_zscore(found["Delta_f"], 1.5 * math.log(10.0), found["dDelta_f"])


def test_other_kernels_take_part():
    kernels = [
        HamiltonianMonteCarlo(
            drift=Harmonic(k), kT=KT, timestep=0.5 / k**0.5, n_leapfrog=3, masses=1.0
        )
        for k in np.geomspace(0.3, 6.0, 6)
    ]
    log_z, error = smc(kernels, draws(3000), noise=Noise(6), populations=12).log_z
    assert_zscore(log_z, -1.5 * math.log(20.0), error)


def test_resampling_keeps_what_the_weights_say():
    """Systematic: offspring are the weight times P, up or down; the mean weight stays."""
    P = 50
    log_w = torch.randn(3, P, generator=torch.Generator().manual_seed(1), dtype=DT)
    log_w[1, 7] = -torch.inf
    state = mala(START, 0.1).init(torch.arange(3 * P, dtype=DT)[:, None, None].expand(-1, 1, 3))
    which = torch.tensor([True, True, False])
    counts = torch.zeros(3 * P, dtype=DT)
    for step in range(200):
        moved, new = _resample(replace(state, step=step), log_w, which, Noise(0))
        parents = moved.x[:, 0, 0].long()
        number = torch.bincount(parents, minlength=3 * P).double()
        counts += number / 200
        expected = P * torch.softmax(log_w, -1).flatten()
        assert ((number - expected).abs() < 1)[: 2 * P].all()
        assert torch.equal(parents[2 * P :], torch.arange(2 * P, 3 * P))
        assert torch.equal(parents[: 2 * P] // P, torch.arange(2 * P) // P)
    torch.testing.assert_close(new.reshape(3, P).logsumexp(-1), log_w.logsumexp(-1))
    torch.testing.assert_close(new[2 * P :], log_w[2])
    spread = (expected % 1 * (1 - expected % 1) / 200).sqrt()[: 2 * P].clamp(min=1e-9)
    assert ((counts - expected)[: 2 * P].abs() < 4.5 * spread).all()
    torch.testing.assert_close(moved.energy, START(moved.x).energy)


def test_a_population_alone_is_the_one_in_a_batch():
    kernels, x = annealed(targets.mixture().target, levels=6), draws(160)
    whole = smc(kernels, x, noise=Noise(7), populations=4)
    ids = torch.arange(80, 120)
    alone = smc(kernels, x[80:120], noise=Noise(7), populations=1, walkers=ids)
    assert torch.equal(whole.x[80:120], alone.x)
    torch.testing.assert_close(whole.log_weights[80:120], alone.log_weights, rtol=1e-12, atol=0)
    assert math.isnan(alone.log_z[1])


def test_restart_from_any_level_is_the_uninterrupted_annealing():
    kernels = annealed(targets.mixture().target, levels=6)
    levels = list(smc_levels(kernels, draws(160), noise=Noise(8), populations=4))
    assert any(level.resampled.any() for level in levels)
    assert [level.level for level in levels] == list(range(6))
    *_, last = smc_levels(kernels, levels[2], noise=Noise(8), populations=4)
    assert torch.equal(last.state.x, levels[-1].state.x)
    assert torch.equal(last.log_weights, levels[-1].log_weights)


class Half(Potential):
    """A well that has no energy on one side."""

    def __call__(self, x, *, stress=False):
        energy, forces, _ = Harmonic(0.3)(x)
        return Evaluation(torch.where(x[..., 0, 0] > 0, energy, torch.nan), forces)


def test_particles_without_an_energy_have_no_weight():
    for threshold in (0.0, 0.6):
        found = smc(
            [mala(START, 0.2), mala(Half(), 0.2)], draws(8000), noise=Noise(9), populations=20,
            threshold=threshold,
        )  # fmt: skip
        log_z, error = found.log_z
        assert_zscore(log_z, math.log(0.5), error)
        assert float(found.x[:, 0, 0][torch.isfinite(found.log_weights)].min()) > 0


def test_one_particle_is_switched_alone():
    """No population, so that nobody is resampled; without an energy its work is infinite."""
    path = [mala(START, 0.2), mala(Half(), 0.2)]
    works = [float(switch(path, draws(1, seed=s).abs() * s, noise=Noise(1))[0]) for s in (1, -1)]
    assert works == [0.0, math.inf]
    both = torch.cat([draws(1).abs(), -draws(1).abs()])
    assert switch(path, both, noise=Noise(1))[0].tolist() == works


def test_bad_input():
    kernels, x = [mala(START, 0.1), mala(Harmonic(0.4), 0.1)], draws(64)
    with pytest.raises(ValueError, match="at least 2 kernels"):
        smc(kernels[:1], x, noise=Noise(0))
    with pytest.raises(ValueError, match=names("threshold=1.5", "[0, 1]")):
        smc(kernels, x, noise=Noise(0), threshold=1.5)
    for positions, populations in ((x[:63], 8), (x[0], 1), (x[:8], 8)):
        with pytest.raises(ValueError, match="populations"):
            smc(kernels, positions, noise=Noise(0), populations=populations)
    with pytest.raises(ValueError, match=r"populations \[0, 1\] has a finite weight"):
        smc([mala(START, 0.1), mala(Half(), 0.1)], -x.abs(), noise=Noise(0), populations=2)
    hard = GaussianMixture([[[5.0, 0, 0]]], [0.01], kT=KT)
    with pytest.warns(RuntimeWarning, match=names("400 samples", "5%", "more levels")):
        smc([mala(START, 0.1), mala(hard, 1e-3)], draws(400), noise=Noise(0), threshold=0.0)


def test_weighted_samples():
    """Exact on a discrete law, ratio estimator and its error included."""
    values = torch.tensor([0.0, 1.0, 2.0], dtype=DT)
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    means, errors, zs = [], [], []
    for seed in range(300):
        draw = np.random.default_rng(seed).choice(3, size=400, p=p.numpy())
        w = Weighted(torch.zeros(400, 1, 3), (3.0 * q / p).log()[draw])
        mean, error = w.mean(values[draw])
        log_z, log_error = w.log_z
        means.append(float(mean)), errors.append(float(error))
        zs.append((log_z - math.log(3.0)) / log_error)
    exact = float(q @ values)
    assert_zscore(np.mean(means), exact, np.std(means) / 300**0.5)
    assert 0.85 < np.mean(errors) / np.std(means) < 1.15 and 0.85 < np.std(zs) < 1.15
    assert Weighted(torch.zeros(4, 1, 3), torch.zeros(4, dtype=DT)).ess == pytest.approx(1.0)
    one = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf], dtype=DT)
    assert Weighted(torch.zeros(4, 1, 3), one).ess == pytest.approx(0.25)
    with pytest.raises(ValueError, match=names("(4,)", "3 groups", "equal size")):
        Weighted(torch.zeros(4, 1, 3), torch.zeros(4, dtype=DT), groups=3)
    with pytest.raises(ValueError, match="no sample has a finite weight"):
        Weighted(torch.zeros(1, 1, 3), one[1:2])
