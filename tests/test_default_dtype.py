"""What is computed in float64 is the same, to the last bit, under both defaults of torch.

A number that a user gives as a Python float must not pass through torch's default dtype: under
float32, which users have, 0.1 would become 0.10000000149. Each case builds its objects from
numbers and lists and gives back what it computes at float64 positions.
"""

import numpy as np
import pytest
import torch

from diffmd_ase import units
from diffmd_ase.independent.paths import ReversePaths
from diffmd_ase.independent.reverse import geometric_sigmas
from diffmd_ase.independent.smc import smc
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import (
    DoubleWell,
    GaussianMixture,
    Harmonic,
    LennardJones,
    MuellerBrown,
    PeriodicWell,
)
from diffmd_ase.potentials.biases.cvs import RMSD, Coordination, Distance, NativeContacts, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.potentials.biases.restraints import MovingRestraint, Restraint, UpperWall
from diffmd_ase.potentials.ladder import Blend
from diffmd_ase.sampling.combine import Mixture, Sequence
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import Displacement, SingleDisplacement
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.temperature_ladder import equalised_kT, geometric_kT
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.simulation.prepare import StepRequest, prepare
from diffmd_ase.system import System

N, W, KT = 5, 4, 0.1
SYSTEM = System([18] * N, [39.95] * N)
REFERENCE = np.random.default_rng(1).normal(size=(N, 3)) * 1.7
MASSES = [1.1, 2.3, 3.7, 0.9, 1.3]


def x(walkers=W):
    noise = np.random.default_rng(2).normal(size=(walkers, N, 3))
    return torch.tensor(REFERENCE + 0.3 * noise)


WELL = Harmonic(1.7, centre=[0.1, -0.4, 0.2], system=SYSTEM)
MALA = {"kT": KT, "h": 0.013}


def field(make):
    return lambda: torch.cat([p.reshape(-1) for p in make()(x())[:2]])


def variable(make):
    def values():
        s, back = make(SYSTEM).vjp(x())
        return torch.cat((s.flatten(), back(torch.ones_like(s)).flatten()))

    return values


def learned(make):
    """A bias after some steps, continued from its checkpoint."""

    def values():
        first, second = make(), make()
        for step in range(1, 8):
            first.update(x() + 0.01 * step, step)
        second.restore(first.checkpoint(), x(), 7)
        for step in range(8, 12):
            second.update(x() - 0.01 * step, step)
        said = second.describe(x())
        forces = second(x()).forces
        return torch.cat([forces.flatten(), *(v.double().flatten() for v in said.values())])

    return values


def chain(make, start=x):
    def values():
        *_, (state, _) = run(make(), start(), 12, noise=Noise(3))
        return torch.cat((state.x.flatten(), state.forces.flatten()))

    return values


def mala(target=WELL, **changes):
    return Metropolis(EulerMaruyama(target, **MALA | changes))


def annealed():
    kernels = [mala(Blend([WELL, Harmonic(0.3)], [1 - s, s])) for s in (0.1, 0.5, 0.9, 1.0)]
    weighted = smc(kernels, x(64), noise=Noise(1), populations=4, threshold=1.0)
    return torch.cat((weighted.log_weights, weighted.x.flatten()))


def paths():
    def at(sigma):
        return GaussianMixture(REFERENCE[None], [0.3 + float(sigma) ** 2], kT=KT)

    levels = geometric_sigmas(3.0, 0.1, 6)
    made = ReversePaths(at, levels, KT, variance=0.3, centre=REFERENCE.tolist())
    return torch.cat([p.flatten() for p in made.propose(x(), 0, None, Noise(2))])


def shipped():
    model = ScoreModel.load("alanine-dipeptide")
    frames = Snapshots.read("alanine-dipeptide").positions[:2]
    start = frames + np.random.default_rng(3).normal(size=frames.shape) * 0.05
    potential = model.potential(device="cpu", dtype=torch.float64)
    return field(lambda: lambda _: potential(torch.tensor(start)))()


WELLS = GaussianMixture([REFERENCE.tolist(), (-REFERENCE).tolist()], [0.3, 0.7], [0.1, 0.2], kT=KT)
DISTANCE, TORSION = Distance(SYSTEM, [0, 1]), Torsion(SYSTEM, [0, 1, 2, 3])

