"""Snapshots of fcc copper with a vacancy: 31 periodic atoms, ASE's EMT, 900 K, exact.

Hybrid Monte Carlo (Duane et al., Phys. Lett. B 195, 216 (1987)): new velocities, a short
trajectory of velocity Verlet, accepted with probability min(1, exp(-ΔH/kT)). There is no
error of the time step. The vacancy hops some times in a thousand frames.

    python benchmarks/make_copper.py -o copper.npz           # 7 minutes on one core
"""

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from shared import parsed, save_snapshots, snapshot_options

TEMPERATURE_K, LATTICE = 900.0, 3.68  # Å, near zero pressure at 900 K
TIMESTEP = 9 * units.fs


def crystal(repeat=2, vacancies=1, lattice=LATTICE):
    """Cubic fcc copper with its first atoms missing."""
    atoms = bulk("Cu", "fcc", a=lattice, cubic=True).repeat(repeat)
    del atoms[list(range(vacancies))]
    return atoms


def hopper(atoms):
    """Index of the atom at (0, a/2, a/2), which can hop into the vacancy at the origin."""
    return int(np.linalg.norm(atoms.positions - [0, LATTICE / 2, LATTICE / 2], axis=1).argmin())


def trajectory(atoms, steps, kT, rng, timestep=TIMESTEP):
    """One move of hybrid Monte Carlo in place; whether it was accepted."""
    masses = atoms.get_masses()[:, None]
    x0, forces = atoms.positions.copy(), atoms.get_forces()
    velocity = rng.normal(size=x0.shape) * np.sqrt(kT / masses)
    for held in atoms.constraints:
        held.adjust_momenta(atoms, velocity)
    before = atoms.get_potential_energy() + 0.5 * (masses * velocity**2).sum()
    for _ in range(steps):
        velocity += 0.5 * timestep * forces / masses
        atoms.positions += timestep * velocity
        forces = atoms.get_forces()
        velocity += 0.5 * timestep * forces / masses
    after = atoms.get_potential_energy() + 0.5 * (masses * velocity**2).sum()
    accepted = np.log(rng.uniform()) < (before - after) / kT
    if not accepted:
        atoms.positions = x0
    return accepted


def draw(frames, seed, *, atoms=None, temperature_K=TEMPERATURE_K, moves=2, burn_in=60):
    """Positions (M, N, 3) in Å, energies (M,) in eV, forces in eV/Å, acceptance."""
    atoms = crystal() if atoms is None else atoms
    atoms.calc = EMT()
    rng, kT = np.random.default_rng(seed), temperature_K * units.kB
    accepted, positions, energies, forces = [], [], [], []
    for n in range(-burn_in, frames):
        for _ in range(moves):
            # lengths vary: no mode can come back to where it was every time
            accepted.append(trajectory(atoms, rng.integers(6, 15), kT, rng))
        if n >= 0:
            positions.append(atoms.get_positions())
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
    return np.array(positions), np.array(energies), np.array(forces), np.mean(accepted)


def main():
    options = parsed(snapshot_options(__doc__, output="copper.npz", frames=6000))
    x, energies, forces, acceptance = draw(options.frames, options.seed)
    forces = forces.astype(np.float32)
    save_snapshots(options.output, crystal(), x, energies, forces, temperature_K=TEMPERATURE_K)
    print(f"{options.output}: {len(x)} frames, acceptance {acceptance:.3f}")


if __name__ == "__main__":
    main()
