"""Levels made together: the samples of one level after the other, in fewer rounds."""

import pytest
import torch
from reverse_diffusion import initial_noise, reverse_diffusion

from diffmd_ase.independent.draws import sample
from diffmd_ase.independent.reverse import Descent, by_level, geometric_sigmas, reverse_levels
from diffmd_ase.independent.together import Made, levels_together
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.state import Evaluation

MEANS = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
MIXTURE = GaussianMixture(MEANS.double(), [0.1, 0.05], [0.6, 0.4], kT=0.3)
SIGMAS = geometric_sigmas(50.0, 0.05, 60)
START = initial_noise(50.0, torch.zeros(5, 2, 3).double(), noise=Noise(4))


def together(x, window=16, potential_at=MIXTURE.at, **options):
    made = Made()
    steps = Descent(by_level(potential_at), SIGMAS, kT=0.3, noise=Noise(4), **options)
    return list(levels_together(steps, x, window=window, made=made)), made


@pytest.mark.parametrize(
    "options",
    [{}, {"churn": 20.0}, {"churn": 5.0, "corrector_steps": 2}, {"mean_free": True}],
    ids=["flow", "churn", "corrector", "no mean"],
)
def test_the_samples_of_one_level_after_the_other(options):
    expected = list(reverse_levels(MIXTURE.at, START, SIGMAS, kT=0.3, noise=Noise(4), **options))
    found, made = together(START, **options)
    assert [s for s, _ in found] == [s for s, _ in expected]
    away = [float((a - b).abs().max()) / s for (s, a), (_, b) in zip(found, expected, strict=True)]
    assert max(away) < 1e-7
    assert made.levels == 59 and made.rounds < 45
    assert 59 * 5 < made.structures <= made.rounds * 16 * 5


def test_one_walker_and_float32():
    x = START[2].float()
    end = reverse_diffusion(MIXTURE.at, x, SIGMAS, kT=0.3, noise=Noise(4), churn=5.0)
    found, made = together(x, churn=5.0)
    assert found[-1][1].dtype == torch.float32 and made.rounds < 45
    assert float((found[-1][1] - end).abs().max()) < 1e-3 * 0.05


def test_a_window_of_one_is_the_loop():
    found, made = together(START, window=1, churn=5.0)
    end = reverse_diffusion(MIXTURE.at, START, SIGMAS, kT=0.3, noise=Noise(4), churn=5.0)
    assert made.rounds == 59 and torch.equal(found[-1][1], end)


def test_guesses_where_there_are_no_forces():
    """They are made again, from what is known."""

    class Near(Harmonic):
        def __init__(self, sigma):
            super().__init__(1.0)
            self.sigma, self.inner = sigma, MIXTURE.at(sigma)

        def __call__(self, x, *, stress=False):
            value, far = self.inner(x), x.abs() > 10.0 + 4.0 * self.sigma
            return Evaluation(value.energy, torch.where(far, torch.nan, value.forces))

    found, made = together(START, window=40, potential_at=Near)
    end = reverse_diffusion(MIXTURE.at, START, SIGMAS, kT=0.3, noise=Noise(4))
    assert float((found[-1][1] - end).abs().max()) < 1e-8 and made.rounds < 50


def test_where_it_diverges():
    class Broken(Harmonic):
        def __call__(self, x, *, stress=False):
            value = super().__call__(x)
            return Evaluation(value.energy, torch.nan * value.forces)

    def potential_at(sigma):
        return Broken(1.0) if sigma < 1.0 else MIXTURE.at(sigma)

    errors = []
    for way in (
        lambda: list(reverse_levels(potential_at, START, SIGMAS, kT=0.3, noise=Noise(4))),
        lambda: together(START, potential_at=potential_at),
    ):
        with pytest.raises(DivergedError) as caught:
            way()
        errors.append((caught.value.step, caught.value.walkers))
    assert errors[0] == errors[1]
    with pytest.raises(ValueError, match="window"):
        together(START, window=0)


def test_samples_of_the_shipped_model():
    model = ScoreModel.load("alanine-dipeptide")
    options = {"noise": Noise(3), "levels": 40, "relax_steps": 30, "device": "cpu"}
    one = sample(model, 2, **options)
    many = sample(model, 2, window=8, **options)
    assert float((one - many).abs().max()) < 0.01
