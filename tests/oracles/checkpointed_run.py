"""A run with a trajectory and checkpoints, cut and continued: the loop that a driver has."""

import time

import numpy as np
import torch

from diffmd_ase.io.checkpoint import load_checkpoint, previous, save_checkpoint
from diffmd_ase.io.trajectory import RunInfo, TrajectoryWriter
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System


class Harmonic(Potential):
    def __call__(self, x):
        return Evaluation(0.5 * (x**2).sum((-1, -2)), -x)


WATER = System(np.array([8, 1, 1]), np.array([16.0, 1.0, 1.0]))
INFO = RunInfo(seed=7, kT=0.025, h=1e-3, kinetics_valid=True, timestep_fs=0.5)
EVERY = 3


def simulate(folder, n_steps, *, walkers=4, checkpoint_every=30, block=7, pause=0.0):
    """Run or restart to ``n_steps``: the loop that a driver has."""
    kernel = EulerMaruyama(Harmonic(), kT=0.025, h=1e-3)
    path, saved = folder / "run.h5", folder / "run.ckpt"
    if saved.exists() or previous(saved).exists():
        state = load_checkpoint(saved).state
        writer = TrajectoryWriter.resume(path, step=state.step, block=block)
    else:
        path.unlink(missing_ok=True)  # killed before its first checkpoint
        state = kernel.init(torch.ones(walkers, 3, 3, dtype=torch.float64))
        writer = TrajectoryWriter.create(path, WATER, range(walkers), INFO, block=block)
    with writer:
        start, left = state, n_steps - state.step
        for state, _ in run(kernel, start, left, noise=Noise(7), every=EVERY):
            writer.append(state)
            if state.step % checkpoint_every == 0:
                writer.flush()
                save_checkpoint(saved, state, seed=7, parameters={"h": 1e-3})
            if pause:
                time.sleep(pause)
    return path
