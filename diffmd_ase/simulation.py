"""A run that leaves files: trajectory, checkpoint, summary; restartable at any moment.

PREFIX.h5         H5MD trajectory of all walkers (`storage.Trajectory`)
PREFIX.restart    checkpoint: positions, step count and seed
PREFIX.json       summary: settings, versions, lost walkers, timings
PREFIX.extxyz     the last frame of every walker
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import ase.io
import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint
from .noise import Noise
from .sampling.kernels import DivergedError, Kernel
from .sampling.run import run
from .storage import RunInfo, Trajectory, TrajectoryWriter
from .system import State, System

__all__ = ["Files", "simulate"]


@dataclass(frozen=True)
class Files:
    """The files of one run."""

    prefix: str

    @property
    def trajectory(self) -> Path:
        return Path(f"{self.prefix}.h5")

    @property
    def restart(self) -> Path:
        return Path(f"{self.prefix}.restart")

    @property
    def summary(self) -> Path:
        return Path(f"{self.prefix}.json")

    @property
    def final(self) -> Path:
        return Path(f"{self.prefix}.extxyz")


@dataclass
class _Clock:
    """Checkpoints by wall clock, progress by steps."""

    interval: float
    last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.interval:
            return False
        self.last = now
        return True


def simulate(
    kernel: Kernel,
    system: System,
    x: Tensor | None,
    n_steps: int,
    *,
    files: Files,
    info: RunInfo,
    every: int,
    walkers: Tensor | None = None,
    restart: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Run ``n_steps`` steps in all, writing every ``every``; returns the summary.

    Parameters
    ----------
    x : (B, N, 3) starting positions; None with ``restart``
    info : what the frames mean; its seed is that of the noise
    walkers : (B,) global ids, default 0…B−1
    restart : go on from the checkpoint to ``n_steps`` in all; the result is that of an
        uninterrupted run
    progress : called with steps done and walkers alive

    Walkers that diverge are dropped, named in the summary, and the others go on.

    Raises
    ------
    FileExistsError : files of a run are there and ``restart`` was not asked for
    DivergedError : no walker is left
    """
    noise = Noise(info.seed)
    if restart:
        saved = load_checkpoint(files.restart)
        if saved.seed != info.seed:
            raise ValueError(f"seed {info.seed} given, but {files.restart} has {saved.seed}")
        state, parameters = saved.state, saved.parameters
        # evaluated afresh: forces on disk may be of another device or precision
        fresh = kernel.init(state.x, walkers=state.walkers)
        state = replace(fresh, step=state.step)
        writer = TrajectoryWriter.resume(files.trajectory, step=state.step)
        lost = {int(k): v for k, v in parameters["lost"].items()}
        spent = parameters["seconds"]
    else:
        if x is None:
            raise ValueError("no starting positions and no restart: nothing to run")
        ids = torch.arange(len(x)) if walkers is None else walkers
        for path in (files.restart, files.trajectory):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists: restart that run, remove it, or choose another prefix"
                )
        state = kernel.init(x, walkers=ids)
        writer = TrajectoryWriter.create(files.trajectory, system, ids.tolist(), info)
        writer.append(state)
        lost, spent = {}, 0.0
    began, start_step = time.monotonic(), state.step
    clock = _Clock(checkpoint_seconds)

    def save() -> None:
        writer.flush()
        seconds = spent + time.monotonic() - began
        save_checkpoint(
            files.restart, state, seed=info.seed, parameters={"lost": lost, "seconds": seconds}
        )

    with writer:
        save()
        try:
            while state.step < n_steps:
                # never past a frame, so that frames stay at multiples of `every`
                block = min(every - state.step % every, n_steps - state.step)
                try:
                    [(state, _)] = run(kernel, state, block, noise=noise, every=block)
                except DivergedError as error:
                    lost |= {walker: error.step for walker in error.walkers}
                    if error.survivors is None:
                        raise
                    state = error.survivors
                    continue
                if state.step % every == 0:
                    writer.append(state)
                if progress:
                    progress(state.step, len(state.x))
                if clock.due():
                    save()
        finally:
            save()
    seconds = time.monotonic() - began
    summary = _summary(kernel, info, state, lost, every, seconds, spent, start_step)
    _write_text(files.summary, json.dumps(summary, indent=1))
    ase.io.write(files.final, [system.to_atoms(p) for p in state.x], format="extxyz")
    return summary


def _summary(kernel, info: RunInfo, state: State, lost, every, seconds, spent, start) -> dict:
    evaluations = (state.step - start) * len(state.x)
    return {
        "steps": state.step,
        "every": every,
        "walkers": len(state.x),
        "lost": lost,
        "D_t_per_walker_A2": state.step * info.h,
        "h_A2": info.h,
        "seed": info.seed,
        "kT_eV": info.kT,
        "kernel": type(kernel).__name__,
        "kinetics_valid": info.kinetics_valid,
        "model_sha256": info.model_sha256,
        "version": info.package_version,
        "device": str(state.x.device),
        "seconds": round(spent + seconds, 2),
        "walker_steps_per_second": round(evaluations / max(seconds, 1e-9), 1),
    }


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def frames(paths: list[Path], *, skip: float = 0.0) -> tuple[np.ndarray, list[Trajectory]]:
    """Positions (T, B, N, 3) of trajectories with the same frames, side by side."""
    readers = [Trajectory(path) for path in paths]
    count = min(len(reader) for reader in readers)
    first = int(skip * count)
    parts = [np.asarray(reader.positions[first:count]) for reader in readers]
    return np.concatenate(parts, axis=1), readers
