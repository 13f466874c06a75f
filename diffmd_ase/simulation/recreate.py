"""The kernel that made a trajectory, made again: for what is asked of its frames afterwards."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.units import fs
from torch import Tensor

from ..io.trajectory import Trajectory
from ..potentials.named import MODEL
from ..sampling.euler import EulerMaruyama
from ..score.model import ScoreModel
from ..system import System
from ..units import spring_from_h
from .planned import held, sha256_of
from .prepare import StepRequest, prepare

__all__ = ["Recreated", "recreate"]


@dataclass(frozen=True, eq=False)
class Recreated:
    """A run that left a trajectory: its plain kernel, and some of its frames."""

    kernel: EulerMaruyama  # of plain steps; of an accepted run, the proposal
    system: System  # of the walkers
    frames: Tensor  # (T, W, N, 3) Å, float64, time first
    n_steps: int  # of the run
    accepted: bool  # its steps were accepted to the model's own energy


def recreate(
    model: str | Path,
    trajectory: str | Path,
    *,
    frames: int = 1000,
    skip: float = 0.1,
    device: str = "auto",
) -> Recreated:
    """The plain kernel of a file of ``diffmd run``, and frames of it, evenly spaced.

    Parameters
    ----------
    model : file or name of the model that drove
    trajectory : ``.h5``
    frames : structures in all, over walkers and time
    skip : fraction of the frames left out at first

    Raises
    ------
    ValueError : a run with a bias, or accepted to another energy than the model's; no frames; all
        walkers lost

    Warns where the file names another model than this one.
    """
    source = Trajectory(trajectory)
    info, loaded = source.info, ScoreModel.load(model)
    target, plumed = info.extra.get("target"), info.extra.get("plumed")
    if plumed is not None or (target is None and not info.kinetics_valid):
        raise ValueError(f"{trajectory}: a biased run samples another law than its model's")
    if target not in (None, MODEL):
        raise ValueError(
            f"{trajectory}: its steps were accepted to {target!r}, whose law the frames have, not "
            "the model's; give a run without --target, or with --target model"
        )
    if np.ndim(info.kT):
        raise ValueError(f"{trajectory}: walkers of several temperatures; expected one")
    digest = sha256_of(str(model))
    if None not in (digest, info.model_sha256) and digest != info.model_sha256:
        warnings.warn(f"{trajectory} was made with another model than {model}", stacklevel=2)
    friction = info.extra.get("friction")
    if friction is not None and info.timestep_fs is not None:
        step = StepRequest(timestep=info.timestep_fs * fs, friction=friction / fs)
    else:
        step = StepRequest(spring=spring_from_h(info.h))
    prepared = prepare(
        loaded.potential(source.system, device=device),
        temperature_K=float(np.asarray(info.kT)) / units.kB,
        step=step,
        **held(loaded, source.system),
    )
    if not isinstance(prepared.kernel, EulerMaruyama):  # no target was asked for
        raise TypeError(f"{type(prepared.kernel).__name__} where plain steps were expected")
    return Recreated(
        prepared.kernel,
        source.system,
        _evenly(source, frames, skip),
        int(source.steps[-1]),
        target == MODEL,
    )


def _evenly(source: Trajectory, count: int, skip: float) -> Tensor:
    """About ``count`` structures (T, W, N, 3), evenly spaced, without lost walkers."""
    if not len(source):
        raise ValueError(f"{source.path} has no frames")
    alive = np.flatnonzero(np.isfinite(source.positions[-1]).all((1, 2)))
    if not len(alive):
        raise ValueError(f"{source.path}: all walkers were lost, no frame is left")
    walkers = alive[np.unique(np.linspace(0, len(alive) - 1, min(count, len(alive))).astype(int))]
    first = min(int(skip * len(source)), len(source) - 1)
    times = np.linspace(first, len(source) - 1, max(1, count // len(walkers))).astype(int)
    x = np.stack([source.positions[int(t)][walkers] for t in np.unique(times)])
    return torch.from_numpy(x.astype(np.float64))
