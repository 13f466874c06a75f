"""Independent draws: the exact law for an exact score, addresses, progress, refusals."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch import nn

from diffmd_ase.independent import draws
from diffmd_ase.independent.draws import gaussian_start, sample
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.learned import ScorePotential
from diffmd_ase.score.card import ExpertCard
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.molecule import PairConfig
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System
from diffmd_ase.testing import assert_zscore

SMALL = {"steps": 4, "batch_size": 8, "width": 8, "evaluations": 2, "processes": 1}
SMALL |= {"validation_fraction": 0.2, "channels": 4}
WIDTH, LOW, HIGH = 0.5, 0.05, 4.0  # Å


def rattled(atoms):
    x = atoms.positions + 0.03 * np.random.default_rng(0).normal(size=(60, len(atoms), 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


@pytest.fixture(scope="module")
def trained():
    return train(rattled(molecule("H2O2")), config=TrainConfig(**SMALL), device="cpu")


class Gaussian(nn.Module):
    """The exact energy of ``x ~ N(0, WIDTH²)`` about its centre, under noise σ; ``hand``
    prefers a positive x-component of the first atom by that many kT, ``order`` that of the
    second before the third."""

    def __init__(self, hand=0.0, order=0.0):
        super().__init__()
        self.register_buffer("hand", torch.tensor(hand))
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x, sigma, *, numbers, cell, pbc):
        x = x - x.mean(1, keepdim=True)
        energy = 0.5 * x.square().sum((1, 2)) / (WIDTH**2 + sigma**2)
        energy = energy - self.order * torch.sign(x[:, 1, 0] - x[:, 2, 0]) / 2
        return energy - self.hand * torch.sign(x[:, 0, 0]) / 2


def gaussian(trained, **more):
    n = 4
    covariance = WIDTH**2 * (np.eye(n) - 1 / n)
    card = trained.card.model_copy(
        update={
            "experts": [ExpertCard(name="exact", sigma=(LOW, HIGH), network=PairConfig())],
            "sigma_min": LOW,
            "sigma_max": HIGH,
            "lambda_max": 1 / (WIDTH**2 + LOW**2),
            "covariance": covariance.tolist(),
        }
    )
    return ScoreModel(card, [Gaussian(**more)])


def options(**more):
    return {"noise": Noise(7), "device": "cpu", "levels": 40, **more}


def test_exact_score_gives_the_exact_width(trained):
    """Each of the 9 free components has variance WIDTH² + σ_min²."""
    model = gaussian(trained)
    x = sample(model, 3000, corrector_steps=0, relax_steps=0, **options())
    assert_zscore((x.square().sum((1, 2)) / 9).numpy(), WIDTH**2 + LOW**2)
    assert_zscore(x.flatten(1).numpy(), 0.0)
    with pytest.raises(AssertionError, match="z = "):  # 10 % off
        assert_zscore((x.square().sum((1, 2)) / 9).numpy(), 1.1 * (WIDTH**2 + LOW**2))


def test_last_steps_have_the_width_of_their_step(trained):
    """Euler–Maruyama at hλ = 0.1 has variance ``1/(λ (1 - hλ/2))``."""
    x = sample(gaussian(trained), 3000, corrector_steps=0, relax_steps=60, **options())
    assert_zscore((x.square().sum((1, 2)) / 9).numpy(), (WIDTH**2 + LOW**2) / 0.95)


def test_start_has_the_covariance_of_noised_data(trained):
    model = gaussian(trained)
    x = gaussian_start(model, Noise(3), torch.arange(4000))
    assert x.mean(1).abs().max() < 1e-5
    exact = (WIDTH**2 + HIGH**2) * (torch.eye(4) - 0.25)
    products = torch.einsum("bia,bja->bij", x, x) / 3
    assert_zscore(products.numpy(), exact.numpy())


@pytest.mark.parametrize("hand", [0.0, 2.0])
def test_hand_is_chosen_by_boltzmann_weight(trained, hand):
    """Levels are even under reflection; the last choice is not: ``1/(1 + exp(-ΔE))``."""
    x = sample(
        gaussian(trained, hand=hand), 3000, corrector_steps=0, relax_steps=0, **options(levels=10)
    )
    share = 1 / (1 + np.exp(-hand))
    assert_zscore((x[:, 0, 0] > 0).double().numpy(), share)


def test_exchange_of_like_atoms_turns_one_hand_only(trained):
    """The mirror turns both, the exchange one: two independent choices, each exact."""
    model = gaussian(trained, hand=1.0, order=3.0)
    few = {"corrector_steps": 0, "relax_steps": 0, **options(levels=10)}
    share = 1 / (1 + np.exp(-np.array([1.0, 3.0])))

    def right(x):
        first, second = x[:, 0, 0] > 0, x[:, 1, 0] > x[:, 2, 0]
        return torch.stack([first, second], dim=-1).double().numpy()

    model.card.exchanges = [(1, 2)]
    assert_zscore(right(sample(model, 3000, **few)), share)
    # control: without the exchange the two hands go together
    model.card.exchanges = []
    with pytest.raises(AssertionError, match="z = "):
        assert_zscore(right(sample(model, 3000, **few)), share)


def test_a_draw_does_not_depend_on_its_batch(trained):
    for model, tolerance in ((gaussian(trained), 1e-4), (trained, 1e-3)):
        together = sample(model, 6, relax_steps=10, **options(levels=10))
        pieces = sample(model, 6, relax_steps=10, batch_size=4, **options(levels=10))
        later = sample(model, 2, first=3, relax_steps=10, **options(levels=10))
        assert (together - pieces).abs().max() < tolerance
        assert (together[3:5] - later).abs().max() < tolerance
        assert (together[:3] - together[3:]).abs().max() > 0.1
        other = sample(model, 6, relax_steps=10, **options(levels=10, noise=Noise(8)))
        assert (together - other).abs().max() > 0.1


def test_draws_of_a_trained_model(trained):
    x = sample(trained, 5, **options(levels=20, churn=5.0, relax_steps=5))
    assert x.shape == (5, 4, 3) and torch.isfinite(x).all()
    assert x.mean(1).abs().max() < 1e-4


@pytest.mark.parametrize("batch_size", [500, 3])
def test_progress_ends_at_one(trained, batch_size):
    seen = []
    sample(
        gaussian(trained), 7, relax_steps=0, batch_size=batch_size, progress=seen.append,
        **options(levels=5),
    )  # fmt: skip
    assert seen == sorted(seen) and seen[0] > 0 and seen[-1] == pytest.approx(1.0)


def test_models_of_one_noise_level_are_refused():
    """As of a droplet, which has the closed form of its molecules only."""
    model = ScoreModel.load("alanine-dipeptide")
    fine = model.card.experts[0]
    card = model.card.model_copy(update={"experts": [fine]})
    with pytest.raises(ValueError, match="knows one noise level, .* start dynamics"):
        sample(ScoreModel(card, model.networks[:1]), 1, noise=Noise(0), device="cpu")


def test_periodic_models_are_refused():
    copper = rattled(bulk("Cu", cubic=True))
    model = train(copper, config=TrainConfig(**SMALL), device="cpu")
    with pytest.raises(ValueError, match="isolated molecules; start periodic systems from"):
        sample(model, 2, **options())


def test_whether_compiling_pays_is_asked_of_all_evaluations(trained, monkeypatch):
    """Before the first draw, once, with the number of calls that follow."""
    asked, calls = [], []

    def told(potential, x, count):
        asked.append((len(x), count))
        return False

    called = ScorePotential.__call__
    monkeypatch.setattr(draws, "compiling_pays", told)
    monkeypatch.setattr(ScorePotential, "__call__", lambda *a, **k: calls.append(1) or called(*a))
    few = {"levels": 20, "relax_steps": 30, "batch_size": 4, "device": "cpu"}
    sample(trained, 10, noise=Noise(0), **few)
    [(first, count)] = asked
    assert first == 4
    assert 0.9 * len(calls) < count < 1.1 * len(calls)
    sample(trained, 1, noise=Noise(0), compile=False, **few)
    assert len(asked) == 1
