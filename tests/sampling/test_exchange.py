"""Replica exchange: exact populations in every state, labels, restarts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.ladder import Blend, Ladder
from diffmd_ase.sampling.combine import Sequence
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.field import reduced
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import Displacement
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.temperature_ladder import by_replica, equalised_kT, geometric_kT, tuned_kT
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import assert_zscore, check_kernel

DT = torch.float64
KT = torch.tensor([0.1, 0.2, 0.4, 0.9], dtype=DT)  # eV; the barrier is 10 kT at the first


class Tilted(Potential):
    """Double well along x with unequal minima, harmonic across (eV, Å)."""

    def __init__(self, tilt=0.12, barrier=1.0):
        self.well, self.tilt = DoubleWell(barrier=barrier, a=1.0, k=2.0), tilt

    def __call__(self, x, *, stress=False):
        energy, forces, _ = self.well(x)
        push = torch.zeros_like(x)
        push[..., 0] = self.tilt
        return Evaluation(energy - self.tilt * x[..., 0].sum(-1), forces + push)


def right(potential, kT):
    """Exact population of x > 0."""
    x = torch.zeros(4001, 1, 3, dtype=DT)
    x[:, 0, 0] = torch.linspace(-4, 4, 4001, dtype=DT)
    p = torch.softmax(-potential(x).energy / kT, 0)
    return float(p[x[:, 0, 0] > 0].sum() + p[x[:, 0, 0] == 0].sum() / 2)


def mala(potential, kT, h=0.02):
    kT = torch.as_tensor(kT, dtype=DT)
    steps = (h * kT / kT.min())[:, None] if kT.ndim else h
    return Metropolis(EulerMaruyama(potential, kT, steps))


def ladders(count, kT=KT, potential=None, every=3):
    potential = potential or Tilted()
    return ReplicaExchange(mala(potential, kT.repeat(count)), len(kT), every=every)


def left(rows):
    x = torch.zeros(rows, 1, 3, dtype=DT)
    x[:, 0, 0] = -1.0
    return x


def populations(kernel, x, n_steps, n_states, *, skip, noise):
    """Means of x > 0 over time, (M, K)."""
    total, n = 0.0, 0
    for state, _ in run(kernel, x, n_steps, noise=noise):
        if state.step > skip:
            total, n = total + (state.x[:, 0, 0] > 0).double(), n + 1
    return (total / n).reshape(-1, n_states), state


def zscores(values, exact):
    """Of means over independent ladders, per state."""
    return (values.mean(0) - torch.tensor(exact, dtype=DT)) / (values.std(0) / len(values) ** 0.5)


def test_populations_of_a_double_well_at_all_temperatures_from_one_side():
    M, well = 128, Tilted()
    kernel = ladders(M)
    values, state = populations(kernel, left(4 * M), 1500, 4, skip=500, noise=Noise(1))
    exact = [right(well, float(kT)) for kT in KT]
    assert_zscore(zscores(values, exact).numpy(), 0.0, 1.0, limit=4.0)
    summary = kernel.summary(state)
    assert float(summary.round_trips.double().mean()) > 3
    assert ((summary.acceptance > 0.2) & (summary.acceptance < 1)).float().mean() > 0.9
    # mean of min(1, α) and of what was done are the same number
    attempts = state.record.attempts.reshape(M, 4)[:, :-1]
    gap = (summary.swapped - summary.acceptance).mean(0) * float(attempts.sum(0)[0]) ** 0.5
    assert (gap.abs() < 4 * 0.5).all()


def test_without_exchange_the_cold_states_stay_where_they_are():
    kernel = mala(Tilted(), KT.repeat(32))
    values, _ = populations(kernel, left(128), 800, 4, skip=400, noise=Noise(1))
    assert float(values[:, 0].mean()) < 0.01 < 0.5 < right(Tilted(), 0.1)


class _Always(ReplicaExchange):
    """Accepts every swap."""

    def _swapped(self, state, partner):
        offered = super()._swapped(state, partner)
        return replace(offered, energy=state.energy)


def test_always_swapping_is_seen():
    M = 64
    kernel = _Always(mala(Tilted(), KT.repeat(M)), 4, every=3)
    values, _ = populations(kernel, left(4 * M), 700, 4, skip=300, noise=Noise(1))
    exact = [right(Tilted(), float(kT)) for kT in KT]
    assert zscores(values, exact).abs().max() > 10


@pytest.mark.parametrize("drift", [None, Harmonic(0.3)], ids=["own drift", "other drift"])
def test_states_of_another_potential(drift):
    """A flattening bias in steps, with a drift that is not the target's as well."""
    M, kT, strengths = 96, 0.1, [0.0, 0.3, 0.6, 0.9]
    well = Tilted()
    target = Blend([well], [[1.0 - s] for s in strengths])
    drift = target if drift is None else drift
    h = torch.full((4 * M, 1), 0.03, dtype=DT)
    kernel = ReplicaExchange(Metropolis(EulerMaruyama(drift, kT, h), target), 4, every=3)
    assert kernel._distinct
    values, state = populations(kernel, left(4 * M), 1300, 4, skip=500, noise=Noise(2))
    exact = [right(Blend([well], [1.0 - s]), kT) for s in strengths]
    assert_zscore(zscores(values, exact).numpy(), 0.0, 1.0, limit=4.0)
    # what is kept is what is there
    torch.testing.assert_close(state.energy, target(state.x).energy)
    torch.testing.assert_close(state.forces, drift(state.x).forces)


