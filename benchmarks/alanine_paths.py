"""Kinetics of the right model from a wrong one: alanine dipeptide, a torsion barrier 1 kT too high.

    python benchmarks/alanine_paths.py --walkers 512 --steps 8000

The reference is the shipped model. The wrong one has barriers of one kT more between the three
places of the first methyl group. Chains of both begin in the same snapshots, 10° to 30° from such a
barrier; those of the wrong one are weighed towards the reference, whose own chains say what is
right: the probability of being beyond the barrier at several lags, and the lag from which the
weights no longer hold. Exit 1 where they hold and are wrong.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diffmd_ase import ScoreModel, Snapshots
from diffmd_ase.analysis.kinetics.path_reweighting import WeightedPaths, weigh_paths
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.geometry import dihedrals
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.base import CVBias
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.simulation.prepare import prepare

METHYL = [1, 0, 4, 5]  # H, C, C, O
TOP, NEAR, FAR = np.radians([60.0, 10.0, 30.0])  # of a barrier; of the starts, from it


class Wave(CVBias):
    """``½ a [1 + cos 3(φ - TOP)]``: three barriers are higher by a, in eV."""

    def __init__(self, cv, a: float):
        super().__init__(cv)
        self.a = a

    def bias(self, s):
        angle = 3 * (s[..., 0] - TOP)
        return 0.5 * self.a * (1 + torch.cos(angle)), -1.5 * self.a * torch.sin(angle)[..., None]


def observed(x: torch.Tensor) -> torch.Tensor:
    return dihedrals(x, [METHYL])[..., 0]


def moved(phi: np.ndarray) -> np.ndarray:
    """(T, W): 1 where a walker is in another of the three places than it began in."""
    place = np.floor(np.mod(phi - TOP, 2 * np.pi) / (2 * np.pi / 3)).astype(int)
    return (place != place[0]).astype(int)


def chain(drift: Potential, reference: Potential, x, options, seed: int) -> WeightedPaths:
    kernel = prepare(drift, temperature_K=300.0, mean_free=True, x=x).kernel
    return weigh_paths(
        kernel,
        x,
        reference,
        options.steps,
        noise=Noise(seed),
        observe=observed,
        every=options.every,
        stride=options.stride,
    )


def beginnings(paths: WeightedPaths, lag: int) -> WeightedPaths:
    """The first ``lag`` values alone: one path of each walker, all from the snapshots."""
    return replace(
        paths,
        values=paths.values[: lag + 1],
        increments=paths.increments[:lag],
        divergences=paths.divergences[:lag],
        start=None,
    )


def told(paths: WeightedPaths, lag: int) -> tuple[Estimate, Estimate, float, float]:
    """Probability of another place, plain and weighed; effective fraction of the paths, KL."""
    few = beginnings(paths, lag)
    found = few.transitions(moved(few.values), lag)
    plain, weighed = (
        Estimate(float(value[0, 1]), float(error[0, 1]), float("nan"))
        for value, error in (
            (found.model, found.model_error),
            (found.reference, found.reference_error),
        )
    )
    return plain, weighed, float(found.effective[0] / found.paths[0]), found.kl.value


def apart(one: Estimate, other: Estimate) -> float:
    return (one.value - other.value) / float(np.hypot(one.error, other.error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walkers", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--every", type=int, default=50, help="steps between values")
    parser.add_argument("--stride", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--barrier", type=float, default=1.0, help="kT that is wrong")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    snapshots, model = Snapshots.read("alanine-dipeptide"), ScoreModel.load("alanine-dipeptide")
    right = model.potential(snapshots.system, compile=True)
    methyl = Torsion(snapshots.system, [METHYL], name="methyl")
    wrong = right + Wave(methyl, options.barrier * model.card.kT)
    positions = np.asarray(snapshots.positions, float)
    at = dihedrals(positions, [METHYL])[:, 0]
    away = np.abs(np.mod(at - TOP + np.pi / 3, 2 * np.pi / 3) - np.pi / 3)
    near = np.flatnonzero((away > NEAR) & (away < FAR))
    rows = np.random.default_rng(options.seed).choice(near, options.walkers)
    x = torch.from_numpy(positions[rows])
    weighed = chain(wrong, right, x, options, options.seed)
    own = chain(right, right, x, options, options.seed + 1)
    table = Table("lag (Å²)", "wrong", "weighed", "right", "z", "z of wrong", "eff.", "KL")
    most, good = len(weighed.increments), True
    for lag in sorted({max(1, most // 8), most // 4, most // 2, most}):
        (plain, towards, effective, kl), (true, *_) = told(weighed, lag), told(own, lag)
        z, off = apart(towards, true), apart(plain, true)
        good &= abs(z) < 4 or kl > 2
        cells = [f"{e.value:.3f} ± {e.error:.3f}" for e in (plain, towards, true)]
        numbers = f"{z:+.1f}", f"{off:+.1f}", f"{effective:.2f}", f"{kl:.3f}"
        table.add_row(f"{lag * weighed.spacing:.3g}", *cells, *numbers)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"rate {weighed.kl(1).value / weighed.spacing:.3f} nats per Å² of D·t, of the reference "
        f"held for {options.stride} steps from the true one {weighed.stride_rate}; weights hold up "
        f"to D·t = {weighed.longest_lag():.3g} Å² (KL of 2 nats)"
    )
    sys.exit(not good)


if __name__ == "__main__":
    main()
