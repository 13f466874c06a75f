"""The Euler–Maruyama kernel: its Gaussian in three parametrisations, its exact chain."""

import math

import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic, MuellerBrown
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import Info
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

KT = 0.025
H = torch.tensor([2e-5, 1e-4, 3e-4, 7e-4], dtype=torch.float64)  # one per atom


def three_kernels(potential, h, **options):
    """The same step size said in each of the ways."""
    mobility, kappa = h / (KT * 0.37), 0.8 / (2 * h)
    eta = 1 / (2 * (1 / (2 * h) - kappa))  # so that κ + 1/(2η) = 1/(2h)
    friction, masses = 0.02, KT * 0.37 / (h * 0.02)
    return {
        "h": EulerMaruyama(potential, kT=KT, h=h, **options),
        "timestep and mobility": EulerMaruyama.from_timestep(
            potential, kT=KT, timestep=0.37, mobility=mobility, **options
        ),
        "timestep and friction": EulerMaruyama.from_timestep(
            potential, kT=KT, timestep=0.37, friction=friction, masses=masses, **options
        ),
        "spring": EulerMaruyama.from_spring(potential, kT=KT, k=1 / (2 * h), **options),
        "schedule": EulerMaruyama.from_schedule(potential, kT=KT, eta=eta, kappa=kappa, **options),
    }


@pytest.mark.parametrize("mean_free", [False, True])
def test_constructors_give_the_same_step(mean_free, generator):
    potential = MuellerBrown(scale=1e-3)
    x = torch.randn(5, 4, 3, generator=generator)
    steps = {}
    for name, kernel in three_kernels(potential, H, mean_free=mean_free).items():
        steps[name] = kernel.step(kernel.init(x), Noise(1))[0].x
    for name, moved in steps.items():
        torch.testing.assert_close(moved, steps["h"], rtol=0, atol=1e-14, msg=name)


@pytest.mark.usefixtures("float64")
def test_kernel_is_the_harmonic_form(generator):
    """p(x'|x) ∝ exp[−(k_i/2)|x' − x − h_i s|²] with k_i = 1/(2 h_i), to 1e-12: what the
    kernel makes of the noise ξ has the exponent ½|ξ|², for every atom and direction."""
    potential = MuellerBrown(scale=1e-3)
    x = torch.randn(5, 4, 3, generator=generator)
    s = potential(x).forces / KT
    for name, kernel in three_kernels(potential, H).items():
        moved = kernel.step(kernel.init(x), Noise(1))[0].x
        k = 1 / (2 * H[:, None])
        # residuals of ~0.01 Å out of positions of ~1 Å: 1e-14 relative in x is 1e-12 here
        exponent = 0.5 * k * (moved - x - H[:, None] * s).square()
        expected = 0.5 * Noise(1).normal(0, x).square()
        torch.testing.assert_close(exponent, expected, rtol=1e-12, atol=2e-12, msg=name)
        mean = kernel.mean(x, potential(x).forces)
        torch.testing.assert_close(mean, x + H[:, None] * s, rtol=1e-14, atol=1e-15)


@pytest.mark.usefixtures("float64")
def test_schedule_is_a_product_of_two_gaussians(generator):
    """log N(x'; x + ηs, 2η) − (κ/2)|x' − x|² − log N(x'; x + hs, 2h) is the same number
    for every x', when h = η/(1 + 2κη): the spring is tied to x, the denoiser drifts."""
    eta, kappa, x, s = 3e-4, 2e3, 0.3, 11.0
    h = EulerMaruyama.from_schedule(Harmonic(1.0), kT=KT, eta=eta, kappa=kappa).h
    y = x + math.sqrt(2 * h) * torch.randn(1000, generator=generator)
    product = -((y - x - eta * s) ** 2) / (4 * eta) - 0.5 * kappa * (y - x) ** 2
    spread = product + (y - x - h * s) ** 2 / (4 * h)
    assert (spread - spread.mean()).abs().max() < 1e-12
    wrong = product + (y - x - eta * s) ** 2 / (4 * h)  # drift η with stiffness κ + 1/(2η)
    assert (wrong - wrong.mean()).abs().max() > 0.1
    assert 1 / (2 * h) == pytest.approx(kappa + 1 / (2 * eta), rel=1e-14)


