"""Every exact kernel on every target, the classic bugs put into each, and two referees.

The referees are codes that nobody here wrote: physical_validation and blackjax.
"""

from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import physical_validation
import pytest
import torch
from physical_validation import ensemble

from diffmd_ase.independent.paths import PathIndependence, ReversePaths
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.ladder import Ladder
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import Displacement, SingleDisplacement, VacancyHop
from diffmd_ase.sampling.run import advance
from diffmd_ase.state import Evaluation
from diffmd_ase.testing import Prescribed, check_kernel, check_kernel_exact, zscores
from diffmd_ase.testing.case import Case
from diffmd_ase.testing.fields import Scaled
from diffmd_ase.testing.mutants import (
    MUTANTS,
    KeptMomenta,
    NoRatio,
    NotRepeated,
    Rebuilt,
    StaleEnergy,
    forward_drift,
)
from diffmd_ase.testing.targets import CASES

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
    @pytest.mark.parametrize("case", [name for name in CASES if name != "LJ trimer"])
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


RATIO = {"proposal ratio omitted", "proposal ratio of wrong sign", "half the proposal ratio"}
WEAKER = {"every proposal accepted", "rejected states not repeated", "stale energy after rejection"}
FORCES = {"stale drift after rejection"}
EXISTING = dict.fromkeys(EXACT, RATIO | WEAKER | FORCES) | {
    # symmetric proposals, without forces
    "displacement": WEAKER,
    "displacement of one atom": WEAKER,
    # proposals without forces
    "hops": RATIO | WEAKER,
    "independence by paths": RATIO | WEAKER,
}
WHERE = {"hops": "LJ dimer", "delayed acceptance around HMC": "double well"}
MUTATED = [
    (name, mutant)
    for name in EXACT
    for mutant in MUTANTS
    if mutant in EXISTING[name] and name not in ("mixture", "sequence")
]


def largest(name, mutant, n=None):
    """Largest |z| of 20 observables that the mutant of a kernel gives, ∞ where it escapes."""
    case = case_of(WHERE.get(name, "gaussian"))
    if name.startswith("delayed"):  # so poor that there is something to reject
        case = replace(case, surrogate=Scaled(case.target, 0.5))
    kernel = EXACT[name](case)
    if name == "delayed acceptance around HMC":  # a second step would hide what the first had
        kernel = replace(kernel, n_inner=1)
    if n is None:
        n = 8_000 if mutant is NotRepeated else 100_000 if name in WHERE else 40_000
    z = zscores(mutant(kernel), case, n=n, steps=6)
    return float(np.abs(np.nan_to_num(z, nan=np.inf)).max())


class TestMutants:
    """Without these the grid proves nothing. Rebuilt, without a bug, it passes."""

    @pytest.mark.parametrize("mutant", MUTANTS)
    def test_mala(self, mutant):
        assert largest("MALA", MUTANTS[mutant]) > 5

    @pytest.mark.slow
    @pytest.mark.parametrize("name, mutant", [m for m in MUTATED if m[0] != "MALA"])
    def test_every_kernel(self, name, mutant):
        assert largest(name, MUTANTS[mutant]) > 5

    @pytest.mark.parametrize("name", EXACT)
    def test_without_a_bug(self, name):
        assert largest(name, Rebuilt, n=3_000) < 5

    @pytest.mark.parametrize("name", ["MALA", "MALA, conservative drift", "MALA of three steps"])
    def test_drift_at_the_wrong_point(self, name):
        assert largest(name, forward_drift) > 5

    def test_momenta_not_reversed(self):
        assert largest("GHMC", KeptMomenta) > 5

    def test_delayed_acceptance_with_a_stale_surrogate(self):
        """A rejected proposal's surrogate energy is kept."""
        assert largest("delayed acceptance", StaleSurrogate) > 5

    def test_every_exchange_accepted(self):
        cases = [case_of("double well"), case_of("double well", WARMER * 0.7)]
        z = zscores(AlwaysSwaps(exchange(cases)(20_000)), cases, n=20_000)
        assert (np.abs(z).max(1) > 5).all()


class StaleSurrogate(StaleEnergy):
    def kept(self, state, accepted, proposed):
        return replace(state, record=replace(state.record, energy=proposed.record.energy))


class AlwaysSwaps(Rebuilt):
    def step(self, state, noise):
        return self.kernel.step(state, Prescribed(noise, uniform={"exchange": 0.0}))