def test_acceptance_is_that_of_the_formula():
    """Detailed balance of the swap: the ratio of both orders, from the step itself."""
    potentials = [Harmonic(1.0), Harmonic(2.5)]
    kT = torch.tensor([0.3, 0.5], dtype=DT)
    ladder = Ladder(potentials)
    kernel = ReplicaExchange(mala(ladder, kT, h=1e-12), 2, every=1)
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(3), dtype=DT)

    def alpha(x):
        # the pair (0, 1) tries at even numbers of attempts
        state = replace(kernel.init(x), step=1)
        state, _ = kernel.step(state, Noise(0))
        assert int(state.record.attempts[0]) == 1
        return float(state.record.acceptance[0])

    def weight(x):
        return float(-sum(p(row).energy / t for p, row, t in zip(potentials, x, kT, strict=True)))

    forward, back = alpha(x), alpha(x.flip(0))
    expected = min(1.0, np.exp(weight(x.flip(0)) - weight(x)))
    assert forward == pytest.approx(expected, abs=1e-4)
    assert forward / back == pytest.approx(np.exp(weight(x.flip(0)) - weight(x)), rel=1e-4)


def test_a_swap_to_no_finite_energy_is_rejected():
    class Wall(Potential):
        """Nothing to the left of the origin."""

        def __call__(self, x, *, stress=False):
            energy, forces, _ = Harmonic(1.0)(x)
            return Evaluation(torch.where(x[..., 0, 0] > 0, energy, torch.nan), forces)

    kernel = ReplicaExchange(
        mala(Ladder([Harmonic(1.0), Wall()]), torch.full((2,), 0.2, dtype=DT), h=1e-3), 2, every=1
    )
    x = torch.tensor([[[-1.0, 0, 0]], [[1.0, 0, 0]]], dtype=DT)
    [(state, _)] = run(kernel, x, 20, noise=Noise(0), every=20)
    assert int(state.record.attempts[0]) == 10 and int(state.record.swaps[0]) == 0
    assert torch.isfinite(state.energy).all()


def test_momenta_are_scaled_and_stay_maxwellian():
    M = 400
    kT = torch.tensor([0.1, 0.3], dtype=DT)
    inner = GeneralizedHMC(
        drift=Harmonic(1.0), kT=kT.repeat(M), timestep=0.4, friction=0.2, masses=1.0
    )
    kernel = ReplicaExchange(inner, 2, every=2)
    x = torch.randn(M, 2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=DT)
    x = (x * kT.sqrt()[:, None, None]).reshape(2 * M, 1, 3)  # exact draws
    [(state, _)] = run(kernel, x, 12, noise=Noise(0), every=12)
    assert float(kernel.summary(state).swapped.mean()) > 0.2
    for values in (state.momenta, state.x):
        square = values.reshape(M, 2, 3).square()
        for k in range(2):
            sample = square[:, k].flatten() / kT[k]
            assert_zscore(float(sample.mean()), 1.0, (2 / sample.numel()) ** 0.5)


def test_conformance_and_combinations():
    x = left(8) + 0.1
    check_kernel(ladders(2), x, independent=False)
    well, kT = Tilted(), KT.repeat(2)
    both = Sequence([mala(well, kT), Displacement(well, kT, size=0.3)])
    kernel = ReplicaExchange(both, 4, every=2)
    check_kernel(kernel, x, independent=False)
    assert kernel.exact and not ReplicaExchange(EulerMaruyama(Tilted(), KT, 0.01), 4).exact


def test_a_ladder_alone_is_the_one_in_a_batch():
    x = left(8) + 0.1 * torch.arange(8, dtype=DT)[:, None, None]
    [(both, _)] = run(ladders(2), x, 60, noise=Noise(5), every=60)
    kernel = ladders(1)
    start = kernel.init(x[4:], walkers=torch.arange(4, 8))
    [(alone, _)] = run(kernel, start, 60, noise=Noise(5), every=60)
    assert torch.equal(alone.x, both.x[4:])
    for name in ("replica", "round_trips", "swaps", "acceptance"):
        assert torch.equal(getattr(alone.record, name), getattr(both.record, name)[4:])
    assert int(alone.record.swaps.sum()) > 5


