"""Forms that look right and are wrong: each is implemented here, and only here.

Each test simulates the tempting form, finds the (wrong) law it really has, in closed
form, and that it is not the right one. The right form is the package's own kernel.
Source of the forms: Diamond & Lill, arXiv 2511.17741, and its natural misreadings.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import GaussianMixture, Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

WALKERS = 20000


def chain(move, steps, seed=31, start=0.0):
    """Iterate ``move(x, ξ) -> x`` for many walkers; ξ() draws standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((WALKERS,), start)
    for _ in range(steps):
        x = move(x, lambda: torch.randn(WALKERS, generator=generator))
    return x


def z_of_variance(x, exact):
    return (x.square().mean().item() / exact - 1) / math.sqrt(2 / x.numel())


def has_variance(x, exact, *, but_not):
    """|z| < 4 for the law that is claimed; the law one hoped for must fail the check."""
    assert abs(z_of_variance(x, exact)) < 4
    assert abs(z_of_variance(x, but_not)) > 8


def score(x):
    """Of p = N(0, 1)."""
    return -x


class TestSpringTilts:
    """T6. The offset is the point: the spring ties x' to x + h s(x), with h = 1/(2k)."""

    K = 4.0

    def test_full_score_tilt_doubles_the_drift(self):
        """N(x + s/k, 1/k): noise 1/k = 2h calls for the drift h s = s/(2k); with s/k it
        samples p², variance k/(2k − 1) → 1/2."""
        k = self.K
        x = chain(lambda x, xi: x + score(x) / k + xi() / math.sqrt(k), 100)
        has_variance(x, k / (2 * k - 1), but_not=1.0)

    def test_density_tilt_is_cold(self):
        """p(x') exp(−(k/2)|x' − x|²) looks like "data times spring", and is the
        conditional of a two-bead ring, not a transition that keeps p: its stationary
        variance is (1 + k)/(1 + 2k) → 1/2."""
        k = self.K
        x = chain(lambda x, xi: (k * x + xi() * math.sqrt(1 + k)) / (1 + k), 100)
        has_variance(x, (1 + k) / (1 + 2 * k), but_not=1.0)

    @pytest.mark.parametrize("k", [50.0, 500.0])
    def test_neither_is_cured_by_a_stiff_spring(self, k):
        """Both tend to 1/2 as the step vanishes: not a discretisation error."""
        assert k / (2 * k - 1) == pytest.approx(0.5, abs=0.6 / k)
        assert (1 + k) / (1 + 2 * k) == pytest.approx(0.5, abs=0.6 / k)

    def test_half_score_tilt_is_the_kernel(self):
        """N(x + s/(2k), 1/k) is what the package does, and it samples N(0, 1) up to the
        known factor 1/(1 − h/2) of its step, which vanishes."""
        k = self.K
        kernel = EulerMaruyama.from_spring(Harmonic(1.0), kT=1.0, k=k)
        x = torch.zeros(WALKERS, 1, 3)
        for number in range(60):
            half = x + score(x) / (2 * k) + Noise(1).normal(number, x) / math.sqrt(k)
            state, _ = next(run(kernel, kernel_state(kernel, x, number), 1, noise=Noise(1)))
            torch.testing.assert_close(state.x, half, rtol=1e-13, atol=1e-13)
            x = state.x
        has_variance(x, 1 / (1 - 1 / (4 * k)), but_not=0.5)


def kernel_state(kernel, x, step):
    return replace(kernel.init(x), step=step)


