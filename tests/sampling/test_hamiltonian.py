"""Hamiltonian kernels: exact with drifts that are no gradients; integrator, momenta, counts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.io.checkpoint import load_checkpoint, save_checkpoint
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic, LennardJones
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import (
    assert_zscore,
    check_kernel,
    check_kernel_exact,
    mutants,
    targets,
    zscores,
)

KINDS = {"HMC": HamiltonianMonteCarlo, "GHMC": GeneralizedHMC, "MALT": MALT}


def kernel_of(kind, case, *, drift=None, **changes):
    """One of `KINDS` for a case; a unit time step is its MALA step h = kT Δt²/2m."""
    masses = case.kT / (2.0 * torch.as_tensor(case.h, dtype=torch.float64))
    options = {"timestep": 0.5, "n_leapfrog": 4, "target": case.target, "jitter": 0.2}
    if kind == "GHMC":
        options |= {"timestep": 0.8, "n_leapfrog": 1}
    if kind != "HMC":
        options["friction"] = 0.7
    options |= {"masses": masses} | changes
    drift = case.drift if drift is None else drift
    return KINDS[kind](drift, kT=case.kT, **options)


class Swirl(Potential):
    """A drift without energy, NaN to the right of ``edge``."""

    conservative = False

    def __init__(self, edge=math.inf):
        self.edge, self.calls = edge, 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        axis = x.new_tensor([0.3, -0.2, 0.9]).expand_as(x)
        forces = -1.3 * x.tanh() + torch.linalg.cross(axis, x)
        return Evaluation(None, torch.where(x[..., :1] > self.edge, torch.nan, forces))


class TestExact:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["gaussian", "double well"])
    def test_drift_that_is_no_gradient(self, kind, name):
        case = targets.CASES[name]()
        check_kernel_exact(kernel_of(kind, case), case, n=30_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", targets.CASES)
    def test_all_targets(self, name):
        case = targets.CASES[name]()
        for kind in KINDS:
            check_kernel_exact(kernel_of(kind, case), case)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "mutant", sorted(set(mutants.MUTANTS) - {"stale drift after rejection"})
    )
    def test_mutants_are_noticed(self, kind, mutant):
        case = targets.gaussian()
        kernel = mutants.MUTANTS[mutant](kernel_of(kind, case))
        # proposals until one is accepted take many steps
        n = 1_500 if "repeated" in mutant else 20_000
        assert np.abs(zscores(kernel, case, n=n)).max() > 5

    @pytest.mark.parametrize("kind", KINDS)
    def test_stale_drift_is_noticed(self, kind):
        case = targets.gaussian()
        kernel = mutants.StaleDrift(kernel_of(kind, case, n_leapfrog=1, timestep=1.2))
        assert np.abs(zscores(kernel, case, n=60_000, steps=8)).max() > 5

    def test_mutants_rebuild_the_kernel(self):
        case = targets.gaussian()
        kernel = kernel_of("MALT", case)
        x, noise = case.sample(50, 0), Noise(1)
        a, b = (k.step(kernel.init(x), noise)[0] for k in (kernel, mutants.Rebuilt(kernel)))
        assert torch.equal(a.x, b.x)

    def test_momentum_must_turn_on_rejection(self):
        """The classic bug of GHMC: rejected walkers go on instead of back."""

        class Onward(GeneralizedHMC):
            def step(self, state, noise):
                new, info = super().step(state, noise)
                p = new.momenta
                turned = torch.where(info.accepted[:, None, None], p, -p)
                return replace(new, momenta=turned), info

        case = targets.gaussian()
        good = kernel_of("GHMC", case, friction=0.1, timestep=1.2)
        wrong = Onward(**vars_of(good))
        assert np.abs(zscores(good, case, n=60_000, steps=8)).max() < 4
        assert np.abs(zscores(wrong, case, n=60_000, steps=8)).max() > 8

    def test_friction_is_not_work(self):
        """MALT with the heat of the friction in its ratio is wrong."""

        class Heated(MALT):
            def step(self, state, noise):
                first = p = self._fresh(state, noise)
                between = lambda p, i: self._between(state, noise, p, i)  # noqa: E731
                new, p, _ = self._flow(state, first, noise, between)
                inverse = 1.0 / self._masses
                kinetic = [0.5 * (inverse * q.square()).sum((-2, -1)) for q in (first, p)]
                return self._decided(state, new, (kinetic[0] - kinetic[1]) / self.kT, noise)

        case = targets.gaussian()
        wrong = Heated(**vars_of(kernel_of("MALT", case, n_leapfrog=6)))
        assert np.abs(zscores(wrong, case, n=30_000)).max() > 8

    @pytest.mark.usefixtures("float64")
    def test_fixed_atoms_and_a_fixed_mean(self):
        """Conditional laws of three independent atoms in wells: exact variances."""
        kT, stiffness, n = 0.7, 2.0, 40_000
        target = Harmonic(stiffness)
        masses = torch.tensor([1.0, 2.0, 5.0])
        start = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(3)).mul(
            math.sqrt(kT / stiffness)
        )
        options = {"kT": kT, "target": target, "timestep": 0.6, "n_leapfrog": 2}

        x = start.clone()
        x[:, 1] = 0.5
        held = HamiltonianMonteCarlo(Swirl(), masses=torch.tensor([1.0, math.inf, 5.0]), **options)
        *_, (state, info) = run(held, x, 5, noise=Noise(4))
        assert torch.equal(state.x[:, 1], x[:, 1])
        assert 0.1 < info.accepted.double().mean() < 0.95
        for atom in (0, 2):
            square = state.x[:, atom].square().sum(-1) * (stiffness / kT)
            assert_zscore(square.mean(), 3.0, math.sqrt(6.0 / n))

        x = start - start.mean(1, keepdim=True) + 0.25
        free = HamiltonianMonteCarlo(Swirl(), masses=masses, mean_free=True, **options)
        *_, (state, info) = run(free, x, 5, noise=Noise(5))
        torch.testing.assert_close(state.x.mean(1), x.mean(1))
        assert 0.1 < info.accepted.double().mean() < 0.95
        inner = state.x - state.x.mean(1, keepdim=True)
        square = inner.square().sum((1, 2)) * (stiffness / kT)
        assert_zscore(square.mean(), 6.0, math.sqrt(12.0 / n))

    def test_momenta_are_maxwells(self):
        """GHMC keeps them over steps: ⟨p_i²⟩ = m_i kT, with a fixed mean less its share."""
        case, n = targets.trimer(), 5_000
        masses = torch.tensor([1.0, 2.0, 5.0])
        for mean_free, share in (
            (False, torch.zeros(3)),
            (True, (1 / masses) / (1 / masses).sum()),
        ):
            kernel = GeneralizedHMC(
                case.drift, kT=case.kT, timestep=0.15, friction=1.0, masses=masses,
                target=case.target, mean_free=mean_free,
            )  # fmt: skip
            *_, (state, _) = run(kernel, case.sample(n, 1), 6, noise=Noise(2))
            square = state.momenta.square().sum(-1) / (masses * case.kT)
            exact = 3.0 * (1.0 - share)
            z = (square.mean(0) - exact) / (exact * math.sqrt(2.0 / 3.0 / n))
            assert z.abs().max() < 4
            if mean_free:
                velocities = state.momenta / masses[:, None]
                assert velocities.sum(1).abs().max() < 1e-12


def vars_of(kernel):
    """The parameters of a frozen kernel."""
    return {name: getattr(kernel, name) for name in kernel.__dataclass_fields__}


class TestIntegrator:
    def trajectory(self, kernel, x, p):
        state = kernel.init(x)
        new, q, log_q = kernel._flow(state, p, Noise(0))
        return new.x, q, log_q

    @pytest.mark.usefixtures("float64")
    def test_reversible_with_any_drift(self):
        kernel = HamiltonianMonteCarlo(
            Swirl(), kT=0.7, timestep=0.3, n_leapfrog=7, masses=[1.0, 3.0], target=Harmonic(1.0)
        )
        generator = torch.Generator().manual_seed(1)
        x, p = (torch.randn(5, 2, 3, generator=generator) for _ in range(2))
        y, q, forth = self.trajectory(kernel, x, p)
        back, r, home = self.trajectory(kernel, y, -q)
        assert (y - x).abs().max() > 0.5
        torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(r, -p, rtol=0, atol=1e-12)
        torch.testing.assert_close(home, -forth, rtol=0, atol=1e-12)

    @pytest.mark.usefixtures("float64")
    def test_volume_with_any_drift(self):
        """|det ∂(y, q)/∂(x, p)| = 1 by central differences."""
        kernel = HamiltonianMonteCarlo(
            Swirl(), kT=0.7, timestep=0.3, n_leapfrog=7, masses=[1.0, 3.0], target=Harmonic(1.0)
        )
        z = torch.randn(12, generator=torch.Generator().manual_seed(2))

        def flow(z):
            y, q, _ = self.trajectory(kernel, z[:6].reshape(2, 3), z[6:].reshape(2, 3))
            return torch.cat((y.flatten(), q.flatten()))

        step = 1e-5 * torch.eye(12)
        jacobian = torch.stack([(flow(z + e) - flow(z - e)) / 2e-5 for e in step], 1)
        assert not torch.allclose(jacobian, torch.eye(12), atol=0.1)
        assert abs(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-7)

    def test_energy_error_is_of_second_order(self):
        system = System([18, 18], [40.0, 40.0])
        pair = LennardJones(system, epsilon=0.5, sigma=1.0, rc=10.0)
        x = torch.tensor([[0.0, 0.0, 0.0], [1.25, 0.0, 0.0]])
        p = torch.tensor([[0.6, 0.2, 0.0], [-0.6, 0.1, 0.3]])
        errors = []
        for n in (10, 20):
            kernel = HamiltonianMonteCarlo(pair, kT=0.3, timestep=4.0 / n, n_leapfrog=n, jitter=0.0)
            state = kernel.init(x)
            new, _, log_q = kernel._flow(state, p, Noise(0))
            errors.append(float(log_q - (new.energy - state.energy) / 0.3))
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.15)

    def test_one_leapfrog_is_one_reverse_step(self):
        """h = kT Δt²/2m: the same proposals and the same ratios as MALA."""
        case = targets.banana()
        hmc = kernel_of("HMC", case, n_leapfrog=1, timestep=1.0, jitter=0.0)
        mala = Metropolis(EulerMaruyama(case.drift, case.kT, case.h), case.target)
        x = case.sample(100, 0)
        (a, left), (b, right) = (k.step(k.init(x), Noise(3)) for k in (hmc, mala))
        torch.testing.assert_close(a.x, b.x)
        torch.testing.assert_close(left.log_ratio, right.log_ratio, rtol=1e-9, atol=1e-9)
        assert 0.2 < left.accepted.double().mean() < 0.98

    def test_harmonic_ratio_in_closed_form(self):
        """Leapfrog conserves p²/2m + (κ/2)(1 − κΔt²/4m) x²: log α = −(κ²Δt²/8m)(|y|²−|x|²)/kT."""
        kappa, mass, dt, kT = 1.7, 2.5, 0.4, 0.7
        for n in (1, 5):
            kernel = HamiltonianMonteCarlo(
                Harmonic(kappa), kT=kT, timestep=dt, n_leapfrog=n, masses=mass, jitter=0.0
            )
            state = kernel.init(torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(n)))
            new, _, log_q = kernel._flow(state, kernel._fresh(state, Noise(1)), Noise(1))
            ratio = log_q - (new.energy - state.energy) / kT
            change = new.x.square().sum((1, 2)) - state.x.square().sum((1, 2))
            torch.testing.assert_close(
                ratio, -(kappa**2 * dt**2 / (8 * mass)) * change / kT, rtol=1e-9, atol=1e-12
            )

    def test_without_friction_malt_is_hmc(self):
        case = targets.gaussian()
        x = case.sample(20, 0)
        a, b = (
            k.step(k.init(x), Noise(3))[0].x
            for k in (kernel_of("HMC", case), kernel_of("MALT", case, friction=0.0))
        )
        assert torch.equal(a, b)

    def test_friction_renews_momenta(self):
        """⟨p·p'⟩/⟨p²⟩ = exp(−γ n Δt) of the persistent part, at a drift of nothing."""
        case, n = targets.gaussian(), 50_000
        kernel = GeneralizedHMC(
            Harmonic(1e-12), kT=case.kT, timestep=0.5, n_leapfrog=2, friction=0.8, masses=1.3
        )
        chain = [s.momenta for s, _ in run(kernel, torch.zeros(n, 1, 3), 2, noise=Noise(0))]
        product = (chain[0] * chain[1]).sum((1, 2)) / (1.3 * case.kT)
        keep = math.exp(-0.8)
        assert_zscore(product.mean(), 3.0 * keep, math.sqrt(3.0 * (1.0 + keep**2) / n))


