"""64 walkers in one batch against 64 ASE loops, with the same potential.

    python benchmarks/walkers.py MODEL [--walkers 64] [--steps 20] [--pairs 5] [--json]

MODEL is a model file, the name of a shipped model, or ``lennard-jones`` (13 argon atoms,
no network: what the machinery alone gains). Both sides do overdamped steps with the same
forces: `BatchReverseDiffusion` on one side, on the other the loop that a user of ASE writes
for each walker, `ScoreCalculator` and ``ase.md.langevin.Langevin``, one walker after the
other; a third contender is a loop over our own `ReverseDiffusion`. They alternate in one
process (A B C A B C …); ratios are wall clock, from the same round.
Goals: at least 10 with the pair network, at least 1.3 with the equivariant one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from ase import Atoms, units
from ase.cluster import Icosahedron
from shared import alternating, ase_langevin, parsed, ratios, timing_options, versions

from diffmd_ase.adapters.batch import BatchReverseDiffusion
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.score.model import ScoreModel

SPRING = 5e4  # h = 1e-5 Å²


def contents(model: str, device: str) -> tuple[Atoms, Callable[[], ScoreCalculator], float, str]:
    """Atoms at a sensible place, a maker of calculators, temperature, and what it is."""
    if model == "lennard-jones":
        atoms = Icosahedron("Ar", 2, latticeconstant=5.26)
        potential = partial(LennardJones, epsilon=0.0104, sigma=3.4)
        return Atoms(atoms), partial(ScoreCalculator, potential, device=device), 30.0, model
    loaded = ScoreModel.load(model)
    start = relaxed(loaded, device)
    calculator = ScoreCalculator(loaded, device=device)
    # the calculators share weights, as copies of one do
    kind = loaded.card.experts[0].network.kind
    return start, lambda: calculator, loaded.card.temperature_K, f"{model} ({kind} network)"


def relaxed(model: ScoreModel, device: str) -> Atoms:
    """Positions near the data: the card's covariance, embedded, then relaxed by the model."""
    covariance = np.array(model.card.covariance)
    values, vectors = np.linalg.eigh(covariance)
    atoms = model.system.to_atoms(vectors[:, -3:] * np.sqrt(3 * values[-3:]))
    atoms.calc = ScoreCalculator(model, device=device)
    for _ in range(200):
        forces = atoms.get_forces()
        atoms.positions += 0.02 * forces / max(1.0, abs(forces).max())
    atoms.calc = None
    return atoms


def in_one_batch(atoms, calculator, temperature_K, walkers, steps) -> Callable[[], object]:
    images = [atoms.copy() for _ in range(walkers)]
    images[0].calc = calculator()
    dynamics = BatchReverseDiffusion(images, temperature_K=temperature_K, spring=SPRING, rng=0)
    return lambda: dynamics.run(steps)


def one_by_one(dynamics, atoms, calculator, temperature_K, walkers, steps) -> Callable[[], object]:
    """A loop over ``dynamics(image, temperature_K, seed)`` of each walker."""
    runs = []
    for seed in range(walkers):
        image = atoms.copy()
        image.calc = calculator()
        runs.append(dynamics(image, temperature_K, seed))
    return lambda: [each.run(steps) for each in runs]


def langevin(image: Atoms, temperature_K: float, seed: int):
    return ase_langevin(image, temperature_K, timestep=0.1 * units.fs, seed=seed)


def reverse_diffusion(image: Atoms, temperature_K: float, seed: int):
    return ReverseDiffusion(image, temperature_K=temperature_K, spring=SPRING, rng=seed)


CONTENDERS = {
    "one batch": in_one_batch,
    "ASE Langevin, one by one": partial(one_by_one, langevin),
    "ReverseDiffusion, one by one": partial(one_by_one, reverse_diffusion),
}


def measure(model: str, walkers: int, steps: int, pairs: int, device: str) -> dict:
    """µs per walker-step of each contender and the ratios to the batch, round by round."""
    atoms, calculator, temperature_K, what = contents(model, device)
    calls = {
        name: make(atoms, calculator, temperature_K, walkers, steps)
        for name, make in CONTENDERS.items()
    }
    times, rows = alternating(calls, pairs, clock=time.perf_counter), {}
    for name, seconds in times.items():
        median, limits = ratios(seconds, times["one batch"])
        rows[name] = {
            "us_per_walker_step": 1e6 * np.median(seconds) / (walkers * steps),
            "ratio_to_batch": median,
            "ratio_range": limits,
        }
    return {"model": what, "atoms": len(atoms), "contenders": rows}


def main() -> None:
    parser = timing_options(__doc__, steps=20, pairs=5)
    parser.add_argument("model")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parsed(parser)
    result = {
        "versions": versions(),
        "walkers": options.walkers,
        "threads": options.threads,
        **measure(options.model, options.walkers, options.steps, options.pairs, options.device),
    }
    if options.json:
        print(to_json(result))
        return
    print(f"{result['model']}: {result['atoms']} atoms, {options.walkers} walkers")
    for name, row in result["contenders"].items():
        low, high = row["ratio_range"]
        print(
            f"{name:30s} {row['us_per_walker_step']:9.1f} µs/walker-step   "
            f"over the batch: {row['ratio_to_batch']:.1f} ({low:.1f}–{high:.1f})"
        )


if __name__ == "__main__":
    main()
