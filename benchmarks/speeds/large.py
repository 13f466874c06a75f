"""Large systems: the cost of an atom from 500 to 10 000, and a liquid of a thousand.

    python benchmarks/speeds/large.py [--pairs 3] [--json]

Plain steps of the shipped models, compiled, their lists of neighbours included; one structure.
Copper near its lattice at 900 K; water as copies of its shipped cell. Memory is the largest of this
process until then, torch's compiler included.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from ase.build import bulk
from row import Row, printed

from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training_state import peak_memory_MB
from diffmd_ase.system import System

CELLS = ((5, 5, 5), (8, 8, 8), (11, 11, 10), (14, 14, 13))  # 500 to 10 192 atoms
STEPS = 10


def seconds(model: ScoreModel, atoms, rounds: int) -> tuple[float, int]:
    """CPU time of a step, and how often neighbours were looked for in all of them."""
    potential = model.potential(System.from_atoms(atoms), device="cpu", compile=True)
    h = 0.1 / model.card.lambda_max
    kernel = EulerMaruyama(potential, kT=model.card.kT, h=h)
    noise = Noise(1)
    state = kernel.init(torch.as_tensor(atoms.positions, dtype=torch.float32)[None])
    times = []
    for _ in range(rounds + 1):
        begun = time.thread_time()
        for new, _ in run(kernel, state, STEPS, noise=noise, every=STEPS):
            state = new
        times.append((time.thread_time() - begun) / STEPS)
    return min(times[1:]), len(atoms)


def copper(options) -> list[Row]:
    model, found = ScoreModel.load("copper-vacancy"), []
    for cells in CELLS:
        atoms = bulk("Cu", cubic=True, a=3.7) * cells
        atoms.rattle(0.1, seed=1)
        found.append((*seconds(model, atoms, options.pairs), peak_memory_MB()))
    cost, count, memory = map(np.array, zip(*found, strict=True))
    slope = float(np.polyfit(np.log(count), np.log(cost), 1)[0])
    parts = (
        f"{n} atoms {1e3 * c:.3g} ms, {1e6 * c / n:.3g} µs an atom, {m} MB"
        for c, n, m in zip(cost, count, memory, strict=True)
    )
    what = "copper, 500 to 10 000 atoms: slope of log time over log atoms"
    return [Row(what, slope, goal="≤ 1.1", good=slope <= 1.1, told="; ".join(parts))]


def water(options) -> list[Row]:
    model, snapshots = ScoreModel.load("water"), Snapshots.read("water")
    one = snapshots.system.to_atoms(np.asarray(snapshots.positions[0], dtype=float))
    small, _ = seconds(model, one, options.pairs)
    atoms = one * (2, 2, 3)
    cost, count = seconds(model, atoms, options.pairs)
    slope = float(np.log(cost / small) / np.log(count / len(one)))
    told = (
        f"{len(one)} atoms {1e3 * small:.3g} ms, {count} atoms {1e3 * cost:.3g} ms, "
        f"{1e6 * cost / count:.3g} µs an atom, {peak_memory_MB()} MB"
    )
    what = f"water, {len(one)} to {count} atoms: slope of log time over log atoms"
    return [Row(what, slope, goal="≤ 1.1", good=slope <= 1.1, told=told)]


def rows(options) -> list[Row]:
    return copper(options) + water(options)


if __name__ == "__main__":
    printed(__doc__, rows, rounds=3)
