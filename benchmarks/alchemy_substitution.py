"""Cu → Au in a cell of 32 atoms (EMT) by several protocols, and a cycle that must close.

    python benchmarks/alchemy_substitution.py [--prefix FOLDER] [--effort 1] [--seed 0]

One copper atom of the fcc cell becomes gold at 300 K and constant volume. ΔF is estimated by
exchange of λ between windows, by walkers that change λ themselves, by switches in both directions
and by annealing, each from runs of its own; they must agree, |z| < 4 at 0.1 kT or less. The cycle
Cu → Au → Ni → Cu of three such legs must close, |z| < 4 at 0.05 kT or less. Files stay in FOLDER,
and a second call goes on from them. Printed beside each are the evaluations of EMT (that of
`batched_emt.py`, whose numbers are ASE's), and how many an error of 0.1 kT takes. About ten minutes
of one core.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from batched_emt import BatchedEMT

from diffmd_ase.analysis.alchemy.estimates import closure
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.simulation.alchemy.course import AlchemyResult, alchemy
from diffmd_ase.simulation.alchemy.end_states import couple
from diffmd_ase.simulation.alchemy.settings import AlchemySettings

KELVIN = 300.0


def cell(symbol: str) -> Atoms:
    """31 copper atoms and one of ``symbol``."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.symbols[0] = symbol
    return atoms


# walkers and steps of each protocol, for errors of some 0.03 (exchange), 0.07 and 0.09 kT
RUNS = {
    "exchange": {"walkers": 8, "steps": 4000},
    "expanded": {"walkers": 8, "steps": 1600},
    "switching": {"walkers": 12, "steps": 1000, "switch_steps": 40},
    "smc": {"walkers": 16, "steps": 1000, "switch_steps": 40},
}
SHORT = {"walkers": 8, "steps": 600}  # copper and nickel are alike


def leg(start: str, end: str, protocol: str, options, run: dict[str, int]) -> AlchemyResult:
    """ΔF from one element at the place to another."""
    settings = AlchemySettings(
        start=start,
        end=end,
        structure=start,
        temperature=KELVIN,
        protocol=protocol,
        prefix=str(Path(options.prefix) / f"{start}{end}-{protocol}"),
        every=10,
        first_pass=200,
        seed=options.seed,
        **(run | {"steps": round(run["steps"] * options.effort)}),
    )
    ends = cell(start), cell(end)
    kernels = couple(*map(BatchedEMT, ends), ends[0], end_atoms=ends[1], temperature_K=KELVIN)
    return alchemy(settings, kernels=kernels, restart=True)


def row(name: str, result: AlchemyResult) -> None:
    """One line of the table."""
    count, each = (
        result.numbers[key] for key in ("evaluations_of_each_end", "evaluations_for_0.1_kT")
    )
    best = result.best
    print(f"{name:19} {best.value:8.3f}  {best.error:6.3f} {count:12d} {each:12.0f}", flush=True)
    for verdict in result.verdicts:
        if verdict["good"] is False:
            print("    ✗", verdict["text"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", default="alchemy_substitution")
    parser.add_argument("--effort", type=float, default=1.0, help="times the steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Path(options.prefix).mkdir(exist_ok=True)
    found: dict[str, Estimate] = {}
    print("300 K               ΔF/kT   error   evaluations   for 0.1 kT")
    for protocol, run in RUNS.items():
        result = leg("Cu", "Au", protocol, options, run)
        row(f"Cu → Au, {protocol}", result)
        found[protocol] = result.best
    worst = 0.0
    for one, other in combinations(found, 2):
        a, b = found[one], found[other]
        z = (a.value - b.value) / float(np.hypot(a.error, b.error))
        worst = max(worst, abs(z))
        print(f"{one} and {other} differ by {a.value - b.value:.3f} kT, z {z:.1f}")
    legs = [found["exchange"]]
    for start, end, run in (("Au", "Ni", RUNS["exchange"]), ("Ni", "Cu", SHORT)):
        result = leg(start, end, "exchange", options, run)
        row(f"{start} → {end}, exchange", result)
        legs.append(result.best)
    total, closing, verdict = closure(legs)
    print(f"Cu → Au → Ni → Cu: {verdict['text']} kT")
    good = sum(one.error <= 0.1 for one in found.values())
    fine = worst < 4 and abs(closing) < 4 and good >= 3 and total.error <= 0.05
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
