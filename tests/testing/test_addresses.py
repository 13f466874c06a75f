"""No number of the noise is drawn twice: every kernel, and every kernel made of kernels."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from messages import names

from diffmd_ase.independent.paths import PathIndependence, ReversePaths
from diffmd_ase.independent.smc import smc
from diffmd_ase.noise import STREAMS, Noise, stream_number
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.ladder import Ladder
from diffmd_ase.sampling.adaptation import adapt
from diffmd_ase.sampling.approximate import ApproximateMetropolis
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import (
    AtomSwap,
    Displacement,
    SingleDisplacement,
    TorsionRotation,
    VacancyHop,
)
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System
from diffmd_ase.testing import Recorded, check_addresses

SYSTEM = System([6, 6, 6, 8], [12.0, 12.0, 12.0, 16.0])
KT = 0.1


SOFT, STIFF = Harmonic(1.0, system=SYSTEM), Harmonic(1.3, system=SYSTEM)
X = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HMC = {"kT": KT, "timestep": 0.2, "n_leapfrog": 3, "masses": SYSTEM.masses}


def euler(potential=SOFT):
    return EulerMaruyama(potential, KT, 0.01)


KERNELS = {
    "Euler–Maruyama": euler(),
    "Metropolis": Metropolis(euler(), STIFF),
    "Metropolis, 3 steps": Metropolis(euler(), STIFF, n_steps=3),
    "approximate": ApproximateMetropolis(euler()),
    "HMC": HamiltonianMonteCarlo(SOFT, target=STIFF, **HMC),
    "GHMC": GeneralizedHMC(SOFT, friction=0.3, target=STIFF, **HMC),
    "MALT": MALT(SOFT, friction=0.3, target=STIFF, **HMC),
    "displacement": Displacement(STIFF, KT, 0.1),
    "single displacement": SingleDisplacement(STIFF, KT, 0.1),
    "swap": AtomSwap(STIFF, KT),
    "rotation": TorsionRotation(
        STIFF,
        KT,
        torch.tensor([[0, 1], [1, 2]]),
        torch.tensor([[False, False, True, True], [False, False, False, True]]),
        size=0.5,
    ),
    "hop": VacancyHop(STIFF, KT, torch.eye(3), 0.0),
    "paths": PathIndependence(
        ReversePaths(lambda sigma: SOFT, torch.tensor([1.0, 0.5, 0.1]), KT, variance=0.1), STIFF
    ),
}
EXACT = [name for name, kernel in KERNELS.items() if kernel.exact]


def inside(name):
    """The compositions that a kernel may be a part of."""
    kernel = KERNELS[name]
    yield kernel
    if not kernel.potential.conservative or name in ("Euler–Maruyama", "approximate"):
        return
    mala = KERNELS["Metropolis"]
    yield ReplicaExchange(kernel, 4, every=1)
    yield Mixture([kernel, mala])
    yield Sequence([kernel, mala, kernel])
    yield DelayedAcceptance(kernel, SOFT, n_inner=3)
    yield ReplicaExchange(Mixture([mala, kernel]), 2, every=1)
    yield ReplicaExchange(DelayedAcceptance(kernel, SOFT, n_inner=2), 2, every=1)
    yield DelayedAcceptance(Mixture([kernel, mala]), SOFT, n_inner=3)
    yield Mixture([ReplicaExchange(kernel, 4, every=1), mala])
    yield ReplicaExchange(ReplicaExchange(kernel, 2, every=1), 4, every=1)


def recorded(kernel, steps=6):
    noise = Recorded(11)
    for _ in run(kernel, X, steps, noise=noise):
        pass
    return noise


@pytest.mark.parametrize("name", KERNELS)
def test_every_composition_draws_each_number_once(name):
    for kernel in inside(name):
        check_addresses(recorded(kernel))


def test_states_of_a_ladder_too():
    check_addresses(recorded(ReplicaExchange(Metropolis(euler(Ladder([SOFT, STIFF]))), 2, every=1)))


@pytest.mark.parametrize("name", EXACT)
def test_annealing(name):
    noise = Recorded(5)
    kernels = [KERNELS["Metropolis"], KERNELS[name], Sequence([KERNELS[name]])]
    smc(kernels, X, noise=noise, n_steps=2, populations=4, threshold=1.0)
    check_addresses(noise)


@pytest.mark.parametrize("name", ["Metropolis", "HMC", "GHMC", "MALT"])
def test_adaptation_and_the_run_after_it(name):
    noise = Recorded(5)
    kernel = KERNELS[name]
    kernel, state, _ = adapt(kernel, kernel.init(X), 5, noise=noise)
    for _ in run(kernel, state, 5, noise=noise):
        pass
    check_addresses(noise)


@pytest.mark.parametrize("name", ["Euler–Maruyama", "Metropolis"])
def test_deposition(name):
    bias = Metadynamics(Distance(SYSTEM, [[0, 1]], name="d"), kT=KT, sigma=0.1, height=0.01, pace=2)
    proposal = euler(SOFT + bias)
    kernel = proposal if name == "Euler–Maruyama" else Metropolis(proposal, STIFF + bias)
    check_addresses(recorded(kernel))


@dataclass(frozen=True)
class Careless(ReplicaExchange):
    """Replica exchange as it was: the mover draws from the noise of the whole."""

    def step(self, state, noise):
        return super().step(state, Shared(noise))


class Shared(Noise):
    """The exchange draws at the address of the mover's jitter, and every child is the whole."""

    def __init__(self, noise):
        super().__init__(noise.seed)
        self._noise = noise

    def child(self, place):
        return self

    def normal(self, step, like, **options):
        return self._noise.normal(step, like, **options)

    def uniform(self, step, like, *, stream="accept", **options):
        stream = "jitter" if stream == "exchange" else stream
        return self._noise.uniform(step, like, stream=stream, **options)


