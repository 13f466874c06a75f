"""Cu → Au in a cell of 32 atoms (EMT) by several protocols, and a cycle that must close.

    python benchmarks/alchemy_substitution.py [--prefix FOLDER] [--steps 4000] [--seed 0]

One copper atom of the fcc cell becomes gold at 300 K and constant volume. ΔF is estimated by
exchange of λ between windows, by walkers that change λ themselves, by switches in both directions
and by annealing, each from runs of its own; they must agree, |z| < 4 at 0.1 kT or less. The cycle
Cu → Au → Ni → Cu of three such legs must close. Files stay in FOLDER, and a second call goes on
from them. Printed beside each are the evaluations of EMT (that of `batched_emt.py`, whose numbers
are ASE's), and how many an error of 0.1 kT takes.
"""

from __future__ import annotations

import argparse
import sys
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


def leg(start: str, end: str, protocol: str, options, **more) -> AlchemyResult:
    """ΔF from one element at the place to another."""
    prefix = Path(options.prefix) / f"{start}{end}-{protocol}"
    asked = {"walkers": options.walkers, "steps": options.steps, "seed": options.seed} | more
    settings = AlchemySettings(
        start=start,
        end=end,
        structure=start,
        temperature=KELVIN,
        protocol=protocol,
        prefix=str(prefix),
        every=10,
        first_pass=200,
        **asked,
    )
    ends = cell(start), cell(end)
    kernels = couple(*map(BatchedEMT, ends), ends[0], end_atoms=ends[1], temperature_K=KELVIN)
    return alchemy(settings, kernels=kernels, restart=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", default="alchemy_substitution")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--walkers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Path(options.prefix).mkdir(exist_ok=True)
    found: dict[str, Estimate] = {}
    print("Cu → Au            ΔF/kT   error   evaluations   for 0.1 kT")
    for protocol in ("exchange", "expanded", "switching", "smc"):
        more = (
            {"switch_steps": 40, "walkers": 4, "steps": options.steps // 4}
            if protocol in ("switching", "smc")
            else {}
        )
        result = leg("Cu", "Au", protocol, options, **more)
        found[protocol] = result.best
        count = result.numbers["evaluations_of_each_end"]
        each = result.numbers["evaluations_for_0.1_kT"]
        print(
            f"{protocol:15} {result.best.value:8.3f}  {result.best.error:6.3f} "
            f"{count:12d} {each:12.0f}",
            flush=True,
        )
    mean = np.average(
        [one.value for one in found.values()], weights=[one.error**-2 for one in found.values()]
    )
    z = {name: (one.value - mean) / one.error for name, one in found.items()}
    print("z from their mean:", ", ".join(f"{name} {value:.1f}" for name, value in z.items()))
    legs = [found["exchange"]]
    legs += [leg(*pair, "exchange", options).best for pair in (("Au", "Ni"), ("Ni", "Cu"))]
    total, closing, verdict = closure(legs)
    print(f"Cu → Au → Ni → Cu: {verdict['text']} kT")
    fine = all(abs(v) < 4 for v in z.values()) and abs(closing) < 4
    good = sum(one.error <= 0.1 for one in found.values())
    return 0 if fine and good >= 3 and total.error <= 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
