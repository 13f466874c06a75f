"""Both basins of φ from one: torsion moves and replica exchange with a learned model.

    python benchmarks/alanine_exchange.py [MODEL] [--target model|amber14] [--steps 12000] [--json]

MODEL was trained on the shipped snapshots of alanine dipeptide (300 K, amber14, vacuum). All
walkers start in the basin φ < 0, behind a barrier of about 14 kT. Three samplers with the
model's forces as drift, each exact at 300 K for the target, the model's own energy or that
of the force field itself (OpenMM), and with as many walkers and steps as the others:

* Metropolis-corrected reverse steps alone, which do not cross;
* with rotations about φ and ψ, a third of the steps;
* replica exchange of such walkers over five temperatures from 300 to 756 K.

Printed is the population of φ > 0 at 300 K with the error from independent walkers, or
independent ladders, after a fifth of the steps. To compare: two reference simulations, the one
that gave the snapshots and a flattened one (``plugins/openmm/flatten_alanine_dipeptide.py``), and
the model's own population from its energies on the snapshots, with weights
``exp((U_amber - E_model)/kT)``, in which the basins of φ have the populations of the flattened run
(it knows them better than the snapshots do); a good model has the population of the reference, an
exact sampler that of its target. The snapshots know nothing of places where they have not been,
and a sampler that crosses barriers finds those where a model is wrong: structures with a distance
beyond the range of all snapshots by 0.3 Å are counted apart, and the populations are those of
all others. Exit status 1 if the exchange stays in the basin it started in, or is further than
two standard errors from its target: the flattened reference, or the model's own population.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import ase.units
import numpy as np
import torch
from shared import energies, parsed, ratio, sampling_options
from torch import Tensor

from diffmd_ase.analysis.observables import correct_hand
from diffmd_ase.geometry import dihedrals
from diffmd_ase.independent.weights import Weighted
from diffmd_ase.io.json_text import to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.temperature_ladder import geometric_kT
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.topology import Topology
from diffmd_ase.state import State
from diffmd_ase.system import System

PHI = np.array([[4, 6, 8, 14]])
AXES = ({6, 8}, {8, 14})  # of φ and ψ
# populations of φ > 0 of the force field, with standard errors
EXCHANGED = 0.0271, 0.0030  # the simulation that gave the snapshots
FLATTENED = 0.0318, 0.0019  # six of 3 ns with a static bias, reweighted
H = 1e-4  # Å² at 300 K; about three of four steps are accepted
STATES, HOT = 5, 756.0
EVERY, BURN_IN = 10, 0.2


class Result(NamedTuple):
    """population: of φ > 0 among structures near snapshots; anywhere: among all.
    crossings: changes of sign of φ at 300 K, between frames; of states, not of replicas.
    uncovered: fraction of structures at 300 K that are nowhere near a snapshot."""

    sampler: str
    population: float
    error: float
    anywhere: float
    anywhere_error: float
    crossings: int
    uncovered: float
    seconds: float
    wrong_hand: int


def positive(x: Tensor) -> Tensor:
    """φ > 0, bool (*batch)."""
    return dihedrals(x, PHI)[..., 0] > 0


class Covered:
    """All distances within the range of the snapshots and 0.3 Å around it, bool (*batch)."""

    def __init__(self, snapshots: Tensor):
        self.pairs = torch.triu_indices(*snapshots.shape[-2:-1] * 2, 1)
        d = torch.cat([self.distances(part) for part in snapshots.split(5000)])
        self.low, self.high = d.amin(0) - 0.3, d.amax(0) + 0.3

    def distances(self, x: Tensor) -> Tensor:
        i, j = self.pairs
        return (x[..., i, :] - x[..., j, :]).norm(dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        d = self.distances(x)
        return ((d > self.low) & (d < self.high)).all(-1)


class Backbone:
    """Moves of the molecule for a given target: Metropolis steps, rotations about φ and ψ.

    Parameters
    ----------
    frames : snapshots, for the bonds that can turn
    kT : of 300 K, eV
    """

    def __init__(self, frames: Snapshots, kT: float):
        self.topology = Topology.from_positions(frames.system.numbers, frames.positions[::50])
        axes = self.topology.rotors.tolist()
        self.rotors = [n for n, axis in enumerate(axes) if set(axis) in AXES]
        self.kT_cold, self.atoms = kT, len(frames.system)

    def reverse_steps(
        self, drift: Potential, kT: Tensor, target: Potential | None = None
    ) -> Metropolis:
        """Accepted to ``target``, by default the energy of the drift."""
        # h ∝ kT keeps h times the curvature of U/kT
        h = H * kT[..., None].expand(*kT.shape, self.atoms) / self.kT_cold
        return Metropolis(EulerMaruyama(drift, kT, h, mean_free=True), target)

    def rotation(
        self, target: Potential, kT: Tensor, rotors: list[int], size: float = np.pi
    ) -> TorsionRotation:
        """About the bonds of ``rotors`` at once, by at most ``size`` (rad)."""
        axes, moved = self.topology.rotors[rotors], self.topology.moved[rotors]
        return TorsionRotation(target, kT, axes, moved, size=size, mean_free=True)

    def ladders(self, count: int) -> Tensor:
        """kT of all replicas of ``count`` ladders from 300 K to `HOT`."""
        return geometric_kT(self.kT_cold, HOT * ase.units.kB, STATES).repeat(count)


def starts(x: Tensor, count: int) -> Tensor:
    """Snapshots at φ < 0 from all over x (M, N, 3), float64."""
    return x[~positive(x)][:: max(1, len(x) // (2 * count))][:count].double()


def follow(
    kernel: Kernel,
    x: Tensor,
    n_steps: int,
    count: Callable[[State], Tensor | float],
    *,
    seed: int,
    states: int = 1,
    skip: float = BURN_IN,
) -> tuple[State, Tensor, int]:
    """The last state; sums of ``count(state)``; changes of sign of φ between frames.

    Frames are every `EVERY` steps; those of the first ``skip`` of the run are not counted. Of
    replicas only the first of every ``states`` rows, at 300 K, is looked at.
    """
    crossings, before, sums = 0, positive(x[::states]), 0.0
    for state, _ in run(kernel, x, n_steps, noise=Noise(seed), every=EVERY):
        now = positive(state.x[::states])
        crossings, before = crossings + int((now != before).sum()), now
        if state.step > skip * n_steps:
            sums = sums + count(state)
    return state, sums, crossings


def sample(
    name: str, kernel: Kernel, x: Tensor, n_steps: int, *, covered: Covered, states: int, seed: int
) -> tuple:
    """The last state; and name, population, …, as in `Result`."""

    def count(state: State) -> Tensor:
        cold = state.x[::states]
        near, inside = covered(cold), positive(cold)
        return torch.stack((near, near & inside, torch.ones_like(near), inside)).double()

    begun = time.perf_counter()
    state, sums, crossings = follow(kernel, x, n_steps, count, seed=seed, states=states)
    near, inside, frames, anywhere = sums
    of_near, of_all = ratio(inside, near), ratio(anywhere, frames)
    uncovered = 1 - float(near.sum() / frames.sum())
    seconds = time.perf_counter() - begun
    return state, (name, *map(float, (*of_near, *of_all)), crossings, uncovered, seconds)


def true_basins(x: Tensor) -> Tensor:
    """Log weights (M,) that give snapshots' basins of φ the populations of the flattened run."""
    inside, p = positive(x), FLATTENED[0]
    share = float(inside.double().mean())
    return torch.where(inside, np.log(p / share), np.log((1 - p) / (1 - share))).double()


