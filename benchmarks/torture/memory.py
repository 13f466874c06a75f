"""Memory of long runs: the slope of what a process holds, in kB for 1000 steps."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import theilslopes
from torch import Tensor

from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.potentials.biases.cvs import Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.sampling.kernels import Kernel
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.simulation.frames import read_frames
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.system import System

from .kinds import KT, LEARNED_H, METADYNAMICS, SITES, SYSTEM, euler, variables, well
from .sandbox import Record, ended, fork, words

_WARM = 0.3  # of the steps of a piece: what caches and the allocator take at first
_PACE = 500


def memory(steps: dict[str, int], pieces: int, folder: Path, record: Record) -> None:
    """Runs of so many ``steps`` in ``pieces``, each in a process of its own that restarts.

    With trajectory, a line of a log for each frame, and metadynamics with a file of hills.
    """
    for name, total in steps.items():
        place = folder / f"memory, {name}"
        place.mkdir(exist_ok=True)
        for n in record.missing("memory", name, pieces):
            until = total * (n + 1) // pieces

            def work(name=name, until=until, n=n):
                return _piece(name, until, restart=n > 0)

            code = ended(fork(work, place), 3600.0)
            if code:
                raise RuntimeError(words(place))
            seen = np.loadtxt(place / "rss")
            late = seen[seen[:, 0] > seen[0, 0] + _WARM * (seen[-1, 0] - seen[0, 0])]
            # of the median: the allocator takes memory in steps of megabytes, now and then
            slope = theilslopes(late[:, 1], late[:, 0] / 1000.0).slope
            record.add(
                "memory",
                name,
                n,
                steps=int(until - (total * n // pieces)),
                slope=float(slope),
                first=float(late[0, 1]),
                last=float(late[-1, 1]),
                peak=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
            )


def _case(name: str, restart: bool) -> tuple[Kernel, System, Tensor, int]:
    settings = METADYNAMICS | {"pace": _PACE, "file": "HILLS", "restart": restart}
    if name == "springs":
        bias = Metadynamics(variables(), **settings)
        return euler(well() + bias), SYSTEM, SITES[None].clone(), 500
    model = ScoreModel.load("alanine-dipeptide")
    frames = read_frames("alanine-dipeptide", model)
    settings |= {"sigma": 0.35, "grid": Grid([60])}
    phi = Torsion(frames.system, (4, 6, 8, 14), name="phi")
    bias = Metadynamics(phi, **settings)
    # compiled before the first step, as `diffmd run` does
    kernel = euler(model.potential(frames.system, compile=True) + bias, h=LEARNED_H)
    return kernel, frames.system, torch.as_tensor(frames.positions[:1]), 100


def _piece(name: str, until: int, restart: bool) -> None:
    kernel, system, x, every = _case(name, restart)
    page = os.sysconf("SC_PAGE_SIZE") / 1024.0

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    with open("rss", "w") as seen, open("log", "a") as log:

        def progress(done: int, alive: int) -> None:
            log.write(f"{done} {time.time():.3f} {alive}\n")
            if done % (10 * every) == 0:
                seen.write(f"{done} {resident():.0f}\n")

        simulate(
            kernel,
            system,
            None if restart else x,
            until,
            files=Files("md"),
            info=RunInfo(seed=5, kT=KT, h=5e-3, kinetics_valid=False),
            every=every,
            restart=restart,
            progress=progress,
        )
