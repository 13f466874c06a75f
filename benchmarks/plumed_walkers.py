"""One PLUMED instance for all walkers against one for each, φ/ψ metadynamics on a grid.

    python benchmarks/plumed_walkers.py [--walkers 64] [--steps 50] [--pairs 7] [--json]

Needs the plugin diffmd-plumed. The other side is what a loop over calculators does: an
instance for each walker, every array set at every step, calc. Both alternate in one process;
times are those of this thread. Goal: 1.3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch
from diffmd_plumed import ASE_UNITS, PlumedPotential
from diffmd_plumed.kernel import new_instance

from diffmd_ase.system import System

KT, ATOMS = 0.0258, 22
INPUT = [
    "phi: TORSION ATOMS=5,7,9,15",
    "psi: TORSION ATOMS=7,9,15,17",
    "METAD ARG=phi,psi SIGMA=0.35,0.35 HEIGHT=1.2 BIASFACTOR=10 PACE=500 "
    "GRID_MIN=-pi,-pi GRID_MAX=pi,pi",
]


def one_each(x, steps, folder):
    """The plain loop, with the raw interface."""
    instances = []
    for walker in range(len(x)):
        path = f"{folder}/{walker}"
        with open(f"{path}.dat", "w") as file:
            file.write("\n".join(INPUT[:2]) + f"\n{INPUT[2]} FILE={path}.hills\n")
        p = new_instance()
        p.cmd("setMDLengthUnits", ASE_UNITS.length)
        p.cmd("setMDEnergyUnits", ASE_UNITS.energy)
        p.cmd("setMDTimeUnits", ASE_UNITS.time)
        p.cmd("setNatoms", ATOMS)
        p.cmd("setTimestep", 1.0)
        p.cmd("setKbT", KT)
        p.cmd("setPlumedDat", f"{path}.dat")
        p.cmd("setLogFile", f"{path}.log")
        p.cmd("init")
        instances.append(p)
    frames = x.numpy()
    forces, virial = np.zeros((ATOMS, 3)), np.zeros((3, 3))
    masses, charges, box, bias = np.ones(ATOMS), np.zeros(ATOMS), np.zeros((3, 3)), np.zeros(1)
    state = {"step": 0}

    def call():
        for _ in range(steps):
            state["step"] += 1
            for p, frame in zip(instances, frames, strict=True):
                forces.fill(0.0)
                virial.fill(0.0)
                p.cmd("setStep", state["step"])
                p.cmd("setPositions", frame)
                p.cmd("setMasses", masses)
                p.cmd("setCharges", charges)
                p.cmd("setBox", box)
                p.cmd("setForces", forces)
                p.cmd("setVirial", virial)
                p.cmd("calc")
                p.cmd("getBias", bias)

    return call


def multiplexed(x, steps, folder):
    """`PlumedPotential`, as a run calls it: evaluation, then update."""
    system = System([6] * ATOMS, [1.0] * ATOMS)
    potential = PlumedPotential(system, INPUT, kT=KT, timestep=1.0, directory=folder)
    state = {"step": 0}

    def call():
        for _ in range(steps):
            state["step"] += 1
            potential(x)
            potential.update(x, state["step"])

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.tensor(np.random.default_rng(0).normal(size=(options.walkers, ATOMS, 3)) * 2.0)
    times: dict[str, list[float]] = {"one instance each": [], "multiplexed": []}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        calls = {
            "one instance each": one_each(x, options.steps, first),
            "multiplexed": multiplexed(x, options.steps, second),
        }
        for _ in range(options.pairs + 1):  # the first round warms up
            for name, call in calls.items():
                begun = time.thread_time()
                call()
                spent = time.thread_time() - begun
                times[name].append(1e6 * spent / (options.steps * options.walkers))
    pairs = zip(times["one instance each"][1:], times["multiplexed"][1:], strict=True)
    ratios = [a / b for a, b in pairs]
    result = {
        "walkers": options.walkers,
        "us_per_walker_step": {n: statistics.median(t[1:]) for n, t in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": (min(ratios), max(ratios)),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["us_per_walker_step"].items():
        print(f"{name:20s} {value:6.1f} µs/walker-step")
    print(f"ratio {result['ratio']:.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


if __name__ == "__main__":
    main()
