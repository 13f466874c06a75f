"""Delayed acceptance: exact for the reference whatever the surrogate, and its calls are counted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from messages import names

from diffmd_ase.io.checkpoint import load_checkpoint, save_checkpoint
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import (
    check_antisymmetric,
    check_kernel,
    check_kernel_exact,
    mutants,
    targets,
    zscores,
)


def inner_of(kind, case):
    """A kernel for the surrogate, driven by the wrong drift of the case."""
    proposal = EulerMaruyama(case.drift, case.kT, case.h)
    masses = case.kT / (2.0 * torch.as_tensor(case.h, dtype=torch.float64))
    moving = {"kT": case.kT, "masses": masses, "target": case.surrogate, "timestep": 0.6}
    mala = Metropolis(proposal, case.surrogate)
    hmc = HamiltonianMonteCarlo(case.drift, n_leapfrog=3, **moving)
    return {
        "MALA": mala,
        "HMC": hmc,
        "GHMC": GeneralizedHMC(case.drift, friction=0.5, **moving),
        "MALT": MALT(case.drift, friction=0.5, n_leapfrog=3, **moving),
        "mixture": Mixture([mala, hmc], weights=[2.0, 1.0]),
        "delayed": DelayedAcceptance(
            Metropolis(proposal, targets.Scaled(case.target, 0.75)), case.surrogate, n_inner=2
        ),
    }[kind]


KINDS = ("MALA", "HMC", "GHMC", "MALT", "mixture", "delayed")


class Counted(Potential):
    """A reference that remembers how many structures it was asked for, and fails at will."""

    def __init__(self, potential, fails=lambda x: torch.zeros(x.shape[:-2], dtype=torch.bool)):
        self.potential, self.fails, self.sizes = potential, fails, []

    def __call__(self, x, *, stress=False):
        self.sizes.append(math.prod(x.shape[:-2]))
        energy, forces, _ = self.potential(x)
        return Evaluation(torch.where(self.fails(x), torch.nan, energy), forces)


class Leaning(Calculator):
    """An ASE calculator that does not converge beyond a plane, as an SCF may not."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        if x[0, 0] > 1.0:
            raise CalculationFailed("SCF did not converge")
        self.results = {"energy": 0.5 * (x**2).sum(), "forces": -x}


