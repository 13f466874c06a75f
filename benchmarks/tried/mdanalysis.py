"""Our H5MD trajectories in MDAnalysis: the Python that has it is named by MDANALYSIS_PYTHON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk

from diffmd_ase import Snapshots
from diffmd_ase.io.trajectory import Trajectory
from tried.outcome import ABSENT, DIFFERS, HOLDS, Outcome, Trial, said

__all__ = ["trials"]

PYTHON = os.environ.get("MDANALYSIS_PYTHON", sys.executable)
READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
import MDAnalysis
from MDAnalysis.coordinates.H5MD import H5MDReader
with H5MDReader(sys.argv[1], convert_units=sys.argv[2] == "True") as reader:
    frames = [
        {
            "positions": step.positions.tolist(),
            "time": float(step.time),
            "step": int(step.data.get("step", -1)),
            "cell": None if step.dimensions is None else step.triclinic_dimensions.tolist(),
        }
        for step in reader
    ]
print(json.dumps({"version": MDAnalysis.__version__, "frames": frames}))
"""


def trials() -> list[Trial]:
    """A molecule with a clock in fs, and a crystal without one; one walker and several."""
    clock = ["--timestep", "0.1", "--friction", "0.05"]
    return [
        Trial(
            "Trajectories", "molecule, three walkers, clock in fs", partial(_try, False, 3, clock)
        ),
        Trial("Trajectories", "crystal, one walker, no clock", partial(_try, True, 1, [])),
    ]


def _try(periodic: bool, walkers: int, words: list[str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        path = _run(Path(folder), periodic, walkers, words)
        done = subprocess.run(
            [PYTHON, "-c", READ, str(path), str(bool(words))],
            capture_output=True,
            text=True,
            check=False,
        )
        if "No module named 'MDAnalysis'" in done.stderr:
            return Outcome(ABSENT, "MDAnalysis is not installed: MDANALYSIS_PYTHON names a Python")
        if done.returncode:
            return Outcome(DIFFERS, said(done.stderr.strip().splitlines()[-1]))
        return _compare(Trajectory(path), json.loads(done.stdout)["frames"], bool(words))


def _run(folder: Path, periodic: bool, walkers: int, words: list[str]) -> Path:
    model = "copper-vacancy" if periodic else "alanine-dipeptide"
    if periodic:
        atoms = bulk("Cu", cubic=True).repeat(2)
        del atoms[0]
    else:
        snapshots = Snapshots.read(model)
        atoms = snapshots.system.to_atoms(snapshots.positions[0])
    ase.io.write(folder / "start.traj", atoms)
    command = [sys.executable, "-W", "ignore", "-m", "diffmd_ase", "run", model, *words]
    command += ["--start", str(folder / "start.traj"), "--walkers", str(walkers), "--steps", "20"]
    command += ["--every", "5", "--seed", "1", "--no-progress", "--prefix", str(folder / "md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return folder / "md.h5"


def _compare(ours: Trajectory, frames: list[dict], clock: bool) -> Outcome:
    if len(frames) != len(ours):
        return Outcome(DIFFERS, f"{len(frames)} frames for {len(ours)}")
    positions = ours.positions[:].reshape(len(ours), -1, 3)
    if not np.array_equal(np.array([f["positions"] for f in frames], np.float32), positions):
        return Outcome(DIFFERS, "positions")
    per_step = ours.info.timestep_fs * 1e-3 if clock else ours.info.h
    if not np.allclose([f["time"] for f in frames], ours.steps * per_step, rtol=1e-6):
        return Outcome(DIFFERS, "times")
    cells = [f["cell"] for f in frames]
    if not ours.system.periodic:
        return Outcome(HOLDS if cells == [None] * len(cells) else DIFFERS, "")
    same = np.allclose(np.array(cells), ours.system.cell, atol=1e-4)
    return Outcome(HOLDS) if same else Outcome(DIFFERS, "cells")
