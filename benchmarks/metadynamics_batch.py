"""φ/ψ metadynamics of many walkers on a grid: in torch, and torch variables given to PLUMED.

    python benchmarks/metadynamics_batch.py [--steps 100] [--pairs 6] [--json]

Both against one PLUMED instance for each walker with every array set at every step, as in
plumed_walkers.py; the two sides alternate in one process and times are those of this thread.
Goals: 10 for torch alone and 256 walkers, 2 for torch variables and PLUMED's bias (PUT) and 64.
Needs the plugin diffmd-plumed.
"""

from __future__ import annotations

import numpy as np
from ase import units
from diffmd_plumed.torch_cvs import PlumedCVPotential
from plumed_walkers import ATOMS, INPUT, KT, against_one_each
from shared import parsed, ratios, timing_options

from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.system import System

PHI_PSI = Torsion(
    System([6] * ATOMS, [1.0] * ATOMS), [[4, 6, 8, 14], [6, 8, 14, 16]], name=("phi", "psi")
)


def in_torch(folder: str) -> Potential:
    """The settings of INPUT; its grid has five points in a sigma, PLUMED's default."""
    return Metadynamics(
        PHI_PSI,
        kT=KT,
        sigma=0.35,
        height=1.2 * units.kJ / units.mol,
        biasfactor=10,
        pace=500,
        grid=Grid([90, 90]),
        file=f"{folder}/HILLS",
    )


def by_put(folder: str) -> Potential:
    return PlumedCVPotential(PHI_PSI, INPUT[2:], kT=KT, timestep=1.0, directory=folder)


def compare(make, walkers: int, steps: int, pairs: int) -> dict:
    """µs per walker and step of both sides, and the ratio, median and range over pairs."""
    theirs, ours = against_one_each(make, walkers, steps, pairs)
    ratio, limits = ratios(theirs, ours)
    return {
        "walkers": walkers,
        "one_instance_each_us": np.median(theirs),
        "ours_us": np.median(ours),
        "ratio": ratio,
        "ratio_range": limits,
    }


def main() -> None:
    options = parsed(timing_options(__doc__, steps=100, pairs=6))
    cases = {"torch variables, PLUMED's bias": (by_put, 64), "torch alone": (in_torch, 256)}
    results = {
        name: compare(make, walkers, options.steps, options.pairs)
        for name, (make, walkers) in cases.items()
    }
    if options.json:
        print(to_json(results))
        return
    for name, r in results.items():
        low, high = r["ratio_range"]
        print(
            f"{name:31s} {r['walkers']:4d} walkers: {r['ours_us']:6.2f} µs/walker-step against "
            f"{r['one_instance_each_us']:5.1f}, ratio {r['ratio']:.2f} ({low:.2f}–{high:.2f})"
        )


if __name__ == "__main__":
    main()
