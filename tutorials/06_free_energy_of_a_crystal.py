# %% [markdown]
# # 6. The absolute free energy of a crystal, with any ASE calculator
#
# Frenkel and Ladd: an Einstein crystal, whose atoms are bound to their sites by equal springs, has
# a free energy in closed form, and a coupling leads from there to the crystal itself. Here it is
# fcc copper with EMT, 32 atoms at 300 and 900 K. The other route begins at the harmonic crystal,
# whose free energy is in closed form as well: what the coupling adds is the anharmonic part.

# %%
import tempfile

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from diffmd_ase.simulation.alchemy.course import alchemy
from diffmd_ase.simulation.alchemy.end_states import couple
from diffmd_ase.simulation.alchemy.settings import AlchemySettings

torch.set_num_threads(1)
crystal = bulk("Cu", cubic=True).repeat(2)

# %% [markdown]
# `diffmd alchemy einstein emt cu.xyz --temperature 900` does what this function does. Windows
# between the ideal crystal and EMT exchange λ; their Metropolis steps have no error of a step size.


# %%
def absolute(ideal, kelvin, steps):
    """Numbers of the coupling from an ``ideal`` crystal to EMT."""
    kernels = couple(ideal, EMT(), crystal, temperature_K=kelvin)
    with tempfile.TemporaryDirectory() as folder:
        settings = AlchemySettings(
            start=ideal,
            end="emt",
            structure="cu.xyz",
            temperature=kelvin,
            prefix=f"{folder}/cu",
            walkers=1,
            steps=steps,
            every=10,
            first_pass=60,
        )
        return alchemy(settings, kernels=kernels).numbers


# %% [markdown]
# ## The centre of mass, and what is left of the size
#
# Springs would hold the whole crystal, which is free to move: the centre is held in all windows,
# and let go by `-kT ln(V/n)`, where n of its shifts put copper on copper (`lattice_shifts`, all
# 32). Both routes have it, so that they agree for 32 atoms; a larger crystal differs by its long
# waves. `benchmarks/crystal_free_energy.py` prints how much, and runs eight times longer: there the
# routes are 0.03 ± 0.10 meV per atom apart at 300 K, and 0.12 ± 0.37 at 900 K.

# %%
for kelvin, many, few in ((300.0, 200, 200), (900.0, 450, 300)):
    ladd, other = absolute("einstein", kelvin, many), absolute("harmonic", kelvin, few)
    print(f"{kelvin:.0f} K, eV per atom           F   error  evaluations  for 0.1 kT")
    for name, found in (("Frenkel-Ladd", ladd), ("harmonic + anharmonic", other)):
        F, error = found["F_configurational_eV_per_atom"], found["F_error_eV_per_atom"]
        calls = found["evaluations_of_each_end"], found["evaluations_for_0.1_kT"]
        print(f"{name:23} {F:9.5f} {error:7.5f}  {calls[0]:11d}  {calls[1]:10.0f}")
    name = "F_configurational_eV_per_atom"
    difference = 1000 * (ladd[name] - other[name])
    error = 1000 * np.hypot(ladd["F_error_eV_per_atom"], other["F_error_eV_per_atom"])
    centre = 1000 * ladd["centre_of_mass_eV_per_atom"]
    print(f"with momenta {ladd['F_eV_per_atom']:.4f}; of it the centre of mass {centre:.2f} meV")
    print(f"difference {difference:.2f} ± {error:.2f} meV per atom")
    assert abs(difference) < 4 * error and error < 2.0 and ladd["lattice_shifts"] == len(crystal)
