"""The certificate: exact cases, coverage of every part, the paper's false bound, and refusals."""

import math

import numpy as np
import pytest
import torch
from messages import names
from tilted import Wave, tilted_samples

from diffmd_ase.analysis.kinetics.certificate import certify, certify_frames
from diffmd_ase.analysis.kinetics.equilibrium import compare_energies
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.state import Evaluation
from diffmd_ase.testing.targets import double_well, mueller_brown

LINE = torch.zeros(1, 3, 3, dtype=torch.float64)
LINE[0, 0, 0] = 1.0  # one coordinate moves


class Field(Potential):
    """No gradient of anything."""

    conservative = False

    def __call__(self, x):
        return Evaluation(None, -x.flip(-1))


def on_a_line(h: float, shift: float, k: float = 1.0) -> EulerMaruyama:
    """Drift -k x - shift at kT = 1, along x."""
    return EulerMaruyama(Harmonic(k, centre=[[-shift / k, 0, 0]]), kT=1.0, h=h, directions=LINE)


def at(value: float, count: int) -> torch.Tensor:
    x = torch.zeros(count, 1, 3, dtype=torch.float64)
    x[:, 0, 0] = value
    return x


def z(estimate, exact: float) -> float:
    return (estimate.value - exact) / estimate.error


DT, EPS, G = 0.2, 0.5, 2.5


@pytest.fixture(scope="module")
def one_step():
    """One step of drift g = L x₀ + ε from a point: L = D = 1, Δt = 0.2, ε = 0.5, x₀ = 2."""
    return certify(on_a_line(DT, EPS), at(2.0, 40_000), Harmonic(1.0), n_steps=1, noise=Noise(3))


def test_score_of_a_step(one_step):
    """T3: exactly (h/4) ε²."""
    assert one_step.score_kl.value == pytest.approx(EPS**2 * DT / 4, rel=1e-12)


def test_discretisation_of_a_step(one_step):
    exact = (G**2 * DT**3 / 3 + DT**2) / 4
    assert abs(z(one_step.discretisation_kl, exact)) < 4
    assert 0 < one_step.discretisation_kl.error < 0.02 * exact


def test_path_of_a_step(one_step):
    """T4: the KL of the step from the diffusion, 0.0391667."""
    exact = (EPS**2 * DT + EPS * G * DT**2 + G**2 * DT**3 / 3 + DT**2) / 4
    assert exact == pytest.approx(0.0391667, abs=1e-7)
    assert abs(z(one_step.path_kl, exact)) < 4
    assert one_step.path_kl.error < 0.02 * exact


def test_bounds_of_a_step(one_step):
    """The best ε, ε = 1 and the Lipschitz constant, all above; and within a factor of 3."""
    kl = one_step.path_kl.value
    assert kl < one_step.total.value <= one_step.split_bound(1.0) < 3 * kl
    best = min(one_step.split_bound(e) for e in np.geomspace(0.1, 10, 400))
    assert one_step.total.value == pytest.approx(best, rel=1e-4)
    exact = (DT**2 + DT**3 * G**2 / 3) / 4  # the bound is exact for a line
    assert one_step.discretisation_bound.value == pytest.approx(exact, rel=1e-6)


def test_the_printed_bound_is_false(one_step):
    """Prefactors of 1 instead of (1 + ε) and (1 + 1/ε), as printed: 0.0267 < 0.0392."""
    printed = one_step.score_kl.value + one_step.discretisation_bound.value
    assert printed == pytest.approx(0.0267, abs=1e-4)
    assert (one_step.path_kl.value - printed) / one_step.path_kl.error > 20


def test_chains_of_two_drifts():
    """T3: the KL is the mean of the log likelihood ratio, whose variance is 2 KL (Gaussian)."""
    kernel, reference, n = on_a_line(0.1, 0.6), Harmonic(1.0), 30
    noise, x = Noise(1), at(0.5, 2000)
    state, logs = kernel.init(x), 0.0
    for _ in range(n):
        new, _ = kernel.step(state, noise)
        true = reference(state.x).forces
        logs = logs + kernel.log_likelihood_ratio(state.x, new.x, state.forces, true)
        state = new
    certificate = certify(kernel, x, reference, n_steps=n, noise=noise)
    kl = certificate.score_kl.value
    assert kl == pytest.approx(n * 0.1 / 4 * 0.36, rel=1e-12)
    assert abs(float(logs.mean()) + kl) < 4 * float(logs.std()) / 2000**0.5
    assert float(logs.var()) == pytest.approx(2 * kl, rel=4 * (2 / 2000) ** 0.5)
    # exactly in law: weights towards the reference have mean 1
    w = logs.exp()
    assert abs(float(w.mean()) - 1) < 4 * float(w.std()) / 2000**0.5


