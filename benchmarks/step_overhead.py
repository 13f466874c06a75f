"""Cost of one step without any force: what the machinery itself costs.

    python benchmarks/step_overhead.py [--atoms 22] [--steps 1000] [--pairs 9] [--json]

Each contender is a function ``(atoms, steps) -> callable`` that prepares a run of
``steps`` steps of one structure with zero forces; only the call is timed. Contenders
alternate in one process (A B A B …) on one thread; the ratio is CPU time of ASE's
Langevin over that of the contender, from the same pair. Goals: ``run`` at least 10,
`ReverseDiffusion` at least 1.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import ase
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation

TEMPERATURE_K = 300.0


class ZeroCalculator(Calculator):
    """Zero energy and forces for ASE."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


class ZeroPotential(Potential):
    """Zero energy and forces for us."""

    def __call__(self, x, *, stress=False):
        return Evaluation(x.new_zeros(x.shape[:-2]), torch.zeros_like(x))


def ase_langevin(atoms: Atoms, steps: int) -> Callable[[], object]:
    """The peer: ``ase.md.langevin.Langevin`` without trajectory or log."""
    atoms = atoms.copy()
    atoms.calc = ZeroCalculator()
    dynamics = Langevin(
        atoms,
        1.0 * units.fs,
        temperature_K=TEMPERATURE_K,
        friction=0.01 / units.fs,
        fixcm=False,  # as its own warning asks; also the faster of the two
        rng=np.random.default_rng(0),
    )
    return lambda: dynamics.run(steps)


def run_one(atoms: Atoms, steps: int) -> Callable[[], object]:
    """`diffmd_ase.run`, one walker, every state yielded."""
    kernel = EulerMaruyama(ZeroPotential(), kT=units.kB * TEMPERATURE_K, h=1e-5)
    x = torch.tensor(atoms.positions)

    def go():
        for _ in run(kernel, x, steps, noise=Noise(0)):
            pass

    return go


def run_64(atoms: Atoms, steps: int) -> Callable[[], object]:
    """The same for 64 walkers in one batch; its time counts per walker."""
    kernel = EulerMaruyama(ZeroPotential(), kT=units.kB * TEMPERATURE_K, h=1e-5)
    x = torch.tensor(atoms.positions).expand(64, -1, -1)

    def go():
        for _ in run(kernel, x, steps, noise=Noise(0)):
            pass

    return go


def ase_reverse_diffusion(atoms: Atoms, steps: int) -> Callable[[], object]:
    """`ReverseDiffusion`: ASE's loop, positions and results handed back after every step."""
    atoms = atoms.copy()
    atoms.calc = ScoreCalculator(ZeroPotential())
    dynamics = ReverseDiffusion(atoms, temperature_K=TEMPERATURE_K, spring=5e4, rng=0)
    return lambda: dynamics.run(steps)


# name: (contender, walkers); a new one is one more function and one more line
CONTENDERS = {
    "run": (run_one, 1),
    "run, batch of 64": (run_64, 64),
    "ReverseDiffusion": (ase_reverse_diffusion, 1),
}


def measure(atoms: Atoms, steps: int, pairs: int) -> dict:
    """Times per walker-step (µs) and ratios to the peer, pair by pair."""
    peer = ase_langevin(atoms, steps)
    calls = {name: (make(atoms, steps), walkers) for name, (make, walkers) in CONTENDERS.items()}
    peer_times, times = [], {name: [] for name in calls}
    for _ in range(pairs + 1):  # the first round warms up
        peer_times.append(_cpu_time(peer) / steps)
        for name, (call, walkers) in calls.items():
            times[name].append(_cpu_time(call) / (steps * walkers))
    peer_times = peer_times[1:]
    rows = {}
    for name, values in times.items():
        ratios = [a / b for a, b in zip(peer_times, values[1:], strict=True)]
        rows[name] = {
            "us_per_step": 1e6 * min(values[1:]),
            "ratio_of_minima": min(peer_times) / min(values[1:]),
            "ratio_median": statistics.median(ratios),
            "ratio_range": (min(ratios), max(ratios)),
        }
    return {"peer_us_per_step": 1e6 * min(peer_times), "contenders": rows}


def _cpu_time(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, default=22)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms = Atoms(["C"] * options.atoms, positions=np.zeros((options.atoms, 3)))
    result = {
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "ase": ase.__version__,
        },
        "atoms": options.atoms,
        "dtype": "float64",
        "threads": 1,
        **measure(atoms, options.steps, options.pairs),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"ase.md.langevin.Langevin  {result['peer_us_per_step']:7.1f} µs/step")
    for name, row in result["contenders"].items():
        low, high = row["ratio_range"]
        print(
            f"{name:24s}  {row['us_per_step']:7.1f} µs/walker-step   ASE/ours: "
            f"minima {row['ratio_of_minima']:.1f}, median {row['ratio_median']:.1f} "
            f"({low:.1f}–{high:.1f})"
        )


if __name__ == "__main__":
    main()
