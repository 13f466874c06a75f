"""The Metropolis choice itself: its ratio, what it rejects, what it refuses, what it counts."""

import math

import pytest
import torch

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis, accept
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation, State

KT, H = 0.5, 0.2
QUARTIC_STEPS = 20


class Quartic(Potential):
    """``Σ x⁴/4``; NaN beyond ``edge``, and ``jitter`` that differs from call to call."""

    def __init__(self, edge=math.inf, jitter=0.0):
        self.edge, self.jitter, self.calls = edge, jitter, 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        energy = (x**4).sum((-2, -1)) / 4 + self.jitter * self.calls
        beyond = (x.abs() > self.edge).any(-1).any(-1)
        return Evaluation(torch.where(beyond, torch.nan, energy), -(x**3))


def start(walkers=64, seed=1):
    return 0.5 * torch.randn(walkers, 2, 3, generator=torch.Generator().manual_seed(seed)).double()


def log_density(y, x, forces):
    """Of the reverse step from x to y, from its definition: mean x + h f/kT, variance 2h."""
    return -(y - x - H * forces / KT).square().sum((-2, -1)) / (4 * H)


class Recorded(Potential):
    """Keeps the positions it was evaluated at."""

    def __init__(self, potential):
        self.potential, self.seen = potential, []

    def __call__(self, x, *, stress=False):
        self.seen.append(x)
        return self.potential(x)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("k", [None, 0.7])
def test_log_ratio_from_its_definition(n_steps, k):
    """Own drift and that of another potential; one step and the path of several."""
    target, drift = Quartic(), Recorded(Quartic() if k is None else Harmonic(k))
    kernel = Metropolis(EulerMaruyama(drift, KT, H), target, n_steps=n_steps)
    state = kernel.init(start())
    drift.seen.clear()
    new, info = kernel.step(state, Noise(3))
    path = [state.x, *drift.seen]
    forces = [drift.potential(x).forces for x in path]
    expected = (target(path[0]).energy - target(path[-1]).energy) / KT
    for (x, f), (y, g) in zip(
        zip(path, forces, strict=True), list(zip(path, forces, strict=True))[1:], strict=False
    ):
        expected = expected + log_density(x, y, g) - log_density(y, x, f)
    torch.testing.assert_close(info.log_ratio, expected, rtol=1e-10, atol=1e-10)
    moved = (new.x != state.x).flatten(1).any(-1)
    assert torch.equal(moved, info.accepted) and 0 < info.accepted.sum() < len(moved)
    torch.testing.assert_close(new.energy, target(new.x).energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new.forces, drift.potential(new.x).forces, rtol=1e-12, atol=1e-12)


def test_evaluations_are_counted_once():
    own, other = Quartic(), Quartic()
    for target, expected in ((None, (1, 0)), (own, (1, 0)), (other, (1, 1))):
        kernel = Metropolis(EulerMaruyama(own, KT, H), target)
        state = kernel.init(start())
        before = own.calls, other.calls
        _, info = kernel.step(state, Noise(0))
        assert (info.drift_evaluations, info.target_evaluations) == expected
        assert (own.calls - before[0], other.calls - before[1]) == expected


def test_what_is_not_finite_is_a_rejection():
    """Walkers beyond the edge are divergent, stay where they were, and the others go on."""
    kernel = Metropolis(EulerMaruyama(Quartic(edge=1.5), KT, 5 * H))
    state, seen = kernel.init(start().clamp(-1.4, 1.4)), 0
    for _ in range(QUARTIC_STEPS):
        new, info = kernel.step(state, Noise(0))
        stayed = torch.equal(new.x[info.divergent], state.x[info.divergent])
        assert stayed and not (info.accepted & info.divergent).any()
        seen += int(info.divergent.sum())
        assert torch.isfinite(new.energy).all() and (new.x.abs() <= 1.5).all()
        state = new
    assert seen > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_ratio_that_is_no_number_or_infinite_is_divergent(value):
    x = start(2)
    old = State(x, torch.zeros(2).double(), torch.zeros_like(x), 0, None, {})
    new = State(x + 1, torch.zeros(2).double(), torch.zeros_like(x), 1, None, {})
    state, info = accept(old, new, torch.tensor([value, 0.0]).double(), KT, Noise(0))
    assert info.divergent.tolist() == [True, False] and info.accepted.tolist() == [False, True]
    assert torch.equal(state.x[0], x[0]) and torch.equal(state.x[1], x[1] + 1)


def test_a_start_that_is_not_finite_names_its_walkers():
    x = start(8)
    x[[2, 5], 0, 0] = 9.0
    with pytest.raises(ValueError, match=r"walkers \[2, 5\] are not finite"):
        Metropolis(EulerMaruyama(Quartic(edge=5.0), KT, H)).init(x)
    with pytest.raises(ValueError, match=r"walkers \[12, 15\] are not finite"):
        kernel = Metropolis(EulerMaruyama(Quartic(edge=5.0), KT, H))
        kernel.init(x, walkers=torch.arange(10, 18))


def test_an_energy_that_is_not_a_function_of_positions_is_refused():
    kernel = Metropolis(EulerMaruyama(Quartic(jitter=0.01), KT, H))
    with pytest.raises(ValueError, match="changed by 0.02 kT"):
        kernel.init(start())
    Metropolis(EulerMaruyama(Quartic(jitter=1e-5), KT, H)).init(start())


def test_a_target_without_energy_is_refused():
    field = Quartic()
    field.conservative = False
    with pytest.raises(ValueError, match="ApproximateMetropolis"):
        Metropolis(EulerMaruyama(field, KT, H))
    Metropolis(EulerMaruyama(field, KT, H), Quartic())  # as drift it is welcome


def test_bad_number_of_steps():
    with pytest.raises(ValueError, match="n_steps=0 must be at least 1"):
        Metropolis(EulerMaruyama(Quartic(), KT, H), n_steps=0)


def test_positions_become_float64():
    kernel = Metropolis(EulerMaruyama(Quartic(), KT, H))
    states = [state for state, _ in run(kernel, start().float(), 3, noise=Noise(0))]
    assert all(state.x.dtype == torch.float64 for state in states)