def with_reference(mean: float, error: float) -> float:
    """The error of a population that is relative to that of the flattened run, its own added."""
    p, reference = FLATTENED
    return float(np.hypot(error, reference * mean * (1 - mean) / (p * (1 - p))))


def log_weights(potential: Potential, frames: Snapshots, kT: float) -> Tensor:
    """Log (M,) of what makes the model's ensemble of the snapshots: see above."""
    x = torch.as_tensor(frames.positions)
    gap = torch.as_tensor(frames.energies).double() - energies(potential, x)
    return gap / kT + true_basins(x)


def reweighted(potential: Potential, frames: Snapshots, kT: float) -> tuple:
    """The model's population by its energies on the snapshots; its error; ESS in %."""
    x = torch.as_tensor(frames.positions)
    weighted = Weighted(x, log_weights(potential, frames, kT), groups=40)
    mean, error = map(float, weighted.mean(positive(x).double()))
    return mean, with_reference(mean, error), 100 * weighted.ess


def amber14() -> Potential:
    """The force field of the snapshots; needs ``plugins/openmm``."""
    from diffmd_openmm import OpenMMPotential, alanine_dipeptide

    atoms, openmm_system = alanine_dipeptide()
    return OpenMMPotential(System.from_atoms(atoms), openmm_system)


