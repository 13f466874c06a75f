"""Time correlations of alanine dipeptide: the learned model against Brownian dynamics of amber14.

    python benchmarks/alanine_brownian.py run --folder brownian --span 8
    python benchmarks/alanine_brownian.py compare --folder brownian --plot brownian.png

Both sides have one D for all atoms and the same step h: OpenMM's BrownianIntegrator with equal
masses makes the steps ``x + h F/kT + sqrt(2h) ξ`` of amber14, the package those of the shipped
model, which saw only snapshots. The walkers begin in snapshots with φ < 0 and stay there (crossings
to φ > 0 are counted). Torsions, radius of gyration (equal masses) and distance of the outer carbons
are kept. `run` makes pieces of both sides in turn, of about a minute, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import units
from diffmd_openmm import PHI, PSI, alanine_dipeptide

from diffmd_ase import ScoreModel, Snapshots
from diffmd_ase.geometry import dihedrals, distances
from diffmd_ase.io.atomic import replacing
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.prepare import StepRequest, prepare

TEMPERATURE, H = 300.0, 3.6e-5  # K, Å²
ENDS = (0, 18)  # the carbons of the methyl groups
EVERY = 50  # steps between frames
FRAMES = 139  # of a piece: 0.25 Å²
BEFORE = 1400  # steps before the first frame: 0.05 Å²
FRICTION = 1000.0  # 1/ps, which with masses of 1 u says what h is in time, and nothing else
NAMES = ("phi", "psi", "Rg", "end-to-end")
SIDES = ("amber14", "model")


def observed(x: np.ndarray) -> np.ndarray:
    """φ, ψ (rad), radius of gyration and distance of the ends (Å) of positions (*batch, N, 3)."""
    centred = x - x.mean(-2, keepdims=True)
    gyration = np.sqrt((centred**2).sum(-1).mean(-1))
    torsions, ends = dihedrals(x, [PHI, PSI]), distances(x, [ENDS])
    return np.concatenate((torsions, gyration[..., None], ends), axis=-1)


class Brownian:
    """A piece of all walkers by OpenMM, one after the other."""

    def __init__(self):
        _, self.system = alanine_dipeptide()
        for particle in range(self.system.getNumParticles()):
            self.system.setParticleMass(particle, 1.0)
        kT = TEMPERATURE * units.kB / (units.kJ / units.mol)  # u nm²/ps²
        self.timestep = H * 1e-2 * FRICTION / kT  # D Δt = h, D = kT/(mγ)

    def piece(self, x: np.ndarray, number: int, before: int) -> tuple[np.ndarray, np.ndarray]:
        """Observed (FRAMES, W, 4), and where the walkers are then."""
        integrator = openmm.BrownianIntegrator(TEMPERATURE, FRICTION, self.timestep)
        integrator.setRandomNumberSeed(1 + number)
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(self.system, integrator, platform)
        frames = np.empty((FRAMES, *x.shape))
        for walker, start in enumerate(x):
            context.setPositions(start / units.nm)
            integrator.step(before)
            for frame in range(FRAMES):
                integrator.step(EVERY)
                state = context.getState(getPositions=True)
                frames[frame, walker] = state.getPositions(asNumpy=True)._value * units.nm
        return observed(frames), frames[-1]


class Learned:
    """The same by the package, all walkers at once."""

    def __init__(self, potential: Potential):
        self.potential = potential

    def piece(self, x: np.ndarray, number: int, before: int) -> tuple[np.ndarray, np.ndarray]:
        at = torch.from_numpy(x)
        step = StepRequest(spring=1 / (2 * H))
        kernel = prepare(
            self.potential, temperature_K=TEMPERATURE, step=step, mean_free=True, x=at
        ).kernel
        state, noise, seen = kernel.init(at), Noise(1000 + number), []
        if before:
            *_, (state, _) = run(kernel, state, before, noise=noise)
        for moved, _ in run(kernel, state, FRAMES * EVERY, noise=noise, every=EVERY):
            seen.append(observed(moved.x.numpy()))
            state = moved
        return np.array(seen), state.x.numpy()


def simulate(options: argparse.Namespace) -> None:
    """Pieces of both sides in turn, each side a file that grows."""
    torch.set_num_threads(1)
    snapshots, model = Snapshots.read("alanine-dipeptide"), ScoreModel.load("alanine-dipeptide")
    positions = np.asarray(snapshots.positions, float)
    left = np.flatnonzero(dihedrals(positions, [PHI])[:, 0] < 0)
    makers = {
        "amber14": Brownian(),
        "model": Learned(model.potential(snapshots.system, compile=True)),
    }
    options.folder.mkdir(exist_ok=True)
    for number in range(round(options.span / (FRAMES * EVERY * H))):
        for side, maker in makers.items():
            path = options.folder / f"{side}-{number:03d}.npz"
            if path.exists():
                continue
            if number:
                with np.load(options.folder / f"{side}-{number - 1:03d}.npz") as last:
                    x = last["x"]
            else:
                rng = np.random.default_rng(SIDES.index(side))
                x = positions[rng.choice(left, options.walkers, replace=False)]
            values, x = maker.piece(x, number, 0 if number else BEFORE)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, values=values.astype(np.float32), x=x)
            print(path.name, f"D·t = {(number + 1) * FRAMES * EVERY * H:.2f} Å²", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run"])
    parser.add_argument("--folder", type=Path, default=Path("brownian"))
    parser.add_argument("--walkers", type=int, default=128)
    parser.add_argument("--span", type=float, default=8.0, help="D·t of each walker, Å²")
    options = parser.parse_args()
    simulate(options)


if __name__ == "__main__":
    main()
