"""A run that leaves files: trajectory, checkpoint, summary; restartable at any moment.

PREFIX.h5         H5MD trajectory of all walkers (`io.trajectory.Trajectory`)
PREFIX.restart    checkpoint: positions, step count and seed
PREFIX.json       summary: settings, versions, lost walkers, timings
PREFIX.extxyz     the last frame of every walker
PREFIX.lost.extxyz  walkers that diverged, before and after that step
PREFIX.lock       while the run goes on
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ase.io
import torch
from torch import Tensor

from ..io.atomic import replacing
from ..io.json_text import to_json
from ..io.lock import locked
from ..io.run_info import RunInfo
from ..io.trajectory import TrajectoryWriter
from ..noise import Noise
from ..sampling.adaptation import adapt
from ..sampling.ahead import Ahead
from ..sampling.kernels import Kernel
from ..state import State
from ..system import System
from .course import ACCEPTANCE, Course, columns
from .outside import Outside
from .restart import adapted, read_checkpoint, summary
from .settings import Files
from .signals import Deferred

__all__ = ["simulate"]

_CHECKPOINT_SECONDS = 30.0
_BLOCK = 1000  # steps between looks at the clock, at most


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
    warm_up: int = 0,
    device: str | torch.device = "cpu",
    ahead: Ahead | None = None,
    progress: Callable[[int, int], None] | None = None,
    outside: Outside | None = None,
) -> dict:
    """Run ``n_steps`` steps in all, writing every ``every``; returns the summary.

    Frames have the energy of what decides (with its bias), the acceptance since the frame
    before, and what a bias says of itself. Checkpoints hold what potentials with memory need.

    Parameters
    ----------
    x : (B, N, 3) starting positions; None with ``restart``
    info : what the frames mean; its seed is that of the noise
    walkers : (B,) global ids, default 0…B−1; with ``restart`` those of the checkpoint
    restart : go on from the checkpoint to ``n_steps`` in all; the result is that of an
        uninterrupted run
    warm_up : the first steps, in no frame, in which the step size of a Metropolis kernel is
        adapted (`sampling.adaptation`), then frozen; a run killed in them starts anew
    ahead : makes the steps after the adaptation, many together; None: one by one. A checkpoint is
        where a window ends, so that a restart goes on with the chain of the run that wrote it
    progress : called with steps done and walkers alive
    outside : what is done with frames outside of the snapshots of a model; default: counted

    Walkers that diverge are dropped, named in the summary, and the others go on.

    Raises
    ------
    FileExistsError : files of a run are there and ``restart`` was not asked for
    BlockingIOError : another process writes them
    ValueError : ``restart`` with settings that are not those of the run
    DivergedError : no walker is left; what there was is on disk
    """
    if not 0 <= warm_up <= n_steps:
        raise ValueError(f"{warm_up} steps of adaptation in a run of {n_steps}: the steps in all")
    files, outside = files.absolute(), outside or Outside(system)
    with locked(files.lock, f"the files of {files.prefix}"):
        if restart:
            saved = read_checkpoint(files, info, n_steps, every, walkers, warm_up, device)
            course = _gone_on(kernel, info, files, outside, ahead, *saved)
        else:
            if x is None:
                raise ValueError("no starting positions and no restart: nothing to run")
            files.check_free()
            ids = torch.arange(len(x)) if walkers is None else walkers
            state = kernel.init(x.to(device), walkers=ids.to(device))
            course = _begun(kernel, info, files, outside, ahead, state, system, every, warm_up)
        _follow(course, n_steps, every, progress)
        told = summary(course.kernel, course.info, course.state, course.facts())
        with replacing(files.summary) as part:
            part.write_text(to_json(told))
        with replacing(files.final) as part:
            frames = [system.to_atoms(p) for p in course.state.x.cpu()]
            ase.io.write(part, frames, format="extxyz")
    return told


def _gone_on(
    kernel: Kernel,
    info: RunInfo,
    files: Files,
    outside: Outside,
    ahead: Ahead | None,
    state: State,
    writer,
    past,
) -> Course:
    """The run at its checkpoint."""
    kernel, info = adapted(kernel, info, past.get("adaptation"))
    if len(state.x) < len(writer.walkers):
        kernel = kernel.take(columns(writer.walkers, state))
    if kernel.potential.has_memory:
        kernel.potential.restore(past["potential"], state.x, state.step)
        state = kernel.refresh(state)
    return Course(kernel, state, writer, info, files, past, outside, ahead)


def _begun(
    kernel: Kernel,
    info: RunInfo,
    files: Files,
    outside: Outside,
    ahead: Ahead | None,
    state: State,
    system: System,
    every: int,
    warm_up: int,
) -> Course:
    """A run at its start, after the steps of adaptation, with its first checkpoint on disk."""
    past: dict[str, Any] = {"lost": {}, "seconds": 0.0, "evaluations": 0}
    past |= {"every": every, "warm_up": warm_up}
    if warm_up:
        _, state, record = adapt(kernel, state, warm_up, noise=Noise(info.seed))
        past["adaptation"] = asdict(record)
        kernel, info = adapted(kernel, info, past["adaptation"])
    described = kernel.describe(state)
    names = [*described, ACCEPTANCE]
    ids = state.walkers.tolist()
    writer = TrajectoryWriter.create(files.trajectory, system, ids, info, columns=names)
    course = Course(kernel, state, writer, info, files, past, outside, ahead)
    try:
        if state.step % every == 0:
            writer.append(state, described)
        course.save()
    except BaseException:  # without a checkpoint it would be in the way of the next start
        files.trajectory.unlink(missing_ok=True)
        raise
    return course


def _follow(course: Course, n_steps: int, every: int, progress) -> None:
    """Step, write and save until ``n_steps`` in all; what there is is saved in any case.

    So is what potentials know at the end only: it is not in the checkpoint, and a restart makes it
    again.
    """
    saved = time.monotonic()
    with Deferred() as signals, course.writer:
        try:
            while course.state.step < n_steps and not course.over:
                # never past a frame, so that frames stay at multiples of `every`
                step = course.state.step
                for _ in range(min(every - step % every, n_steps - step, _BLOCK)):
                    course.advance()
                    if signals.pending is not None:
                        break
                if course.state.step % every == 0:
                    course.write_frame()
                if progress:
                    progress(course.state.step, len(course.state.x))
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    course.save()
                    saved = time.monotonic()
                signals.deliver()
        finally:
            course.save()
            course.kernel.potential.finish()
