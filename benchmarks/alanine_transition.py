"""The likeliest way between two states of alanine dipeptide, and where on it the fate is open.

    python benchmarks/alanine_transition.py psi --folder transition   # C7eq → C5
    python benchmarks/alanine_transition.py phi --folder transition   # C7eq → C7ax

The path of least Onsager–Machlup action is found on the shipped model, which saw only snapshots,
and on amber14. Then plain chains are shot from images of the model's path with one step and one D:
the model's by the package, those of amber14 by OpenMM's BrownianIntegrator with equal masses.
Printed are the committors of both, and the image at which each is one half, beside that of the
highest energy. The folder keeps what was found, and goes on. Exit 1 where both halves are further
apart than two standard errors and 0.1 of the length of the path.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import units
from diffmd_openmm import PHI, PSI, OpenMMPotential, alanine_dipeptide
from shared import command_line
from torch import Tensor

from diffmd_ase import ScoreModel, Snapshots, System
from diffmd_ase.analysis.kinetics.path_guess import interpolated, relaxed
from diffmd_ase.analysis.kinetics.transition_paths import TransitionPath, shoot, transition_path
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.atomic import replacing
from diffmd_ase.io.json_text import plain, to_json
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.simulation.prepare import StepRequest, prepare

TEMPERATURE = 300.0
FRICTION = 1000.0  # 1/ps, which with masses of 1 u says what h is in time, and nothing else
EVERY = 50  # steps of amber14 between looks
# states in degrees: (φ, ψ) of a snapshot to begin with, and the circle about it
ENDS = {"psi": ((-82, 75), (-155, 160)), "phi": ((-82, 75), (65, -50))}
RADIUS = {"psi": 25.0, "phi": 35.0}


def torsions(x) -> np.ndarray:
    """φ and ψ in degrees, (*batch, 2)."""
    return np.degrees(np.asarray(dihedrals(np.asarray(x), [PHI, PSI])))


def within(which: str, end: int, x: Tensor) -> Tensor:
    """(B,) bool: near one of the two states."""
    apart = (torsions(x) - np.array(ENDS[which][end]) + 180) % 360 - 180
    return torch.from_numpy((apart**2).sum(-1) < RADIUS[which] ** 2)


def kept(path: Path, make) -> dict:
    """What a JSON file says, made where there is none."""
    if not path.exists():
        text = to_json(plain(make()))
        with replacing(path) as part:
            part.write_text(text)
    return json.loads(path.read_text())


def least(potential: Potential, which: str, images: int) -> TransitionPath:
    """The path of least action of a potential between minima of its own."""
    snapshots, kT = Snapshots.read("alanine-dipeptide"), TEMPERATURE * units.kB
    start, end = ENDS[which]
    positions = np.asarray(snapshots.positions, float)
    nearest = (((torsions(positions) - start + 180) % 360 - 180) ** 2).sum(-1).argmin()
    first = relaxed(potential, torch.from_numpy(positions[nearest]), kT=kT)
    atoms = snapshots.system.to_atoms(first)  # turned, so that no methyl group has to turn as well
    for torsion, at in zip((PHI, PSI), end, strict=True):
        axes = [tuple(rotor) for rotor in snapshots.topology.rotors.tolist()]
        if torsion[1:3] in axes:
            mask = np.asarray(snapshots.topology.moved)[axes.index(torsion[1:3])]
        else:
            mask = ~np.asarray(snapshots.topology.moved)[axes.index(torsion[2:0:-1])]
        atoms.set_dihedral(*torsion, at, mask=mask)
    ends = first, relaxed(potential, torch.from_numpy(atoms.positions), kT=kT)
    return transition_path(
        potential, interpolated(snapshots.system, *ends, images), kT=kT, most=600
    )


def of_path(path: TransitionPath) -> dict:
    return path.to_dict() | {"torsions": torsions(path.images), "images": path.images.numpy()}


def by_model(potential: Potential, images: Tensor, options: argparse.Namespace) -> list[Estimate]:
    """Committors by plain steps of the model."""
    step = StepRequest(spring=1 / (2 * options.h))
    kernel = prepare(
        potential, temperature_K=TEMPERATURE, step=step, mean_free=True, x=images
    ).kernel
    states = (lambda x: within(options.which, 0, x)), (lambda x: within(options.which, 1, x))
    most = round(options.span / options.h)
    return shoot(kernel, images, *states, shots=options.shots, noise=Noise(5), most=most)


def by_amber(images: Tensor, options: argparse.Namespace) -> list[Estimate]:
    """Committors by OpenMM, one chain after the other."""
    _, system = alanine_dipeptide()
    for particle in range(system.getNumParticles()):
        system.setParticleMass(particle, 1.0)
    kT = TEMPERATURE * units.kB / (units.kJ / units.mol)  # u nm²/ps²
    timestep = options.h * 1e-2 * FRICTION / kT  # D Δt = h, D = kT/(mγ)
    integrator = openmm.BrownianIntegrator(TEMPERATURE, FRICTION, timestep)
    integrator.setRandomNumberSeed(7)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    found = []
    for image in images:
        fates = []
        for _ in range(options.shots):
            context.setPositions(image.numpy() / units.nm)
            for _ in range(round(options.span / options.h / EVERY)):
                integrator.step(EVERY)
                x = context.getState(getPositions=True).getPositions(asNumpy=True)._value * units.nm
                a, b = (bool(within(options.which, end, x[None])) for end in (0, 1))
                if a or b:
                    fates.append(float(b))
                    break
        lost = 1 - len(fates) / options.shots
        q = float(np.mean(fates)) if fates else 0.5
        error = max(q * (1 - q) / options.shots, 1 / options.shots**2) ** 0.5 + lost / 2
        found.append(Estimate(q, error, float(options.shots)))
    return found


def half(length: np.ndarray, q: list[dict]) -> Estimate:
    """Where the committor is ½: a logistic curve by weighted least squares, in Å."""
    value = np.clip([row["value"] for row in q], 0.02, 0.98)
    error = np.array([row["error"] for row in q]) / (value * (1 - value))
    design = np.stack((np.ones(len(length)), length), 1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    a, b = covariance @ design.T @ (np.log(value / (1 - value)) / error)
    slope = np.array([-1 / b, a / b**2])
    return Estimate(float(-a / b), float(np.sqrt(slope @ covariance @ slope)), float("nan"))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("which", choices=sorted(ENDS))
    parser.add_argument("--folder", type=Path, default=Path("transition"))
    parser.add_argument("--images", type=int, default=31)
    parser.add_argument("--near", type=int, default=4, help="images on each side of the top")
    parser.add_argument("--shots", type=int, default=40)
    parser.add_argument("--h", type=float, default=7e-5, help="Å²")
    parser.add_argument("--span", type=float, default=6.0, help="D·t of a chain at most, Å²")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(exist_ok=True)
    model = ScoreModel.load("alanine-dipeptide")
    atoms, amber = alanine_dipeptide()
    system = System.from_atoms(atoms)
    sides = {
        "model": model.potential(system, compile=True),
        "amber14": OpenMMPotential(system, amber),
    }
    paths = {}
    for side, potential in sides.items():
        file = options.folder / f"{options.which}-path-{side}.json"
        paths[side] = kept(
            file, lambda p=potential: of_path(least(p, options.which, options.images))
        )
        print(side, _words(paths[side]), flush=True)
    path = paths["model"]
    first, last = max(path["highest"] - options.near, 1), path["highest"] + options.near
    chosen = np.arange(first, min(last, options.images - 2) + 1)
    images = torch.tensor(path["images"], dtype=torch.float64)[chosen]
    shots = {
        "model": lambda: by_model(sides["model"], images, options),
        "amber14": lambda: by_amber(images, options),
    }
    q = {}
    for side, shoot_all in shots.items():
        name = f"{options.which}-committor-{side}-{options.shots}-{options.near}.json"
        q[side] = kept(options.folder / name, lambda f=shoot_all: [e.to_dict() for e in f()])
    length = np.array(path["length_A"])[chosen]
    halves = {side: half(length, rows) for side, rows in q.items()}
    apart = halves["model"].value - halves["amber14"].value
    error = float(np.hypot(halves["model"].error, halves["amber14"].error))
    holds = abs(apart) < max(2 * error, 0.1 * path["length_A"][-1])
    if options.json:
        told = {"paths": paths, "images": chosen, "committor": q, "halves": halves, "holds": holds}
        print(to_json(plain(told)))
    else:
        for n, row in enumerate(chosen):
            both = ", ".join(f"{s} {q[s][n]['value']:.2f} ± {q[s][n]['error']:.2f}" for s in q)
            phi, psi = path["torsions"][row]
            print(f"image {row} at {length[n]:.2f} Å, φ {phi:.0f}°, ψ {psi:.0f}°: {both}")
        top = path["length_A"][path["highest"]]
        print(
            f"top at {top:.2f} Å; committor ½ at {halves}, of {path['length_A'][-1]:.2f} Å; {holds}"
        )
    sys.exit(not holds)


def _words(path: dict) -> str:
    energy = np.array(path["energy_kT"])
    phi, psi = path["torsions"][path["highest"]]
    return (
        f"action {path['action_nats']:.2f} nats, top {energy.max() - energy[0]:.2f} kT above the "
        f"start at φ {phi:.0f}°, ψ {psi:.0f}°, end {energy[-1] - energy[0]:+.2f} kT, "
        f"{'converged' if path['converged'] else 'NOT converged'}"
    )


if __name__ == "__main__":
    main()