def test_restart_is_the_uninterrupted_chain_labels_included():
    kernel, x = ladders(2), left(8)
    [(whole, _)] = run(kernel, x, 70, noise=Noise(6), every=70)
    [(part, _)] = run(kernel, x, 31, noise=Noise(6), every=31)
    [(rest, _)] = run(ladders(2), part, 39, noise=Noise(6), every=39)
    assert torch.equal(rest.x, whole.x)
    for name in ("replica", "heading", "round_trips", "attempts", "swaps", "acceptance"):
        assert torch.equal(getattr(rest.record, name), getattr(whole.record, name))


def test_labels_follow_configurations():
    """With frozen positions a label is where its configuration is."""
    kernel = ReplicaExchange(mala(Harmonic(0.01), KT.repeat(2), h=1e-16), 4, every=1)
    x = torch.arange(8, dtype=DT)[:, None, None].expand(8, 1, 3) / 10
    frames, labels = [], []
    for state, _ in run(kernel, x, 40, noise=Noise(7)):
        frames.append(state.x[:, 0, 0])
        labels.append(state.record.replica)
    followed = by_replica(torch.stack(frames), torch.stack(labels), 4)
    assert torch.stack(labels).unique(dim=0).shape[0] > 5
    torch.testing.assert_close(followed, x[:, 0, 0].expand(40, 8), atol=1e-5, rtol=0)
    # round trips, counted again from the labels
    for m in range(2):
        for replica in range(4):
            where = [int((row[4 * m : 4 * m + 4] == replica).nonzero()) for row in labels]
            heading, trips = int(replica == 0), 0
            for level in where:
                if level == 0:
                    trips, heading = trips + (heading == 2), 1
                elif level == 3 and heading == 1:
                    heading = 2
            row = 4 * m + where[-1]
            assert int(state.record.round_trips[row]) == trips


def test_tuned_ladder_equalises_acceptance():
    skewed = torch.tensor([0.1, 0.12, 0.15, 0.9], dtype=DT)

    def make(kT):
        return ladders(12, kT)

    x = left(48)
    before = make(skewed)
    [(state, _)] = run(before, x, 300, noise=Noise(0), every=300)
    first = before.summary(state).acceptance.mean(0)
    kT, state = tuned_kT(make, skewed, x, n_steps=200, rounds=3, noise=Noise(0))
    after = make(kT)
    [(state, _)] = run(after, after.init(state.x), 600, noise=Noise(1), every=600)
    last = after.summary(state).acceptance.mean(0)
    assert float(first.max() - first.min()) > 0.3 > 0.12 > float(last.max() - last.min())
    assert float(kT[0]) == 0.1 and float(kT[-1]) == 0.9 and (kT.diff() > 0).all()


def test_equal_rejections_leave_the_ladder_alone():
    kT = geometric_kT(0.1, 1.6, 5)
    torch.testing.assert_close(kT, torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6], dtype=DT))
    torch.testing.assert_close(equalised_kT(kT, [0.4] * 4), kT)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        ReplicaExchange(mala(Tilted(), 0.1), 1)
    with pytest.raises(ValueError, match=names("(4,)", "3 states", "(M·3,)")):
        ReplicaExchange(mala(Tilted(), KT), 3)
    with pytest.raises(ValueError, match=names("(6, 1, 3)", "4 states", "(M·4, N, 3)")):
        ladders(1).init(left(6))

    class Field(Potential):
        conservative = False

        def __call__(self, x, *, stress=False):
            return Evaluation(None, x)

    with pytest.raises(ValueError, match="no energy"):
        ReplicaExchange(EulerMaruyama(Field(), 0.1, 0.01), 2)
    kernel = ladders(2)
    lost = kernel.init(left(8)).take(torch.arange(8) != 3)
    with pytest.raises(
        ValueError, match=names("7 walkers", "ladders of 4", "checkpoint", "smaller h")
    ):
        kernel.step(lost, Noise(0))
    for wrong in ((0.2, 0.1, 3), (0.1, 0.2, 1), (-1.0, 0.2, 3)):
        low, high, n = wrong
        with pytest.raises(
            ValueError, match=names(f"kT_min={low}", f"kT_max={high}", f"n_states={n}")
        ):
            geometric_kT(*wrong)
    with pytest.raises(ValueError, match=names("(4,)", "[0.5, nan, 0.5]", "K-1", "longer")):
        equalised_kT(KT, [0.5, float("nan"), 0.5])
    with pytest.raises(ValueError, match=names("(3, 4)", "(3, 5)", "(T, M·4)")):
        by_replica(torch.zeros(3, 4), torch.zeros(3, 5, dtype=int), 4)


def test_reduced_energies_are_double():
    assert reduced(torch.ones(2, dtype=torch.float32), KT[:2]).dtype == DT
