"""One run on 1, 2 and 4 ranks: is the chain the same, and what do ranks cost each other?

    python benchmarks/ranks.py [--steps 100] [--each 16] [--longer 600] [--pairs 5] [--json]

The shipped model of alanine dipeptide, as torchrun starts it. The first table has the SHA-256 of
the positions of all walkers in the order of their ids, of plain steps, Metropolis steps, replica
exchange and metadynamics on φ and ψ with hills of all walkers every 25 steps.

Weak scaling, on two ranks: each alone with ``--each`` walkers, both at the same time, and then
both as one run of twice as many, in turn (A B A B …). The efficiency is the time of the first
over that of the second, of the CPU of a process with all its threads, and of the wall clock: what
ranks have to wait for each other, tell and write in common, apart from what cores lose to others.

Exits with status 1 where a chain differs, or an efficiency of CPU time is below 0.9.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from shared import alternating, parsed, ratios, timing_options, versions

from diffmd_ase.io.json_text import to_json
from diffmd_ase.io.ranks import Ranks
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate

KINDS = ("plain", "metropolis", "exchange", "metadynamics")
SIZES = (1, 2, 4)
WORDS = "DIFFMD_RANKS"  # what a rank of this script is asked, in its environment
GOAL = 0.9
H = 3.6e-5  # Å²


def main(parser) -> int:
    options = parsed(parser)
    with TemporaryDirectory() as folder:
        asked = vars(options) | {"folder": folder}
        for size in SIZES:
            launched(size, asked | {"work": "chains"})
        sums = {
            kind: [fingerprint(Path(folder) / f"{kind}-{size}.h5") for size in SIZES]
            for kind in KINDS
        }
        launched(2, asked | {"work": "scaling"})
        scaling = json.loads((Path(folder) / "scaling.json").read_text())
    result = {"sha256": sums, "efficiency": scaling, **versions()}
    if options.json:
        print(to_json(result))
    else:
        told(options, sums, scaling)
    same = all(len(set(each)) == 1 for each in sums.values())
    return 0 if same and all(one["cpu"][0] >= GOAL for one in scaling.values()) else 1


def told(options, sums: dict, scaling: dict) -> None:
    print(f"{options.walkers} walkers, {options.steps} steps, chunks of 2; SHA-256 of positions")
    for kind, each in sums.items():
        words = "the same" if len(set(each)) == 1 else "DIFFERENT"
        print(
            f"  {kind:13}", *(f"{n}: {sha[:12]}" for n, sha in zip(SIZES, each, strict=True)), words
        )
    print(f"two ranks, {options.each} walkers each: alone over together, median (range)")
    for kind, one in scaling.items():
        parts = (f"{name} {m:.3f} ({a:.3f} to {b:.3f})" for name, (m, (a, b)) in one.items())
        print(f"  {kind:13}", *parts)
    print(" ".join(f"{name} {value}" for name, value in versions().items()))


def launched(size: int, asked: dict) -> None:
    """This script on so many ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", WORDS: json.dumps(asked)}
    command = [*torchrun, "--nproc-per-node", str(size), __file__]
    subprocess.run(command, env=environment, check=True)


def fingerprint(path: Path) -> str:
    return hashlib.sha256(Trajectory(path).positions[:].tobytes()).hexdigest()


def kernel(kind: str, model: ScoreModel, walkers: int) -> Kernel:
    potential, kT = model.potential(device="cpu", compile=False), model.card.kT
    if kind == "metadynamics":
        phi_psi = Torsion(model.system, [[4, 6, 8, 14], [6, 8, 14, 16]], name=("phi", "psi"))
        hills = {"sigma": 0.35, "height": 0.012, "pace": 25, "biasfactor": 10}
        potential = potential + Metadynamics(phi_psi, kT=kT, grid=Grid([90, 90]), **hills)
    if kind != "exchange":
        plain = EulerMaruyama(potential, kT=kT, h=H, mean_free=True)
        return Metropolis(plain) if kind == "metropolis" else plain
    ladder = kT * torch.tensor([1.0, 1.1, 1.2, 1.35]).repeat(walkers // 4)
    moves = EulerMaruyama(potential, kT=ladder, h=H, mean_free=True)
    return ReplicaExchange(Metropolis(moves), 4, every=5)


@cache
def shipped() -> tuple[ScoreModel, Snapshots]:
    return ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")


def go(kind: str, prefix: Path, walkers: int, steps: int, ranks: Ranks, chunk: int) -> None:
    model, frames = shipped()
    moves = kernel(kind, model, walkers)
    x = torch.as_tensor(frames.positions[:walkers], dtype=torch.float32)
    info = RunInfo(seed=1, kT=model.card.kT, h=H, kinetics_valid=False)
    files = Files(str(prefix))
    simulate(
        moves, model.system, x, steps, files=files, info=info, every=20, ranks=ranks, chunk=chunk
    )


def scaled(ranks: Ranks, asked: dict) -> dict:
    """Ratios of one run on each rank to one run on both, by CPU and by the wall clock."""
    result, count = {}, iter(range(10**6))
    for kind in ("plain", "metadynamics"):

        def one(walkers: int, team: Ranks, kind=kind) -> None:
            name = f"{kind}-{next(count)}-" + ("both" if team.size > 1 else str(ranks.rank))
            steps, chunk = asked["longer"], asked["each"]
            go(kind, Path(asked["folder"]) / name, walkers, steps, team, chunk)
            ranks.told(0)  # both begin the next together

        calls = {
            "alone": lambda one=one: one(asked["each"], Ranks()),
            "both": lambda one=one: one(2 * asked["each"], ranks),
        }
        times = alternating(
            calls,
            asked["pairs"],
            clock=lambda: np.array([time.process_time(), time.perf_counter()]),
        )
        own = [times[name].tolist() for name in calls]
        alone, both = np.array(ranks.told(own)).max(0)  # the slower rank of each
        result[kind] = {
            name: ratios(alone[:, place], both[:, place])
            for place, name in enumerate(("cpu", "wall"))
        }
    return result


def as_rank(asked: dict) -> None:
    with Ranks.started() or Ranks() as ranks:
        folder = Path(asked["folder"])
        if asked["work"] == "scaling":
            result = scaled(ranks, asked)
            if ranks.leads:
                (folder / "scaling.json").write_text(to_json(result))
            return
        for kind in KINDS:
            go(kind, folder / f"{kind}-{ranks.size}", asked["walkers"], asked["steps"], ranks, 2)


if __name__ == "__main__":
    if WORDS in os.environ:
        as_rank(json.loads(os.environ[WORDS]))
    else:
        options = timing_options(__doc__, steps=100, pairs=5)
        options.add_argument("--walkers", type=int, default=8)
        options.add_argument("--each", type=int, default=16)
        options.add_argument("--longer", type=int, default=600, help="steps of what is timed")
        sys.exit(main(options))
