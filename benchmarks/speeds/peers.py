"""Walkers of ours, compiled, against ASE's Langevin with the same network as it is written.

    python benchmarks/speeds/peers.py [--pairs 5] [--json]

The peer is ``ase.md.langevin.Langevin`` with `ScoreCalculator` of the network as written, for one
walker; 64 of them, one after the other, take 64 times as long. A step of either is one evaluation.
"""

from __future__ import annotations

import torch
from ase import units
from row import NAME, Row, equivariant, frames, in_turn, printed
from shared import ase_langevin

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel

STEPS = 20


def peer(model, kelvin: float):
    atoms = model.system.to_atoms(frames(1)[0].double().numpy())
    atoms.calc = ScoreCalculator(model, device="cpu", compile=False)
    dynamics = ase_langevin(atoms, kelvin, timestep=0.1 * units.fs, seed=0)
    return lambda: dynamics.run(STEPS)


def ours(model, walkers: int):
    potential = model.potential(device="cpu", compile=True)
    kernel = EulerMaruyama(potential, kT=model.card.kT, h=2e-5, mean_free=True)
    state, noise = kernel.init(frames(walkers)), Noise(1)

    def go() -> None:
        nonlocal state
        for new, _ in run(kernel, state, STEPS, noise=noise, every=STEPS):
            state = new

    return go


def in_ase(model, kelvin: float):
    atoms = model.system.to_atoms(frames(1)[0].double().numpy())
    atoms.calc = ScoreCalculator(model, device="cpu", compile=True)
    dynamics = ReverseDiffusion(atoms, temperature_K=kelvin, spring=2.5e4, rng=1)
    return lambda: dynamics.run(STEPS)


def rows(options) -> list[Row]:
    model, found = ScoreModel.load(NAME), []
    kelvin = model.card.temperature_K
    timing = {"rounds": options.pairs, "each": STEPS, "unit": "a step"}
    slow = peer(model, kelvin)
    what = "1 walker, 22 atoms: ASE's Langevin over `run`"
    found.append(in_turn(what, slow, ours(model, 1), goal=10.0, **timing))
    what = "1 walker, 22 atoms: ASE's Langevin over `ReverseDiffusion`"
    found.append(in_turn(what, slow, in_ase(model, kelvin), goal=None, **timing))
    what = "64 walkers, 22 atoms: ASE's Langevin over `run`"
    found.append(in_turn(what, slow, ours(model, 64), goal=60.0, scale=64, **timing))
    with torch.random.fork_rng():
        network = equivariant()
    slow = peer(network, kelvin)
    what = "64 walkers, e3nn network: ASE's Langevin over `run`"
    found.append(in_turn(what, slow, ours(network, 64), goal=5.0, scale=64, **timing))
    return found


if __name__ == "__main__":
    printed(__doc__, rows)
