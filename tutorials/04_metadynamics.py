# %% [markdown]
# # 4. Metadynamics: from one basin to the free energy of both
#
# The basins of alanine dipeptide at φ < 0 and φ > 0 are 14 kT apart. Walkers that all start in
# one of them find the other with a bias that fills what was visited. It is built by PLUMED and by
# torch (`Metadynamics`), on an energy that was learned from snapshots, and the free energy is
# compared with the snapshots. PLUMED comes with `pip install -e plugins/plumed` and
# `pip install --no-deps hillclimber`.

# %%
from pathlib import Path

import numpy as np
import torch
from ase import units
from diffmd_plumed import PlumedPotential

from diffmd_ase import ReverseDiffusion, ScoreCalculator, ScoreModel, Snapshots
from diffmd_ase.analysis.free_energy.from_files import Request, analyse
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.recorded import Recorded
from diffmd_ase.potentials.biases.restraints import LowerWall, UpperWall
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import TorsionRotation
from diffmd_ase.sampling.run import run

model, snapshots = ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")
system, kT = snapshots.system, 300 * units.kB
phi_psi = Torsion(system, [[4, 6, 8, 14], [6, 8, 14, 16]], name=("phi", "psi"))

# %% [markdown]
# ## In ASE
#
# The input is what users of PLUMED know: atoms count from 1, units are nm, kJ/mol and ps. Hills
# come once for each completed step, at the positions that were accepted, and never from an energy
# that was only asked for. The same bias in torch needs no PLUMED; both make the same hills.

# %%
COLVARS = """
phi: TORSION ATOMS=5,7,9,15
psi: TORSION ATOMS=7,9,15,17
"""
Path("ase.dat").write_text(
    COLVARS
    + """
m: METAD ARG=phi,psi SIGMA=0.3,0.3 HEIGHT=1 PACE=20 BIASFACTOR=12 FILE=HILLS.plumed ...
   GRID_MIN=-pi,-pi GRID_MAX=pi,pi GRID_BIN=60,60
...
PRINT ARG=phi,psi,m.bias FILE=COLVAR.plumed STRIDE=20
"""
)
timestep = 0.005 * units.fs
hill = {"sigma": 0.3, "pace": 20, "biasfactor": 12, "grid": Grid([60, 60])}
biases = {
    "PLUMED": PlumedPotential(system, "ase.dat", kT=kT, timestep=timestep),
    "torch": Metadynamics(phi_psi, kT=kT, height=units.kJ / units.mol, file="HILLS.torch", **hill),
}
logged = {}
for name, bias in biases.items():
    atoms = system.to_atoms(snapshots.positions[0])
    atoms.calc = ScoreCalculator(model)
    settings = {"friction": 0.01 / units.fs, "timestep": timestep, "temperature_K": 300, "rng": 1}
    dyn = ReverseDiffusion(atoms, bias=bias, **settings)
    dyn.run(200)
    logged[name] = atoms.info["bias_energy"]
    print(f"{name:8} bias {1000 * logged[name]:.6f} meV, phi {atoms.info['phi']:.6f} rad")
biases["PLUMED"].finalize()
assert abs(logged["PLUMED"] - logged["torch"]) < 1e-9 < logged["torch"]

# %% [markdown]
# ## Filling the basin
#
# 32 walkers share one bias. Diffusion is slow and only equilibrium is wanted here, so that half of
# the steps are rotations about φ or ψ by at most 1 rad; all are accepted to the energy with
# the bias. A model knows only what its snapshots know, and a bias pushes walkers out of there:
# walls keep every distance between two atoms within 0.3 Å of its range in the snapshots.

# %%
x = torch.as_tensor(snapshots.positions)
pairs = Distance(system, np.argwhere(np.triu(np.ones((len(system),) * 2), 1)))
lengths = torch.cat([pairs(part) for part in x.split(5000)])
walls = UpperWall(pairs, at=lengths.amax(0) + 0.3, kappa=10.0)
walls += LowerWall(pairs, at=lengths.amin(0) - 0.3, kappa=10.0)
target = model.potential() + walls

