# %% [markdown]
# # 3. From snapshots to dynamics: alanine dipeptide
#
# Uncorrelated equilibrium snapshots at one temperature, and nothing else, make a model whose
# forces are F = kT s. Here a fifth of the shipped snapshots trains it for half a minute, and 32
# walkers run as one batch. That is enough for bonds and angles; torsional populations want all
# snapshots and the full budget (`make demo`).

# %%
import tempfile

import numpy as np

from diffmd_ase import BatchReverseDiffusion, ScoreCalculator, Snapshots, TrainConfig, train

snapshots = Snapshots.read("alanine-dipeptide")
print(f"{len(snapshots)} snapshots of {snapshots.system.formula} at {snapshots.temperature_K} K")
model = train(snapshots.take(slice(0, 10_000)), config=TrainConfig(max_minutes=0.5), seed=1)
card = model.card
print(f"noise levels {card.sigma_min} to {card.sigma_max} Å, stiffness {card.lambda_max:.0f}/Å²")

# %% [markdown]
# ## Dynamics
#
# The walkers start from snapshots, so they are in equilibrium from the first step if the model
# is right. A third of the default step h = 0.2/λ keeps the stiffest bond within 2 % of its width.

# %%
rng = np.random.default_rng(1)
images = [
    snapshots.system.to_atoms(snapshots.positions[i])
    for i in rng.choice(len(snapshots), 32, replace=False)
]
images[0].calc = ScoreCalculator(model)
h = 0.07 / card.lambda_max
frames = []
with tempfile.TemporaryDirectory() as folder:
    dyn = BatchReverseDiffusion(
        images,
        temperature_K=snapshots.temperature_K,
        spring=1 / (2 * h),
        rng=1,
        logfile=f"{folder}/md.log",
        loginterval=20,
    )
    dyn.run(1000)
    dyn.attach(lambda: frames.append(dyn.state.x.numpy().copy()), interval=20)
    dyn.run(4000)
    with open(f"{folder}/md.log") as log:
        header, *lines = log.read().splitlines()
temperature = float(lines[-1].split()[header.split().index("Tconf[K]")])
positions = np.concatenate(frames)
print(f"{dyn.nsteps} steps of h = {h:.2e} Å², D·t = {dyn.nsteps * h:.2f} Å² for each walker")

# %% [markdown]
# ## Bonds and temperature against the data


# %%
def lengths(x):
    i, j = snapshots.topology.bonds.T
    return np.linalg.norm(x[:, i] - x[:, j], axis=-1)


data, md = lengths(snapshots.positions), lengths(positions)
shift = np.abs(md.mean(0) - data.mean(0)).max()
widths = md.std(0) / data.std(0)
print(f"configurational temperature     {temperature:.0f} K")
print(f"mean bond lengths agree within  {shift:.4f} Å")
print(f"widths, dynamics / snapshots    {widths.min():.3f} to {widths.max():.3f}")
assert not dyn.lost
assert abs(temperature - 300) < 15
assert shift < 0.01
assert np.abs(widths - 1).max() < 0.15
