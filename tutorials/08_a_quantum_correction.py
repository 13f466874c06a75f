# %% [markdown]
# # 8. From a force field to quantum chemistry, which is asked rarely
#
# The free energy from amber14 to GFN2-xTB for alanine dipeptide in vacuum, `pip install tblite`.
# xTB takes a hundred times longer than a force field, so it is asked some 700 times: the long way
# is gone with a *stepping stone*, amber14 and what a closed form learns of xTB's energies and
# forces. The same with windows, three stones and both directions is `benchmarks/alchemy_xtb.py`.

# %%
from dataclasses import replace

import numpy as np
import torch
from ase.units import kB
from diffmd_openmm import OpenMMPotential, alanine_dipeptide
from tblite.ase import TBLite

from diffmd_ase import EulerMaruyama, Metropolis, Noise, Snapshots, run
from diffmd_ase.analysis.alchemy.estimates import estimate
from diffmd_ase.analysis.alchemy.samples import CoupledSamples
from diffmd_ase.geometry import dihedrals
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.score.baseline import BaselineValues
from diffmd_ase.score.label_fit import fit_labels
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork
from diffmd_ase.state import Evaluation

torch.set_num_threads(1)
kT = 300 * kB
snapshots = Snapshots.read("alanine-dipeptide")  # samples of amber14
amber = OpenMMPotential(snapshots.system, alanine_dipeptide()[1])
xtb = AsePotential(TBLite(method="GFN2-xTB", verbosity=0), snapshots.system, failures="reject")

# both amides trans, at both ends
AMIDES = np.array([[0, 4, 6, 8], [8, 14, 16, 18]])
trans = (np.abs(dihedrals(snapshots.positions, AMIDES)) > np.pi / 2).all(-1)
kept = np.random.default_rng(1).permutation(np.flatnonzero(trans))
of_amber = torch.as_tensor(snapshots.positions[kept[:4000]]).double()

# %% [markdown]
# ## The stone
#
# 250 snapshots get energies and forces of both; `fit_labels` finds what is to be added to amber14.

# %%
labelled = of_amber[:250]
high, low = xtb(labelled), amber(labelled)
none = np.zeros(0)
below = BaselineValues(low.energy.numpy(), low.forces.numpy(), none, none, none, none.astype(int))
labels = replace(
    snapshots,
    positions=labelled.numpy(),
    energies=high.energy.numpy(),
    forces=high.forces.numpy(),
    baseline=below,
    checked=True,
).with_structure(snapshots.topology, snapshots.moving)
network = MechanicsNetwork(MechanicsConfig(depth=0), {}, fit_labels(labels)).double()


class Correction(Potential):
    """The network, which is in kT."""

    system = snapshots.system

    def __call__(self, x, *, stress=False):
        x = x.detach().double().requires_grad_()
        with torch.enable_grad():
            energy = kT * network(x.reshape(-1, *x.shape[-2:]), x.new_zeros(x.shape[:-2].numel()))
            forces = -torch.autograd.grad(energy.sum(), x)[0]
        return Evaluation(energy.detach().reshape(x.shape[:-2]), forces)


stone = amber + Correction()

# %% [markdown]
# ## amber14 → stone, without xTB
#
# Samples of the stone: Metropolis steps and rotations about all bonds but the amides.

# %%
top = snapshots.topology
free = [n for n, axis in enumerate(top.rotors) if set(axis.tolist()) not in ({4, 6}, {14, 16})]
local = Metropolis(EulerMaruyama(stone, kT=kT, h=1.5e-4, mean_free=True))
rotors, moved = torch.as_tensor(top.rotors[free]), torch.as_tensor(top.moved[free])
small = TorsionRotation(stone, kT, rotors, moved, size=0.4, mean_free=True)
large = TorsionRotation(stone, kT, rotors, moved, mean_free=True)
kernel = Mixture((local, small, large), (0.7, 0.15, 0.15))
chain = [s.x for s, _ in run(kernel, of_amber[-64:], 3000, noise=Noise(1), every=50)]
of_stone = torch.stack(chain[10:])  # (T, 64, N, 3)


def leg(first, second):
    """ΔF in kT of gaps (T, B) on samples of both ends, by BAR and MBAR."""
    length = min(len(first), len(second))
    rows = [np.linspace(0, len(g) - 1, length).astype(int) for g in (first, second)]
    gaps = np.concatenate([g[r] for g, r in zip((first, second), rows, strict=True)], 1)
    lam = np.repeat([0.0, 1.0], [first.shape[1], second.shape[1]])[None].repeat(length, 0)
    return estimate(CoupledSamples(np.zeros_like(gaps), gaps, lam, kT), skip=0.0).best


def gaps(of, above, below):
    return (above(of).energy - below(of).energy).numpy()


to_stone = leg(gaps(of_amber.reshape(50, 80, -1, 3), stone, amber), gaps(of_stone, stone, amber))

# %% [markdown]
# ## stone → xTB
#
# 160 samples of the stone are asked of xTB. Samples of xTB come by delayed acceptance: a hundred
# steps on the stone are one proposal, for one call. They begin at samples of the stone, drawn by
# their weights.

# %%
some = of_stone[:: len(of_stone) // 5][:5, ::2]
up = gaps(some, xtb, stone)
weights = np.exp(-(up - up.min()) / kT).ravel()
drawn = np.random.default_rng(0).choice(up.size, 32, p=weights / weights.sum())
delayed = DelayedAcceptance(kernel, xtb, 100)
told = list(run(delayed, some.flatten(0, 1)[drawn], 8, noise=Noise(2)))
down = torch.stack([s.energy - stone(s.x).energy for s, _ in told[1:]]).numpy()
taken = float(torch.stack([i.accepted.double() for _, i in told]).mean())
to_xtb = leg(up, down)

upwards = -np.log(np.mean(np.exp(-(up - up.mean()) / kT))) + up.mean() / kT
downwards = np.log(np.mean(np.exp((down - down.mean()) / kT))) + down.mean() / kT
value = to_stone.value + to_xtb.value
error = np.hypot(to_stone.error, to_xtb.error)
print(f"xTB - stone varies by {up.std() / kT:.2f} kT; {taken:.2f} of the proposals are taken")
print(f"amber14 → stone {to_stone.value:.2f} ± {to_stone.error:.2f} kT")
print(f"stone → xTB {to_xtb.value:.2f} ± {to_xtb.error:.2f} kT")
print(f"upwards {upwards:.2f}, downwards {downwards:.2f} kT")
print(f"amber14 → GFN2-xTB {value:.2f} ± {error:.2f} kT")
# three runs of the benchmark: -34675.5, -34675.5 and -34675.8, each ± 0.1
assert abs(value + 34675.6) < 1.0
assert abs(upwards - downwards) < 1.0
