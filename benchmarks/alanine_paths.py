"""Kinetics of the right model from a wrong one: alanine dipeptide, a torsion barrier 1 kT too high.

    python benchmarks/alanine_paths.py --walkers 64 --steps 4000

The reference is the shipped model, the wrong one has a wave along ψ added, so that a
barrier of ψ is off by one kT. Chains of the wrong model are weighed towards the reference, whose
own chain says what is right: probabilities of going from one half of ψ to the other at several
lags, and whether the weights still hold.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diffmd_ase import ScoreModel, Snapshots
from diffmd_ase.analysis.kinetics.path_reweighting import WeightedPaths, weigh_paths
from diffmd_ase.geometry import dihedrals
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.base import CVBias
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.simulation.prepare import prepare

PSI = [6, 8, 14, 16]
TOP = np.radians(-140.0)  # about where ψ has a barrier at φ < 0


class Wave(CVBias):
    """``½ a [1 + cos(ψ - top)]``: the barrier at ``top`` is higher by a, in eV."""

    def __init__(self, cv, a: float):
        super().__init__(cv)
        self.a = a

    def bias(self, s):
        angle = s[..., 0] - TOP
        return 0.5 * self.a * (1 + torch.cos(angle)), -0.5 * self.a * torch.sin(angle)[..., None]


def observed(x: torch.Tensor) -> torch.Tensor:
    return dihedrals(x, [PSI])[..., 0]


def states(psi: np.ndarray) -> np.ndarray:
    """0 for ψ in (-140°, 40°), 1 for the rest: the tops of both barriers are the limits."""
    return (np.mod(psi - TOP, 2 * np.pi) >= np.pi).astype(int)


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
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=20, help="steps between values")
    parser.add_argument("--barrier", type=float, default=1.0, help="kT that is wrong")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    snapshots, model = Snapshots.read("alanine-dipeptide"), ScoreModel.load("alanine-dipeptide")
    right = model.potential(snapshots.system)
    wrong = right + Wave(
        Torsion(snapshots.system, [PSI], name="psi"), options.barrier * model.card.kT
    )
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(len(snapshots), options.walkers, replace=False)
    x = torch.as_tensor(np.asarray(snapshots.positions)[rows], dtype=torch.float64)
    weighed = chain(wrong, right, x, options, options.seed)
    own = chain(right, right, x, options, options.seed + 1)
    table = Table(
        "lag (Å²)", "from", "wrong", "reweighted", "reference", "z", "eff.", "KL", "holds"
    )
    most = len(weighed.increments)
    for lag in sorted({1, most // 64, most // 16, most // 4, most // 2} - {0}):
        told = weighed.transitions(states(weighed.values), lag)
        true = own.transitions(states(own.values), lag)
        for i, j in ((0, 1), (1, 0)):
            gap = told.reference[i, j] - true.model[i, j]
            error = np.hypot(told.reference_error[i, j], true.model_error[i, j])
            pairs = [
                f"{v[i, j]:.4f} ± {e[i, j]:.4f}"
                for v, e in (
                    (told.model, told.model_error),
                    (told.reference, told.reference_error),
                    (true.model, true.model_error),
                )
            ]
            table.add_row(
                f"{told.lag:.3g}", f"{i} → {j}", *pairs, f"{gap / error:+.1f}",
                f"{told.effective[i] / told.paths[i]:.2f}", f"{told.kl.value:.3f}", str(told.holds),
            )  # fmt: skip
    console = Console(width=140)
    console.print(table)
    console.print(
        f"rate {weighed.kl(1).value / weighed.spacing:.3f} nats per Å² of D·t; weights hold up to "
        f"D·t = {weighed.longest_lag():.3g} Å² (KL of 2 nats)"
    )


if __name__ == "__main__":
    main()