def test_equilibrium_of_two_wells():
    """chi² = exp(b²) - 1, KL = b²/2 for wells b standard deviations apart; every average."""
    b, rng = 0.4, np.random.default_rng(8)
    f = rng.standard_normal((4000, 20)) - b
    found = compare_energies((f + b) ** 2 / 2, f**2 / 2 + 7.0)
    assert abs(z(found.chi2, math.exp(b * b) - 1)) < 4 and found.chi2.error < 0.01
    assert abs(z(found.kl, b * b / 2)) < 4 and found.kl.error < 0.005
    assert abs(z(found.spread, b)) < 4
    assert found.effective == pytest.approx(1 / (1 + found.chi2.value))
    shift = found.shift(f)
    assert abs(z(shift.difference, b)) < 4 and shift.difference.error < 0.02
    assert abs(z(shift.reference, 0.0)) < 4 and abs(z(shift.model, -b)) < 4
    assert abs(shift.difference.value) < shift.bound.value < 3 * abs(shift.difference.value)
    # the worst observable is the weight itself: the bound is the difference
    worst = found.shift(found.weights)
    assert worst.difference.value == pytest.approx(worst.bound.value, rel=1e-6)


def test_errors_of_the_equilibrium_part_are_errors():
    """Over 200 repeats chi² and the shift are off by their stated errors; a tenth is refused."""
    b, rng, scores = 0.3, np.random.default_rng(2), []
    for _ in range(200):
        f = rng.standard_normal((500, 4)) - b
        found = compare_energies((f + b) ** 2 / 2, f**2 / 2)
        scores.append(
            [
                z(found.chi2, math.exp(b * b) - 1),
                z(found.kl, b * b / 2),
                z(found.shift(f).difference, b),
            ]
        )
    spread = np.std(scores, axis=0)
    assert ((0.8 < spread) & (spread < 1.3)).all(), spread
    assert (10 * spread > 4).all()


def settings():
    """200 random settings: OU, double well and Müller–Brown, with a wave added to the model."""
    rng = np.random.default_rng(19)
    for n in range(200):
        kind, a = ("ou", "well", "mb")[n % 3], rng.uniform(0.05, 0.5)
        # long waves across, where the quadrature has six nodes
        q = rng.standard_normal(3) * (1.5, 1.5, 0.4)
        yield n, kind, rng.uniform(0.6, 1.2), a, q, rng.uniform(0, 6)


class Gaussian:
    """The oracle of three Gaussian coordinates, as `testing.Case` has it."""

    def __init__(self, kT):
        self.kT, self.target = kT, Harmonic(2.0)
        self.width = (kT / 2.0) ** 0.5

    def sample(self, n, seed):
        return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 1, 3)) * self.width)

    def quadrature(self, refine):
        from diffmd_ase.testing.case import gauss_hermite

        nodes, weights = gauss_hermite((24,) * 3)
        return (nodes * self.width)[:, None], weights

    def observables(self, x):
        q = x[:, 0]
        return torch.cat((q, q * q, torch.tanh(3 * q), torch.cos(2 * q), torch.sin(2 * q)), 1)


@pytest.mark.slow
def test_every_part_holds_in_200_settings():
    """Bounds hold in all of them, and equalities within 4 errors, by quadrature."""
    cases, grids, scores, tightness, n = {}, {}, [], [], 1000
    for number, kind, kT, a, q, phase in settings():
        kT = round(kT, 1)  # a few temperatures: exact draws are kept
        if (kind, kT) not in cases:
            cases[kind, kT] = {"ou": Gaussian, "well": double_well, "mb": mueller_brown}[kind](kT)
            nodes, weights = cases[kind, kT].quadrature(1)
            grids[kind, kT] = nodes, weights, cases[kind, kT].observables(nodes)
        case, wave = cases[kind, kT], Wave(a * kT, q, phase)
        x = tilted_samples(case, wave, n, seed=number)
        h = {"ou": 0.05, "well": 0.02, "mb": 0.001}[kind]
        kernel = EulerMaruyama(case.target + wave, kT=kT, h=h)
        frames = x.reshape(1, n, 1, 3)
        found = certify_frames(
            kernel, frames, case.target, n_steps=100, noise=Noise(number), accepted=True
        )
        nodes, weights, f = grids[kind, kT]
        w = torch.exp(wave(nodes).energy / kT)  # reference over model, at the nodes
        model = weights / w
        model, mean = model / model.sum(), 1 / float((weights / w).sum())
        chi2 = float(model @ (w / mean).square()) - 1
        kl = float(model @ -(w.log() - math.log(mean)))
        rate = float(model @ wave(nodes).forces.square().sum((-2, -1))) / kT**2 / 4
        scores += [z(found.equilibrium.chi2, chi2), z(found.equilibrium.kl, kl)]
        scores.append(z(found.path.rate, rate))
        shifts = weights @ f - model @ f
        sigma = (model @ f.square() - (model @ f).square()).sqrt()
        root = found.equilibrium.bound
        assert (shifts.abs() <= sigma * (root.value + 2 * root.error)).all(), (number, kind)
        tightness.append(root.value / chi2**0.5)  # of the worst observable
        assert found.path_kl.value <= found.total.value + 3 * found.path_kl.error, (number, kind)
        discretisation, bound = found.path.discretisation, found.path.bound
        assert discretisation.value <= bound.value + 3 * discretisation.error, (number, kind)
        if kind == "ou":  # one curvature everywhere: the bound is an equality
            scores.append(z(discretisation, bound.value))
            assert found.total.value < 3 * found.path_kl.value, number
    scores = np.array(scores)
    assert np.abs(scores).max() < 4.5 and 0.7 < scores.std() < 1.3, (scores.std(), scores.max())
    assert 1 / 3 < min(tightness) and max(tightness) < 3