class TestContract:
    @pytest.mark.parametrize("kind", KINDS)
    def test_conformance(self, kind):
        """Restart = uninterrupted, batch = single, refresh, Info."""
        case = targets.dimer()
        check_kernel(kernel_of(kind, case), case.sample(5, 0), steps=6)

    def test_restart_from_a_file(self, tmp_path):
        case = targets.dimer()
        kernel = kernel_of("GHMC", case, friction=0.1)
        whole = [s for s, _ in run(kernel, case.sample(4, 0), 9, noise=Noise(7))]
        save_checkpoint(tmp_path / "a", whole[3], seed=7)
        saved = load_checkpoint(tmp_path / "a")
        rest = [s for s, _ in run(kernel, saved.state, 5, noise=Noise(saved.seed))]
        assert torch.equal(rest[-1].x, whole[-1].x)
        bare = replace(whole[3], momenta=None)  # without momenta it is another chain
        rest = [s for s, _ in run(kernel, bare, 5, noise=Noise(7))]
        assert not torch.equal(rest[-1].x, whole[-1].x)

    def test_one_structure_without_a_batch(self):
        case = targets.dimer()
        kernel = kernel_of("MALT", case)
        x = case.sample(3, 0)
        alone, batch = (
            [s.x for s, _ in run(kernel, start, 4, noise=Noise(1))][-1] for start in (x[0], x)
        )
        torch.testing.assert_close(alone, batch[0])

    def test_a_temperature_for_each_walker(self):
        n, kT = 20_000, torch.tensor([0.3, 1.2])
        kernel = HamiltonianMonteCarlo(
            Harmonic(1.0), kT=kT.repeat_interleave(n), timestep=1.1, n_leapfrog=2, masses=1.0
        )
        start = torch.randn(2 * n, 1, 3, generator=torch.Generator().manual_seed(0))
        start = start * kernel.kT[:, None, None].sqrt()
        *_, (state, _) = run(kernel, start, 4, noise=Noise(0))
        square = state.x.square().sum((1, 2)).reshape(2, n).mean(1) / kT
        assert_zscore(square, 3.0, math.sqrt(6.0 / n))

    @pytest.mark.parametrize("kind", KINDS)
    def test_evaluations_are_counted(self, kind):
        drift, x = Swirl(), torch.randn(4, 2, 3)
        kernel = kernel_of(
            kind, targets.gaussian(), drift=drift, n_leapfrog=5, masses=1.0, target=Harmonic(1.0)
        )
        state = kernel.init(x)
        drift.calls = 0
        _, info = kernel.step(state, Noise(0))
        assert drift.calls == 5 == info.drift_evaluations
        assert info.target_evaluations == 1

    def test_scaled_multiplies_h(self):
        kernel = kernel_of("HMC", targets.gaussian()).scaled(0.25)
        assert kernel.timestep == pytest.approx(0.25)

    def test_claims(self):
        for kind in KINDS:
            kernel = kernel_of(kind, targets.gaussian())
            assert kernel.exact and kernel.reversible and kernel.drift.conservative is False


