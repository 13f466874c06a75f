"""Equilibrium snapshots of alanine dipeptide in vacuum, by replica exchange in OpenMM.

    python make_alanine_dipeptide.py sample --seeds 1 2 3 4 --minutes 20 --processes 2 -o runs
    python make_alanine_dipeptide.py pack runs -o alanine-dipeptide.npz

`sample` runs one ladder of temperatures per seed (Langevin middle integrator; neighbours
exchange every 500 steps) and keeps the frame at 300 K after every exchange attempt; a
second call goes on where the first one stopped. `pack` merges the seeds, drops the first
2 % of each, draws frames at random, puts them into one frame of reference, and stores
16-bit positions with energies computed at exactly the stored positions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import openmm
import torch
from ase import units
from diffmd_openmm import PHI, PSI, OpenMMPotential, alanine_dipeptide
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from diffmd_ase.geometry import dihedrals
from diffmd_ase.system import System

TEMPERATURES = (300.0, 377.0, 476.0, 600.0, 756.0)  # K
FRICTION, TIMESTEP, STRIDE = 2.0, 0.001, 500  # 1/ps, ps, steps between exchanges
EQUILIBRATION = 5000  # steps, before the first frame
DISCARDED = 0.02  # of the frames of each seed
SCALE = 5e-4  # Å: rounding adds about 1e-3 kT to the energy of a frame
BLOCKS = 10  # for each seed on average, for the error of the population
KB = units.kB / (units.kJ / units.mol)  # kJ/(mol K)


class Ladder:
    """One replica per temperature; ``advance`` makes a frame at the lowest one."""

    def __init__(self, seed: int, saved: dict | None):
        atoms, system = alanine_dipeptide()
        self.rng = np.random.default_rng(seed)
        self.frames, self.energies = [], []
        self.accepted = np.zeros(len(TEMPERATURES) - 1, int)
        self.attempted = np.zeros_like(self.accepted)
        start = 0
        if saved is not None:
            start = len(saved["x"])
            self.frames, self.energies = list(saved["x"]), list(saved["e"])
            self.accepted, self.attempted = saved["accepted"], saved["attempted"]
            self.rng.bit_generator.state = json.loads(str(saved["rng"]))
        self.contexts = []
        for level, temperature in enumerate(TEMPERATURES):
            integrator = openmm.LangevinMiddleIntegrator(temperature, FRICTION, TIMESTEP)
            # a restart must not repeat the random numbers of the beginning
            integrator.setRandomNumberSeed(100 * seed + level + 1 + 1_000_003 * (start % 1000))
            context = openmm.Context(
                system, integrator, openmm.Platform.getPlatformByName("Reference")
            )
            if saved is None:
                context.setPositions(atoms.positions / units.nm)
                context.setVelocitiesToTemperature(temperature, 100 * seed + level + 51)
                integrator.step(EQUILIBRATION)
            else:
                context.setPositions(saved["positions"][level])
                context.setVelocities(saved["velocities"][level])
            self.contexts.append(context)

    def advance(self) -> None:
        for context in self.contexts:
            context.getIntegrator().step(STRIDE)
        positions, velocities, energies = self.states()
        self.frames.append(np.float32(positions[0] * units.nm))
        self.energies.append(energies[0])
        beta = 1.0 / (KB * np.array(TEMPERATURES))
        # pairs (0,1), (2,3), … and (1,2), (3,4), … in turn
        for low in range(len(self.frames) % 2, len(TEMPERATURES) - 1, 2):
            high = low + 1
            self.attempted[low] += 1
            log_ratio = (beta[low] - beta[high]) * (energies[low] - energies[high])
            if np.log(self.rng.random()) < log_ratio:
                self.accepted[low] += 1
                scale = np.sqrt(TEMPERATURES[high] / TEMPERATURES[low])
                self.contexts[low].setPositions(positions[high])
                self.contexts[low].setVelocities(velocities[high] / scale)
                self.contexts[high].setPositions(positions[low])
                self.contexts[high].setVelocities(velocities[low] * scale)

    def states(self):
        """Positions (nm), velocities (nm/ps) and energies (kJ/mol) of all replicas."""
        states = [
            c.getState(getPositions=True, getVelocities=True, getEnergy=True) for c in self.contexts
        ]
        unit = openmm.unit
        return (
            [s.getPositions(asNumpy=True).value_in_unit(unit.nanometer) for s in states],
            [
                s.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
                for s in states
            ],
            np.array(
                [s.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) for s in states]
            ),
        )

    def save(self, path: Path) -> None:
        positions, velocities, _ = self.states()
        # written beside and renamed: an interrupt leaves the last good file
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            x=np.array(self.frames, np.float32),
            e=np.array(self.energies),
            accepted=self.accepted,
            attempted=self.attempted,
            positions=np.array(positions),
            velocities=np.array(velocities),
            rng=json.dumps(self.rng.bit_generator.state),
        )
        os.replace(part, path)


def run_seed(seed: int, frames: int | None, minutes: float | None, path: Path, reports) -> None:
    """Until the file holds ``frames`` frames, or for ``minutes``."""
    saved = dict(np.load(path)) if path.exists() else None
    ladder = Ladder(seed, saved)
    begin = last = time.monotonic()

    def progress() -> float:
        if frames is not None:
            return len(ladder.frames) / frames
        return (time.monotonic() - begin) / (60.0 * minutes)

    while progress() < 1.0:
        ladder.advance()
        if time.monotonic() - last > 20.0:
            last = time.monotonic()
            ladder.save(path)
            reports.put((seed, progress(), len(ladder.frames)))
    ladder.save(path)
    reports.put((seed, 1.0, len(ladder.frames)))


def sample(arguments) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("seed {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]} frames"),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        Progress(*columns) as bars,
        ProcessPoolExecutor(arguments.processes, mp_context=context) as pool,
    ):
        reports = manager.Queue()
        tasks = {seed: bars.add_task(str(seed), total=1.0, count=0) for seed in arguments.seeds}
        jobs = [
            pool.submit(
                run_seed,
                seed,
                arguments.frames,
                arguments.minutes,
                arguments.output / f"seed-{seed}.npz",
                reports,
            )
            for seed in arguments.seeds
        ]
        while not all(job.done() for job in jobs) or not reports.empty():
            if reports.empty():
                time.sleep(0.2)
                continue
            seed, done, count = reports.get()
            bars.update(tasks[seed], completed=done, count=count)
        for job in jobs:
            job.result()


def pack(arguments) -> None:
    console = Console()
    paths = sorted(arguments.runs.glob("seed-*.npz"))
    if not paths:
        raise SystemExit(f"no seed-*.npz in {arguments.runs}: run `sample` first")
    chains = []
    accepted = attempted = 0
    for path in paths:
        with np.load(path) as run:
            chains.append(run["x"][int(np.ceil(DISCARDED * len(run["x"]))) :])
            accepted, attempted = accepted + run["accepted"], attempted + run["attempted"]
    everything = np.concatenate(chains)
    if len(everything) < arguments.frames:
        raise SystemExit(f"{len(everything)} frames, fewer than --frames {arguments.frames}")
    chosen = np.random.default_rng(0).permutation(len(everything))[: arguments.frames]
    atoms, openmm_system = alanine_dipeptide()
    aligned = align(everything[chosen].astype(float), atoms.positions, atoms.numbers > 1)
    # column by column: neighbouring numbers are alike, which the compression likes
    positions = np.asfortranarray(np.rint(aligned / SCALE), dtype=np.int16)
    if np.abs(aligned / SCALE).max() > np.iinfo(np.int16).max:
        raise SystemExit(f"{SCALE=} Å is too fine for {np.abs(aligned).max():.1f} Å in 16 bits")
    potential = OpenMMPotential(System.from_atoms(atoms), openmm_system)
    energies = np.concatenate(
        [
            potential(torch.from_numpy(part * SCALE)).energy.numpy()
            for part in track(np.array_split(positions, 100), "energies", console=console)
        ]
    )
    positive = [phi_is_positive(chain) for chain in chains]
    # blocks of about the same length, however long the seeds are
    length = len(everything) / (BLOCKS * len(chains))
    blocks = [
        block.mean()
        for seed in positive
        for block in np.array_split(seed, max(1, round(len(seed) / length)))
    ]
    provenance = {
        "script": "plugins/openmm/make_alanine_dipeptide.py",
        "date": datetime.fromtimestamp(paths[-1].stat().st_mtime, UTC).date().isoformat(),
        "molecule": "L-alanine dipeptide (ACE-ALA-NME), vacuum",
        "force_field": "amber14-all.xml, no cutoff, no constraints",
        "engine": f"OpenMM {openmm.version.full_version}, Reference platform, numpy "
        f"{np.__version__}",
        "method": "replica exchange, LangevinMiddleIntegrator",
        "temperatures_K": list(TEMPERATURES),
        "friction_per_ps": FRICTION,
        "timestep_fs": 1e3 * TIMESTEP,
        "steps_between_exchanges": STRIDE,
        "seeds": [int(path.stem.split("-")[1]) for path in paths],
        "frames_per_seed_after_discarding": [len(chain) for chain in chains],
        "discarded_fraction": DISCARDED,
        "exchange_acceptance": np.round(accepted / attempted, 4).tolist(),
        "phi_positive": {
            "population": round(float(np.concatenate(positive).mean()), 4),
            "standard_error": round(float(np.std(blocks, ddof=1) / np.sqrt(len(blocks))), 4),
            "error_from": f"{len(blocks)} blocks of about {length:.0f} frames",
            "by_seed": [round(float(p.mean()), 4) for p in positive],
            "sign_changes_by_seed": [int(np.sum(p[1:] != p[:-1])) for p in positive],
            "in_this_file": round(float(phi_is_positive(aligned).mean()), 4),
        },
        "energy_eV": {
            "mean": round(float(energies.mean()), 5),
            "std": round(float(energies.std()), 5),
        },
        "phi_atoms": PHI,
        "psi_atoms": PSI,
        "frames": f"drawn at random (seed 0) from {len(everything)}; mean removed, rotated onto "
        "the minimised structure (heavy atoms)",
        "note": arguments.note,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        arguments.output,
        positions=positions,
        scale=SCALE,
        energies=energies.astype(np.float32),
        numbers=atoms.numbers,
        temperature_K=TEMPERATURES[0],
        provenance=json.dumps(provenance, ensure_ascii=False),
    )
    console.print_json(data=provenance)
    console.print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


def align(x, reference, heavy):
    """Frames (M, N, 3) without their mean, rotated onto the reference (Kabsch, 1976)."""
    x = x - x.mean(1, keepdims=True)
    target = reference[heavy] - reference[heavy].mean(0)
    body = x[:, heavy] - x[:, heavy].mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("mia,ib->mab", body, target))
    # a proper rotation: the hand of the molecule stays
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return x @ (u @ vt)


def phi_is_positive(x) -> np.ndarray:
    """Whether φ > 0 (M,) in frames (M, N, 3)."""
    return dihedrals(x.astype(float), [PHI])[:, 0] > 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sampler = commands.add_parser("sample", help="run or continue the replica exchange")
    sampler.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    length = sampler.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="wall time of each seed")
    length.add_argument("--frames", type=int, help="frames of each seed, with those it has")
    sampler.add_argument("--processes", type=int, default=1)
    sampler.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    sampler.set_defaults(function=sample)
    packer = commands.add_parser("pack", help="merge the seeds into one compact file")
    packer.add_argument("runs", type=Path, help="folder written by `sample`")
    packer.add_argument("--frames", type=int, default=50_000)
    packer.add_argument("--note", default="", help="kept in the provenance")
    packer.add_argument("-o", "--output", type=Path, required=True, help=".npz file")
    packer.set_defaults(function=pack)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
