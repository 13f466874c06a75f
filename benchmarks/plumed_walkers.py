"""One PLUMED instance for all walkers against one for each, φ/ψ metadynamics on a grid.

    python benchmarks/plumed_walkers.py [--walkers 64] [--steps 50] [--pairs 7] [--json]

Needs the plugin diffmd-plumed. The other side is what a loop over calculators does: an
instance for each walker, every array set at every step, calc. Both alternate in one process;
times are those of this thread. Goal: 1.3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from diffmd_plumed import ASE_UNITS, PlumedPotential
from diffmd_plumed.library import new_instance
from shared import alternating, parsed, ratios, timing_options

from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.base import Potential
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


def stepping(potential: Potential, x: torch.Tensor, steps: int) -> Callable[[], None]:
    """As a run calls it: evaluation, then update."""
    state = {"step": 0}

    def call():
        for _ in range(steps):
            state["step"] += 1
            potential(x)
            potential.update(x, state["step"])

    return call


def against_one_each(
    make: Callable[[str], Potential], walkers: int, steps: int, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """µs per walker and step (pairs,): one instance for each; the potential ``make(folder)``."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(walkers, ATOMS, 3)) * 2.0)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        calls = {
            "one each": one_each(x, steps, first),
            "ours": stepping(make(second), x, steps),
        }
        times = alternating(calls, pairs)
    theirs, ours = (1e6 * seconds / (steps * walkers) for seconds in times.values())
    return theirs, ours


def multiplexed(folder: str) -> Potential:
    system = System([6] * ATOMS, [1.0] * ATOMS)
    return PlumedPotential(system, INPUT, kT=KT, timestep=1.0, directory=folder)


def main() -> None:
    parser = timing_options(__doc__, steps=50, pairs=7)
    parser.add_argument("--walkers", type=int, default=64)
    options = parsed(parser)
    theirs, ours = against_one_each(multiplexed, options.walkers, options.steps, options.pairs)
    ratio, (low, high) = ratios(theirs, ours)
    result = {
        "walkers": options.walkers,
        "us_per_walker_step": {
            "one instance each": np.median(theirs),
            "multiplexed": np.median(ours),
        },
        "ratio": ratio,
        "ratio_range": (low, high),
    }
    if options.json:
        print(to_json(result))
        return
    for name, value in result["us_per_walker_step"].items():
        print(f"{name:20s} {value:6.1f} µs/walker-step")
    print(f"ratio {ratio:.2f} ({low:.2f}–{high:.2f})")


if __name__ == "__main__":
    main()
