# %% [markdown]
# # 1. A reverse-diffusion step tied to the last frame is a step of dynamics
#
# One Langevin denoising move of size η, `N(x + η s, 2η)`, times a spring
# `exp[-(κ/2) |x' - x|²]` to the frame where the score s was evaluated, is
#
#     N(x + h s, 2h)     with     h = η/(1 + 2κη) = 1/(2k),     k = κ + 1/(2η)
#
# and this is an Euler-Maruyama step of overdamped Langevin dynamics. With unit mobility,
# h = kT Δt: the spring *is* the time step, **Δt = β/(2k)** (Diamond & Lill, arXiv 2511.17741).
# Here are the three ways to say it, the same to round-off, and what a finite step costs.

# %%
import math

import torch

from diffmd_ase import EulerMaruyama, Noise, run
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.units import kT_from_temperature

torch.set_num_threads(1)
kT = kT_from_temperature(300.0)
stiffness = 20.0  # eV/Å², about that of a bond
well = Harmonic(stiffness)
lam = stiffness / kT  # curvature of -log p, 1/Å²

# %% [markdown]
# ## The same step, said three ways

# %%
h = 0.2 / lam  # Å², a tenth of the limit of stability
k = 1 / (2 * h)
eta = 3 * h
kappa = k - 1 / (2 * eta)
kernels = {
    "time step": EulerMaruyama.from_timestep(well, kT=kT, timestep=1 / (2 * k * kT), mobility=1.0),
    "spring": EulerMaruyama.from_spring(well, kT=kT, k=k),
    "schedule and stiffness": EulerMaruyama.from_schedule(well, kT=kT, eta=eta, kappa=kappa),
}
noise = Noise(seed=1)
start = torch.full((4, 1, 3), 0.05, dtype=torch.float64)
ends = {}
for name, kernel in kernels.items():
    *_, (state, _) = run(kernel, start, 100, noise=noise)
    ends[name] = state.x
    print(f"{name:>24}: h = {float(kernel.h):.6e} Å²")
reference = ends["spring"]
difference = max(float((x - reference).abs().max()) for x in ends.values())
print(f"largest difference after 100 steps: {difference:.1e} Å")
assert difference < 1e-12

# %% [markdown]
# ## What a finite step costs
#
# In a harmonic well the chain is solvable. Its variance is not kT/a but
#
#     kT/a / (1 - hλ/2)          λ = a/kT
#
# and its correlation after n steps is (1 - hλ)^n. At the default h = 0.2/λ the stiffest
# mode is 11 % too wide; modes ten times softer, 1 %.

# %%
walkers, blocks, every = 4096, 20, 40
print("    hλ   variance / (kT/a)   exact      z")
for seed, reduced in enumerate((0.05, 0.2, 0.8), start=2):
    noise = Noise(seed)
    kernel = EulerMaruyama(well, kT=kT, h=reduced / lam)
    exact = 1 / (1 - reduced / 2)
    # start in equilibrium, so that every frame counts; `every` steps apart they are independent
    spread = math.sqrt(exact * kT / stiffness)
    x = spread * noise.normal(0, torch.zeros(walkers, 1, 3, dtype=torch.float64), stream=7)
    steps = every * (4 if reduced < 0.1 else 1)
    frames = [s.x for s, _ in run(kernel, x, blocks * steps, noise=noise, every=steps)]
    values = torch.stack(frames).square() * stiffness / kT
    ratio = float(values.mean())
    z = (ratio - exact) / (exact * math.sqrt(2 / values.numel()))
    print(f"  {reduced:.2f}        {ratio:.4f}          {exact:.4f}   {z:+.1f}")
    assert abs(z) < 4
