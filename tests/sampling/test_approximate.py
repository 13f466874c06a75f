"""Acceptance from a score alone: right where it can be, its errors shown where it cannot."""

import math

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.curvature import non_conservativeness
from diffmd_ase.sampling.approximate import ApproximateMetropolis
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import (
    assert_zscore,
    check_antisymmetric,
    check_kernel,
    check_kernel_exact,
    mutants,
    targets,
    zscores,
)


class Score(Potential):
    """The forces of a potential without its energy, as a score network gives them."""

    conservative = False

    def __init__(self, potential, edge=math.inf):
        self.potential, self.edge, self.calls = potential, edge, 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        forces = self.potential(x).forces
        return Evaluation(None, torch.where(x[..., :1] > self.edge, torch.nan, forces))


class Linear(Potential):
    """``F = −A x`` of all coordinates together."""

    conservative = False

    def __init__(self, A):
        self.A = torch.as_tensor(A, dtype=torch.float64)

    def __call__(self, x, *, stress=False):
        return Evaluation(None, -(x.flatten(-2) @ self.A.T).reshape(x.shape))


def kernel_of(case):
    return ApproximateMetropolis(EulerMaruyama(Score(case.target), case.kT, case.h))


class TestAcceptance:
    @pytest.mark.parametrize("name", ["gaussian", "quartic"])
    def test_cubic_forces_are_integrated_exactly(self, name):
        """Simpson's rule is exact for forces of third order in x: U is recovered, and the law."""
        case = targets.CASES[name]()
        kernel, x = kernel_of(case), case.sample(500, 0)
        state = kernel.init(x)
        assert state.energy is None
        new, _ = mutants.Unadjusted(kernel).step(state, Noise(1))
        _, info = kernel.step(state, Noise(1))
        exact = (case.target(new.x).energy - case.target(x).energy) / case.kT
        torch.testing.assert_close(info.delta_u, exact)
        check_kernel_exact(kernel, case, n=30_000)

    def test_same_chain_as_metropolis(self):
        case = targets.quartic()
        exact = Metropolis(EulerMaruyama(Score(case.target), case.kT, case.h), case.target)
        a, b = (
            list(run(k, case.sample(50, 0), 10, noise=Noise(3)))[-1]
            for k in (exact, kernel_of(case))
        )
        torch.testing.assert_close(a[0].x, b[0].x)
        torch.testing.assert_close(a[1].log_ratio, b[1].log_ratio, rtol=1e-8, atol=1e-8)

    def test_error_of_fifth_order(self):
        """|ΔU − Simpson| falls by 2⁵ for half the move, in a potential that is not quartic."""
        case, direction = targets.mueller_brown(), torch.tensor([[0.3, -0.2, 0.1]])
        x = case.sample(1, 0)[0]
        errors = []
        for scale in (0.04, 0.02):
            y = x + scale * direction

            class Fixed(EulerMaruyama):
                def propose(self, *arguments, y=y):
                    return y

            kernel = ApproximateMetropolis(Fixed(Score(case.target), case.kT, case.h))
            _, info = kernel.step(kernel.init(x), Noise(0))
            exact = (case.target(y).energy - case.target(x).energy) / case.kT
            errors.append(abs(float(info.delta_u - exact)))
        assert errors[0] / errors[1] == pytest.approx(32, rel=0.25)

    def test_antisymmetric(self):
        """The work back is minus the work there, for any field."""
        field = Linear(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
        x, y = (torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(s)) for s in (1, 2))

        def log_ratio(x, y):
            class Fixed(EulerMaruyama):
                def propose(self, *arguments):
                    return y

            kernel = ApproximateMetropolis(Fixed(field, 0.7, 0.1))
            return kernel.step(kernel.init(x), Noise(0))[1].log_ratio

        check_antisymmetric(log_ratio, x, y)

    @pytest.mark.parametrize(
        "mutant", ["proposal ratio omitted", "half the proposal ratio", "every proposal accepted"]
    )
    def test_mutants_are_noticed(self, mutant):
        case = targets.gaussian()
        kernel = mutants.MUTANTS[mutant](kernel_of(case))
        assert np.abs(zscores(kernel, case, n=30_000)).max() > 8

    def test_stale_forces_are_noticed(self):
        case = targets.quartic()
        kernel = mutants.StaleDrift(kernel_of(case))
        assert np.abs(zscores(kernel, case, n=30_000)).max() > 8

    def test_a_rotation_samples_another_law(self):
        """Why it is not called exact: with a drift that is no gradient the law is wrong."""
        case = targets.gaussian()
        field = targets.WrongDrift(case.target, scale=1.0, spin=(0.0, 0.0, 1.5))
        kernel = ApproximateMetropolis(EulerMaruyama(field, case.kT, case.h))
        assert np.abs(zscores(kernel, case, n=30_000, steps=8)).max() > 8
        assert not kernel.exact and not kernel.reversible
        with pytest.raises(
            TypeError, match=names("ApproximateMetropolis", "wrap it in Metropolis")
        ):
            DelayedAcceptance(kernel, case.target)