def test_unit_mobility_timestep_is_beta_over_2k():
    """Δt = β/(2k) for unit mobility."""
    k = 4321.0
    spring = EulerMaruyama.from_spring(Harmonic(1.0), kT=KT, k=k)
    clock = EulerMaruyama.from_timestep(
        Harmonic(1.0), kT=KT, timestep=1 / (KT * 2 * k), mobility=1.0
    )
    assert clock.h == pytest.approx(spring.h, rel=1e-15)


@pytest.mark.usefixtures("float64")
def test_masses_of_the_system():
    system = System([1, 8], [1.008, 15.999])
    kernel = EulerMaruyama.from_timestep(
        Harmonic(1.0, system=system), kT=KT, timestep=0.1, friction=0.02
    )
    torch.testing.assert_close(kernel.h, KT * 0.1 / (torch.tensor([1.008, 15.999]) * 0.02))


OU = {"a": 3.0, "dt": 0.1}


@pytest.fixture(scope="module")
def frames():
    """20 frames of 3000 walkers × 5 atoms, from the 90th step: (20, 45000)."""
    kernel = EulerMaruyama.from_timestep(Harmonic(OU["a"]), kT=KT, timestep=OU["dt"], mobility=1.0)
    x = torch.zeros(3000, 5, 3, dtype=torch.float64)
    states = [s for s, _ in run(kernel, x, 110, noise=Noise(21))]
    return torch.stack([s.x for s in states[90:]]).flatten(1)


class TestOrnsteinUhlenbeck:
    """V = a x²/2, unit mobility: every law of the discrete chain in closed form (T2)."""

    A, DT = OU["a"], OU["dt"]

    def test_variance(self, frames):
        exact = KT / (self.A * (1 - self.A * self.DT / 2))
        count = frames.shape[1]
        z = (frames[-1].square().mean() / exact - 1) / math.sqrt(2 / count)
        assert abs(z) < 4
        # negative control: the variance of the continuous process is told apart
        z = (frames[-1].square().mean() / (KT / self.A) - 1) / math.sqrt(2 / count)
        assert abs(z) > 8

    @pytest.mark.parametrize("lag", [1, 2, 5])
    def test_autocorrelation(self, frames, lag):
        exact = (1 - self.A * self.DT) ** lag
        x, y = frames[0], frames[lag]
        found = (x * y).mean() / (KT / (self.A * (1 - self.A * self.DT / 2)))
        error = math.sqrt((1 + exact**2) / x.numel())
        assert abs((found - exact) / error) < 4
        control = math.exp(-self.A * self.DT * lag)  # of the continuous process
        assert abs((found - control) / error) > 4

    def test_timescale(self, frames):
        """−Δt/ln(1 − aΔt), from the regression of neighbouring frames."""
        slope = (frames[1:] * frames[:-1]).sum() / frames[:-1].square().sum()
        exact = 1 - self.A * self.DT
        error = math.sqrt((1 - exact**2) / frames[1:].numel())
        assert abs((slope - exact) / error) < 4
        assert -self.DT / math.log(slope) == pytest.approx(-self.DT / math.log(exact), rel=0.02)


def variance_z(x, exact):
    """z-score of a pooled variance with known zero mean."""
    return (x.square().mean() / exact - 1) / math.sqrt(2 / x.numel())


def stationary(kernel, walkers, atoms, steps, seed):
    x = torch.zeros(walkers, atoms, 3)
    for state, _ in run(kernel, x, steps, noise=Noise(seed), every=steps):
        x = state.x
    return x


