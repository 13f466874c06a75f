"""Snapshots of liquid argon: 64 periodic Lennard-Jones atoms at 100 K, exact.

ε = 0.0104 eV, σ = 3.40 Å, cut off at 7.2 Å and shifted; density 0.8/σ³, so 0.83 ε/k_B near the
triple point. 32 walkers melt from a cubic lattice and move by `HamiltonianMonteCarlo`: there is no
error of the time step. Two frames of a walker are five trajectories of 20 steps apart.

    python benchmarks/make_argon.py -o argon.npz             # four minutes of one core
    diffmd train argon.npz -o argon.safetensors
    diffmd validate argon.safetensors argon.npz --reference lj --reference-options \\
        '{"epsilon": 0.0104, "sigma": 3.4, "rc": 7.2, "smooth": false}'
"""

import numpy as np
import torch
from ase import Atoms, units
from shared import chain, parsed, save_snapshots, snapshot_options

from diffmd_ase import Noise, System
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo

TEMPERATURE_K, DENSITY, SIDE = 100.0, 0.8, 4  # K, 1/σ³, atoms along an edge
EPSILON, SIGMA, CUTOFF = 0.0104, 3.40, 7.2  # eV, Å, Å: less than half the cell
WALKERS, MOVES, BURN_IN = 32, 5, 300


def liquid() -> Atoms:
    """Argon on a simple cubic lattice, which melts."""
    spacing = SIGMA * DENSITY ** (-1 / 3)
    places = spacing * np.stack(np.meshgrid(*[np.arange(SIDE)] * 3), -1).reshape(-1, 3)
    return Atoms(f"Ar{SIDE**3}", places, cell=[SIDE * spacing] * 3, pbc=True)


def main():
    options = parsed(snapshot_options(__doc__, output="argon.npz", frames=4000))
    atoms = liquid()
    potential = LennardJones(System.from_atoms(atoms), epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF)
    kernel = HamiltonianMonteCarlo(
        potential, kT=TEMPERATURE_K * units.kB, timestep=12 * units.fs, n_leapfrog=20
    )
    start = torch.as_tensor(atoms.positions).expand(WALKERS, -1, -1)
    rounds, noise = -(-options.frames // WALKERS), Noise(options.seed)
    steps, first = BURN_IN + MOVES * rounds, BURN_IN // MOVES
    states, accepted = chain(kernel, start, steps, noise=noise, every=MOVES)
    states, accepted = states[first:], accepted[first:]
    # an order of its own: neighbours in the file are no neighbours in time
    order = np.random.default_rng(options.seed).permutation(rounds * WALKERS)[: options.frames]
    save_snapshots(
        options.output,
        atoms,
        torch.cat([state.x for state in states]).numpy()[order],
        torch.cat([state.energy for state in states]).numpy()[order],
        torch.cat([state.forces for state in states]).numpy()[order].astype(np.float32),
        temperature_K=TEMPERATURE_K,
    )
    print(f"{options.output}: {options.frames} frames, acceptance {accepted.mean():.3f}")


if __name__ == "__main__":
    main()
