"""Walkers that change λ: the joint law, exactly, alone and exchanged; where windows go."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.alchemical import Alchemical
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.expanded import ExpandedEnsemble, Level, sams
from diffmd_ase.sampling.lambda_ladder import equalised_lambda, path_length
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run

KT, K_A, K_B, AWAY = 0.1, 1.0, 3.0, 0.6
A, B = Harmonic(K_A), Harmonic(K_B, centre=[AWAY, 0.0, 0.0])
LAMS = torch.linspace(0, 1, 4, dtype=torch.float64)
STIFF = (1 - LAMS) * K_A + LAMS * K_B
CENTRES = LAMS * K_B * AWAY / STIFF
# F(λ) - F(0) in kT of the linear mix of two wells
EXACT = 1.5 * torch.log(STIFF / K_A) + 0.5 * LAMS * (1 - LAMS) * K_A * K_B * AWAY**2 / STIFF / KT
WEIGHTS = torch.tensor([0.0, 0.5, 1.5, 1.0], dtype=torch.float64)
LAW = torch.softmax(WEIGHTS - EXACT, 0)


def mover(lam=0.5, h=0.02):
    return Metropolis(EulerMaruyama(Alchemical(A, B, lam), kT=KT, h=h))


def drawn(level, seed=0):
    """Exact positions (B, 1, 3) in the states ``level`` (B,)."""
    xi = torch.randn(len(level), 1, 3, generator=torch.Generator().manual_seed(seed)).double()
    x = xi * (KT / STIFF[level]).sqrt()[:, None, None]
    x[:, 0, 0] += CENTRES[level]
    return x


def zscores(level, x):
    """Of the populations, of the mean place and of the mean square in each state."""
    z = []
    for k, p in enumerate(LAW):
        inside = level == k
        z.append((inside.double().mean() - p) / (p * (1 - p) / len(level)).sqrt())
        away = x[inside, 0, 0] - CENTRES[k]
        width = (KT / STIFF[k]).sqrt()
        z.append(away.mean() / width * len(away) ** 0.5)
        z.append((away.square().mean() / width**2 - 1) * (len(away) / 2) ** 0.5)
    return torch.stack(z)


def joint(kernel, n=20_000, steps=3):
    level = torch.multinomial(LAW, n, replacement=True, generator=torch.Generator().manual_seed(1))
    state = kernel.init(drawn(level), level=level)
    [(state, _)] = run(kernel, state, steps, noise=Noise(3), every=steps)
    return zscores(state.record.number, state.x)


def test_the_joint_law_stays():
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS, every=1)
    assert kernel.exact and joint(kernel).abs().max() < 4


class Mutant(ExpandedEnsemble):
    """An expanded ensemble with a fault in its draw."""

    def chances(self, start, end):
        right = super().chances(start, end)
        return {
            "no weights": right * torch.exp(-self.weights),
            "half the gap": right.sqrt(),
            "neighbour": right.roll(1, -1),
        }[self.fault]


@pytest.mark.parametrize("fault", ["no weights", "half the gap", "neighbour"])
def test_a_wrong_draw_is_seen(fault):
    kernel = Mutant(mover(), LAMS, WEIGHTS, every=1)
    object.__setattr__(kernel, "fault", fault)
    assert joint(kernel).abs().max() > 8


def test_energy_and_forces_are_those_of_the_new_state():
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS, every=2)
    start = kernel.init(drawn(torch.arange(8) % 4))
    for state, _ in run(kernel, start, 6, noise=Noise(0)):
        value = Alchemical(A, B, LAMS[state.record.number])(state.x)
        torch.testing.assert_close(state.energy, value.energy)
        torch.testing.assert_close(state.forces, value.forces)
        said = kernel.describe(state)
        torch.testing.assert_close(said["lambda"], LAMS[state.record.number])
    assert state.record.visits.sum() == 3 * 8
    torch.testing.assert_close(state.record.share.sum(-1), torch.full((8,), 3.0).double())


def test_a_restart_is_the_uninterrupted_run():
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS, every=2)
    start = kernel.init(drawn(torch.arange(8) % 4))
    [(whole, _)] = run(kernel, start, 10, noise=Noise(5), every=10)
    [(half, _)] = run(kernel, start, 5, noise=Noise(5), every=5)
    [(again, _)] = run(kernel, half, 5, noise=Noise(5), every=5)
    assert torch.equal(again.x, whole.x) and torch.equal(again.record.number, whole.record.number)


def test_every_state_may_have_its_step():
    h = 0.02 / STIFF[:, None]
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS, h=h, every=1)
    assert joint(kernel).abs().max() < 4
    torch.testing.assert_close(kernel.scaled(2.0).h, 2 * h)


def test_weights_are_found_and_then_frozen():
    kernel = ExpandedEnsemble(mover(h=0.05), LAMS, torch.zeros(4), every=1)
    state = kernel.init(drawn(torch.arange(64) % 4))
    frozen, state = sams(kernel, state, 250, noise=Noise(1))
    assert (frozen.weights - EXACT).abs().max() < 0.15, (frozen.weights, EXACT)
    assert isinstance(state.record, Level) and state.record.visits.sum() == 0
    [(end, _)] = run(frozen, state, 40, noise=Noise(1), every=40)
    share = end.record.share.sum(0) / end.record.share.sum()
    assert (share > 0.15).all() and (end.record.visits.sum(0) > 0).all()


def test_lambda_exchange_leaves_the_product_law():
    """u_i is that of Alchemical at λ_i: exact products go in, one swap of each kind is made."""
    ladders = 8000
    level = torch.arange(4).repeat(ladders)
    kernel = ReplicaExchange(mover(LAMS, h=1e-4), 4, every=1)
    state = kernel.init(drawn(level))
    [(new, _)] = run(kernel, state, 2, noise=Noise(7), every=2)
    moved = (new.x - state.x).abs().amax((1, 2)) > 0.1
    assert 0.2 < moved.double().mean() < 0.9
    assert _product(level, new.x).abs().max() < 4
    # always swapping is the mutant
    wrong = state.take(torch.arange(4 * ladders).reshape(-1, 4)[:, [1, 0, 3, 2]].flatten())
    assert _product(level, wrong.x).abs().max() > 8


def _product(level, x):
    z = []
    for k in range(4):
        away, width = x[level == k, 0, 0] - CENTRES[k], (KT / STIFF[k]).sqrt()
        z.append(away.mean() / width * len(away) ** 0.5)
        z.append((away.square().mean() / width**2 - 1) * (len(away) / 2) ** 0.5)
    # the states of one ladder are independent of each other
    wide = (x[:, 0, 0].reshape(-1, 4) - CENTRES) * (STIFF / KT).sqrt()
    for i, j in ((0, 1), (1, 2), (2, 3), (0, 2)):
        z.append((wide[:, i] * wide[:, j]).mean() * len(wide) ** 0.5)
    return torch.stack(z)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernel": Metropolis(EulerMaruyama(A, kT=KT, h=0.1))}, "Alchemical coupling"),
        ({"weights": torch.zeros(3)}, "expected (K,)"),
        ({"lambdas": torch.tensor([0.0, 1.1])}, "[0, 1]"),
        ({"h": torch.ones(4)}, "(K, N)"),
        ({"every": 0}, "every=0"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS)
    with pytest.raises(ValueError, match=names(said)):
        replace(kernel, **change)


def test_too_few_steps_for_weights_are_refused():
    kernel = ExpandedEnsemble(mover(), LAMS, WEIGHTS)
    with pytest.raises(ValueError, match="n_steps=3"):
        sams(kernel, kernel.init(drawn(torch.arange(4))), 3, noise=Noise(0))


def test_windows_lie_at_equal_lengths():
    lam = np.linspace(0, 1, 101)
    density = 1 / (lam + 0.05)  # the length is log(λ + 0.05) + const
    new = equalised_lambda(lam, density, 6)
    assert new[0] == 0 and new[-1] == 1
    np.testing.assert_allclose(np.diff(np.log(new + 0.05)), np.log(21) / 5, rtol=0.02)
    assert path_length(lam, density)[-1] == pytest.approx(np.log(21), rel=0.01)
    assert len(equalised_lambda(lam, density)) == 5  # one for each kT
    assert len(equalised_lambda(lam, 100 * density)) == 40
    # a part where a short run saw nothing keeps windows
    seen = np.where((lam < 0.2) | (lam > 0.8), 5.0, 0.0)
    assert (np.abs(equalised_lambda(lam, seen, 9) - 0.5) < 0.25).any()


@pytest.mark.parametrize(
    ("lam", "density", "said"),
    [
        ([0, 1], [1.0], "(K,)"),
        ([0, 0, 1], [1.0, 1.0, 1.0], "increasing"),
        ([0, 1], [1.0, np.nan], "finite"),
        ([0, 1], [0.0, 0.0], "all zero"),
    ],
)
def test_windows_of_nothing_are_refused(lam, density, said):
    with pytest.raises(ValueError, match=names(said)):
        equalised_lambda(lam, density, 4)
    with pytest.raises(ValueError, match="n_states=1"):
        equalised_lambda([0, 1], [1.0, 1.0], 1)
