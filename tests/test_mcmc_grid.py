"""Every exact kernel on every target, the classic bugs put into each, and two referees.

The referees are codes that nobody here wrote: physical_validation and blackjax.
"""

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from scipy import stats

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Evaluation, Potential
from diffmd_ase.potentials.ladder import Ladder
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.kernels import EulerMaruyama, Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import Displacement, SingleDisplacement, VacancyHop
from diffmd_ase.sampling.path import PathIndependence, ReversePaths
from diffmd_ase.sampling.run import advance
from diffmd_ase.testing import Prescribed, assert_zscore, check_kernel, check_kernel_exact, zscores
from diffmd_ase.testing.mutants import MUTANTS, KeptMomenta, forward_drift
from diffmd_ase.testing.targets import CASES, Case

WARMER = 1.25  # of the second temperature


@cache
def case_of(name: str, kT: float = 0.7) -> Case:
    """The case with its draws kept: all kernels start from the same."""
    case = CASES[name](kT)
    return replace(case, sample=lru_cache(maxsize=2)(case.sample))


def mala(case, **options):
    proposal = EulerMaruyama(case.drift, kT=case.kT, h=case.h, mean_free=options.pop("free", False))
    return Metropolis(proposal, case.target, **options)


def own_drift(case):
    """The energy of the target also drives."""
    return Metropolis(EulerMaruyama(case.target, kT=case.kT, h=case.h))


def hamiltonian(kind, case, **options):
    """With masses for which Δt = 1 is the step h of `mala`."""
    masses = case.kT / (2.0 * torch.as_tensor(case.h))
    return kind(case.drift, kT=case.kT, masses=masses, target=case.target, **options)


def hmc(case):
    return hamiltonian(HamiltonianMonteCarlo, case, timestep=0.7, n_leapfrog=3)


def ghmc(case):
    return hamiltonian(GeneralizedHMC, case, timestep=0.9, friction=0.5)


def malt(case):
    return hamiltonian(MALT, case, timestep=0.7, n_leapfrog=3, friction=0.5)


def delayed(case):
    inner = Metropolis(EulerMaruyama(case.drift, kT=case.kT, h=case.h), case.surrogate)
    return DelayedAcceptance(inner, case.target, n_inner=2)


def delayed_hmc(case):
    masses = case.kT / (2.0 * torch.as_tensor(case.h))
    inner = HamiltonianMonteCarlo(
        case.surrogate, kT=case.kT, masses=masses, timestep=0.7, n_leapfrog=2
    )
    return DelayedAcceptance(inner, case.target, n_inner=2)


def size_of(case):
    return 1.5 * (2.0 * torch.as_tensor(case.h)).sqrt()


def hop(case):
    length = 0.4 if case.name == "Müller–Brown" else 1.1
    vectors = length * torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, -0.1]])
    several = case.name.startswith("LJ")
    return VacancyHop(case.target, case.kT, vectors=vectors, clearance=0.9 if several else 0.0)


class WrongScore(Potential):
    """Score at a noise level of a Gaussian that the law is not, and turned."""

    conservative = False

    def __init__(self, case, centre, variance):
        self.case, self.centre, self.variance = case, centre, variance

    def __call__(self, x, *, stress=False):
        away = x - self.centre
        turn = torch.stack((-away[..., 1], away[..., 0], 0 * away[..., 2]), -1)
        return Evaluation(None, -self.case.kT / self.variance * (away + 0.1 * turn))


def paths(case):
    some = case.sample(1000, 5)
    centre, variance = some.mean(0), 1.2 * float(some.var(0).mean())
    law = ReversePaths(
        lambda sigma: WrongScore(case, centre, variance + sigma**2),
        [1.0, 0.5, 0.1],
        case.kT,
        variance=variance,
        centre=centre,
    )
    return PathIndependence(law, case.target)


