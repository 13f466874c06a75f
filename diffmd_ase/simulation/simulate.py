"""A run that leaves files: trajectory, checkpoint, summary; restartable at any moment.

PREFIX.h5         H5MD trajectory of all walkers (`io.trajectory.Trajectory`)
PREFIX.restart    checkpoint: positions, step count and seed
PREFIX.json       summary: settings, versions, lost walkers, timings
PREFIX.extxyz     the last frame of every walker
PREFIX.lost.extxyz  walkers that diverged, before and after that step
PREFIX.lock       while the run goes on

On N ranks (`io.ranks`) rank R writes PREFIX.RofN.h5 and PREFIX.RofN.lost.extxyz, and
PREFIX.h5 is the index of all (`io.parts`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import torch
from torch import Tensor

from ..io.atomic import replacing
from ..io.checksums import digest
from ..io.json_text import to_json
from ..io.lock import locked
from ..io.ranks import Ranks
from ..io.run_info import RunInfo
from ..io.trajectory import Trajectory, TrajectoryWriter
from ..noise import Noise
from ..sampling.adaptation import adapt
from ..sampling.ahead import Ahead
from ..sampling.kernels import Kernel
from ..state import State
from ..system import System
from .course import ACCEPTANCE, Course, columns
from .division import default_chunk
from .facts import part_of
from .outside import Outside
from .pace import Pace
from .restart import adapted, read_checkpoint, summary
from .settings import Files
from .shares import Shares
from .signals import Deferred

__all__ = ["simulate"]


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
    ranks: Ranks | None = None,
    chunk: int | None = None,
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
    ranks : that share the walkers, see `io.ranks`; every one of them calls this with the
        same arguments, ``x`` and ``kernel`` of all walkers, and in one folder
    chunk : walkers that step together, see `simulation.shares`; default: all, on ``ranks``
        `division.default_chunk`. A run keeps its own

    Walkers that diverge are dropped, named in the summary, and the others go on.

    Raises
    ------
    FileExistsError : files of a run are there and ``restart`` was not asked for
    BlockingIOError : another process writes them
    ValueError : ``restart`` with settings that are not those of the run; what cannot be done on
        ranks, or in chunks
    RankError : another rank failed, is gone or does not answer
    DivergedError : no walker is left; what there was is on disk
    """
    if not 0 <= warm_up <= n_steps:
        raise ValueError(f"{warm_up} steps of adaptation in a run of {n_steps}: the steps in all")
    if ahead is not None and (ranks is not None or chunk is not None):
        raise ValueError("steps made together are of one process, without ranks and chunks of its")
    files, outside, team = files.absolute(), outside or Outside(system), ranks or Ranks()
    with ExitStack() as held:
        team.first(lambda: _hold(held, files))
        if not restart:
            if x is None:
                raise ValueError("no starting positions and no restart: nothing to run")
            team.first(files.check_free)
        trajectory = Trajectory(files.trajectory) if restart else None
        ids = torch.arange(len(x)) if x is not None and walkers is None else walkers
        shares = None
        if chunk is not None or ranks is not None:
            every_id = ids if trajectory is None else torch.as_tensor(trajectory.walkers)
            chunk = default_chunk(len(every_id)) if chunk is None else chunk
            info = replace(info, extra={**info.extra, "chunk": chunk})
            shares = Shares(kernel, every_id, chunk, team)
            _agree(team, kernel, info, every_id, x, steps=n_steps, every=every, warm_up=warm_up)
        made = _Made(kernel, info, files, outside, ahead, shares)
        if restart:
            saved = read_checkpoint(files, info, n_steps, every, walkers, warm_up, device)
            course = _gone_on(made, *saved)
            _tidied(course, saved[1])
        else:
            course = _begun(made, x, ids, device, system, every, warm_up)
        _follow(course, n_steps, every, progress)
        state, facts = course.everyone()
        told = summary(course.kernel, course.info, state, facts)
        told |= {"ranks": team.size} if team.size > 1 else {}
        return team.first(lambda: _written(files, system, state, told))


class _Made(NamedTuple):
    """What a run is made of, in every process that has a part in it."""

    kernel: Kernel
    info: RunInfo
    files: Files
    outside: Outside
    ahead: Ahead | None
    shares: Shares | None


def _hold(held: ExitStack, files: Files) -> None:
    held.enter_context(locked(files.lock, f"the files of {files.prefix}"))


def _agree(team: Ranks, kernel: Kernel, info: RunInfo, ids, x: Tensor | None, **counts) -> None:
    """Raise ``ValueError`` where ranks were given different things to do."""
    start = None if x is None else digest({"x": x.detach().cpu().numpy()})[:12]
    facts = {"seed": info.seed, "kT": info.kT, "h": info.h, "chunk": info.extra["chunk"], **counts}
    facts |= {"kernel": type(kernel).__name__, "walkers": ids.tolist(), "starting positions": start}
    team.alike(facts, "ranks make one run, each with all of its settings")


def _written(files: Files, system: System, state: State, told: dict) -> dict:
    """What a finished run has ``told``, on disk, and its last frames."""
    with replacing(files.summary) as part:
        part.write_text(to_json(told))
    with replacing(files.final) as part:
        frames = [system.to_atoms(p) for p in state.x.cpu()]
        ase.io.write(part, frames, format="extxyz")
    return told


