"""Independent samples from the exact score of a Gaussian mixture, and what spoils them."""

import math

import pytest
import torch
from messages import names
from reverse_diffusion import initial_noise, karras_sigmas, reverse_diffusion

from diffmd_ase.independent.reverse import geometric_sigmas, reverse_levels
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.state import Evaluation

KT = 0.3
SIGMA_MIN = 0.05


def mixture():
    """Three well-separated wells (their weights are countable) of different width."""
    means = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    means = torch.cat((means, torch.tensor([[[0.0, -4.0, 0.0], [0.0, 0.0, 3.0]]])))
    return GaussianMixture(means, [0.1, 0.05, 0.2], [0.5, 0.3, 0.2], kT=KT)


def moments_z(x, exact):
    """z-scores of weights, and of means and variances inside each well."""
    n = len(x)
    which = (x[:, None] - exact.means).square().sum((-2, -1)).argmin(1)
    scores = []
    for k in range(len(exact.weights)):
        inside, w, v = x[which == k], exact.weights[k], exact.variances[k]
        count, d = len(inside), inside[0].numel()
        scores.append((count / n - w) / (w * (1 - w) / n).sqrt())
        away = inside - exact.means[k]
        scores += list((away.mean(0) / (v / count).sqrt()).reshape(-1))
        scores.append((away.square().mean() / v - 1) / math.sqrt(2 / (count * d)))
    return torch.stack(scores)


def sample(potential_at, n=6000, levels=100, seed=11, **options):
    noise, like = Noise(seed), torch.zeros(n, 2, 3)
    sigmas = geometric_sigmas(100.0, SIGMA_MIN, levels)
    x = initial_noise(100.0, like, noise=noise)
    return reverse_diffusion(potential_at, x, sigmas, kT=KT, noise=noise, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"churn": 30.0}, {"churn": 10.0, "corrector_steps": 1, "corrector_size": 0.02}],
    ids=["flow", "churn", "churn and corrector"],
)
def test_exact_score_gives_the_mixture(options):
    """Means, variances and weights of the data smoothed by the last level, |z| < 4."""
    p = mixture()
    z = moments_z(sample(p.at, **options), p.at(SIGMA_MIN))
    assert z.abs().max() < 4


class Scaled(Potential):
    """A score that is wrong by a factor."""

    def __init__(self, potential, factor):
        self.potential, self.factor = potential, factor

    def __call__(self, x, *, stress=False):
        value = self.potential(x)
        return Evaluation(value.energy, self.factor * value.forces)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_negative_control_wrong_scale(factor):
    """A score 5 % off must fail the same check."""
    p = mixture()
    z = moments_z(sample(lambda s: Scaled(p.at(s), factor)), p.at(SIGMA_MIN))
    assert z.abs().max() > 8


def test_negative_control_wrong_level():
    """The score of another noise level than the one asked for must fail as well."""
    p = mixture()
    z = moments_z(sample(lambda s: p.at(1.3 * s)), p.at(SIGMA_MIN))
    assert z.abs().max() > 8


def test_gaussian_is_second_order():
    """Final variance of one Gaussian against the flow's closed form
    ``σ_max² (v + σ_min²)/(v + σ_max²)``: the error falls as the square of the spacing."""
    v, like = 1.0, torch.ones(1, 1, 3)
    p = GaussianMixture(torch.zeros(1, 1, 3), [v], kT=KT)
    exact = math.sqrt((v + 0.01**2) / (v + 20.0**2))
    errors = []
    for n in (40, 80):
        sigmas = geometric_sigmas(20.0, 0.01, n + 1)
        x = reverse_diffusion(p.at, like, sigmas, kT=KT, noise=Noise(0))
        errors.append(float((x[0, 0, 0] - exact).abs() / exact))
    assert errors[1] < 3e-3
    assert 3.5 < errors[0] / errors[1] < 5.0


