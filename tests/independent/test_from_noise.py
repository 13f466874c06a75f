"""Annealing from noise: absolute free energies in closed form, whatever the score, and hands."""

import math

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.independent.from_noise import anneal_from_noise, noise_levels
from diffmd_ase.independent.reverse import geometric_sigmas
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.alchemical import Alchemical
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.testing import assert_zscore

KT, K, LEAST, WIDEST = 0.1, 3.0, 0.02, 3.0
MEANS, SHARES = [[[-0.6, 0.0, 0.0]], [[0.7, 0.2, 0.0]]], [0.6, 0.4]
TARGET = Harmonic(K, centre=[0.5, 0.0, 0.0])
EXACT = -1.5 * math.log(2 * math.pi * KT / K)  # of the target


def kernel(potential, h):
    return Metropolis(EulerMaruyama(potential, kT=KT, h=h))


def annealed(*, wrong=1.0, kT=KT, populations=40, size=100, seed=1):
    """Down the levels of a mixture, whose variances may be ``wrong``, and to the target."""

    def at(sigma):
        variances = [wrong * (v + sigma**2) for v in (LEAST, 0.03)]
        return GaussianMixture(MEANS, variances, SHARES, kT=kT)

    sigmas = geometric_sigmas(WIDEST, 0.01, 60).tolist()
    levels = [kernel(at(sigma), 0.2 * (LEAST + sigma**2)) for sigma in sigmas]
    return anneal_from_noise(
        levels,
        torch.zeros(populations * size, 1, 3),
        variance=WIDEST**2 + 0.4,
        centre=torch.tensor([0.1, 0.0, 0.0]),
        noise=Noise(seed),
        beyond=[kernel(Alchemical(at(0.01), TARGET, s), 0.005) for s in np.linspace(0, 1, 7)[1:]],
        populations=populations,
    )


@pytest.mark.parametrize("wrong", [1.0, 1.4])
def test_absolute_and_relative_free_energies(wrong):
    """A mixture is normalised: its own is 0, also where it is not the score of the data."""
    found = annealed(wrong=wrong)
    for (value, error), exact in (
        (found.model, 0.0),
        (found.end, EXACT),
        (found.difference, EXACT),
    ):
        assert_zscore(value, exact, error)
        assert 0.005 < error < 0.1
    mean, error = found.samples.mean(found.samples.x)
    assert_zscore(((mean - torch.tensor([0.5, 0.0, 0.0])) / error).numpy(), 0.0, 1.0)
    assert found.populations > 20 and found.smallest > 0.02


def test_levels_of_another_temperature_are_seen():
    """The negative control: a mixture at 1.3 kT is not normalised at kT."""
    value, error = annealed(kT=1.3 * KT).model
    assert abs(value) > 4 * error


def test_errors_are_those_of_repeats():
    found = [annealed(populations=10, size=24, seed=seed) for seed in range(24)]
    for name, exact in (("model", 0.0), ("difference", EXACT)):
        values, errors = np.array([getattr(one, name) for one in found]).T
        assert_zscore(values.mean(), exact, values.std() / 24**0.5)
        assert 0.65 < errors.mean() / values.std() < 1.5


def test_the_levels_of_a_model_have_both_hands_until_they_are_drawn():
    model = ScoreModel.load("alanine-dipeptide")
    levels = noise_levels(model, 5, bridge=4, device="cpu")
    moves = [k for k in levels if not isinstance(k, Metropolis)]
    assert len(levels) == 5 + len(moves) + 4 and len(moves) == 6
    narrow = levels[-1]
    assert narrow.drift.sigma == model.card.sigma_min
    assert float(narrow.proposal.h) == pytest.approx(
        0.1 * (1 / model.card.lambda_max + model.card.sigma_min**2)
    )
    x = torch.tensor(Snapshots.read("alanine-dipeptide").positions[:400:2]).double()
    state = moves[0].init(x - x.mean(-2, keepdim=True))
    before = hands(state.x)
    for step in moves:
        state, _ = step.step(state, Noise(2))
    flipped = (hands(state.x) != before).double()
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / len(x) ** 0.5
    torch.testing.assert_close(state.energy, moves[0].target(state.x).energy)


def hands(x):
    """Of the alpha carbon of each."""
    arms = torch.stack([x[:, other] - x[:, 8] for other in (6, 10, 14)], 1)
    return torch.linalg.det(arms) > 0


def test_bad_input():
    like = torch.zeros(16, 1, 3)
    with pytest.raises(ValueError, match=names("0 levels", "one at least")):
        anneal_from_noise([], like, variance=1.0, noise=Noise(0))
    with pytest.raises(ValueError, match=names("variance=0.0")):
        anneal_from_noise([kernel(TARGET, 0.01)], like, variance=0.0, noise=Noise(0))
    with pytest.raises(ValueError, match="isolated molecules"):
        noise_levels(ScoreModel.load("copper-vacancy"), 5, device="cpu")