phi, psi = phi_psi(x).numpy().T
start = x[phi < 0][:32].double()
topology = snapshots.topology


def kernel(energy):
    mala = Metropolis(EulerMaruyama(energy, kT, h=1e-4, mean_free=True))
    turns = []
    for axis in ({6, 8}, {8, 14}):
        [n] = [n for n, rotor in enumerate(topology.rotors.tolist()) if set(rotor) == axis]
        rotor, moved = topology.rotors[[n]], topology.moved[[n]]
        turns.append(TorsionRotation(energy, kT, rotor, moved, size=1.0, mean_free=True))
    return Mixture([mala, *turns], [2, 1, 1])


bias = Metadynamics(phi_psi, kT=kT, height=0.05 * kT, file="HILLS", **hill)
recorded = Recorded(bias, "COLVAR.growing", every=10)
*_, (state, _) = run(kernel(target + recorded), start, 10_000, noise=Noise(1), every=1000)

# %% [markdown]
# ## Measuring with that bias
#
# The hills of a run that goes on are a moving target. PLUMED reads the file that torch has
# written, adds nothing (its next hill never comes), and every frame has the weight exp(V/kT).

# %%
Path("plumed.dat").write_text(
    COLVARS
    + """
m: METAD ARG=phi,psi SIGMA=0.3,0.3 HEIGHT=1 PACE=1000000000 BIASFACTOR=12 FILE=HILLS ...
   GRID_MIN=-pi,-pi GRID_MAX=pi,pi GRID_BIN=60,60
...
PRINT ARG=phi,psi,m.bias FILE=COLVAR STRIDE=10
"""
)
frozen = PlumedPotential(system, "plumed.dat", kT=kT, timestep=1.0, restart=True)
*_, (state, _) = run(kernel(target + frozen), state.x, 8_000, noise=Noise(2), every=1000)
frozen.finalize()

# %% [markdown]
# ## The free energy
#
# At the command line: `diffmd fes COLVAR --temperature 300 --cv phi --cv psi --reweight static
# --basin phi:-3.1415:0 --basin phi:0:3.1415 --bins 24`. Of the time when the bias still grew
# it says that the halves disagree, and not to believe it.

# %%
asked = {"temperature_K": 300, "cvs": ("phi", "psi"), "bins": 24, "unit": "kJ/mol"}
asked["basins"] = ("phi:-3.1415:0", "phi:0:3.1415")
growing = analyse(["COLVAR.growing"], Request(reweight="rbias", **asked))
result = analyse(["COLVAR"], Request(reweight="static", **asked))
print("written:", *result.write(Path("fes.png")))
for name, surface in {"growing": growing, "frozen": result}.items():
    print(f"\nwith the {name} bias")
    for verdict in surface.verdicts:
        print(" *", verdict["text"])

# %% [markdown]
# ## Against the snapshots
#
# They come from replica exchange, and were never biased. Of φ > 0 they have 2.8 %, known to a
# tenth of that, or 0.1 kT.

# %%
value, error = (v / result.kT for v in result.numbers["delta_F"])
reference = np.log((phi < 0).sum() / (phi > 0).sum())
print(f"ΔF of φ > 0: {value:.2f} ± {error:.2f} kT biased, {reference:.2f} kT of snapshots")

counts, *_ = np.histogram2d(phi, psi, 24, [[-np.pi, np.pi]] * 2)
common = (counts > 200) & np.isfinite(result.free_energy) & (result.error < result.kT)
away = result.free_energy[common] / result.kT + np.log(counts[common])
away -= np.average(away, weights=counts[common])
rms = np.sqrt(np.average(away**2, weights=counts[common]))
print(f"surface: rms difference {rms:.2f} kT in {common.sum()} bins")
assert result.numbers["basin_changes"] > 100
assert abs(value - reference) < 1.0
assert rms < 0.35
