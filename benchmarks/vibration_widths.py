"""Does a crystal vibrate under its learned energy as in its snapshots?

    python benchmarks/make_snapshots.py silicon --frames 300 --walkers 5 -o silicon.npz
    python benchmarks/vibration_widths.py silicon.npz silicon-held-out.npz     # trains; 5 minutes

Walkers move by Hamiltonian Monte Carlo on the learned energy, so that no error of the step enters.
Displacements are taken along the modes of the model at the mean sites; groups of modes, from the
softest on, have their widths compared with those of all frames. Exit 1 beyond 5 %.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from ase import units
from shared import chain, command_line, parsed

from diffmd_ase import Noise, Snapshots, TrainConfig
from diffmd_ase.io.json_text import to_json
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.score.curvature import derivative
from diffmd_ase.score.training import train

WALKERS, LEAPFROG, BURN_IN, GROUPS = 32, 10, 15, 6
GOAL = 0.05


def modes(potential: Potential, x: torch.Tensor, kT: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Curvatures (3N - 3,) in 1/Å² and modes (3N, 3N - 3) at x (N, 3), the shifts left out."""
    columns = []
    for some in torch.eye(x.numel(), dtype=x.dtype).unflatten(-1, x.shape).split(32):
        pulled = derivative(lambda y: potential(y).forces, x.expand_as(some), some, 1e-3)
        columns.append(-pulled.flatten(1) / kT)
    hessian = torch.cat(columns)
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.T))
    return values[3:], vectors[:, 3:]


def widths(x: torch.Tensor, sites: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Standard deviations (3N - 3,) along the modes of frames (M, N, 3)."""
    moved = x - sites
    moved = moved - moved.mean(-2, keepdim=True)
    return (moved.flatten(1) @ vectors).std(0)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("snapshots")
    parser.add_argument("more", nargs="*", help="frames to compare with that are not learned from")
    parser.add_argument("--moves", type=int, default=130)
    parser.add_argument("--timestep", type=float, default=5.0, help="fs")
    options = parsed(parser)
    data = Snapshots.read(options.snapshots)
    frames = [data, *(Snapshots.read(path) for path in options.more)]
    true = torch.cat([torch.as_tensor(part.positions) for part in frames])
    model = train(data, config=TrainConfig(processes=1), device="cpu")
    potential = model.potential(data.system, dtype=torch.float64, compile=True)
    kernel = HamiltonianMonteCarlo(
        potential,
        kT=data.kT,
        timestep=options.timestep * units.fs,
        n_leapfrog=LEAPFROG,
        masses=data.system.masses,
    )
    x = torch.as_tensor(data.positions[:WALKERS])
    states, accepted = chain(kernel, x, options.moves, noise=Noise(1), every=1)
    made = torch.cat([state.x for state in states[BURN_IN:]])
    sites = true.mean(0)
    values, vectors = modes(potential, sites, data.kT)
    logs = (widths(made, sites, vectors) / widths(true, sites, vectors)).log().numpy()
    rows = []
    for group in np.array_split(np.arange(len(logs)), GROUPS):
        ratio, error = float(np.exp(logs[group].mean())), (2 * len(true) * len(group)) ** -0.5
        rows.append({"curvature": [float(values[group[n]]) for n in (0, -1)], "ratio": ratio,
                     "error": error})  # fmt: skip
    if options.json:
        print(to_json({"accepted": float(accepted.mean()), "groups": rows}))
    else:
        for row in rows:
            low, high = row["curvature"]
            print(f"{low:6.0f} to {high:6.0f} 1/Å²: {row['ratio']:.3f} ± {row['error']:.3f}")
    sys.exit(any(abs(row["ratio"] - 1) > GOAL for row in rows))


if __name__ == "__main__":
    main()