class TestContract:
    def test_conformance(self):
        case = targets.dimer()
        check_kernel(kernel_of(case), case.sample(5, 0))

    def test_two_evaluations(self):
        case = targets.gaussian()
        field = Score(case.target)
        kernel = ApproximateMetropolis(EulerMaruyama(field, case.kT, case.h))
        state = kernel.init(case.sample(5, 0))
        field.calls = 0
        _, info = kernel.step(state, Noise(0))
        assert field.calls == 2 == info.drift_evaluations and info.target_evaluations == 0

    @pytest.mark.usefixtures("float64")
    def test_fixed_mean_and_temperatures(self):
        n, kT = 20_000, torch.tensor([0.4, 1.1]).repeat_interleave(20_000)
        field = Score(targets.Quadratic(torch.eye(3)))
        kernel = ApproximateMetropolis(EulerMaruyama(field, kT, 0.4, mean_free=True))
        x = torch.randn(2 * n, 2, 3, generator=torch.Generator().manual_seed(0))
        x = (x - x.mean(1, keepdim=True)) * kT[:, None, None].sqrt()
        *_, (state, _) = run(kernel, x, 4, noise=Noise(0))
        assert state.x.mean(1).abs().max() < 1e-12
        square = state.x.square().sum((1, 2)).reshape(2, n).mean(1) / kT[::n]
        assert_zscore(square, 3.0, math.sqrt(6.0 / n))


class TestBadInput:
    def test_nan_proposals_are_counted_rejections(self):
        case = targets.gaussian()
        field = Score(case.target, edge=1.0)
        kernel = ApproximateMetropolis(EulerMaruyama(field, case.kT, case.h))
        x = torch.full((200, 1, 3), 0.8)
        state, info = kernel.step(kernel.init(x), Noise(0))
        assert 0 < info.divergent.sum() < 200
        assert torch.equal(state.x[info.divergent], x[info.divergent])
        assert torch.isfinite(state.forces).all()

    def test_nan_at_the_start_names_the_walkers(self):
        case = targets.gaussian()
        kernel = ApproximateMetropolis(EulerMaruyama(Score(case.target, 1.0), case.kT, case.h))
        x = torch.tensor([0.0, 2.0, 0.5])[:, None, None].expand(3, 1, 3)
        with pytest.raises(ValueError, match=r"walkers \[8\] are not finite"):
            kernel.init(x, walkers=torch.tensor([7, 8, 9]))

    def test_metropolis_points_here(self):
        case = targets.gaussian()
        with pytest.raises(ValueError, match="ApproximateMetropolis"):
            Metropolis(EulerMaruyama(Score(case.target), case.kT, case.h))


class TestMeter:
    def test_linear_fields_have_a_known_value(self):
        """‖A − Aᵀ‖/‖A + Aᵀ‖, within the error of the probes, and another one is noticed."""
        A = torch.randn(6, 6, generator=torch.Generator().manual_seed(4))
        exact = float((A - A.T).norm() / (A + A.T).norm())
        c = non_conservativeness(Linear(A), torch.zeros(200, 2, 3), n_probes=20, step=0.1)
        sigma = exact / math.sqrt(2 * 20 * 200)
        assert abs(c - exact) < 4 * sigma
        assert abs(c - 1.1 * exact) > 4 * sigma

    def test_gradients_and_rotations(self):
        case = targets.banana()
        x = case.sample(50, 0)
        assert non_conservativeness(Score(case.target), x) < 1e-5
        turn = targets.WrongDrift(targets.Quadratic(torch.zeros(3, 3)), spin=(0.0, 0.0, 1.0))
        assert non_conservativeness(turn, x) > 1e6
        assert non_conservativeness(Linear(torch.eye(3)), x[0]) < 1e-9

    def test_same_probes_twice(self):
        x, A = (
            torch.zeros(3, 1, 3),
            torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        )
        first, second, other = (
            non_conservativeness(Linear(A), x, noise=noise) for noise in (None, Noise(0), Noise(1))
        )
        assert first == second != other

    def test_nothing_to_measure(self):
        with pytest.raises(ValueError, match="do not change"):
            non_conservativeness(Linear(torch.zeros(3, 3)), torch.zeros(1, 3))
        with pytest.raises(ValueError, match=names("n_probes=0", "at least 1")):
            non_conservativeness(Linear(torch.eye(3)), torch.zeros(1, 3), n_probes=0)