@pytest.mark.parametrize("name", ["HMC", "GHMC", "MALT"])
def test_the_collision_of_exchange_and_jitter_is_noticed(name):
    noise = recorded(Careless(KERNELS[name], 2, every=1))
    with pytest.raises(AssertionError, match=r"drawn twice.*step 0.*jitter.*walker 0"):
        check_addresses(noise)


def test_only_the_same_walkers_step_stream_and_seed_collide():
    noise, like = Recorded(0), torch.zeros(4, 2, 3)
    noise.normal(0, like[:2], walkers=[0, 1])
    noise.normal(0, like[:2], walkers=[2, 3])
    noise.normal(1, like)
    noise.uniform(0, like[:, 0, 0])
    noise.child("moves").normal(0, like)
    check_addresses(noise)
    noise.child("moves").normal(0, like[:1])
    assert noise.repeated == [(0, 0, 0)]


def test_streams_do_not_overlap():
    spans = sorted(STREAMS.values())
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    assert spans[-1][0] + spans[-1][1] < 0xFFFF
    assert stream_number(("rotor", 3)) == stream_number("rotor") + 3


def test_names_that_are_not_there():
    noise, like = Noise(0), torch.zeros(2, 2, 3)
    for stream in ("exchnge", ("rotor", 32), ("kernel", 1)):
        with pytest.raises(LookupError, match="exchange"):
            noise.normal(0, like, stream=stream)
    with pytest.raises(LookupError, match=names("'surogate'", "surrogate")):
        noise.child("surogate")


def test_lost_walkers_keep_hyper_parameters():
    """`Kernel.take`: kT and h of each walker go on with those that are left."""
    kT = torch.linspace(0.05, 0.3, 8, dtype=torch.float64)
    h = 0.01 * kT[:, None] / KT * torch.ones(8, 4)
    keep = torch.arange(8) != 2
    proposal = EulerMaruyama(SOFT, kT, h)
    kernels = [
        proposal,
        Metropolis(proposal, STIFF),
        ApproximateMetropolis(proposal),
        MALT(SOFT, friction=0.3, target=STIFF, **(HMC | {"kT": kT})),
        Displacement(STIFF, kT, h),
        Mixture([Metropolis(proposal, STIFF), AtomSwap(STIFF, kT)]),
        DelayedAcceptance(Metropolis(proposal, STIFF), SOFT, n_inner=2),
    ]
    for kernel in kernels:
        whole, part = kernel.init(X), kernel.init(X).take(keep)
        left = kernel.take(keep)
        for _ in range(3):
            whole, _ = kernel.step(whole, Noise(1))
            part, _ = left.step(part, Noise(1))
        assert torch.equal(part.x, whole.x[keep])
        assert part.walkers.tolist() == [0, 1, 3, 4, 5, 6, 7]
        with pytest.raises((ValueError, RuntimeError), match="8"):
            kernel.step(replace(part, step=0), Noise(1))


def test_a_scalar_is_everybodys():
    kernel = KERNELS["MALT"]
    assert kernel.take(torch.arange(3)).kT == kernel.kT
    assert math.isclose(kernel.take(torch.arange(3)).timestep, 0.2)