def test_lags_of_linear_chains():
    """KL of (x(0), x(t)) ≤ KL_eq + r t and TV ≤ tolerance at the certified lag, for Gaussians."""
    rng = np.random.default_rng(4)
    for number in range(12):
        h, b = rng.uniform(0.02, 0.3), rng.uniform(0.01, 0.15)
        kernel = on_a_line(h, b)
        x = torch.from_numpy(rng.standard_normal((1, 16, 1, 3))) - b
        found = certify_frames(kernel, x, Harmonic(1.0), n_steps=1, noise=Noise(0), accepted=True)
        kl, rate = b * b / 2, b * b / 4  # exactly
        assert found.path.rate.value == pytest.approx(rate, rel=1e-9)
        lag = (2 * 0.15**2 - kl) / rate
        steps = max(0, math.floor(lag / h))
        rho = (1 - h) ** steps
        # from N(-b, 1) under the model; x(t) given x(0) differs by the mean only
        drifted = b * (1 - rho) / math.sqrt((1 - rho**2) / (1 - h / 2)) if steps else 0.0
        joint = kl + drifted**2 / 2
        assert joint <= kl + rate * steps * h + 1e-12, number
        if steps:
            tv = math.erf(math.sqrt(2 * joint) / math.sqrt(8))
            assert tv <= 0.15
    found = certify_frames(
        on_a_line(0.1, 0.1),
        torch.from_numpy(np.random.default_rng(0).standard_normal((50, 200, 1, 3))) - 0.1,
        Harmonic(1.0),
        n_steps=10,
        noise=Noise(0),
        accepted=True,
    )
    assert found.certified_lag(0.15) == pytest.approx((0.045 - 0.005) / 0.0025, rel=0.05)
    assert found.certified_lag(0.15, sigmas=2) < found.certified_lag(0.15)
    assert found.certified_lag(0.01) == 0.0


def test_long_averages():
    """2 sqrt(η/γ) is exact for the mean of a shifted Gaussian as h → 0, and holds for f bounded."""
    b = 0.3
    found = certify(on_a_line(1e-5, b), at(-b, 64), Harmonic(1.0), n_steps=20, noise=Noise(0))
    assert found.long_average(1.0) == pytest.approx(b, rel=0.05)
    grid = np.linspace(-8, 8, 4001)
    p, q = (np.exp(-((grid + s) ** 2) / 2) for s in (0.0, b))
    f = np.tanh(2 * grid)
    mean, shift = f @ p / p.sum(), f @ q / q.sum()
    sigma = math.sqrt((f - mean) ** 2 @ p / p.sum())
    bound = found.long_average(1.0, sup=np.abs(f - mean).max() / sigma)
    assert abs(shift - mean) / sigma < bound < 3 * abs(shift - mean) / sigma


