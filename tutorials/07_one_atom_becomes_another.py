# %% [markdown]
# # 7. One atom becomes another: the free energy of a substitution
#
# A copper atom in an fcc cell of 32 becomes nickel, at 300 K and constant volume, with ASE's EMT on
# both sides. Masses cancel but for `(3/2) kT ln(m_A/m_B)`, and what is left is a difference of two
# potentials of the same positions: `U_λ = (1-λ) U_Cu + λ U_Ni`.

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
copper = bulk("Cu", cubic=True).repeat(2)
nickel = copper.copy()
nickel.symbols[0] = "Ni"

# %% [markdown]
# `diffmd alchemy emt emt cu.xyz --end-structure cuni.xyz --temperature 300` does what this function
# does. Positions mean the same in both structures: atoms keep their order, and what changes is the
# element of one.


# %%
def free_energy(protocol, **options):
    """ΔF in kT by one protocol, from a run of its own."""
    kernels = couple(EMT(), EMT(), copper, end_atoms=nickel, temperature_K=300.0)
    with tempfile.TemporaryDirectory() as folder:
        settings = AlchemySettings(
            start="emt",
            end="emt",
            structure="cu.xyz",
            end_structure="cuni.xyz",
            protocol=protocol,
            prefix=f"{folder}/cuni",
            first_pass=30,
            every=10,
            **options,
        )
        return alchemy(settings, kernels=kernels)


# %% [markdown]
# ## Two protocols
#
# Windows that exchange λ, judged by MBAR; and switches from either end to the other in 10 steps,
# whose works go into BAR. They share nothing but the law that they sample.

# %%
found = {
    "exchange": free_energy("exchange", walkers=1, steps=400, windows=2),
    "switching": free_energy("switching", walkers=1, steps=200, switch_steps=10, seed=1),
}
print("Cu → Ni, 300 K   ΔF/kT   error  evaluations  for 0.1 kT")
for name, result in found.items():
    count = result.numbers["evaluations_of_each_end"]
    each = result.numbers["evaluations_for_0.1_kT"]
    best = result.best
    print(f"{name:14} {best.value:8.3f} {best.error:7.3f}  {count:11d}  {each:10.0f}")
    for verdict in result.verdicts:
        print("   ", "✓" if verdict["good"] else "✗", verdict["text"])

# %% [markdown]
# ## How good?
#
# `benchmarks/alchemy_substitution.py` has 3.617 ± 0.014 kT from a run fifteen times longer, and
# gold by four protocols, with a cycle Cu → Au → Ni → Cu that closes to 0.05 kT.

# %%
one, other = (result.best for result in found.values())
z = (one.value - other.value) / np.hypot(one.error, other.error)
print(f"the protocols differ by {one.value - other.value:.3f} kT, z {z:.1f}")
assert abs(z) < 4 and max(one.error, other.error) < 0.1
assert all(abs(r.best.value - 3.617) < 4 * np.hypot(r.best.error, 0.014) for r in found.values())
