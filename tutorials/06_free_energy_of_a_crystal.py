# %% [markdown]
# # 6. The absolute free energy of a crystal, with any ASE calculator
#
# Frenkel and Ladd: an Einstein crystal, whose atoms are bound to their sites by springs, has a
# free energy in closed form, and a coupling leads from there to the crystal itself. Here it is fcc
# copper with EMT, 32 atoms at 900 K. It is checked by another route, from the harmonic crystal at
# 0 K up the temperatures.

# %%
import tempfile

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import kB

from diffmd_ase import Noise, System, run
from diffmd_ase.analysis.alchemy.einstein import harmonic_log_z
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.simulation.alchemy.course import alchemy
from diffmd_ase.simulation.alchemy.end_states import couple
from diffmd_ase.simulation.alchemy.settings import AlchemySettings
from diffmd_ase.simulation.prepare import prepare

torch.set_num_threads(1)
HOT = 900.0
crystal = bulk("Cu", cubic=True).repeat(2)
N, volume = len(crystal), crystal.get_volume()

# %% [markdown]
# ## From the Einstein crystal
#
# `diffmd alchemy einstein emt cu.xyz --temperature 900` does the same. The springs are about as
# stiff as the crystal; the centre of mass is held, and let go in closed form at the end.

# %%
kernels = couple("einstein", EMT(), crystal, temperature_K=HOT, start_options={"k": 3.0})
with tempfile.TemporaryDirectory() as folder:
    settings = AlchemySettings(
        start="einstein",
        end="emt",
        structure="copper",
        temperature=HOT,
        prefix=f"{folder}/cu",
        walkers=1,
        windows=6,
        steps=200,
        every=4,
        first_pass=40,
    )
    result = alchemy(settings, kernels=kernels)
ladd, error = result.numbers["F_configurational_eV_per_atom"], result.numbers["F_error_eV_per_atom"]
print(f"F(Frenkel-Ladd) = {ladd:.5f} ± {error:.5f} eV per atom without momenta")
print(f"                  {result.numbers['F_eV_per_atom']:.5f} with them")

# %% [markdown]
# ## Another route: the harmonic crystal, and what is anharmonic
#
# At low temperature `F = U_0 - kT ln Z_harmonic`. The rest follows from the mean energy,
#
#     F_anh/T = -∫_0^T (⟨U⟩ - U_0 - (3N-3) kT/2) / T'² dT'
#
# whose integrand is smooth and finite at 0 K. Metropolis steps make the averages exact.

# %%
crystal.calc = EMT()
lowest = crystal.get_potential_energy()
hessian = np.zeros((3 * N, 3 * N))
for i in range(3):  # all atoms are alike: displace the first, and shift
    for sign in (1, -1):
        moved = crystal.copy()
        moved.calc = EMT()
        moved.positions[0, i] += sign * 0.01
        hessian[i] -= sign * moved.get_forces().ravel() / 0.02
sites = crystal.get_scaled_positions()
for a in range(1, N):
    shift = (sites + sites[a] - sites[0]) % 1.0
    near = np.abs((shift[:, None] - sites[None] + 0.5) % 1.0 - 0.5).sum(-1).argmin(-1)
    for i in range(3):
        hessian[3 * a + i, (3 * near[:, None] + np.arange(3)).ravel()] = hessian[i]
kappa = np.linalg.eigvalsh(0.5 * (hessian + hessian.T))
harmonic = lowest - kB * HOT * harmonic_log_z(kappa, kB * HOT, N)

temperatures = np.array([300.0, 600.0, 900.0])
potential = AsePotential(EMT(), System.from_atoms(crystal))
x = torch.tensor(crystal.positions).unsqueeze(0)
excess, spread = [], []
for kelvin in temperatures:
    prepared = prepare(potential, temperature_K=kelvin, target="model", x=x, mean_free=True)
    kernel = prepared.scaled(3.0).kernel
    chain = [s for s, _ in run(kernel, x, 600, noise=Noise(int(kelvin)), every=1)]
    energies = np.array([float(s.energy) for s in chain[100:]])
    blocks = energies.reshape(10, -1).mean(1)
    excess.append(blocks.mean() - lowest - 1.5 * (N - 1) * kB * kelvin)
    spread.append(blocks.std(ddof=1) / np.sqrt(10))
    x = chain[-1].x
# excess = a T² + b T³: two numbers, weighted by how well each mean is known
powers = np.stack((temperatures**2, temperatures**3), 1) / np.array(spread)[:, None]
(a, b), *_ = np.linalg.lstsq(powers, np.array(excess) / spread, rcond=None)
covariance = np.linalg.inv(powers.T @ powers)
gradient = -np.array([HOT**2, HOT**3 / 2])
anharmonic = float(gradient @ (a, b))
anharmonic_error = float(np.sqrt(gradient @ covariance @ gradient))
other = (harmonic + anharmonic - kB * HOT * np.log(volume / N)) / N
print(f"F(other route)  = {other:.5f} ± {anharmonic_error / N:.5f} eV per atom")
print(f"                  of it anharmonic {1000 * anharmonic / N:.2f} meV")
difference = 1000 * (ladd - other)
print(f"difference {difference:.2f} meV per atom")
assert abs(difference) < 2.0