class TestExact:
    @pytest.mark.parametrize("kind", KINDS)
    def test_any_inner_kernel(self, kind):
        case = targets.gaussian()
        kernel = DelayedAcceptance(inner_of(kind, case), case.target, n_inner=3)
        check_kernel_exact(kernel, case, n=30_000)

    def test_two_stages_of_one_step(self):
        case = targets.double_well()
        kernel = DelayedAcceptance(inner_of("MALA", case), case.target, n_inner=1)
        check_kernel_exact(kernel, case, n=30_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", targets.CASES)
    def test_all_targets(self, name):
        case = targets.CASES[name]()
        check_kernel_exact(
            DelayedAcceptance(inner_of("MALA", case), case.target, n_inner=3), case, steps=3
        )
        check_kernel_exact(
            DelayedAcceptance(inner_of("GHMC", case), case.target, n_inner=3), case, steps=3
        )

    @pytest.mark.parametrize("mutant", sorted(mutants.MUTANTS))
    def test_mutants_are_noticed(self, mutant):
        case = targets.gaussian()
        # proposals until one is accepted take many steps
        factor, n, steps = (0.3, 2_000, 4) if "repeated" in mutant else (0.5, 30_000, 6)
        surrogate = targets.Scaled(case.target, factor)
        inner = Metropolis(EulerMaruyama(case.drift, case.kT, 2.0 * case.h), surrogate)
        kernel = mutants.MUTANTS[mutant](DelayedAcceptance(inner, case.target, n_inner=2))
        assert np.abs(zscores(kernel, case, n=n, steps=steps)).max() > 5

    def test_stale_surrogate_is_noticed(self):
        """After a rejection the surrogate's energy is that of the proposal."""

        class Stale(mutants.Rebuilt):
            def kept(self, state, accepted, proposed):
                value = proposed.record.energy
                return replace(state, record=replace(state.record, energy=value))

        case = targets.gaussian()
        inner = Metropolis(
            EulerMaruyama(case.drift, case.kT, case.h), targets.Scaled(case.target, 0.5)
        )
        kernel = Stale(DelayedAcceptance(inner, case.target, n_inner=4))
        assert np.abs(zscores(kernel, case, n=50_000)).max() > 5

    def test_unadjusted_inner_steps_would_be_wrong(self):
        """What the TypeError protects from."""

        class Claimed(EulerMaruyama):
            exact = reversible = True

        case = targets.gaussian()
        drift = targets.Scaled(case.target, 0.85)
        with pytest.raises(TypeError, match=names("EulerMaruyama", "wrap it in Metropolis")):
            DelayedAcceptance(EulerMaruyama(drift, case.kT, case.h), case.target)
        kernel = DelayedAcceptance(Claimed(drift, case.kT, case.h), case.target, n_inner=3)
        assert np.abs(zscores(kernel, case, n=30_000)).max() > 8

    def test_ratio(self):
        """log α = −Δ(U − E)/kT for the step made, from energies evaluated afresh."""
        case = targets.banana()
        kernel = DelayedAcceptance(inner_of("MALT", case), case.target, n_inner=3)
        state = kernel.init(case.sample(200, 0))
        new, info = mutants.Unadjusted(kernel).step(state, Noise(2))
        _, true = kernel.step(state, Noise(2))

        def difference(x, y):
            at_x, at_y = (case.target(v).energy - case.surrogate(v).energy for v in (x, y))
            return (at_x - at_y) / case.kT

        torch.testing.assert_close(true.log_ratio, difference(state.x, new.x))
        torch.testing.assert_close(
            true.delta_u, (case.target(new.x).energy - case.target(state.x).energy) / case.kT
        )
        check_antisymmetric(difference, state.x, new.x)
        assert torch.equal(info.divergent, torch.zeros(200, dtype=torch.bool))

    def test_perfect_surrogate_is_always_accepted(self):
        case = targets.banana()
        inner = Metropolis(EulerMaruyama(case.drift, case.kT, case.h), case.target)
        kernel = DelayedAcceptance(inner, case.target, n_inner=5)
        _, info = kernel.step(kernel.init(case.sample(300, 0)), Noise(2))
        assert info.accepted.all() and info.log_ratio.abs().max() < 1e-12

    def test_momenta_are_new_at_each_step(self):
        """Kept ones would have to turn on rejection, and the ratio does not know them."""
        case = targets.gaussian()
        inner = inner_of("GHMC", case)
        kernel = DelayedAcceptance(inner, case.target, n_inner=3)
        state, noise = kernel.init(case.sample(8, 0)), Noise(4)
        for _ in range(3):
            state, _ = kernel.step(state, noise)
        assert state.momenta is None
        within = replace(inner.init(state.x), step=3 * state.step)
        for _ in range(3):
            within, _ = inner.step(within, noise.child("surrogate"))
        new, info = kernel.step(state, noise)
        assert info.accepted.any() and torch.equal(new.x[info.accepted], within.x[info.accepted])


class TestCalls:
    def test_one_batch_of_those_that_moved(self):
        """Inner steps cost the reference nothing; walkers that stayed are not evaluated."""
        case = targets.double_well()
        reference = Counted(case.target)
        inner = inner_of("MALA", case)
        kernel = DelayedAcceptance(inner.scaled(8.0), reference, n_inner=1)
        state = kernel.init(case.sample(500, 0))
        for _ in range(3):
            reference.sizes.clear()
            before = state
            state, info = kernel.step(state, Noise(1))
            assert reference.sizes == [int(info.target_evaluations.sum())]
            assert 0 < reference.sizes[0] < 400
            stayed = info.target_evaluations == 0
            assert torch.equal(state.x[stayed], before.x[stayed])
            assert (info.log_ratio[stayed] == 0).all()

    def test_nothing_moved(self):
        case = targets.double_well()
        reference = Counted(case.target)
        kernel = DelayedAcceptance(inner_of("MALA", case).scaled(1e4), reference, n_inner=1)
        state = kernel.init(case.sample(20, 0))
        reference.sizes.clear()
        new, info = kernel.step(state, Noise(1))
        assert reference.sizes == [] and torch.equal(new.x, state.x)
        assert info.target_evaluations.sum() == 0 and not info.divergent.any()

    def test_surrogate_evaluations(self):
        case = targets.double_well()
        kernel = DelayedAcceptance(inner_of("HMC", case), case.target, n_inner=7)
        _, info = kernel.step(kernel.init(case.sample(5, 0)), Noise(1))
        assert info.drift_evaluations == 7 * (3 + 1)

    @pytest.mark.slow  # of which nearly all is the start of the processes
    def test_reference_in_processes(self):
        system = System([1], [1.0])
        x = 0.3 * torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0))
        inner = Metropolis(EulerMaruyama(Harmonic(0.9), 0.2, 0.05))
        chains = []
        for processes in (1, 2):
            reference = AsePotential(Leaning(), system, processes=processes, failures="reject")
            kernel = DelayedAcceptance(inner, reference, n_inner=4)
            chains.append([s.x for s, _ in run(kernel, x, 5, noise=Noise(1))][-1])
            reference.close()
        assert torch.equal(*chains)

    def test_memory_learns_once_and_is_in_both(self):
        """A bias in both energies cancels in the ratio and learns once per step."""

        class Bias(Potential):
            has_memory = True

            def __init__(self):
                self.strength, self.steps = 0.0, []

            def __call__(self, x, *, stress=False):
                return Evaluation(
                    0.5 * self.strength * x.square().sum((-2, -1)), -self.strength * x
                )

            def update(self, x, step):
                self.strength += 0.1
                self.steps.append(step)
                return True

        case, bias = targets.gaussian(), Bias()
        surrogate = case.surrogate + bias
        inner = Metropolis(EulerMaruyama(surrogate, case.kT, case.h))
        kernel = DelayedAcceptance(inner, case.target + bias, n_inner=3)
        for state, info in run(kernel, case.sample(50, 0), 4, noise=Noise(1)):
            torch.testing.assert_close(state.energy, (case.target + bias)(state.x).energy)
            torch.testing.assert_close(state.record.energy, surrogate(state.x).energy)
            torch.testing.assert_close(state.forces, surrogate(state.x).forces)
            assert torch.equal(info.target_evaluations, torch.ones(50, dtype=torch.int64))
        assert bias.steps == [1, 2, 3, 4]
        with pytest.raises(ValueError, match="add the bias to both"):
            DelayedAcceptance(inner, case.target)


