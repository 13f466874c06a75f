"""How much memory do the kinetics of a long trajectory take?

    python benchmarks/kinetics_memory.py long.h5 --frames 1000000

Writes that many frames of one walker of alanine dipeptide, by the package's own writer
(snapshots in the order of ψ, along which the walker goes at random), unless the file is there, and
has `diffmd analyze --kinetics` analyse it in a process of its own, whose peak of memory is
printed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from diffmd_ase import Snapshots
from diffmd_ase.geometry import dihedrals
from diffmd_ase.io.trajectory import RunInfo, TrajectoryWriter
from diffmd_ase.state import State
from diffmd_ase.units import kT_from_temperature

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
STRIDE = 400.0  # places of the sorted snapshots that a frame goes on average
BLOCK = 5000


def write(path: Path, frames: int) -> None:
    """A walk that is reflected at both ends of the snapshots sorted by ψ."""
    snapshots = Snapshots.read("alanine-dipeptide")
    positions = np.asarray(snapshots.positions, np.float32)
    psi = np.mod(dihedrals(positions, [PSI])[:, 0] + 2.0, 2 * np.pi)  # a gap of ψ is the end
    ordered = torch.from_numpy(positions[np.argsort(psi)])
    count = len(ordered)
    walk = np.cumsum(np.random.default_rng(0).normal(0.0, STRIDE, frames)) + count / 2
    folded = np.abs(np.mod(walk, 2 * count) - count)
    places = np.minimum(folded.astype(int), count - 1)
    info = RunInfo(seed=0, kT=kT_from_temperature(300.0), h=3.6e-5, kinetics_valid=True)
    with TrajectoryWriter.create(path, snapshots.system, [0], info, block=BLOCK) as writer:
        energy = torch.zeros(1, dtype=torch.float64)
        for step, place in enumerate(places.tolist()):
            x = ordered[place : place + 1]
            writer.append(State(x, energy, x, step=50 * step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--frames", type=int, default=1_000_000)
    options = parser.parse_args()
    if not options.file.exists():
        begun = time.perf_counter()
        write(options.file, options.frames)
        print(f"wrote {options.frames} frames in {time.perf_counter() - begun:.0f} s")
    words = ["analyze", str(options.file), "--kinetics"]
    for name, atoms in (("phi", PHI), ("psi", PSI)):
        words += ["--observe", f"{name}=torsion:{','.join(map(str, atoms))}"]
    words += ["--observe", "gyration", "--state", "a=psi:-60:60", "--state", "b=psi:60:-60"]
    words += ["--output", str(options.file.with_suffix(".json"))]
    print("diffmd", *words)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "diffmd_ase", *words], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    size = options.file.stat().st_size / 1e9
    print(f"{time.perf_counter() - begun:.0f} s, peak {peak:.2f} GB of memory, file {size:.2f} GB")


if __name__ == "__main__":
    main()
