"""A run that leaves files: trajectory, checkpoint, summary; restartable at any moment.

PREFIX.h5         H5MD trajectory of all walkers (`storage.Trajectory`)
PREFIX.restart    checkpoint: positions, step count and seed
PREFIX.json       summary: settings, versions, lost walkers, timings
PREFIX.extxyz     the last frame of every walker
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import ase.io
import torch
from torch import Tensor

from ..io.atomic import replacing
from ..io.checkpoint import save_checkpoint
from ..io.trajectory import RunInfo, TrajectoryWriter
from ..noise import Noise
from ..sampling.acceptance import Tally
from ..sampling.adaptation import adapt
from ..sampling.kernels import DivergedError, Kernel
from ..sampling.run import advance
from ..system import System
from .restart import _adapted, _resume, _summary
from .settings import Files
from .signals import Deferred

__all__ = ["simulate"]

_CHECKPOINT_SECONDS = 30.0
_ACCEPTANCE = "acceptance"  # the column
_BLOCK = 1000  # steps between looks at the clock, at most


# ------------------------------------------------------------------ before the run


# ------------------------------------------------------------------------- the run


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
    progress: Callable[[int, int], None] | None = None,
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
    device : where the walkers live
    progress : called with steps done and walkers alive

    Walkers that diverge are dropped, named in the summary, and the others go on.

    Raises
    ------
    FileExistsError : files of a run are there and ``restart`` was not asked for
    ValueError : ``restart`` with settings that are not those of the run
    DivergedError : no walker is left; what there was is on disk
    """
    noise = Noise(info.seed)
    if not 0 <= warm_up <= n_steps:
        raise ValueError(f"{warm_up} steps of adaptation in a run of {n_steps}: the steps in all")
    if restart:
        state, writer, past = _resume(files, info, n_steps, every, walkers, warm_up, device)
        kernel, info = _adapted(kernel, info, past.get("adaptation"))
        if kernel.potential.has_memory:
            kernel.potential.restore(past["potential"], state.x, state.step)
            state = kernel.refresh(state)
    else:
        if x is None:
            raise ValueError("no starting positions and no restart: nothing to run")
        files.check_free()
        x = x.to(device)
        ids = torch.arange(len(x)) if walkers is None else walkers
        state = kernel.init(x, walkers=ids.to(device))
        past = {"lost": {}, "seconds": 0.0, "evaluations": 0, "every": every, "warm_up": warm_up}
        if warm_up:
            _, state, record = adapt(kernel, state, warm_up, noise=noise)
            past["adaptation"] = asdict(record)
            kernel, info = _adapted(kernel, info, past["adaptation"])
        columns = [*kernel.potential.describe(state.x), _ACCEPTANCE]
        writer = TrajectoryWriter.create(
            files.trajectory, system, ids.tolist(), info, columns=columns
        )
        if state.step % every == 0:
            writer.append(state, kernel.potential.describe(state.x))
    lost, evaluations = dict(past["lost"]), past["evaluations"]
    place = {int(walker): n for n, walker in enumerate(writer.walkers)}
    tallies = [
        Tally.from_dict(past[name], state.x.device)
        if name in past
        else Tally.empty(len(place), state.x.device)
        for name in ("tally", "tally_of_frame")
    ]
    began = saved = time.monotonic()

    def facts() -> dict:
        seconds = past["seconds"] + time.monotonic() - began
        now = {"lost": lost, "seconds": seconds, "evaluations": evaluations}
        now["tally"], now["tally_of_frame"] = (tally.to_dict() for tally in tallies)
        return past | now

    def save() -> None:
        writer.flush()
        saved = facts() | {"potential": kernel.potential.checkpoint()}
        save_checkpoint(files.restart, state, seed=info.seed, parameters=saved)

    with Deferred() as signals, writer:
        save()
        try:
            while state.step < n_steps:
                # never past a frame, so that frames stay at multiples of `every`
                block = min(every - state.step % every, n_steps - state.step, _BLOCK)
                columns_of = torch.tensor([place[int(w)] for w in state.walkers])
                columns_of = columns_of.to(state.x.device)
                try:
                    for _ in range(block):
                        state, step_info = advance(kernel, state, noise)
                        evaluations += len(state.x)
                        if step_info.accepted is not None:
                            tallies[0] = tallies[0].add(step_info, columns_of)
                        if signals.pending is not None:
                            break
                except DivergedError as error:
                    lost |= {str(walker): error.step for walker in error.walkers}
                    if error.survivors is None:
                        raise
                    state = error.survivors
                    continue
                if state.step % every == 0:
                    named = kernel.potential.describe(state.x)
                    since = tallies[0] - tallies[1]
                    fraction = since.accepted / since.judged  # 0/0 is NaN: plain dynamics
                    writer.append(state, named | {_ACCEPTANCE: fraction[columns_of]})
                    tallies[1] = tallies[0]
                if progress:
                    progress(state.step, len(state.x))
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
                signals.deliver()
        finally:
            save()
    summary = _summary(kernel, info, state, facts())
    with replacing(files.summary) as part:
        part.write_text(json.dumps(summary, indent=1))
    with replacing(files.final) as part:
        ase.io.write(part, [system.to_atoms(p) for p in state.x.cpu()], format="extxyz")
    return summary
