# %% [markdown]
# # 2. Drive any ASE calculator: copper at 300 K
#
# `ReverseDiffusion` is an ASE dynamics class. It takes the forces of whatever calculator is
# on the atoms (EMT here; a learned score, MACE, xTB or DFT in the same way) and makes
# harmonic-coupled steps of them. There are no velocities; what the chain samples is
# `exp(-U/kT)`, and two numbers say whether it does: the configurational temperature of the
# log, and the mean potential energy.

# %%
import tempfile
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from diffmd_ase import ReverseDiffusion
from diffmd_ase.units import kT_from_temperature

temperature_K = 300.0
kT = kT_from_temperature(temperature_K)
atoms = bulk("Cu", cubic=True).repeat(2)  # 32 atoms, periodic
atoms.calc = EMT()
BFGS(atoms, logfile=None).run(fmax=1e-4)
lowest = atoms.get_potential_energy()

# %% [markdown]
# ## The step
#
# Given nothing, `ReverseDiffusion` measures the stiffness λ of the forces and takes
# h = 0.2/λ. Means over all modes want it smaller: a mode of stiffness λ_i is too wide by
# the factor 1/(1 - hλ_i/2). Here a quarter of the default, said as a spring, k = 1/(2h).

# %%
default = ReverseDiffusion(atoms, temperature_K=temperature_K).step_size
print(f"default step: h = {default.h:.3e} Å², {default.source}")
h = default.h / 4

# %% [markdown]
# ## The run

# %%
energies = []
with tempfile.TemporaryDirectory() as folder:
    log = Path(folder) / "cu.log"
    dyn = ReverseDiffusion(
        atoms,
        temperature_K=temperature_K,
        spring=1 / (2 * h),
        rng=1,
        logfile=str(log),
        loginterval=10,
    )
    dyn.run(1000)  # forget the perfect lattice
    dyn.attach(lambda: energies.append(atoms.get_potential_energy()), interval=10)
    dyn.run(5000)
    header, *lines = log.read_text().splitlines()
configurational = float(lines[-1].split()[header.split().index("Tconf[K]")])

# %% [markdown]
# ## Is it 300 K?
#
# In a classical harmonic crystal each of the 3(N - 1) vibrations holds kT/2 of potential
# energy (Dulong and Petit). Copper at 300 K is anharmonic by a few per cent.

# %%
vibrations = 3 * (len(atoms) - 1)
excess = (np.mean(energies) - lowest) / (vibrations * kT / 2)
print(f"configurational temperature  {configurational:.0f} K")
print(f"<U> - U_min                  {excess:.3f} x 3(N - 1) kT/2")
assert abs(configurational - temperature_K) < 0.05 * temperature_K
assert abs(excess - 1) < 0.06
