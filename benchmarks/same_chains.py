"""SHA-256 of short chains: run it on two checkouts to see that a change moved no number.

    python benchmarks/same_chains.py > before.txt      # in one checkout
    python benchmarks/same_chains.py > after.txt       # in the other
    diff before.txt after.txt

200 steps of four walkers of both shipped models: plain dynamics, Metropolis, Hamiltonian Monte
Carlo, metadynamics in torch, PLUMED, the ASE classes, and ``diffmd run``. The digests depend on
the machine and its libraries; only two runs on one machine can be compared. ``--values FILE``
keeps the last positions, for chains that differ by rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk

from diffmd_ase import (
    BatchReverseDiffusion,
    EulerMaruyama,
    Metropolis,
    Noise,
    ScoreCalculator,
    ScoreModel,
    Snapshots,
    System,
    load_potential,
    run,
)
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo

try:
    from diffmd_ase.potentials.biases.cvs import Distance
    from diffmd_ase.potentials.biases.metadynamics import Metadynamics
except ImportError:  # a checkout from before the biases had a folder
    from diffmd_ase.potentials.cvs import Distance
    from diffmd_ase.potentials.metadynamics import Metadynamics

STEPS, WALKERS, SEED = 200, 4, 7


def starts(name: str) -> tuple[System, np.ndarray]:
    """System and positions (W, N, 3) of the walkers."""
    if name == "alanine-dipeptide":
        frames = Snapshots.read(name)
        return frames.system, frames.positions[:WALKERS].astype(float)
    atoms = bulk("Cu", cubic=True).repeat(2)
    del atoms[0]
    rng = np.random.default_rng(SEED)
    x = atoms.positions + 0.03 * rng.normal(size=(WALKERS, len(atoms), 3))
    return System.from_atoms(atoms), x


def digest(*arrays) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def followed(kernel, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All positions and energies of a chain."""
    states = [state for state, _ in run(kernel, x, STEPS, noise=Noise(SEED))]
    return tuple(torch.stack([getattr(s, n) for s in states]).numpy() for n in ("x", "energy"))


def chains(name: str):
    """(what, arrays) of each chain of one model."""
    model = ScoreModel.load(name)
    system, positions = starts(name)
    potential = model.potential(system, device="cpu")
    kT, h = model.card.kT, 0.2 / model.card.lambda_max
    free = not system.periodic
    x = torch.as_tensor(positions)
    plain = EulerMaruyama(potential, kT=kT, h=h, mean_free=free)
    yield "plain float32", followed(plain, x.float())
    yield "plain float64", followed(plain, x)
    yield "metropolis", followed(Metropolis(plain), x)
    yield "metropolis, 3 steps", followed(Metropolis(plain, n_steps=3), x)
    hmc = HamiltonianMonteCarlo(
        potential, kT=kT, timestep=0.2 * units.fs, n_leapfrog=5, mean_free=free
    )
    yield "hmc", followed(hmc, x)
    bias = Metadynamics(
        Distance(system, [[0, 1]], name="d"),
        kT=kT,
        sigma=0.05,
        height=0.01,
        pace=20,
        biasfactor=5,
    )
    biased = EulerMaruyama(potential + bias, kT=kT, h=h, mean_free=free)
    yield "metadynamics", followed(biased, x)
    yield "plumed", plumed(system, potential, kT, h, free, x)
    images = [system.to_atoms(p) for p in positions]
    images[0].calc = ScoreCalculator(name, device="cpu")
    for target in (None, "model"):
        for image, p in zip(images, positions, strict=True):
            image.positions = p
        dyn = BatchReverseDiffusion(
            images, temperature_K=model.card.temperature_K, target=target, rng=SEED
        )
        dyn.run(STEPS)
        yield f"ASE batch, target {target}", (np.stack([image.positions for image in images]),)
    for words in ((), ("--target", "model", "--adapt", "50")):
        yield f"diffmd run {' '.join(words)}".rstrip(), command(name, positions, system, words)


def plumed(system, potential, kT, h, free, x):
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "plumed.dat"
        script.write_text(
            "d: DISTANCE ATOMS=1,2\n"
            "METAD ARG=d SIGMA=0.005 HEIGHT=1.0 PACE=20 BIASFACTOR=5 FILE=HILLS\n"
        )
        with contextlib.chdir(folder):  # where PLUMED's files go
            bias = load_potential("plumed", system, input=script, kT=kT, timestep=units.fs)
            return followed(EulerMaruyama(potential + bias, kT=kT, h=h, mean_free=free), x)


def command(name: str, positions: np.ndarray, system: System, words) -> tuple[np.ndarray, ...]:
    import ase.io
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.traj"
        ase.io.write(start, [system.to_atoms(p) for p in positions])
        prefix = str(Path(folder) / "md")
        arguments = ["run", name, "--start", str(start), "--walkers", str(WALKERS)]
        arguments += [
            "--steps",
            str(STEPS),
            "--every",
            "10",
            "--seed",
            str(SEED),
            "--device",
            "cpu",
        ]
        arguments += ["--prefix", prefix, "--no-progress", *words]
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "diffmd_ase", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with h5py.File(f"{prefix}.h5") as file:
            return (
                file["particles/trajectory/position/value"][:],
                file["observables/potential_energy/value"][:],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=Path, help="keep the last positions, .npz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = {}
    for name in ("alanine-dipeptide", "copper-vacancy"):
        for what, arrays in chains(name):
            kept[f"{name}: {what}"] = arrays[0][-WALKERS:]
            print(f"{name:18s} {what:34s} {digest(*arrays)}", flush=True)
    if options.values:
        np.savez(options.values, **kept)


if __name__ == "__main__":
    main()
