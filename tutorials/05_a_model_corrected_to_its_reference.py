# %% [markdown]
# # 5. From a learned model to its reference: ΔF, and averages that are the reference's
#
# The shipped model of alanine dipeptide was learned from snapshots of the force field amber14. How
# far is it from that, in free energy, and what are its averages once they are corrected? Both ends
# have an energy, E (learned) and U (amber14, by OpenMM), so that the coupling
# `(1-λ) E + λ U` needs only the gap `U - E` on samples of both.

# %%
import numpy as np
import torch
from diffmd_openmm import PHI, OpenMMPotential, alanine_dipeptide

from diffmd_ase import Alchemical, EulerMaruyama, Metropolis, Noise, ScoreModel, Snapshots, run
from diffmd_ase.analysis.alchemy.estimates import estimate
from diffmd_ase.analysis.alchemy.samples import CoupledSamples
from diffmd_ase.geometry import dihedrals
from diffmd_ase.independent.weights import Weighted
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.score.topology import Topology

torch.set_num_threads(1)
snapshots = Snapshots.read("alanine-dipeptide")
model = ScoreModel.load("alanine-dipeptide")
kT = model.card.kT
learned = model.potential(snapshots.system, device="cpu")
amber = OpenMMPotential(snapshots.system, alanine_dipeptide()[1])
coupling = Alchemical(learned, amber, 0.0)

# %% [markdown]
# ## Samples of the model
#
# Metropolis steps with the model's own energy, every third one a rotation about φ and ψ, which
# carries walkers over the barrier between the basins of φ.

# %%
WALKERS, STEPS, EVERY = 64, 3000, 60
topology = Topology.from_positions(snapshots.system.numbers, snapshots.positions[::50])
backbone = [n for n, axis in enumerate(topology.rotors.tolist()) if set(axis) in ({6, 8}, {8, 14})]
rotation = TorsionRotation(
    learned, kT, topology.rotors[backbone], topology.moved[backbone], mean_free=True
)
local = Metropolis(EulerMaruyama(learned, kT=kT, h=1e-4, mean_free=True))
kernel = Mixture([local, rotation], [2, 1])
start = torch.tensor(snapshots.positions[:: len(snapshots) // WALKERS][:WALKERS]).double()
chain = [state.x for state, _ in run(kernel, start, STEPS, noise=Noise(1), every=EVERY)]
of_model = torch.stack(chain[len(chain) // 5 :])  # (T, B, N, 3)

# %% [markdown]
# ## Both directions
#
# The snapshots are samples of amber14. One direction alone estimates ΔF by an exponential average
# (Zwanzig), both together by BAR and MBAR.

# %%
shape = of_model.shape[:2]
chosen = np.linspace(0, len(snapshots) - 1, shape[0] * shape[1]).astype(int)
of_amber = torch.tensor(snapshots.positions[chosen]).double().reshape(*shape, -1, 3)
energies = [coupling.ends(x) for x in (of_model, of_amber)]
E, U = (torch.cat([pair[end] for pair in energies], 1).numpy() for end in (0, 1))
lam = np.repeat([0.0, 1.0], WALKERS)[None].repeat(shape[0], 0)
result = estimate(CoupledSamples(E, U, lam, kT))

gap = (U - E) / kT
forward = -np.log(np.mean(np.exp(-(gap[:, :WALKERS] - result.best.value)))) + result.best.value
backward = np.log(np.mean(np.exp(gap[:, WALKERS:] - result.best.value))) + result.best.value
print(f"ΔF(model → amber14)  {result.best} kT (MBAR)")
print(f"from the model {forward:.3f}, from amber14 {backward:.3f} kT")
print(
    f"the gap varies by {gap[:, WALKERS:].std():.2f} kT; overlap {result.neighbour_overlap[0]:.2f}"
)
for verdict in result.verdicts:
    print("✓" if verdict["good"] else "✗", verdict["text"])
assert abs(forward - backward) < 0.1 and result.best.error < 0.02

# %% [markdown]
# ## Averages of the reference, from samples of the model
#
# Weights `exp(-(U - E)/kT)` turn averages of the model into those of amber14. Walkers are
# independent, so that they give the error.

# %%
positive = (dihedrals(of_model, np.array([PHI]))[..., 0] > 0).double()
log_w = -torch.tensor(gap[:, :WALKERS])
walker_first = [v.T.reshape(-1) for v in (log_w, positive)]
weighted = Weighted(torch.zeros(len(walker_first[0]), 1), walker_first[0], groups=WALKERS)
population, error = (float(v) for v in weighted.mean(walker_first[1]))
plain = float(positive.mean())
print(f"φ > 0: model {plain:.4f}, reweighted {population:.4f} ± {error:.4f}")
print("       amber14 with a flattening bias, six times 3 ns: 0.0318 ± 0.0019")
z = (population - 0.0318) / np.hypot(error, 0.0019)
print(f"z = {z:.1f}; the weights are worth {weighted.ess:.0%} of the samples")
assert abs(z) < 4 and error < 0.01
