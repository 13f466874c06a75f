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

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import ase
import numpy as np
import torch
from ase import Atoms, units
from ase.cluster import Icosahedron
from ase.md.langevin import Langevin

from diffmd_ase.adapters.batch import BatchReverseDiffusion
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.score.model import ScoreModel

STEP = {"spring": 5e4, "rng": 0}  # h = 1e-5 Å²


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
    return partial(BatchReverseDiffusion(images, temperature_K=temperature_K, **STEP).run, steps)


def one_by_one(atoms, calculator, temperature_K, walkers, steps) -> Callable[[], object]:
    runs = []
    for seed in range(walkers):
        image = atoms.copy()
        image.calc = calculator()
        runs.append(
            Langevin(
                image,
                0.1 * units.fs,
                temperature_K=temperature_K,
                friction=0.01 / units.fs,
                fixcm=False,
                rng=np.random.default_rng(seed),
            )
        )
    return lambda: [dynamics.run(steps) for dynamics in runs]


def ours_one_by_one(atoms, calculator, temperature_K, walkers, steps) -> Callable[[], object]:
    runs = []
    for seed in range(walkers):
        image = atoms.copy()
        image.calc = calculator()
        runs.append(
            ReverseDiffusion(image, temperature_K=temperature_K, spring=STEP["spring"], rng=seed)
        )
    return lambda: [dynamics.run(steps) for dynamics in runs]


CONTENDERS = {
    "one batch": in_one_batch,
    "ASE Langevin, one by one": one_by_one,
    "ReverseDiffusion, one by one": ours_one_by_one,
}


def measure(model: str, walkers: int, steps: int, pairs: int, device: str) -> dict:
    """µs per walker-step of each contender and the ratios to the batch, round by round."""
    atoms, calculator, temperature_K, what = contents(model, device)
    calls = {
        name: make(atoms, calculator, temperature_K, walkers, steps)
        for name, make in CONTENDERS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(pairs + 1):  # the first round warms up
        for name, call in calls.items():
            times[name].append(_wall_time(call) / (walkers * steps))
    batch = times["one batch"][1:]
    rows = {}
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values[1:], batch, strict=True)]
        rows[name] = {
            "us_per_walker_step": 1e6 * statistics.median(values[1:]),
            "ratio_to_batch": statistics.median(ratios),
            "ratio_range": (min(ratios), max(ratios)),
        }
    return {"model": what, "atoms": len(atoms), "contenders": rows}


def _wall_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "ase": ase.__version__,
        },
        "walkers": options.walkers,
        "threads": options.threads,
        **measure(options.model, options.walkers, options.steps, options.pairs, options.device),
    }
    if options.json:
        print(json.dumps(result, indent=2))
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
