"""Population of φ > 0 and free energy F(φ, ψ) of alanine dipeptide, by a flattening bias in OpenMM.

    python flatten_alanine_dipeptide.py --seeds 8 --ns 20 -o flattened.json

Well-tempered metadynamics on (φ, ψ) builds a bias (a CMAP grid, bicubic between its nodes).
The bias is then frozen: every seed runs in the same static potential U + V from one basin,
and frames are reweighted by exp(βV), which is exact (Torrie and Valleau, J. Comput. Phys. 23,
187, 1977). The error of the population comes from blocks of the seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import openmm
from ase import units
from diffmd_openmm import PHI, PSI, alanine_dipeptide
from rich.console import Console
from rich.progress import track

from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.json_text import to_json

TEMPERATURE, FRICTION, TIMESTEP = 300.0, 2.0, 0.001  # K, 1/ps, ps
KT = TEMPERATURE * units.kB / (units.kJ / units.mol)  # kJ/mol
NODES = 48  # of the grid along each angle
HEIGHT, WIDTH, BIAS_FACTOR, PACE = 1.0, 0.25, 8.0, 500  # kJ/mol, rad, -, steps
STRIDE = 100  # steps between frames of the static runs
DISCARDED = 0.02  # of each static run
BLOCKS = 5  # of each seed, for the error
BINS = 64  # of the histogram that is written

RADIANS = 2.0 * np.pi * np.arange(NODES) / NODES


class Biased:
    """Langevin dynamics of the molecule with a bias on (φ, ψ), from φ < 0."""

    def __init__(self, seed: int, bias: np.ndarray):
        atoms, system = alanine_dipeptide()
        self.cmap = openmm.CMAPTorsionForce()
        self.cmap.addMap(NODES, _flat(bias))
        self.cmap.addTorsion(0, *PHI, *PSI)
        self.cmap.setForceGroup(1)
        system.addForce(self.cmap)
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP)
        integrator.setRandomNumberSeed(seed + 1)
        reference = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(system, integrator, reference)
        self.context.setPositions(atoms.positions / units.nm)
        self.context.setVelocitiesToTemperature(TEMPERATURE, seed + 1)

    def step(self, steps: int) -> None:
        self.context.getIntegrator().step(steps)

    def angles(self) -> np.ndarray:
        """φ and ψ in rad."""
        x = self.context.getState(getPositions=True).getPositions(asNumpy=True)._value
        return dihedrals(x, [PHI, PSI])

    def bias_energy(self) -> float:
        """V in kJ/mol, as OpenMM interpolates it."""
        return self.context.getState(getEnergy=True, groups={1}).getPotentialEnergy()._value

    def set_bias(self, bias: np.ndarray) -> None:
        self.cmap.setMapParameters(0, NODES, _flat(bias))
        self.cmap.updateParametersInContext(self.context)


def _flat(bias: np.ndarray) -> list[float]:
    """OpenMM's order: the first angle runs fastest, both from 0 to 2π."""
    return bias.T.ravel().tolist()


def build(ns: float, seed: int, console: Console) -> np.ndarray:
    """The bias V (NODES, NODES) in kJ/mol after ``ns`` of well-tempered metadynamics."""
    bias = np.zeros((NODES, NODES))
    run = Biased(seed, bias)
    run.step(20 * PACE)
    hills = round(ns * 1000.0 / TIMESTEP / PACE)
    for _ in track(range(hills), "bias", console=console):
        run.step(PACE)
        kernel = [
            np.exp((np.cos(RADIANS - angle) - 1.0) / WIDTH**2) for angle in run.angles()
        ]  # von Mises: periodic
        height = HEIGHT * np.exp(-run.bias_energy() / ((BIAS_FACTOR - 1.0) * KT))
        bias += height * np.outer(*kernel)
        run.set_bias(bias)
    return bias


def static(seed: int, bias: np.ndarray, ns: float) -> np.ndarray:
    """Frames (n, 3): φ, ψ and V/kT of one run in the frozen bias."""
    run = Biased(seed, bias)
    run.step(20 * PACE)
    frames = np.empty((round(ns * 1000.0 / TIMESTEP / STRIDE), 3))
    for frame in frames:
        run.step(STRIDE)
        frame[:] = *run.angles(), run.bias_energy() / KT
    return frames[round(DISCARDED * len(frames)) :]


def ratio(weights: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Weighted mean of blocks (K, n) and its standard error (delta method)."""
    total, hits = weights.sum(1), (weights * inside).sum(1)
    mean = hits.sum() / total.sum()
    residual = hits - mean * total
    return mean, float(np.sqrt(len(total) / (len(total) - 1) * (residual**2).sum()) / total.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="static runs")
    parser.add_argument("--ns", type=float, default=20.0, help="length of each static run")
    parser.add_argument("--build-ns", type=float, default=10.0, help="metadynamics before")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".json file")
    arguments = parser.parse_args()
    console = Console()
    bias = build(arguments.build_ns, 0, console)
    seeds = range(1, arguments.seeds + 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        jobs = [pool.submit(static, seed, bias, arguments.ns) for seed in seeds]
        runs = [job.result() for job in track(jobs, "static runs", console=console)]
    length = min(map(len, runs)) // BLOCKS * BLOCKS
    blocks = np.stack([run[:length] for run in runs]).reshape(len(runs) * BLOCKS, -1, 3)
    phi, psi, reduced = np.moveaxis(blocks, -1, 0)
    weights = np.exp(reduced - reduced.max())
    population, error = ratio(weights, phi > 0.0)
    by_seed = np.average(
        phi.reshape(len(runs), -1) > 0.0, axis=1, weights=weights.reshape(len(runs), -1)
    )
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    histogram, *_ = np.histogram2d(
        phi.ravel(), psi.ravel(), bins=(edges, edges), weights=weights.ravel()
    )
    result = {
        "script": "plugins/openmm/flatten_alanine_dipeptide.py",
        "engine": f"OpenMM {openmm.version.full_version}, Reference platform",
        "method": "static bias from well-tempered metadynamics on (phi, psi), reweighted",
        "temperature_K": TEMPERATURE,
        "seeds": len(runs),
        "ns_per_seed": arguments.ns,
        "phi_positive": {
            "population": population,
            "standard_error": error,
            "error_from": f"{len(blocks)} blocks",
            "by_seed": by_seed.tolist(),
            "sign_changes_by_seed": [int(np.sum(np.diff(run[:, 0] > 0.0))) for run in runs],
        },
        "effective_fraction": float(weights.sum() ** 2 / (weights**2).sum() / weights.size),
        "histogram": [[float(f"{p:.4g}") for p in row] for row in histogram / histogram.sum()],
        "histogram_axes": f"phi, psi; {BINS} bins from -pi to pi",
    }
    arguments.output.write_text(to_json(result, indent=None) + "\n")
    del result["histogram"]
    console.print_json(data=result)


if __name__ == "__main__":
    main()