def report(options, results, summary, own) -> None:
    acceptance = [round(float(a), 3) for a in summary.acceptance.mean(0)]
    trips = int(summary.round_trips.sum())
    if options.json:
        rows = [result._asdict() for result in results]
        values = {"results": rows, "acceptance": acceptance, "round_trips": trips}
        values |= {"target": options.target, "reweighted": own}
        values |= {"reference": FLATTENED, "exchanged": EXCHANGED}
        print(to_json(values))
        return
    print(
        f"target: {options.target}; population of φ > 0 at 300 K in %, near snapshots and anywhere"
    )
    print(f"{'':32}{'near':>6}{'±':>6}{'any':>7}{'±':>6}{'crossings':>11}{'not near':>10}{'s':>6}")
    for r in results:
        numbers = [100 * v for v in (r.population, r.error, r.anywhere, r.anywhere_error)]
        print(
            "{:32}{:6.2f}{:6.2f}{:7.2f}{:6.2f}".format(r.sampler, *numbers)
            + f"{r.crossings:11d}{100 * r.uncovered:10.2f}{r.seconds:6.0f}"
            + (f"  {r.wrong_hand} of the wrong hand" if r.wrong_hand else "")
        )
    print(f"{'model, snapshots reweighted':32}{100 * own[0]:6.2f}{100 * own[1]:6.2f}", end="")
    print(f"   effective sample {own[2]:.0f} %")
    for name, (value, error) in (
        ("amber14, flattened bias", FLATTENED),
        ("amber14, run of the snapshots", EXCHANGED),
    ):
        print(f"{name:32}{100 * value:6.2f}{100 * error:6.2f}")
    print(f"exchanges accepted: {acceptance}, {trips} round trips of {options.ladders} ladders")


def main() -> int:
    parser = sampling_options(__doc__, model="alanine-dipeptide")
    parser.add_argument("--target", choices=("model", "amber14"), default="model")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--ladders", type=int, default=24, help="of five walkers each")
    options = parsed(parser)

    model = ScoreModel.load(options.model)
    frames = Snapshots.read("alanine-dipeptide")
    potential, kT = model.potential(device="cpu"), model.card.kT
    target = potential if options.target == "model" else amber14()
    molecule, x = Backbone(frames, kT), torch.as_tensor(frames.positions)
    start = starts(x, STATES * options.ladders)

    def kernel(temperatures: Tensor) -> tuple[Metropolis, Mixture]:
        mala = molecule.reverse_steps(potential, temperatures, target)
        turn = molecule.rotation(target, temperatures, molecule.rotors)
        return mala, Mixture([turn, mala], [1, 2])

    mala, mixture = kernel(torch.tensor(kT, dtype=torch.float64))
    # one replica of each ladder is at 300 K: as many steps of as many walkers, a fifth of the data
    exchange = ReplicaExchange(kernel(molecule.ladders(options.ladders))[1], STATES, every=EVERY)

    results, summary, covered = [], None, Covered(x)
    for name, made, states in (
        ("Metropolis steps alone", mala, 1),
        ("with torsion rotations", mixture, 1),
        ("and replica exchange", exchange, STATES),
    ):
        state, row = sample(
            name, made, start, options.steps, covered=covered, states=states, seed=options.seed
        )
        hand = correct_hand(state.x[::states].numpy(), frames.positions, molecule.topology.centres)
        results.append(Result(*row, int((~hand).sum())))
        if made is exchange:
            summary = exchange.summary(state)
    own = reweighted(potential, frames, kT)
    report(options, results, summary, own)
    last = results[-1]
    value, error = own[:2] if options.target == "model" else FLATTENED
    near = abs(last.population - value) < 2 * np.hypot(last.error, error)
    return 0 if last.population > 0 and near else 1


if __name__ == "__main__":
    sys.exit(main())
