"""Morse bonds of copper in a periodic box, drawn exactly, out of reach of each other."""

import numpy as np
from ase import Atoms

from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System
from diffmd_ase.units import kT_from_temperature

SIGMA = 0.004  # Å, the noise of what is fitted to them
DEPTH, WIDTH, REST = 2.0, 1.2, 2.5  # eV, 1/Å, Å


def morse(r):
    return DEPTH * (1 - np.exp(-WIDTH * (r - REST))) ** 2


def pull(r):
    """Minus its slope, eV/Å."""
    fade = np.exp(-WIDTH * (r - REST))
    return -2 * DEPTH * WIDTH * (1 - fade) * fade


def dimers(kelvin, frames, pairs=1, seed=0):
    """Exact draws of bonds in a periodic box, out of reach of each other, and their system."""
    rng, r = np.random.default_rng([seed, pairs, int(kelvin)]), np.linspace(1.7, 4.5, 20_001)
    law = np.cumsum(r**2 * np.exp(-morse(r) / kT_from_temperature(kelvin)))
    length = np.interp(rng.uniform(size=(frames, pairs)), law / law[-1], r)
    u = rng.normal(size=(frames, pairs, 3))
    arm = 0.5 * length[..., None] * u / np.linalg.norm(u, axis=-1, keepdims=True)
    middle = np.array([10.0, 10, 10]) + 20 * np.arange(pairs)[:, None] * [1, 0, 0]
    x = np.stack([middle + arm, middle - arm], axis=2).reshape(frames, 2 * pairs, 3)
    atoms = Atoms(f"Cu{2 * pairs}", cell=[20 * pairs, 20, 20], pbc=True)
    return Snapshots(System.from_atoms(atoms), x, kelvin, source=f"{pairs}x{kelvin:g}K")