EXACT = {
    "MALA": mala,
    "MALA, conservative drift": own_drift,
    "MALA of three steps": lambda case: mala(case, n_steps=3).scaled(0.4),
    "HMC": hmc,
    "GHMC": ghmc,
    "MALT": malt,
    "delayed acceptance": delayed,
    "delayed acceptance around HMC": delayed_hmc,
    "displacement": lambda case: Displacement(case.target, case.kT, size=size_of(case)),
    "displacement of one atom": lambda case: SingleDisplacement(
        case.target, case.kT, size=size_of(case)
    ),
    "hops": hop,
    "independence by paths": paths,
    "mixture": lambda case: Mixture([mala(case), hmc(case), hop(case)], weights=[1, 2, 2]),
    "sequence": lambda case: Sequence([ghmc(case), ghmc(case), mala(case), delayed(case)]),
}
"""Kernels of one law by name; each builder takes a `Case`."""

CLUSTERS = {
    "MALA, centre at rest": lambda case: mala(case, free=True),
    "HMC, centre at rest": lambda case: hamiltonian(
        HamiltonianMonteCarlo, case, timestep=0.7, n_leapfrog=3, mean_free=True
    ),
    "MALA, an atom at rest": lambda case: Metropolis(
        EulerMaruyama(case.drift, kT=case.kT, h=fixed_first(case.h, len(case.sample(1, 0)[0]))),
        case.target,
    ),
    "HMC, an atom at rest": lambda case: replace(
        hmc(case), masses=1.0 / fixed_first(1.0 / hmc(case).masses, len(case.sample(1, 0)[0]))
    ),
}
"""Constraints: the law given what rests is what an exact start has."""


def fixed_first(value, count):
    value = torch.as_tensor(value, dtype=torch.float64).expand(count).clone()
    value[0] = 0.0
    return value


def proper(name, case):
    """A law in all of space: that of periodic wells can be told only up to periods."""
    return not (case == "periodic well" and name == "independence by paths")


GRID = [(k, c) for k in EXACT for c in CASES if proper(k, c)]


def exchange(cases, every=1):
    """Replica exchange of the laws of ``cases``, at their temperatures, moved by MALA."""
    first, second = cases

    def make(rows):
        kT = torch.tensor([case.kT for case in cases]).repeat(rows)
        if second.name == first.name:  # one target at two temperatures
            return mala(replace(first, kT=kT))
        drift, target = (Ladder([getattr(c, k) for c in cases]) for k in ("drift", "target"))
        return Metropolis(EulerMaruyama(drift, kT=kT, h=0.1), target)

    return lambda n: ReplicaExchange(make(n), 2, every=every)


class TestGrid:
    @pytest.mark.parametrize("name", EXACT)
    @pytest.mark.parametrize("case", ["banana", "LJ dimer"])
    def test_small(self, name, case):
        case = case_of(case)
        check_kernel_exact(EXACT[name](case), case, n=10_000, steps=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("name, case", GRID)
    def test_whole(self, name, case):
        """|z| < 5 at 1e5 draws: 20 numbers each, false alarms in 2 of 1000 seeds."""
        case = case_of(case)
        check_kernel_exact(EXACT[name](case), case, steps=2)

    @pytest.mark.parametrize("name", CLUSTERS)
    def test_constraints(self, name):
        case = case_of("LJ dimer")
        check_kernel_exact(CLUSTERS[name](case), case, n=20_000, steps=3)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES)
    def test_exchange_of_temperatures(self, case):
        cases = [case_of(case), case_of(case, WARMER * 0.7)]
        check_kernel_exact(exchange(cases)(50_000), cases, n=50_000)

    def test_exchange_of_potentials(self):
        """Two targets at two temperatures: an exchange evaluates both anew."""
        cases = [case_of("double well"), case_of("mixture", 0.9)]
        check_kernel_exact(exchange(cases)(20_000), cases, n=20_000)

    @pytest.mark.parametrize("name", EXACT | CLUSTERS)
    def test_contract(self, name):
        """Pure, restartable, walkers independent, whatever the kernel."""
        case = case_of("LJ dimer")
        check_kernel((EXACT | CLUSTERS)[name](case), case.sample(4, 1), steps=12)
