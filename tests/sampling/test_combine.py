"""Mixtures and sequences: exact if their parts are, and a chain like any other."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.io.checkpoint import load_checkpoint, save_checkpoint
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.approximate import ApproximateMetropolis
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import check_kernel, check_kernel_exact, mutants, targets, zscores

KINDS = {"mixture": Mixture, "sequence": Sequence}


def parts(case):
    """MALA, GHMC with momenta, HMC of another drift, delayed acceptance: one target."""
    proposal = EulerMaruyama(case.drift, case.kT, case.h)
    masses = case.kT / (2.0 * torch.as_tensor(case.h, dtype=torch.float64))
    moving = {"kT": case.kT, "masses": masses, "target": case.target, "timestep": 0.6}
    return [
        Metropolis(proposal, case.target),
        GeneralizedHMC(case.drift, friction=0.3, **moving),
        HamiltonianMonteCarlo(case.surrogate, n_leapfrog=2, **moving),
        DelayedAcceptance(Metropolis(proposal, case.surrogate), case.target, n_inner=2),
    ]


class Calls(Potential):
    def __init__(self, potential):
        self.potential, self.calls, self.conservative = potential, 0, potential.conservative

    def __call__(self, x, *, stress=False):
        self.calls += 1
        return self.potential(x)


class TestExact:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_four_kernels(self, kind):
        case = targets.gaussian()
        check_kernel_exact(KINDS[kind](parts(case)), case, n=30_000, steps=6)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", targets.CASES)
    def test_all_targets(self, name):
        case = targets.CASES[name]()
        for kind in KINDS.values():
            check_kernel_exact(kind(parts(case)), case, n=40_000)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("wrong", [0, 1, 2])
    def test_one_wrong_part_is_noticed(self, kind, wrong):
        class NoRatio(mutants.NoRatio):
            kT = property(lambda self: self.kernel.kT)

        case = targets.gaussian()
        kernels = parts(case)
        kernels[wrong] = NoRatio(kernels[wrong])
        assert np.abs(zscores(KINDS[kind](kernels), case, n=40_000, steps=8)).max() > 5

    def test_state_dependent_choice_is_noticed(self):
        """A mixture whose choice looks at the walker leaves another law invariant."""

        class Looking(Sequence):
            def step(self, state, noise):
                a, b = (self.kernels[i].step(self._for(i, state), noise.child(i)) for i in range(2))
                left = state.x[:, 0, 0] < 0.3
                new = replace(b[0], x=torch.where(left[:, None, None], a[0].x, b[0].x), record=None)
                return self.refresh(new), a[1]

        case = targets.gaussian()
        mala = parts(case)[0]
        good, bad = (kind([mala, mala.scaled(0.1)]) for kind in (Mixture, Looking))
        assert np.abs(zscores(good, case, n=30_000, steps=6)).max() < 4
        assert np.abs(zscores(bad, case, n=30_000, steps=6)).max() > 8

    def test_claims(self):
        case = targets.gaussian()
        mala, *others = parts(case)
        loose = ApproximateMetropolis(mala.proposal)
        assert Mixture([mala, *others]).exact and Mixture([mala, *others]).reversible
        assert Sequence([mala, *others]).exact and not Sequence([mala, *others]).reversible
        same = EulerMaruyama(case.target, case.kT, case.h)
        assert not Mixture([Metropolis(same), ApproximateMetropolis(same)]).exact
        with pytest.raises(
            ValueError, match=names("kernel 1 (ApproximateMetropolis)", "kernel 0", "target=")
        ):
            Mixture([mala, loose])


class TestChoice:
    def test_weights(self):
        """Counts of 20 000 draws against the weights, and against other ones."""
        case, n = targets.gaussian(), 20_000
        mixture = Mixture(parts(case)[:3], weights=[1, 5, 4])
        assert mixture.weights == pytest.approx([0.1, 0.5, 0.4])
        noise = Noise(3)
        counts = Counter(mixture.chosen(step, noise) for step in range(n))
        for number, weight in enumerate(mixture.weights):
            z = (counts[number] - n * weight) / math.sqrt(n * weight * (1 - weight))
            assert abs(z) < 4
        assert abs(counts[0] - n / 3) / math.sqrt(n * 2 / 9) > 8

    def test_a_mixture_makes_the_steps_of_its_parts(self):
        case = targets.banana()
        first, second = parts(case)[0], parts(case)[0].scaled(0.3)
        mixture, noise = Mixture([first, second]), Noise(5)
        state, seen = mixture.init(case.sample(6, 0)), set()
        for _ in range(12):
            number = mixture.chosen(state.step, noise)
            part = (first, second)[number]
            expected, _ = part.step(replace(state, record=None), noise.child(number))
            state, _ = mixture.step(state, noise)
            assert torch.equal(state.x, expected.x)
            seen.add(number)
        assert seen == {0, 1}

    def test_sequence_takes_turns(self):
        case = targets.banana()
        mala, _, hmc, _ = parts(case)
        sequence = Sequence([mala] * 3 + [hmc])
        assert [sequence.chosen(n, Noise(0)) for n in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]

    def test_momenta_last_between_steps_of_one_kernel(self):
        case = targets.gaussian()
        mala, ghmc, *_ = parts(case)
        noise = Noise(2)
        chain = [s for s, _ in run(Sequence([ghmc, ghmc, mala]), case.sample(4, 0), 4, noise=noise)]
        alone = ghmc.init(case.sample(4, 0))
        for number in range(2):
            alone, _ = ghmc.step(alone, noise.child(number))
        assert torch.equal(chain[1].x, alone.x)
        assert torch.equal(chain[1].momenta, alone.momenta)
        assert chain[2].momenta is None

    def test_nothing_is_evaluated_twice(self):
        """A kernel that follows another of the same drift and target evaluates nothing more."""
        case = targets.gaussian()
        drift, target = Calls(case.drift), Calls(case.target)
        mala = Metropolis(EulerMaruyama(drift, case.kT, case.h), target)
        hmc = HamiltonianMonteCarlo(
            drift, kT=case.kT, masses=1.0, timestep=0.3, n_leapfrog=3, target=target
        )
        state = Sequence([mala, hmc]).init(case.sample(5, 0))
        drift.calls = target.calls = 0
        list(run(Sequence([mala, hmc]), state, 6, noise=Noise(0)))
        assert (drift.calls, target.calls) == (3 * (1 + 3), 6)


class TestContract:
    @pytest.mark.parametrize("kind", KINDS)
    def test_conformance(self, kind):
        """Restart = uninterrupted, batch = single, refresh, Info."""
        case = targets.dimer()
        check_kernel(KINDS[kind](parts(case)), case.sample(5, 0), steps=9)

    @pytest.mark.parametrize("kind", KINDS)
    def test_restart_from_a_file(self, kind, tmp_path):
        case = targets.dimer()
        kernel = KINDS[kind](parts(case))
        whole = [s for s, _ in run(kernel, case.sample(4, 0), 12, noise=Noise(7))]
        for number in (1, 4, 5, 7):  # after each of the kernels
            save_checkpoint(tmp_path / "a", whole[number], seed=7)
            saved = load_checkpoint(tmp_path / "a")
            rest = [s for s, _ in run(kernel, saved.state, 11 - number, noise=Noise(saved.seed))]
            assert torch.equal(rest[-1].x, whole[-1].x)

    def test_a_combination_of_combinations(self):
        case = targets.gaussian()
        mala, ghmc, hmc, _ = parts(case)
        kernel = Mixture([Sequence([mala, ghmc]), hmc])
        check_kernel(kernel, case.sample(5, 0), steps=9)

    def test_bias_that_learns(self):
        class Bias(Potential):
            has_memory = True
            strength = 0.0

            def __call__(self, x, *, stress=False):
                return Evaluation(
                    0.5 * self.strength * x.square().sum((-2, -1)), -self.strength * x
                )

            def update(self, x, step):
                self.strength += 0.1
                return True

        case, bias = targets.gaussian(), Bias()
        drift, target = case.surrogate + bias, case.target + bias
        mala = Metropolis(EulerMaruyama(drift, case.kT, case.h), target)
        hmc = HamiltonianMonteCarlo(
            drift, kT=case.kT, masses=1.0, timestep=0.3, n_leapfrog=2, target=target
        )
        for state, _ in run(Sequence([mala, hmc]), case.sample(5, 0), 5, noise=Noise(0)):
            torch.testing.assert_close(state.energy, target(state.x).energy)
            torch.testing.assert_close(state.forces, drift(state.x).forces)
        assert bias.strength == pytest.approx(0.5)

    def test_scaled(self):
        case = targets.gaussian()
        mala = parts(case)[0]
        kernel = Sequence([mala, mala]).scaled(0.5)
        assert kernel.kernels[0] is kernel.kernels[1]
        assert kernel.kernels[0].proposal.h == pytest.approx(0.5 * case.h)


class TestBadInput:
    def test_arguments(self):
        case = targets.gaussian()
        mala = parts(case)[0]
        with pytest.raises(ValueError, match="no kernels"):
            Sequence([])
        with pytest.raises(ValueError, match=names("kernel 1 (Metropolis)", "kernel 0", "target=")):
            Sequence([mala, Metropolis(mala.proposal, case.surrogate)])
        other = EulerMaruyama(case.drift, 2 * case.kT, case.h)
        with pytest.raises(ValueError, match="kT="):
            Mixture([mala, Metropolis(other, case.target)])
        for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]):
            with pytest.raises(ValueError, match=names(f"weights={weights}", "2 positive numbers")):
                Mixture([mala, mala], weights=weights)

    def test_start(self):
        class Wall(Potential):
            def __call__(self, x, *, stress=False):
                energy = torch.where(x[..., 0, 0] > 1.0, torch.nan, x[..., 0, 0])
                return Evaluation(energy, torch.zeros_like(x))

        mala = Metropolis(EulerMaruyama(Harmonic(1.0), 1.0, 0.1), Wall())
        x = torch.tensor([0.0, 2.0])[:, None, None].expand(2, 1, 3)
        with pytest.raises(ValueError, match=r"walkers \[1\] are not finite"):
            Mixture([mala, mala.scaled(0.5)]).init(x)
        # later on such a proposal is a counted rejection
        mixture = Mixture([mala.scaled(5.0), mala.scaled(4.0)])
        state, info = mixture.step(mixture.init(torch.full((100, 1, 3), 0.9)), Noise(0))
        assert 0 < info.divergent.sum() < 100 and (state.x[:, 0, 0] <= 1.0).all()