class TestPhysicalValidation:
    """The ratio of the energy distributions at two temperatures (Shirts, J. Chem. Theory
    Comput. 9, 909 (2013)), by the authors' code."""

    COLD, WARM = 0.7, 0.7 * WARMER

    @classmethod
    def deviation(cls, *energies, kT=(COLD, WARM)):
        """Of the slope from that of the Boltzmann law, in standard errors."""
        data = [simulation_data(e.numpy(), t) for e, t in zip(energies, kT, strict=True)]
        (quantile,) = ensemble.check(*data, data_is_uncorrelated=True, verbosity=0)
        return abs(quantile)

    @staticmethod
    def energies(kernel, x, seed=7):
        state, noise = kernel.init(x), Noise(seed)
        for _ in range(4):
            state, _ = advance(kernel, state, noise)
        return state.energy

    @classmethod
    def both(cls, make):
        cases = [case_of("double well", kT) for kT in (cls.COLD, cls.WARM)]
        return [cls.energies(make(c), c.sample(60_000, i), i) for i, c in enumerate(cases)]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", EXACT)
    def test_exact(self, name):
        assert self.deviation(*self.both(EXACT[name])) < 3

    @pytest.mark.slow
    def test_exchange(self):
        cases = [case_of("double well", kT) for kT in (self.COLD, self.WARM)]
        start = torch.stack([c.sample(60_000, i) for i, c in enumerate(cases)], 1).flatten(0, 1)
        energies = self.energies(exchange(cases)(60_000), start)
        assert self.deviation(energies[::2], energies[1::2]) < 3

    @pytest.mark.slow
    def test_it_can_fail(self):
        """A wrong acceptance, and a temperature 5 % from the one told."""
        assert self.deviation(*self.both(lambda case: NoRatio(mala(case)))) > 5
        told = (self.COLD, 1.05 * self.WARM)
        assert self.deviation(*self.both(mala), kT=told) > 5


def simulation_data(energy, kT):
    units = physical_validation.data.UnitData(
        kb=1.0, energy_str="eV", energy_conversion=1.0, length_str="A", length_conversion=1.0,
        volume_str="A^3", volume_conversion=1.0, temperature_str="eV", temperature_conversion=1.0,
        pressure_str="eV/A^3", pressure_conversion=1.0, time_str="1", time_conversion=1.0,
    )  # fmt: skip
    return physical_validation.data.SimulationData(
        units=units,
        ensemble=physical_validation.data.EnsembleData("NVT", natoms=1, volume=1.0, temperature=kT),
        observables=physical_validation.data.ObservableData(potential_energy=energy),
    )


class TestBlackjax:
    """Chains of another code, from the same start far from equilibrium, step by step."""

    @pytest.mark.parametrize("h, same", [(0.12, True), (0.16, False)])
    def test_mala(self, h, same):
        """Acceptance of each step and moments after it; at a step size a third larger not."""
        case = case_of("double well")
        start = torch.tensor([[-0.9, 0.6, 0.3]]).expand(20_000, 1, 3)
        ours = chain_here(case, start, case.h, steps=6)
        theirs = chain_blackjax(start[:, 0].numpy(), h, case.kT, steps=6)
        z = two_samples(ours, theirs)
        assert np.abs(z).max() < 4.5 if same else np.abs(z).max() > 10


def chain_here(case, start, h, steps):
    kernel = Metropolis(EulerMaruyama(case.target, kT=case.kT, h=h))
    state, rows = kernel.init(start), []
    for _ in range(steps):
        state, info = kernel.step(state, Noise(3))
        alpha = info.log_ratio.clamp(max=0.0).exp().numpy()
        rows.append(moments(alpha, state.x[:, 0].numpy()))
    return np.stack(rows)


def chain_blackjax(start, h, kT, steps):
    """`DoubleWell` of the case as a log density in jax."""
    jax, blackjax = pytest.importorskip("jax"), pytest.importorskip("blackjax")

    def log_density(q):
        x, y, z = q
        return -(1.6 * (x * x - 1.0) ** 2 + 1.25 * (y * y + z * z)) / kT

    kernel = blackjax.mala(log_density, step_size=h)
    states = jax.vmap(kernel.init)(jax.numpy.asarray(start))
    step, rows = jax.jit(jax.vmap(kernel.step)), []
    for key in jax.random.split(jax.random.key(11), steps):
        states, info = step(jax.random.split(key, len(start)), states)
        rows.append(moments(np.asarray(info.acceptance_rate), np.asarray(states.position)))
    return np.stack(rows)


def moments(alpha, q):
    """(8, n): acceptance, means and squares of the coordinates, and the side of the barrier."""
    return np.stack((alpha, *q.T, *(q.T**2), q[:, 0] > 0.0)).astype(float)


def two_samples(a, b):
    variance = a.var(-1) / a.shape[-1] + b.var(-1) / b.shape[-1]
    # nobody has crossed yet: nothing to compare
    return (a.mean(-1) - b.mean(-1)) / np.sqrt(np.maximum(variance, 1e-12))