class TestBadInput:
    @pytest.mark.parametrize("kind", KINDS)
    def test_divergent_proposals_are_counted_rejections(self, kind):
        kernel = kernel_of(
            kind, targets.gaussian(), drift=Swirl(edge=1.0), masses=1.0, target=Harmonic(1.0)
        )
        x = torch.full((200, 1, 3), 0.8)
        state, info = kernel.step(kernel.init(x), Noise(0))
        assert 0 < info.divergent.sum() < 200
        assert not (info.accepted & info.divergent).any()
        assert torch.equal(state.x[info.divergent], x[info.divergent])
        assert torch.isfinite(state.x).all() and torch.isfinite(state.forces).all()

    def test_a_trajectory_to_infinity(self):
        class Cubic(Potential):
            def __call__(self, x, *, stress=False):
                assert torch.isfinite(x).all(), "a calculator saw NaN"
                return Evaluation(x.pow(4).sum((-2, -1)), -4.0 * x.pow(3))

        kernel = HamiltonianMonteCarlo(Cubic(), kT=0.1, timestep=9.0, n_leapfrog=20, masses=1.0)
        x = torch.full((6, 1, 3), 0.5)
        state, info = kernel.step(kernel.init(x), Noise(0))
        assert info.divergent.all() and torch.equal(state.x, x)

    def test_nan_at_the_start_names_the_walkers(self):
        x = torch.zeros(3, 1, 3)
        x[1] = 2.0
        kernel = kernel_of(
            "HMC", targets.gaussian(), drift=Swirl(edge=1.0), masses=1.0, target=Harmonic(1.0)
        )
        with pytest.raises(ValueError, match=r"walkers \[1\] are not finite"):
            kernel.init(x)
        with pytest.raises(ValueError, match=r"walkers \[8\] are not finite"):
            kernel.init(x, walkers=torch.tensor([7, 8, 9]))

    def test_energies_that_are_random(self):
        class Noisy(Potential):
            def __call__(self, x, *, stress=False):
                noise = torch.randn(x.shape[:-2])
                return Evaluation(x.square().sum((-2, -1)) + noise, -2.0 * x)

        kernel = kernel_of("HMC", targets.gaussian(), target=Noisy(), masses=1.0)
        with pytest.raises(ValueError, match=names("kT", "same positions")):
            kernel.init(torch.zeros(3, 1, 3))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"timestep": 0.0}, "timestep=0.0"),
            ({"timestep": math.nan}, "timestep=nan"),
            ({"n_leapfrog": 0}, "n_leapfrog=0"),
            ({"jitter": 1.0}, "jitter=1.0"),
            ({"masses": [1.0, -2.0]}, r"masses=\[1.0, -2.0\]"),
            ({"masses": math.inf}, "masses=inf .*finite for some atom"),
            ({"masses": None}, "pass masses="),
            ({"masses": [1.0, math.inf], "mean_free": True}, "fixed atoms"),
            ({"target": None}, "no energy"),
            ({"friction": -1.0}, "friction=-1.0"),
        ],
    )
    def test_parameters(self, changes, message):
        with pytest.raises(ValueError, match=message):
            kernel_of("MALT", targets.gaussian(), **changes)

    def test_temperature(self):
        for kT in (0.0, -1.0, [[0.1]]):
            with pytest.raises(ValueError, match="kT"):
                HamiltonianMonteCarlo(Harmonic(1.0), kT=torch.tensor(kT), timestep=1, masses=1.0)

    def test_shapes_that_do_not_fit(self):
        kernel = kernel_of("HMC", targets.gaussian(), masses=[1.0, 2.0])
        with pytest.raises(
            ValueError, match=names("masses (2,)", "positions (4, 3, 3)", "(N,)", "(B,)")
        ):
            kernel.step(kernel.init(torch.zeros(4, 3, 3)), Noise(0))