def test_single_precision_positions():
    x = sample(mixture().at, n=64).float()
    sigmas = geometric_sigmas(1.0, 0.1, 10)
    out = reverse_diffusion(mixture().at, x, sigmas, kT=KT, noise=Noise(1), churn=5.0)
    assert out.dtype == torch.float32


def test_sample_of_a_walker_does_not_depend_on_its_batch():
    p, sigmas = mixture(), geometric_sigmas(10.0, SIGMA_MIN, 30)
    options = {"kT": KT, "noise": Noise(4), "churn": 10.0, "corrector_steps": 2}

    def draw(walkers):
        like = torch.zeros(len(walkers), 2, 3)
        x = initial_noise(10.0, like, noise=Noise(4), walkers=walkers)
        return x, reverse_diffusion(p.at, x, sigmas, walkers=walkers, **options)

    start, whole = draw(torch.arange(8))
    some_start, some = draw(torch.tensor([6, 2]))
    assert torch.equal(some_start, start[[6, 2]])  # noise bits
    torch.testing.assert_close(some, whole[[6, 2]], rtol=1e-9, atol=1e-9)
    alone = reverse_diffusion(p.at, start[0], sigmas, **options)
    torch.testing.assert_close(alone, whole[0], rtol=1e-9, atol=1e-9)
    other = reverse_diffusion(p.at, start, sigmas, **{**options, "noise": Noise(5)})
    assert not torch.allclose(other, whole)


@pytest.mark.usefixtures("float64")
def test_mean_free_samples():
    """Gaussian in the 3N − 3 dimensions without the centre of mass: exact covariance
    (v + σ²)(δ_ij − 1/N), and no centre left in start, noise or forces."""
    n, atoms, v = 8000, 3, 0.3
    # the field pulls the centre to (1, 1, 1): that has to be projected out
    p = GaussianMixture(torch.ones(1, atoms, 3), [v], kT=KT)
    noise, like = Noise(3), torch.zeros(n, atoms, 3)
    x = initial_noise(50.0, like, noise=noise, mean_free=True)
    assert x.mean(-2).abs().max() < 1e-12
    sigmas = geometric_sigmas(50.0, SIGMA_MIN, 80)
    shifted = x + 7.0  # a start that is not centred
    options = {"kT": KT, "noise": noise, "churn": 10.0, "corrector_steps": 1, "mean_free": True}
    out = reverse_diffusion(p.at, shifted, sigmas, corrector_size=0.02, **options)
    assert out.mean(-2).abs().max() < 1e-10
    exact = (v + SIGMA_MIN**2) * (torch.eye(atoms) - 1 / atoms)
    per_axis = torch.einsum("nia,nja->ij", out, out) / (3 * n)
    error = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / (3 * n)).sqrt()
    assert ((per_axis - exact) / error).abs().max() < 4


@pytest.mark.usefixtures("float64")
def test_schedules():
    sigmas = geometric_sigmas(10.0, 0.01, 4)
    torch.testing.assert_close(sigmas, torch.tensor([10.0, 1.0, 0.1, 0.01]))
    sigmas = karras_sigmas(10.0, 0.01, 50)
    assert sigmas[0] == pytest.approx(10.0) and sigmas[-1] == pytest.approx(0.01)
    assert (sigmas[1:] < sigmas[:-1]).all()
    torch.testing.assert_close(karras_sigmas(3.0, 1.0, 3, rho=1.0), torch.tensor([3.0, 2.0, 1.0]))
    for bad in ((1.0, 2.0, 5), (1.0, 0.0, 5), (1.0, 0.1, 1), (math.inf, 1.0, 5)):
        high, low, n = bad
        with pytest.raises(
            ValueError, match=names(f"sigma_max={high}", f"sigma_min={low}", f"n={n}", "Å")
        ):
            geometric_sigmas(*bad)