class TestContract:
    @pytest.mark.parametrize("kind", KINDS)
    def test_conformance(self, kind):
        """Restart = uninterrupted, batch = single, refresh, Info."""
        case = targets.dimer()
        kernel = DelayedAcceptance(inner_of(kind, case), case.target, n_inner=3)
        check_kernel(kernel, case.sample(5, 0))

    @pytest.mark.parametrize("kind", ["MALA", "mixture", "delayed"])
    def test_restart_from_a_file(self, kind, tmp_path):
        case = targets.dimer()
        kernel = DelayedAcceptance(inner_of(kind, case), case.target, n_inner=3)
        whole = [s for s, _ in run(kernel, case.sample(4, 0), 8, noise=Noise(7))]
        save_checkpoint(tmp_path / "a", whole[3], seed=7)
        saved = load_checkpoint(tmp_path / "a")
        rest = [s for s, _ in run(kernel, saved.state, 4, noise=Noise(saved.seed))]
        assert torch.equal(rest[-1].x, whole[-1].x)

    def test_one_structure_without_a_batch(self):
        case = targets.dimer()
        kernel = DelayedAcceptance(inner_of("MALA", case).scaled(4.0), case.target, n_inner=1)
        x = case.sample(3, 0)
        alone, batch = (
            [s.x for s, _ in run(kernel, start, 12, noise=Noise(1))][-1] for start in (x[0], x)
        )
        torch.testing.assert_close(alone, batch[0])

    def test_claims_and_scaled(self):
        case = targets.dimer()
        kernel = DelayedAcceptance(inner_of("MALA", case), case.target)
        assert kernel.exact and kernel.reversible and kernel.potential is case.target
        assert torch.equal(kernel.scaled(0.5).inner.proposal.h, 0.5 * case.h)