def _gone_on(made: _Made, state: State, trajectory: Trajectory, past) -> Course:
    """The run at its checkpoint."""
    kernel, info = adapted(made.kernel, made.info, past.get("adaptation"))
    shares = made.shares
    if shares is None:
        writer = TrajectoryWriter.resume(made.files.trajectory, step=state.step)
        if len(state.x) < len(writer.walkers):
            kernel = kernel.take(columns(writer.walkers, state))
        if kernel.potential.has_memory:
            kernel.potential.restore(past["potential"], state.x, state.step)
            state = kernel.refresh(state)
    else:
        writer = _own_writer(made, shares, trajectory, state.step)
        if kernel.potential.has_memory:
            kernel.potential.restore(past["potential"], state.x, state.step)
        own = np.isin(state.walkers.cpu().numpy(), writer.walkers)
        state = state.take(torch.as_tensor(own, device=state.x.device))
        state = shares.refresh(kernel, state) if kernel.potential.has_memory else state
        past = part_of(past, shares.own, shares.ranks.leads)
    files, outside = _of_rank(made)
    return Course(kernel, state, writer, info, files, past, outside, made.ahead, shares)


def _own_writer(made: _Made, shares: Shares, old: Trajectory, step: int) -> TrajectoryWriter:
    """Of the walkers of this rank: its file gone on with, or its walkers copied to a new one."""
    files, _ = _of_rank(made)
    ranks = shares.ranks
    if len(old.parts) == ranks.size or (ranks.size == 1 and not old.parts):
        return TrajectoryWriter.resume(old.parts[ranks.rank] if old.parts else old.path, step=step)
    own = shares.walkers[ranks.rank]
    return TrajectoryWriter.copied(files.trajectory, old, own, step=step)


def _tidied(course: Course, old: Trajectory) -> None:
    """The files of ``old`` that other ranks wrote give way to those of these ranks."""
    if course.shares is None or not (old.parts or course.shares.ranks.size > 1):
        return
    course.save()
    if len(old.parts) != course.shares.ranks.size:
        course.shares.ranks.first(lambda: _remove(old.parts))


def _remove(parts: list[Path]) -> None:
    for part in parts:
        part.unlink(missing_ok=True)


def _of_rank(made: _Made) -> tuple[Files, Outside]:
    """The files of this rank, and where it collects frames."""
    if made.shares is None or made.shares.ranks.size == 1:
        return made.files, made.outside
    rank, size = made.shares.ranks.rank, made.shares.ranks.size
    collect = made.outside.collect
    if collect is not None:
        collect = collect.with_suffix(f".{rank}of{size}{collect.suffix}")
    return made.files.of_rank(rank, size), replace(made.outside, collect=collect)


def _begun(
    made: _Made,
    x: Tensor,
    ids: Tensor,
    device: str | torch.device,
    system: System,
    every: int,
    warm_up: int,
) -> Course:
    """A run at its start, after the steps of adaptation, with its first checkpoint on disk."""
    kernel, info, shares = made.kernel, made.info, made.shares
    past: dict[str, Any] = {"lost": {}, "seconds": 0.0, "evaluations": 0}
    past |= {"every": every, "warm_up": warm_up}
    if shares is None:
        state = kernel.init(x.to(device), walkers=ids.to(device))
    else:
        state = shares.init(kernel, x, device)
    if warm_up:
        how = adapt if shares is None else shares.adapt
        _, state, record = how(kernel, state, warm_up, noise=Noise(info.seed))
        past["adaptation"] = asdict(record)
        kernel, info = adapted(kernel, info, past["adaptation"])
    described = kernel.describe(state) if shares is None else shares.describe(kernel, state)
    files, outside = _of_rank(made)
    names = [*described, ACCEPTANCE]
    own = state.walkers.tolist()
    writer = TrajectoryWriter.create(files.trajectory, system, own, info, columns=names)
    course = Course(kernel, state, writer, info, files, past, outside, made.ahead, shares)
    try:
        if state.step % every == 0:
            writer.append(state, described)
        course.save()
    except BaseException:  # without a checkpoint it would be in the way of the next start
        files.trajectory.unlink(missing_ok=True)
        if shares is not None and shares.ranks.leads:  # the index
            made.files.trajectory.unlink(missing_ok=True)
        raise
    return course


def _follow(course: Course, n_steps: int, every: int, progress) -> None:
    """Step, write and save until ``n_steps`` in all; what there is is saved in any case.

    So is what potentials know at the end only: it is not in the checkpoint, and a restart makes it
    again. On ranks, where all save together, one that fails leaves its frames, and the checkpoint
    is the last one.
    """
    pace, done, alive = Pace(course, n_steps, every), False, 1
    with Deferred(apart=pace.apart) as signals, course.writer:
        try:
            while (steps := pace.steps()) and not course.over:
                for _ in range(steps):
                    course.advance()
                    if signals.pending is not None and pace.alone:
                        break
                if course.state.step % every == 0:
                    course.write_frame()
                alive, save, ends = pace.agree(signals.pending)
                if progress:
                    progress(course.state.step, alive)
                if save:
                    course.save()
                    pace.saved()
                if ends or pace.alone:
                    signals.deliver()
                if ends:  # the signal came to another rank
                    raise KeyboardInterrupt
                course.over = course.over or not alive
            done = True
        finally:
            if done or pace.alone:
                course.save()
                course.kernel.potential.finish()
            elif course.shares is not None and course.shares.ranks.leads:
                with suppress(OSError, ValueError):  # what went wrong before is raised
                    course.writer.flush()
                    course.index()
    if not alive:
        course.nobody()