CASES = {
    "harmonic": field(lambda: Harmonic([0.1, 0.3, 0.7, 1.3, 0.9], centre=[0.1, -0.4, 0.2])),
    "double well": field(lambda: DoubleWell(barrier=0.7, a=0.8, k=1.3)),
    "periodic well": field(lambda: PeriodicWell(barrier=0.6, period=1.1)),
    "mueller-brown": field(lambda: MuellerBrown(scale=0.01, k=2.3)),
    "lennard-jones": field(lambda: LennardJones(SYSTEM, epsilon=0.3, sigma=1.2, rc=6.1)),
    "mixture": field(
        lambda: GaussianMixture(REFERENCE[None].tolist(), [0.3], [0.1], kT=KT).at(0.1)
    ),
    "coordination": variable(lambda s: Coordination(s, [0, 1], [2, 3], r_0=2.1, d_0=0.1)),
    "contacts": variable(lambda s: NativeContacts(s, [[0, 3], [1, 4]], [1.8, 2.3])),
    "rmsd": variable(lambda s: RMSD(s, REFERENCE.tolist(), weights=MASSES)),
    "restraint": field(lambda: Restraint([DISTANCE, TORSION], at=[1.1, 0.3], kappa=[0.7, 0.1])),
    "wall": field(lambda: UpperWall(DISTANCE, at=[0.9], kappa=[0.7])),
    "moving restraint": learned(
        lambda: MovingRestraint(DISTANCE, steps=[1, 10], at=[1.1, 2.3], kappa=[0.7, 0.3])
    ),
    "metadynamics": learned(
        lambda: Metadynamics(
            [TORSION, DISTANCE], kT=KT, sigma=[0.3, 0.2], height=0.07, pace=2, biasfactor=7.3
        )
    ),
    "metadynamics on a grid": learned(
        lambda: Metadynamics(
            [TORSION, DISTANCE], kT=KT, sigma=[0.3, 0.2], height=0.07, pace=2, biasfactor=7.3,
            grid=Grid([50, 70], ["-pi", 0.0], ["pi", 9.1]),
        )
    ),
    "opes": learned(
        lambda: OPES([TORSION, DISTANCE], kT=KT, barrier=0.7, pace=2, sigma=[0.3, 0.2])
    ),
    "euler, time step": chain(
        lambda: EulerMaruyama.from_timestep(
            WELL, kT=KT, timestep=0.03, friction=0.7, masses=MASSES, mean_free=True
        )
    ),
    "euler, spring": chain(lambda: EulerMaruyama.from_spring(WELL, kT=KT, k=33.3)),
    "euler, schedule": chain(
        lambda: EulerMaruyama.from_schedule(WELL, kT=KT, eta=0.013, kappa=1.7)
    ),
    "euler, lists": chain(lambda: EulerMaruyama(WELL, kT=[0.1, 0.2, 0.3, 0.7], h=[0.013] * N)),
    "metropolis": chain(mala),
    "hmc": chain(lambda: HamiltonianMonteCarlo(WELL, kT=KT, timestep=0.3, masses=MASSES)),
    "ghmc": chain(
        lambda: GeneralizedHMC(WELL, kT=KT, timestep=0.3, friction=0.7, masses=MASSES)
    ),
    "exchange": chain(lambda: ReplicaExchange(mala(kT=[0.1, 0.3] * 2), 2, every=1)),
    "displacement": chain(lambda: Displacement(WELL, KT, [0.1, 0.2, 0.3, 0.1, 0.7])),
    "one displacement": chain(lambda: SingleDisplacement(WELL, KT, 0.1)),
    "mixture of kernels": chain(
        lambda: Mixture([mala(), Displacement(WELL, KT, 0.1)], weights=[0.3, 0.1])
    ),
    "sequence of kernels": chain(
        lambda: Sequence([mala(kT=torch.tensor(KT, dtype=torch.float64)), mala()])
    ),
    "annealing": annealed,
    "paths": paths,
    "ladder of temperatures": lambda: torch.as_tensor(geometric_kT(0.1, 0.7, 5)),
    "equalised ladder": lambda: torch.as_tensor(equalised_kT([0.1, 0.3, 0.7], [0.3, 0.1])),
    "step of a run": lambda: torch.as_tensor(
        prepare(WELL, temperature_K=300.0, step=StepRequest(spring=33.3)).kernel.h,
        dtype=torch.float64,
    ),
    "step with a clock": lambda: torch.as_tensor(
        prepare(
            WELL, temperature_K=300.0, step=StepRequest(timestep=0.03, friction=0.01)
        ).kernel.h
    ),
    "kT": lambda: torch.tensor(units.kT_from_temperature(300.0), dtype=torch.float64),
    "uniform": lambda: Noise(1).uniform(3, torch.zeros(W, dtype=torch.float64)),
    "shipped model": shipped,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_float64_does_not_depend_on_the_default(name):
    results = []
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)  # restored by the fixture of all tests
        results.append(CASES[name]())
    reference, users = results
    assert reference.dtype == users.dtype == torch.float64
    assert torch.isfinite(reference).all() and reference.unique().numel() > 0
    np.testing.assert_array_equal(users.numpy(), reference.numpy())


def test_a_number_through_the_default_is_seen():
    for dtype, same in ((torch.float64, True), (torch.float32, False)):
        torch.set_default_dtype(dtype)
        assert (float(torch.as_tensor(0.1)) == 0.1) is same
