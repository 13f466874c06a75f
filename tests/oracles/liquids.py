"""A periodic solution: waters, and others, on a lattice."""

import numpy as np
from ase import Atoms
from ase.build import molecule

from diffmd_ase.score.networks.liquid import LiquidConfig

CONFIG = LiquidConfig(cutoff=4.0, functions=8)
KELVIN = 300.0


def solution(rng, *, waters=6, others=("CH3OH", "Na"), skew=0.0) -> Atoms:
    """Molecules on a lattice, each turned at random, in a cell that may be skew."""
    made = [molecule("H2O") for _ in range(waters)]
    made += [Atoms("Na") if name == "Na" else molecule(name) for name in others]
    side = int(np.ceil(len(made) ** (1 / 3)))
    places = 4.2 * np.stack(np.unravel_index(np.arange(len(made)), (side,) * 3), -1)
    cell = 4.2 * side * np.eye(3)
    cell[1, 0] = skew
    atoms = Atoms(cell=cell, pbc=True)
    for one, place in zip(made, places, strict=True):
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += place - one.positions.mean(0)
        atoms += one
    return atoms