@pytest.mark.parametrize("ratio", [1.0, 1.7, 0.6])
def test_temperature_and_smoothing(ratio):
    """T5 and T15: a chain at T with the score of data of variance v smoothed by σ₀ at
    temperature T₀ has variance (v + σ₀²) T/T₀, up to the exact factor of the step."""
    v, sigma, kT_train = 0.01, 0.05, KT
    potential = GaussianMixture(torch.zeros(1, 4, 3), [v], kT=kT_train).at(sigma)
    target = (v + sigma**2) * ratio
    h = 0.1 * target
    x = stationary(EulerMaruyama(potential, kT=ratio * kT_train, h=h), 3000, 4, 120, seed=22)
    exact = target / (1 - h / (2 * target))
    assert abs(variance_z(x, exact)) < 4
    assert abs(variance_z(x, exact * v / (v + sigma**2))) > 8  # without the smoothing bias
    if ratio != 1:
        assert abs(variance_z(x, exact / ratio)) > 8  # the training temperature


def test_one_temperature_and_one_step_per_walker():
    """kT as (B,) and h as (B, N): each walker and atom has its own exact variance."""
    kT = torch.tensor([0.02, 0.05, 0.08]).repeat(1000)
    h = torch.tensor([[0.1, 0.5]]) * kT[:, None]
    h[1::2] *= 0.6
    kernel = EulerMaruyama(Harmonic(1.0), kT=kT, h=h)
    x = stationary(kernel, 3000, 2, 120, seed=23)
    exact = kT[:, None] / (1 - h / (2 * kT[:, None]))
    for walker in range(3):
        for atom in range(2):
            group = (x / exact[..., None].sqrt())[walker::3, atom]
            assert abs(variance_z(group, 1.0)) < 4
    assert abs(variance_z(x / KT**0.5, 1.0)) > 8


class TestMeanFree:
    """The metric P diag(h) P of an isolated molecule."""

    @pytest.mark.usefixtures("float64")
    def test_exact_covariance_in_the_subspace(self):
        """Springs between all pairs, U = (a/2N) Σ_{i<j}|x_i − x_j|² = ½ a |P x|²: the chain
        has covariance kT/(a(1 − ah/2kT)) P, of rank N − 1 per axis."""
        atoms, a = 3, 2.0

        class Springs(Potential):
            def __call__(self, x):
                away = x - x.mean(-2, keepdim=True)
                return Evaluation(0.5 * a * away.square().sum((-2, -1)), -a * away)

        h = 0.2 * KT / a
        kernel = EulerMaruyama(Springs(), kT=KT, h=h, mean_free=True)
        x = stationary(kernel, 4000, atoms, 100, seed=24)
        assert x.mean(-2).abs().max() < 1e-13
        exact = KT / (a * (1 - a * h / (2 * KT))) * (torch.eye(atoms) - 1 / atoms)
        found = torch.einsum("nia,nja->ij", x, x) / (3 * len(x))
        error = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / (3 * len(x))).sqrt()
        assert ((found - exact) / error).abs().max() < 4
        free = stationary(EulerMaruyama(Springs(), kT=KT, h=h), 200, atoms, 100, seed=24)
        assert free.mean(-2).abs().max() > 0.01  # negative control: the centre diffuses

    def test_one_step_is_the_projected_metric(self):
        """Mean and covariance of one step are x + M s and 2M with M = P diag(h) P."""
        h, n = torch.tensor([1e-3, 4e-3, 2e-3]), 40000
        P = torch.eye(3) - 1 / 3
        M = P @ torch.diag(h) @ P
        x = torch.tensor([[0.1, 0.0, 0.3], [0.0, 0.4, 0.0], [-0.2, 0.0, 0.1]])
        field = Harmonic([1.0, 2.0, 3.0])
        kernel = EulerMaruyama(field, kT=KT, h=h, mean_free=True)
        s = field(x).forces / KT
        torch.testing.assert_close(kernel.mean(x, field(x).forces), x + M @ s)
        start = x.expand(n, 3, 3)
        move = kernel.step(kernel.init(start), Noise(25))[0].x - (x + M @ s)
        cov = torch.einsum("nia,nja->ij", move, move) / (3 * n)
        error = ((2 * M).diagonal()[:, None] * (2 * M).diagonal() + (2 * M) ** 2).sqrt()
        assert ((cov - 2 * M) / error * math.sqrt(3 * n)).abs().max() < 4
        # negative control: masking the atoms' own noise instead of projecting it
        wrong = 2 * torch.diag(h)
        assert ((cov - wrong) / error * math.sqrt(3 * n)).abs().max() > 8

    def test_it_excludes_fixed_atoms(self):
        with pytest.raises(ValueError, match=names("mean_free=True", "h = 0", "one of the two")):
            EulerMaruyama(Harmonic(1.0), kT=KT, h=[0.0, 1e-3], mean_free=True)


