"""Biased against unbiased sampling of one learned model: alanine dipeptide, φ and ψ.

    python benchmarks/alanine_biased.py [MODEL] [--steps 16000] [--walkers 64] [--json]

All walkers start at φ < 0, behind a barrier of about 14 kT. Steps of every sampler are accepted
to the model's energy (and the bias), so that no step size is in the answer:

* local moves alone (Metropolis-corrected reverse steps, rotations about φ or ψ by at most
  1 rad): the control;
* the same moves with well-tempered metadynamics on φ and ψ, one bias for all walkers; of its
  second half frames are weighted with exp[(V - c(t))/kT];
* going on from there with that bias, which no longer grows, and weights exp(V/kT);
* without bias, rotations by any angle, and replica exchange of such walkers (300 to 756 K);
* the snapshots with weights exp[(U_amber - E_model)/kT], the model's own populations, where the
  basins of φ have those of a flattened run of amber14, with its error (`alanine_exchange.py`).

A learned energy knows nothing of structures far from all snapshots, and biased walkers find
those that it takes for good ones. A wall keeps all samplers at distances within 0.3 Å of the
range of the snapshots (`alanine_exchange.py`), and what is in the wall is not counted. Errors
are those of independent walkers, ladders, or blocks of snapshots; those of the growing bias are
too small, since its walkers share it. Compared with the frozen bias are the population of φ > 0
and those of the bins of (φ, ψ), 15° wide, in which both have at least 0.2 %. Exit status 1 if
the biased walkers did not cross ten times as often as the control, or if the population of the
frozen bias is further than three standard errors from the model's own, from that of the rotations
or from that of the exchange.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from alanine_exchange import (
    BURN_IN,
    EVERY,
    STATES,
    Backbone,
    Covered,
    follow,
    log_weights,
    positive,
    starts,
    with_reference,
)
from shared import parsed, ratio, sampling_options
from torch import Tensor

from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.recorded import Frozen
from diffmd_ase.potentials.biases.restraints import LowerWall, UpperWall
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import State

ANGLES = np.array([[4, 6, 8, 14], [6, 8, 14, 16]])  # φ and ψ
BINS, PACE, GAMMA = 24, 20, 12.0
LOCAL = 1.0  # rad
KAPPA = 10.0  # of the wall, eV at 1 Å
EDGES = torch.linspace(-np.pi, np.pi, BINS + 1, dtype=torch.float64)[1:-1]


class Result(NamedTuple):
    """Population of φ > 0, and of BINS² bins of (φ, ψ), with errors, near snapshots.

    barrier : of φ, from the best bin at φ < 0 to the pass at φ = 0, kT; None: nobody was there
    """

    sampler: str
    population: float
    error: float
    barrier: float | None
    bins: list[float]
    bin_errors: list[float]
    crossings: int
    seconds: float


def wall(system, covered: Covered) -> Potential:
    """``V = κ Σ_pairs z²``, z the distance from the range of `Covered`, zero within."""
    distances = Distance(system, covered.pairs.T.numpy())
    low = LowerWall(distances, at=covered.low, kappa=KAPPA)
    return UpperWall(distances, at=covered.high, kappa=KAPPA) + low


def counts(x: Tensor, weights: Tensor) -> Tensor:
    """Weights of all, of φ > 0, and of the bins of (φ, ψ): (2 + BINS², walkers)."""
    angles = dihedrals(x, ANGLES).double()
    phi, psi = torch.bucketize(angles, EDGES).unbind(-1)
    inside = torch.nn.functional.one_hot(BINS * phi + psi, BINS**2).double().T
    return torch.cat((torch.ones_like(inside[:1]), positive(x).double()[None], inside)) * weights


def result(name: str, sums: Tensor, crossings: int, begun: float) -> Result:
    """Ratios of sums (2 + BINS², groups) over independent groups, and their errors."""
    mean, error = ratio(sums[1:], sums[0])
    phi, half = mean[1:].reshape(BINS, BINS).sum(1), BINS // 2
    top = phi[half - 4 : half + 4].min()
    barrier = float((phi[:half].max() / top).log()) if top > 0 else None
    bins, seconds = (mean[1:].tolist(), error[1:].tolist()), time.thread_time() - begun
    return Result(name, float(mean[0]), float(error[0]), barrier, *bins, crossings, seconds)


def sample(name, kernel, x, steps, covered, *, seed, states=1, skip=BURN_IN, bias_weights=None):
    """The last positions, and the `Result`; the first of every ``states`` rows is at 300 K."""

    def count(state: State) -> Tensor | float:
        # the bias of a step that has deposited is not the one it was sampled with
        if bias_weights is not None and state.step % PACE == 0:
            return 0.0
        cold = state.x[::states]
        weights = covered(cold).double()
        if bias_weights is not None:
            weights = weights * bias_weights(cold).exp()
        return counts(cold, weights)

    begun = time.thread_time()
    last, sums, crossings = follow(kernel, x, steps, count, seed=seed, states=states, skip=skip)
    return last.x, result(name, sums, crossings, begun)


def reweighted(potential, frames: Snapshots, kT: float, groups: int = 40) -> Result:
    begun, x = time.thread_time(), torch.as_tensor(frames.positions)
    logs = log_weights(potential, frames, kT)
    size = len(x) // groups * groups
    weights = (logs - logs.max()).exp()[:size].reshape(groups, -1)
    parts = zip(x[:size].reshape(groups, -1, *x.shape[1:]), weights, strict=True)
    each = torch.stack([counts(*part).sum(-1) for part in parts], -1)
    own = result("model, snapshots reweighted", each, 0, begun)
    return own._replace(error=with_reference(own.population, own.error))


def pulls(a: Result, b: Result) -> np.ndarray:
    """z of each bin in which both have at least 0.2 %."""
    rows = zip(a.bins, a.bin_errors, b.bins, b.bin_errors, strict=True)
    return np.array([(p - q) / np.hypot(e, f) for p, e, q, f in rows if min(p, q) > 0.002])


def measure(potential, frames, kT, options) -> list[Result]:
    """The model itself, the control, growing bias, frozen bias, rotations, exchange."""
    x = torch.as_tensor(frames.positions)
    covered = Covered(x)
    rows = options.walkers * 2
    start, molecule = starts(x, rows), Backbone(frames, kT)
    target = potential + wall(frames.system, covered)
    bias = Metadynamics(
        Torsion(frames.system, ANGLES, name=("phi", "psi")),
        kT=kT,
        sigma=0.3,
        height=1.6 * kT / options.walkers,
        pace=PACE,
        biasfactor=GAMMA,
        grid=Grid([60, 60]),
    )

    def moves(target, T, rotors, size):
        mala = molecule.reverse_steps(target, T)
        turns = [molecule.rotation(target, T, r, size) for r in rotors]
        return Mixture([*turns, mala], [1.0 / len(turns)] * len(turns) + [1.0])

    one = torch.tensor(kT, dtype=torch.float64)
    both, single = [molecule.rotors], [[n] for n in molecule.rotors]
    own = start[: options.walkers]
    settings = {"steps": options.steps, "covered": covered, "seed": options.seed}
    _, control = sample("local moves", moves(target, one, single, LOCAL), own, **settings)
    last, growing = sample(
        "with metadynamics",
        moves(target + bias, one, single, LOCAL),
        own,
        **settings,
        skip=0.5,
        bias_weights=lambda x: bias.describe(x)["rbias"] / kT,
    )
    _, frozen = sample(
        "its bias frozen",
        moves(target + Frozen(bias), one, single, LOCAL),
        last,
        **settings | {"seed": options.seed + 1},
        bias_weights=lambda x: (bias(x).energy - bias.rct) / kT,
    )
    _, turned = sample("rotations by any angle", moves(target, one, both, np.pi), own, **settings)
    ladder = molecule.ladders(rows // STATES)
    exchange = ReplicaExchange(moves(target, ladder, both, np.pi), STATES, every=EVERY)
    _, exchanged = sample(
        "and replica exchange", exchange, start[: len(ladder)], **settings, states=STATES
    )
    return [reweighted(potential, frames, kT), control, growing, frozen, turned, exchanged]


def main() -> int:
    parser = sampling_options(__doc__, model="alanine-dipeptide")
    parser.add_argument("--steps", type=int, default=16_000, help="of each sampler")
    parser.add_argument("--walkers", type=int, default=64)
    options = parsed(parser)
    model = ScoreModel.load(options.model)
    frames = Snapshots.read("alanine-dipeptide")
    results = measure(model.potential(device="cpu"), frames, model.card.kT, options)
    own, control, growing, frozen, turned, exchanged = results
    compared = {r.sampler: pulls(frozen, r) for r in (own, growing, turned, exchanged)}
    if options.json:
        values = {name: z.tolist() for name, z in compared.items()}
        print(to_json({"results": [r._asdict() for r in results], "pulls": values}))
    else:
        print(f"{'':28}{'φ > 0 / %':>12}{'±':>6}{'barrier/kT':>12}{'crossings':>11}{'CPU s':>7}")
        for r in results:
            barrier = "—" if r.barrier is None else f"{r.barrier:.1f}"
            print(
                f"{r.sampler:28}{100 * r.population:12.2f}{100 * r.error:6.2f}"
                f"{barrier:>12}{r.crossings:11d}{r.seconds:7.0f}"
            )
        for name, z in compared.items():
            print(
                f"bins of (φ, ψ), frozen bias against {name}: rms pull "
                f"{np.sqrt(np.mean(z**2)):.2f}, largest {np.abs(z).max():.1f} of {len(z)}"
            )
    near = [
        abs(frozen.population - r.population) < 3 * np.hypot(frozen.error, r.error)
        for r in (own, turned, exchanged)
    ]
    return 0 if growing.crossings > 10 * control.crossings and all(near) else 1


if __name__ == "__main__":
    sys.exit(main())
