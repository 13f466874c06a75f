"""Dual averaging: the wanted acceptance, frozen, the same for the same seed."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.acceptance import Tally, acceptance_probability
from diffmd_ase.sampling.adaptation import Adaptation, DualAveraging, adapt
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import Info
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run

KT = 1.0


def mala(h, k=1.0):
    return Metropolis(EulerMaruyama(Harmonic(k), kT=KT, h=h))


def start(kernel, n_atoms, walkers=32, seed=1):
    x = Noise(seed).normal(0, torch.zeros(walkers, n_atoms, 3), stream=9)  # exact for k = kT
    return kernel.init(x)


def measured(kernel, state, steps, noise):
    """Mean acceptance probability and its standard error over walkers."""
    total = torch.zeros(state.x.shape[0])
    for _, info in run(kernel, state, steps, noise=noise):
        total += acceptance_probability(info) / steps
    return float(total.mean()), float(total.std() / math.sqrt(len(total)))


@pytest.mark.parametrize("n_atoms", [1, 10, 100])
@pytest.mark.parametrize("h", [1e-3, 30.0])
def test_reaches_the_wanted_acceptance(n_atoms, h):
    """Gaussians of 3, 30 and 300 dimensions, from far below and far above."""
    kernel, noise = mala(h), Noise(3)
    frozen, state, record = adapt(kernel, start(kernel, n_atoms), 400, noise=noise)
    found, error = measured(frozen, state, 200, noise)
    assert abs(found - 0.574) < 0.03 + 4 * error, (found, error)
    assert abs(record.reached - 0.574) < 0.06
    # the check can fail: another step has another acceptance
    other, error = measured(frozen.scaled(0.3), state, 200, noise)
    assert abs(other - 0.574) > 0.03 + 4 * error


def test_the_step_is_that_of_the_theory():
    """A fixed acceptance means h ∝ d^(-1/3).

    ``log α = -(h/4)(|y|² - |x|²)`` has the variance h³ d/4 to leading order (Roberts &
    Rosenthal 1998) for U = |x|²/2 in d dimensions.
    """
    sizes = []
    for n_atoms in (30, 240):
        kernel = mala(0.1)
        frozen, _, _ = adapt(kernel, start(kernel, n_atoms), 400, noise=Noise(3))
        sizes.append(frozen.proposal.h)
    assert sizes[0] / sizes[1] == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("wanted", [0.3, 0.8])
def test_other_acceptances(wanted):
    kernel, noise = mala(0.5), Noise(3)
    settings = DualAveraging(acceptance=wanted)
    frozen, state, record = adapt(kernel, start(kernel, 10), 400, noise=noise, settings=settings)
    found, error = measured(frozen, state, 200, noise)
    assert abs(found - wanted) < 0.03 + 4 * error
    assert record.wanted == wanted


def test_the_equations():
    """One step by hand: H₁ = (δ - a)/(1 + t₀), ε̄₁ = ε₂."""
    kernel, noise = mala(0.5), Noise(3)
    state = start(kernel, 2)
    _, info = kernel.step(state, noise)
    a = float(acceptance_probability(info).mean())
    _, _, record = adapt(kernel, state, 1, noise=noise)
    assert record.factor == pytest.approx(10 * math.exp(-(0.574 - a) / 11 / 0.05))
    # and two: H₂ = (1 - 1/12) H₁ + (δ - a₂)/12, ε̄₂ = 2^-κ ε₃ + (1 - 2^-κ) ε̄₁
    settings = DualAveraging(t0=10, gamma=0.05, kappa=0.75)
    second, _ = kernel.step(state, noise)
    _, info = kernel.scaled(record.factor).step(second, noise)
    a2 = float(acceptance_probability(info).mean())
    h = (1 - 1 / 12) * (0.574 - a) / 11 + (0.574 - a2) / 12
    log_eps = math.log(10) - h * math.sqrt(2) / 0.05
    log_mean = 2**-0.75 * log_eps + (1 - 2**-0.75) * math.log(record.factor)
    _, _, both = adapt(kernel, state, 2, noise=noise, settings=settings)
    assert both.factor == pytest.approx(math.exp(log_mean))


def test_frozen_and_deterministic():
    kernel = mala(0.5)
    runs = [adapt(kernel, start(kernel, 3), 50, noise=Noise(seed)) for seed in (3, 3, 4)]
    (first, state, record), (again, other, same), (_, _, different) = runs
    assert torch.equal(state.x, other.x) and record == same
    assert record.factor != different.factor
    assert first.proposal.h == again.proposal.h == pytest.approx(0.5 * record.factor)
    assert state.step == 50 and record.end == 50
    assert json.loads(json.dumps(asdict(record)))["steps"] == 50
    assert Adaptation(**asdict(record)) == record
    assert len(record.trace) == 50 and record.trace[0] == [0, 1.0]
    # frozen: the run after it is that of its kernel, and step counts go on
    *_, (end, _) = run(first, state, 5, noise=Noise(3))
    assert end.step == 55 and first.proposal.h == again.proposal.h


def test_exact_once_frozen():
    """Variances after the warm-up are those of the target; those of its proposals are not."""
    kernel, noise = mala(0.05), Noise(3)
    frozen, state, _ = adapt(kernel, start(kernel, 2, walkers=3000), 60, noise=noise)

    def z(chosen):
        *_, (end, _) = run(chosen, state, 20, noise=noise)
        return float((end.x.square().mean() - 1.0) * math.sqrt(end.x.numel() / 2))

    assert abs(z(frozen)) < 4
    assert abs(z(frozen.proposal)) > 4


def test_per_atom_steps_keep_their_ratio():
    h = torch.tensor([0.1, 0.2, 0.0])
    kernel = Metropolis(EulerMaruyama(Harmonic(1.0), kT=KT, h=h))
    frozen, state, record = adapt(kernel, start(kernel, 3), 60, noise=Noise(3))
    assert torch.allclose(frozen.proposal.h, h * record.factor)
    assert torch.equal(state.x[:, 2], start(kernel, 3).x[:, 2])


def test_refusals():
    plain = EulerMaruyama(Harmonic(1.0), kT=KT, h=0.1)
    with pytest.raises(TypeError, match="accepts every step"):
        adapt(plain, plain.init(torch.zeros(2, 1, 3)), 5, noise=Noise(1))
    kernel = mala(0.1)
    with pytest.raises(ValueError, match=names("n_steps=0", "one step")):
        adapt(kernel, start(kernel, 1), 0, noise=Noise(1))
    for name, bad in {"acceptance": 1.0, "gamma": 0.0, "kappa": 0.5, "t0": -1.0}.items():
        with pytest.raises(ValueError, match=names(f"{name}={bad}", "must")):
            DualAveraging(**{name: bad})


class TestTally:
    def info(self, accepted, divergent):
        return Info(torch.tensor(accepted), divergent=torch.tensor(divergent), drift_evaluations=2,
                    target_evaluations=1)  # fmt: skip

    def test_sums(self):
        tally = Tally.empty(3)
        assert np.isnan(tally.acceptance)
        tally = tally.add(self.info([True, False, True], [False, True, False]))
        tally = tally.add(self.info([True, False], [False, False]), torch.tensor([0, 2]))
        assert tally.steps.tolist() == [2, 1, 2] and tally.accepted.tolist() == [2, 0, 1]
        assert tally.divergent.tolist() == [0, 1, 0]
        assert tally.acceptance == pytest.approx(3 / 5)
        assert tally.drift == 10 and tally.target == 5
        again = Tally.from_dict(json.loads(json.dumps(tally.to_dict())))
        rest = again.add(self.info([False] * 3, [False] * 3)) - tally
        assert rest.steps.tolist() == [1, 1, 1] and rest.acceptance == 0.0

    def test_plain_dynamics(self):
        tally = Tally.empty(2).add(Info())
        assert np.isnan(tally.acceptance) and tally.drift == 2 and tally.steps.tolist() == [1, 1]

    def test_probability(self):
        info = Info(
            log_ratio=torch.tensor([1.0, -1.0, math.nan, math.inf]),
            divergent=torch.tensor([False, False, True, True]),
        )
        expected = [1.0, math.exp(-1.0), 0.0, 0.0]
        assert acceptance_probability(info).tolist() == pytest.approx(expected)