def test_zero_step_holds_atoms(generator):
    x = torch.randn(2, 3, 3, generator=generator)
    kernel = EulerMaruyama(Harmonic(1.0), kT=KT, h=[1e-3, 0.0, 1e-3])
    *_, (state, _) = run(kernel, x, 20, noise=Noise(0))
    assert torch.equal(state.x[:, 1], x[:, 1])
    assert (state.x[:, 0] != x[:, 0]).all() and (state.x[:, 2] != x[:, 2]).all()


def test_single_precision_stays():
    x = torch.zeros(2, 3, 3, dtype=torch.float32)
    kernel = EulerMaruyama(Harmonic(1.0), kT=KT, h=torch.full((3,), 1e-4))
    state, info = kernel.step(kernel.init(x), Noise(0))
    assert state.x.dtype == state.forces.dtype == torch.float32
    assert info == Info()
    double = EulerMaruyama(Harmonic(1.0), kT=KT, h=1e-4).step(kernel.init(x.double()), Noise(0))[0]
    torch.testing.assert_close(state.x, double.x.float())


@pytest.mark.parametrize(
    "h, kT, message",
    [
        (-1e-4, KT, "h=-0.0001 .*not negative"),
        (0.0, KT, "h=0.0 .*positive for some atom"),
        (float("nan"), KT, "h=nan .*finite"),
        (float("inf"), KT, "h=inf .*finite"),
        ([1e-4, -1e-4], KT, r"h=\[.*-0.0001\] .*not negative"),
        (1e-4, 0.0, "kT=0.0 must be positive"),
        (1e-4, [KT, -KT], r"kT=\[.*\] must be positive"),
        (1e-4, float("nan"), "kT=nan must be positive"),
        (torch.ones(1, 1, 1), KT, r"expected a scalar, \(N,\)"),
        (1e-4, torch.ones(1, 1), r"a scalar or \(B,\)"),
    ],
)
def test_bad_hyper_parameters(h, kT, message):
    with pytest.raises(ValueError, match=message):
        EulerMaruyama(Harmonic(1.0), kT=kT, h=h)


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"h": torch.ones(3)}, (4, 3)),
        ({"h": torch.ones(2, 4)}, (4, 3)),
        ({"h": torch.ones(2, 4)}, (3, 4, 3)),
        ({"h": 1.0, "kT": torch.ones(2)}, (4, 3)),
        ({"h": 1.0, "kT": torch.ones(1)}, (2, 4, 3)),
    ],
)
def test_shapes_that_do_not_fit(options, shape):
    """Never broadcast: a single structure must not become a batch."""
    kernel = EulerMaruyama(Harmonic(1.0), **{"kT": KT, **options})
    with pytest.raises(ValueError, match=names("h", "kT", f"positions {shape}", "(B, N)", "(B,)")):
        kernel.step(kernel.init(torch.zeros(shape)), Noise(0))


def test_clock_needs_one_of_friction_and_mobility():
    for options in ({}, {"friction": 0.1, "mobility": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            EulerMaruyama.from_timestep(Harmonic(1.0), kT=KT, timestep=1.0, **options)
    with pytest.raises(ValueError, match="needs masses"):
        EulerMaruyama.from_timestep(Harmonic(1.0), kT=KT, timestep=1.0, friction=0.1)