def test_kernels():
    """Accepted kernels have the equilibrium part alone, and -⟨log α⟩ = 3 (hκ)³/4 of all steps."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 1, 3)))
    proposal = EulerMaruyama(Harmonic(1.0), kT=1.0, h=0.2)
    found = certify(
        Metropolis(proposal), x, Harmonic(1.0, centre=0.1), n_steps=300, noise=Noise(0), every=5
    )
    assert found.path is None and found.score_kl is None and found.total is None
    assert abs(z(found.equilibrium.chi2, math.exp(0.03) - 1)) < 4
    assert abs(z(found.log_alpha, 3 * 0.2**3 / 4)) < 4 and found.log_alpha.error < 6e-4
    with pytest.raises(ValueError, match="no path part"):
        found.certified_lag(0.1)
    field = EulerMaruyama(Field(), kT=1.0, h=0.1)
    found = certify(field, x, Harmonic(1.0), n_steps=3, noise=Noise(0))
    assert found.equilibrium is None and found.score_kl.value > 0
    with pytest.raises(ValueError, match="no equilibrium part"):
        found.certified_lag(0.1)
    assert "no energy" in found.statement()


def test_every_few_steps_are_the_same_averages():
    """A stride looks at the same chain: an average of fewer numbers."""
    kernel, x = on_a_line(0.1, 0.3), at(0.0, 64)
    all_of_it, some = (
        certify(kernel, x, Harmonic(1.5), n_steps=60, noise=Noise(2), every=n) for n in (1, 5)
    )
    error = math.hypot(all_of_it.score_kl.error, some.score_kl.error)
    assert abs(all_of_it.score_kl.value - some.score_kl.value) < 4 * error


def test_metric():
    """Atoms with their own steps: the score's part is ¼ Σ h_i |Δs_i|², the mean does not move."""
    h = torch.tensor([0.1, 0.3], dtype=torch.float64)
    kernel = EulerMaruyama(Harmonic(1.0, centre=[[1, 0, 0], [2, 0, 0]]), kT=0.5, h=h)
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    found = certify(kernel, x, Harmonic(1.0), n_steps=1, noise=Noise(0))
    assert found.score_kl.value == pytest.approx((0.1 * 2**2 + 0.3 * 4**2) / 4)
    assert found.path.h == pytest.approx(0.3) and found.path.freedom == 6
    assert found.path.stiffness == pytest.approx(0.3 / 0.5, rel=0.01)
    free = EulerMaruyama(kernel.potential, kT=0.5, h=0.1, mean_free=True)
    found = certify(free, x, Harmonic(1.0), n_steps=1, noise=Noise(0))
    assert found.score_kl.value == pytest.approx(0.1 / 4 * 2 * 1.0)
    assert found.path.freedom == 3
    held = EulerMaruyama(kernel.potential, kT=0.5, h=torch.tensor([0.0, 0.1]))
    assert held.freedom(2) == 3


def test_no_overlap():
    """Said in words, with an infinite bound."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 8, 50))
    found = compare_energies((x**2).sum(-1) / 2, ((x - 3) ** 2).sum(-1) / 2)
    assert not found.overlap and found.bound.value == math.inf and found.kl.value == math.inf


def test_bad_input():
    kernel, x = on_a_line(0.1, 0.1), at(0.0, 4)
    certify_x = {"n_steps": 3, "noise": Noise(0)}
    with pytest.raises(ValueError, match=names("n_steps=0")):
        certify(kernel, x, Harmonic(1.0), n_steps=0, noise=Noise(0))
    with pytest.raises(ValueError, match="without a system"):
        certify(kernel, x, "emt", **certify_x)
    many = EulerMaruyama(Harmonic(1.0), kT=torch.ones(4), h=0.1)
    with pytest.raises(ValueError, match="temperatures of their own"):
        certify(many, x, Harmonic(1.0), **certify_x)
    with pytest.raises(ValueError, match=names("(4, 1, 3)", "(T, W, N, 3)")):
        certify_frames(kernel, x, Harmonic(1.0), **certify_x)
    with pytest.raises(ValueError, match=names("(3,)", "(4,)")):
        compare_energies(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="2 of 4 energies are not finite"):
        compare_energies(np.zeros(4), np.array([0, np.nan, 1, np.inf]))
    found = certify(kernel, x, Harmonic(1.0), **certify_x)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="tolerance"):
            found.certified_lag(wrong)
    with pytest.raises(ValueError, match="gap"):
        found.long_average(0.0)
    with pytest.raises(ValueError, match="epsilon"):
        found.split_bound(-1.0)
    with pytest.raises(ValueError, match=names("(3,)")):
        found.equilibrium.shift(np.zeros(3))


def test_as_numbers():
    """What a file holds is plain, and says what it is conditional on."""
    found = certify(on_a_line(0.1, 0.05), at(0.0, 64), Harmonic(1.0), n_steps=50, noise=Noise(0))
    told = found.to_dict(tolerance=0.1)
    assert told["path"]["score_kl"]["value"] == found.score_kl.value
    assert told["path"]["certified_lag_A2"] == found.certified_lag(0.1)
    assert "visited support" in told["equilibrium"]["conditional_on"]
    assert "visited support" in told["statement"] and "hλ" in told["statement"]