def test_correctors_are_kernels_of_their_level():
    """Without a field only their noise is left: variance 2 · size · Σ σ'² over the levels
    and steps, independent of each other."""
    x, sigmas = torch.zeros(5000, 2, 3), geometric_sigmas(3.0, 0.5, 4)
    options = {"kT": KT, "noise": Noise(2), "corrector_steps": 2, "corrector_size": 0.1}
    x = reverse_diffusion(lambda s: Harmonic(0.0), x, sigmas, **options)
    exact = 2 * 0.1 * 2 * float(sigmas[1:].square().sum())
    assert abs((x.square().mean() / exact - 1) / math.sqrt(2 / x.numel())) < 4


def test_karras_schedule_gives_the_mixture():
    p, noise = mixture(), Noise(12)
    x = initial_noise(100.0, torch.zeros(6000, 2, 3), noise=noise)
    sigmas = karras_sigmas(100.0, SIGMA_MIN, 100)
    x = reverse_diffusion(p.at, x, sigmas, kT=KT, noise=noise)
    assert moments_z(x, p.at(SIGMA_MIN)).abs().max() < 4


def test_levels_are_yielded_and_counted():
    """Two evaluations per level, and one per corrector step."""
    calls = []

    class Counted(Harmonic):
        def __call__(self, x, *, stress=False):
            calls.append(x.shape)
            return super().__call__(x)

    sigmas = geometric_sigmas(1.0, 0.1, 5)
    x = torch.ones(2, 1, 3)
    levels = [
        s for s, _ in reverse_levels(lambda s: Counted(1.0), x, sigmas, kT=KT, noise=Noise(0))
    ]
    assert levels == sigmas[1:].tolist()
    assert len(calls) == 2 * 4
    calls.clear()
    reverse_diffusion(lambda s: Counted(1.0), x, sigmas, kT=KT, noise=Noise(0), corrector_steps=3)
    assert len(calls) == (2 + 3) * 4
    calls.clear()
    noisy = {"noise": Noise(0), "corrector_steps": 3, "churn": 1.0}
    reverse_diffusion(lambda s: Counted(1.0), x, sigmas, kT=KT, **noisy)
    assert len(calls) == (2 + 3) * 4


def test_never_above_the_first_level():
    """A learned score knows no noise level above its largest."""
    asked = []
    sigmas = geometric_sigmas(1.0, 0.1, 5)

    def at(sigma):
        asked.append(sigma)
        return Harmonic(1.0)

    reverse_diffusion(at, torch.ones(2, 1, 3), sigmas, kT=KT, noise=Noise(0), churn=50.0)
    assert max(asked) <= 1.0 and min(asked) >= 0.1 - 1e-12


def test_divergence_is_named():
    class Broken(Potential):
        def __call__(self, x):
            forces = -x
            return Evaluation(None, torch.where(x.abs() > 5, torch.nan, forces))

    x = torch.ones(3, 1, 3)
    x[1] = 9.0
    sigmas = geometric_sigmas(1.0, 0.1, 5)
    with pytest.raises(DivergedError) as info:
        reverse_diffusion(
            lambda s: Broken(), x, sigmas, kT=KT, noise=Noise(0), walkers=torch.tensor([4, 7, 9])
        )
    assert info.value.walkers == [7] and info.value.step == 1


def test_bad_arguments():
    x, good = torch.ones(1, 1, 3), geometric_sigmas(1.0, 0.1, 3)
    for sigmas in (good.flip(0), [1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="decreasing"):
            reverse_diffusion(mixture().at, x, sigmas, kT=KT, noise=Noise(0))
    for name, bad in {"kT": 0.0, "churn": -1.0, "corrector_steps": -1, "corrector_size": 0}.items():
        with pytest.raises(ValueError, match=names(f"{name}={bad}", "positive", "not negative")):
            reverse_diffusion(mixture().at, x, good, **{"kT": KT, "noise": Noise(0), name: bad})