class TestSymmetricCoupling:
    """T7. Gluing a batch together and calling it a trajectory."""

    FRAMES = 201

    def interior_variance(self, precision):
        return np.linalg.inv(precision)[self.FRAMES // 2, self.FRAMES // 2]

    @pytest.mark.parametrize("k", [0.5, 5.0, 20.0])
    def test_it_is_a_cold_collapse(self, k):
        """∏ p(x_i) exp(−(k/2) Σ|x_{i+1} − x_i|²) counts the data once per frame: a stiffer
        spring pulls the whole batch together, interior variance 1/sqrt(1 + 4k) → 0."""
        step = np.diff(np.eye(self.FRAMES), axis=0)
        found = self.interior_variance(np.eye(self.FRAMES) + k * step.T @ step)
        assert found == pytest.approx(1 / math.sqrt(1 + 4 * k), rel=1e-6)
        assert found < 0.6

    @pytest.mark.parametrize("k", [0.5, 5.0, 20.0])
    def test_onsager_machlup_is_right(self, k):
        """−log P = (k/2) Σ|x_{i+1} − x_i − h s(x_i)|² counts the data through the drift
        alone; interior variance 1/(1 − h/2), that of the kernel's chain."""
        h = 1 / (2 * k)
        step = np.eye(self.FRAMES)[1:] - (1 - h) * np.eye(self.FRAMES)[:-1]
        start = np.zeros((self.FRAMES, self.FRAMES))
        start[0, 0] = 1 - h / 2
        found = self.interior_variance(start + k * step.T @ step)
        assert found == pytest.approx(1 / (1 - h / 2), rel=1e-9)

    def test_the_kernel_has_the_onsager_machlup_weights(self):
        """The exponent of a path of `run` is ½ Σ|ξ|²; with the un-offset spring it is not."""
        k = 30.0
        kernel = EulerMaruyama.from_spring(Harmonic(1.0), kT=1.0, k=k)
        start = torch.ones(1, 3)
        x = torch.stack([start] + [s.x for s, _ in run(kernel, start, 50, noise=Noise(2))])
        noise = Noise(2).normal(torch.arange(50), torch.zeros(50, 1, 3))
        offset = x[1:] - x[:-1] - score(x[:-1]) / (2 * k)
        expected = 0.5 * noise.square().sum()
        torch.testing.assert_close(0.5 * k * offset.square().sum(), expected)
        plain = 0.5 * k * (x[1:] - x[:-1]).square().sum()
        assert (plain - expected).abs() > 0.1


def glue_variance(L, D, dt):
    """Stationary variance of x_{n+1} = (1 − LΔt − a) x_n + a x_{n−1} + sqrt(2DΔt) ξ."""
    a = 1 / (2 * D)
    A = np.array([[1 - L * dt - a, a], [1.0, 0.0]])
    return A, solve_discrete_lyapunov(A, np.diag([2 * D * dt, 0.0]))[0, 0]


class TestAdjacentGlue:
    """T8. A spring to the previous frame added to a step that has its drift already."""

    @pytest.mark.parametrize("L, D, dt", [(1.0, 1.0, 0.1), (2.0, 0.7, 0.05), (0.5, 3.0, 0.2)])
    def test_closed_form(self, L, D, dt):
        a = 1 / (2 * D)
        formula = 2 * D * dt * (1 - a) / ((1 + a) * L * dt * (2 * (1 - a) - L * dt))
        assert glue_variance(L, D, dt)[1] == pytest.approx(formula, rel=1e-9)

    def test_it_is_cold_by_a_third(self):
        """x_{n+1} = x_n − [g(x_n) + k (x_n − x_{n−1})]Δt + sqrt(2DΔt) ξ, kΔt = 1/(2D): the
        spring acts against the last displacement, so it is friction; for L = D = 1 the
        variance is (2/3)/(1 − Δt), where the kernel has 1/(1 − Δt/2)."""
        dt, a = 0.1, 0.5
        before = torch.zeros(WALKERS)

        def move(x, xi):
            nonlocal before
            new = x - x * dt - a * (x - before) + math.sqrt(2 * dt) * xi()
            before = x
            return new

        has_variance(chain(move, 300), (2 / 3) / (1 - dt), but_not=1 / (1 - dt / 2))

    def test_it_is_unstable_for_small_diffusion(self):
        """D ≤ ½ means a ≥ 1: the glue itself diverges, whatever the step."""
        for dt in (1e-1, 1e-3):
            radius = max(abs(np.linalg.eigvals(glue_variance(1.0, 0.6, dt)[0])))
            assert radius < 1
            a = 1 / (2 * 0.45)
            A = np.array([[1 - dt - a, a], [1.0, 0.0]])
            assert max(abs(np.linalg.eigvals(A))) > 1


class TestGibbsAnchor:
    """T9. An anchor drawn around the present position and a spring to it."""

    def test_it_only_heats(self):
        """A ~ N(x, 1/(βk_a)), then −k_a (x − A)Δt: the spring's mean force is zero and its
        fluctuation is noise on top of the full noise: T → T(1 + k_aΔt/2)."""
        kT, dt, stiffness, a = 0.5, 0.1, 6.0, 1.0

        def move(x, xi):
            anchor = x + math.sqrt(kT / stiffness) * xi()
            return x - (a * x + stiffness * (x - anchor)) * dt + math.sqrt(2 * kT * dt) * xi()

        right = kT / (a * (1 - a * dt / 2))
        has_variance(chain(move, 150), right * (1 + stiffness * dt / 2), but_not=right)


def test_subtracting_the_score_runs_uphill():
    """m = x − Δt s(x), a sign slip for a drift written as g = −D s: the mean grows by
    (1 + Δt) per step away from the data instead of shrinking by (1 − Δt)."""
    dt = 0.1
    wrong = chain(lambda x, xi: x - dt * score(x) + math.sqrt(2 * dt) * xi(), 100)
    right = chain(lambda x, xi: x + dt * score(x) + math.sqrt(2 * dt) * xi(), 100)
    assert wrong.square().mean() > 1e6
    assert abs(z_of_variance(right, 1 / (1 - dt / 2))) < 4


def test_dropping_the_diffusion_coefficient_changes_the_temperature():
    """x + Δt s + sqrt(2DΔt) ξ without D in the drift: the variance is D times too large."""
    dt, D = 0.02, 3.0
    wrong = chain(lambda x, xi: x + dt * score(x) + math.sqrt(2 * D * dt) * xi(), 400)
    has_variance(wrong, D / (1 - dt / 2), but_not=1 / (1 - D * dt / 2))


def test_ancestral_noise_with_a_spring_is_half_temperature():
    """A DDPM ancestral step has noise variance η, a Langevin move 2η. Times the spring
    exp(−(κ/2)|x' − x|²), N(x + ηs, ηI) becomes N(x + hs, hI) with h = η/(1 + κη): drift h
    and noise h instead of 2h, so half the temperature."""
    eta, kappa = 0.1, 5.0
    h = eta / (1 + kappa * eta)
    x = chain(lambda x, xi: x + h * score(x) + math.sqrt(h) * xi(), 150)
    has_variance(x, 0.5 / (1 - h / 2), but_not=1 / (1 - h / 2))


def test_printed_bound_on_the_path_divergence_is_too_small():
    """One step of an Ornstein–Uhlenbeck process, drift off by ε: with the cross terms the
    divergence is larger than a sum of squares with prefactors 1. (1+ε') and (1+1/ε') in
    front of the two sums make it a bound."""
    L, D, dt, eps, x0 = 1.0, 1.0, 0.2, 0.5, 2.0
    g = L * x0 + eps
    # ∫E|b_frozen − b(x_t)|²/(4D) along the simulated process x_t = x0 − g t + sqrt(2D) W_t
    true, _ = quad(lambda t: ((eps + L * g * t) ** 2 + 2 * D * L**2 * t) / (4 * D), 0, dt)
    closed = (eps**2 * dt + eps * L * g * dt**2 + L**2 * g**2 * dt**3 / 3 + D * L**2 * dt**2) / (
        4 * D
    )
    assert true == pytest.approx(closed) == pytest.approx(0.0391667, abs=1e-7)
    model = dt / D * eps**2 / 4
    steps = L**2 * dt**2 / 4 + L**2 / 12 * dt**3 / D * g**2
    assert model + steps == pytest.approx(0.0267, abs=1e-4)
    assert model + steps < true  # the printed bound is false
    assert all((1 + r) * model + (1 + 1 / r) * steps > true for r in (0.1, 0.5, 1.0, 3.0))


@pytest.mark.parametrize("shift", [0.05, 0.5, 1.0])
def test_pinsker_has_its_half_inside(shift):
    """Two unit Gaussians δ apart: TV = erf(δ/√8), KL = δ²/2. TV ≤ sqrt(KL/2) holds,
    ½ sqrt(KL) is below it; and χ² = e^{δ²} − 1 exceeds e^KL − 1, it is not bounded by it."""
    distance, divergence = math.erf(shift / math.sqrt(8)), shift**2 / 2
    assert distance <= math.sqrt(divergence / 2)
    assert distance > 0.5 * math.sqrt(divergence)
    assert math.expm1(shift**2) > math.expm1(divergence)


def test_split_weights_sample_the_mixture_of_energies():
    """Substeps α_v h with the forces of E and α_h h with those of U, α_v + α_h = 1, sample
    α_v E + α_h U: each drift acts for its share of the time only. For E + U the drifts
    are added in every step, as a sum of potentials does."""
    a, b, share, h = 1.0, 4.0, 0.3, 0.01

    def substeps(x, xi):
        x = x - share * h * a * x + math.sqrt(2 * share * h) * xi()
        return x - (1 - share) * h * b * x + math.sqrt(2 * (1 - share) * h) * xi()

    found = chain(substeps, 400)
    p, q = 1 - share * h * a, 1 - (1 - share) * h * b
    exact = (q**2 * 2 * share * h + 2 * (1 - share) * h) / (1 - (p * q) ** 2)
    assert exact == pytest.approx(1 / (share * a + (1 - share) * b), rel=0.03)
    has_variance(found, exact, but_not=1 / (a + b))
    kernel = EulerMaruyama(Harmonic(a) + Harmonic(b), kT=1.0, h=h)
    *_, (state, _) = run(kernel, torch.zeros(5000, 1, 3), 300, noise=Noise(33))
    assert abs(z_of_variance(state.x, 1 / ((a + b) * (1 - (a + b) * h / 2)))) < 4


def test_scaling_the_noise_alone_is_not_a_temperature():
    """T ≠ T_train: the drift keeps kT_train s_train, the noise becomes 2μkTΔt. Dividing the
    model's force by kT_train instead of kT leaves the wrong temperature; the chain's
    variance is v T/T₀ only with F/kT (T5 in test_kernels)."""
    v, T0, T, h = 1.0, 1.0, 2.0, 0.02
    force = GaussianMixture(torch.zeros(1, 1, 3), [v], kT=T0)
    kernel = EulerMaruyama(force, kT=T, h=h)
    *_, (state, _) = run(kernel, torch.zeros(5000, 1, 3), 800, noise=Noise(34))
    has_variance(state.x, (v * T / T0) / (1 - h * T0 / (2 * T * v)), but_not=v)
    wrong = chain(lambda x, xi: x + h * score(x) + math.sqrt(2 * h) * xi(), 300)
    has_variance(wrong, v / (1 - h / 2), but_not=v * T / T0)
