"""Cost of one step without any force: what the machinery itself costs.

    python benchmarks/step_overhead.py [--atoms 22] [--steps 1000] [--pairs 9] [--json]

Each contender is a function ``(atoms, steps) -> callable`` that prepares a run of
``steps`` steps of one structure with zero forces; only the call is timed. Contenders
alternate in one process (A B A B …) on one thread; the ratio is CPU time of ASE's
Langevin over that of the contender, from the same pair. Goals: ``run`` at least 10,
`ReverseDiffusion` at least 1.5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from shared import alternating, ase_langevin, parsed, ratios, timing_options, versions

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.io.json_text import to_json
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


def langevin(atoms: Atoms, steps: int) -> Callable[[], object]:
    """The peer: ``ase.md.langevin.Langevin`` without trajectory or log."""
    atoms = atoms.copy()
    atoms.calc = ZeroCalculator()
    dynamics = ase_langevin(atoms, TEMPERATURE_K, timestep=1.0 * units.fs, seed=0)
    return lambda: dynamics.run(steps)


def plain_run(atoms: Atoms, steps: int, batch: tuple[int, ...] = ()) -> Callable[[], object]:
    """`diffmd_ase.run`, every state yielded: one walker, or a batch of them."""
    kernel = EulerMaruyama(ZeroPotential(), kT=units.kB * TEMPERATURE_K, h=1e-5)
    x = torch.tensor(atoms.positions).expand(*batch, -1, -1)

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


# name: (contender, walkers, each of which counts); a new one is one more function and one more line
CONTENDERS = {
    "run": (plain_run, 1),
    "run, batch of 64": (partial(plain_run, batch=(64,)), 64),
    "ReverseDiffusion": (ase_reverse_diffusion, 1),
}


def measure(atoms: Atoms, steps: int, pairs: int) -> dict:
    """Times per walker-step (µs) and ratios to the peer, pair by pair."""
    calls = {"peer": langevin(atoms, steps)}
    calls |= {name: make(atoms, steps) for name, (make, _) in CONTENDERS.items()}
    times = alternating(calls, pairs)
    peer, rows = times.pop("peer") / steps, {}
    for name, seconds in times.items():
        own = seconds / (steps * CONTENDERS[name][1])
        median, limits = ratios(peer, own)
        rows[name] = {
            "us_per_step": 1e6 * own.min(),
            "ratio_of_minima": peer.min() / own.min(),
            "ratio_median": median,
            "ratio_range": limits,
        }
    return {"peer_us_per_step": 1e6 * peer.min(), "contenders": rows}


def main() -> None:
    parser = timing_options(__doc__, steps=1000, pairs=9)
    parser.add_argument("--atoms", type=int, default=22)
    options = parsed(parser)
    atoms = Atoms(["C"] * options.atoms, positions=np.zeros((options.atoms, 3)))
    result = {
        "versions": versions(),
        "atoms": options.atoms,
        "dtype": "float64",
        "threads": 1,
        **measure(atoms, options.steps, options.pairs),
    }
    if options.json:
        print(to_json(result))
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