class TestBadInput:
    def test_a_reference_that_fails_is_a_counted_rejection(self):
        """And the rest is the chain of the reference with a wall: z against its exact mean."""
        n = 40_000
        reference = Counted(Harmonic(1.0), fails=lambda x: x[..., 0, 0] > 1.0)
        inner = Metropolis(EulerMaruyama(Harmonic(0.8), 1.0, 0.4))
        kernel = DelayedAcceptance(inner, reference, n_inner=3)
        start = torch.randn(3 * n, 1, 3, generator=torch.Generator().manual_seed(0))
        start = start[start[:, 0, 0] <= 1.0][:n]
        failed = 0
        for state, info in run(kernel, start, 4, noise=Noise(1)):
            failed += int(info.divergent.sum())
            assert not (info.accepted & info.divergent).any()
            assert torch.isnan(info.log_ratio[info.divergent]).all()
            assert (state.x[:, 0, 0] <= 1.0).all()
        assert failed > 1000
        # standard normal below 1: mean −φ(1)/Φ(1)
        exact = -math.exp(-0.5) / math.sqrt(2 * math.pi) / (0.5 * (1 + math.erf(2**-0.5)))
        x = state.x[:, 0, 0]
        assert abs((x.mean() - exact) / (x.std() / math.sqrt(n))) < 4

    def test_a_calculator_that_fails(self):
        reference = AsePotential(Leaning(), System([1], [1.0]), failures="reject")
        inner = Metropolis(EulerMaruyama(Harmonic(0.5), 1.0, 0.4))
        kernel = DelayedAcceptance(inner, reference, n_inner=3)
        divergent = 0
        for state, info in run(kernel, torch.zeros(20, 1, 3), 10, noise=Noise(1)):
            divergent += int(info.divergent.sum())
            assert (state.x[:, 0, 0] <= 1.0).all()
        assert divergent == reference.failed > 5
        assert "SCF did not converge" in reference.last_failure

    def test_start_where_the_reference_fails(self):
        reference = Counted(Harmonic(1.0), fails=lambda x: x[..., 0, 0] > 1.0)
        kernel = DelayedAcceptance(Metropolis(EulerMaruyama(Harmonic(1.0), 1.0, 0.4)), reference)
        x = torch.tensor([0.0, 2.0, 0.5])[:, None, None].expand(3, 1, 3)
        with pytest.raises(ValueError, match=r"walkers \[1\] are not finite"):
            kernel.init(x)

    def test_random_reference(self):
        class Noisy(Potential):
            def __call__(self, x, *, stress=False):
                return Evaluation(torch.randn(x.shape[:-2]), torch.zeros_like(x))

        kernel = DelayedAcceptance(Metropolis(EulerMaruyama(Harmonic(1.0), 1.0, 0.4)), Noisy())
        with pytest.raises(ValueError, match=names("kT", "same positions")):
            kernel.init(torch.zeros(3, 1, 3))

    def test_arguments(self):
        case = targets.gaussian()
        mala = inner_of("MALA", case)
        with pytest.raises(ValueError, match=names("n_inner=0", "at least 1")):
            DelayedAcceptance(mala, case.target, n_inner=0)
        with pytest.raises(ValueError, match="no energy"):
            DelayedAcceptance(mala, case.drift)
        with pytest.raises(TypeError, match="does not satisfy detailed balance"):
            DelayedAcceptance(Sequence([mala, mala.scaled(0.5)]), case.target)
