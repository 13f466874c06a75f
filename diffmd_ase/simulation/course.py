"""Where a run is: kernel, state and files, and what has been counted so far."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.checkpoint import save_checkpoint
from ..io.h5md import STEP, read_file
from ..io.part_names import part_path
from ..io.parts import write_index
from ..io.run_info import RunInfo
from ..io.trajectory import TrajectoryWriter
from ..noise import Noise
from ..sampling.acceptance import Tally
from ..sampling.ahead import Ahead
from ..sampling.kernels import DivergedError, Kernel
from ..sampling.run import survive
from ..state import State
from .frames import write_lost
from .outside import Outside
from .settings import Files
from .shares import Shares

__all__ = ["ACCEPTANCE", "Course", "columns"]

ACCEPTANCE = "acceptance"
"""The column of a trajectory that has the accepted fraction since the frame before."""


class Course:
    """A run between two of its steps.

    Parameters
    ----------
    kernel : of the walkers that are left
    writer : of the trajectory, whose walkers are all that began
    info : what the frames mean; its seed is that of the noise
    files : of the run; :meth:`save` writes its checkpoint
    ahead : makes many steps together; None: they are made one by one
    past : `facts` of the run until now, and those that no later step changes
    outside : what is done with frames outside of the model's snapshots
    shares : steps the walkers of this rank, with ``kernel`` that of all; None: all are here

    Attributes
    ----------
    over : no walker is left that goes on
    """

    def __init__(
        self,
        kernel: Kernel,
        state: State,
        writer: TrajectoryWriter,
        info: RunInfo,
        files: Files,
        past: dict[str, Any],
        outside: Outside,
        ahead: Ahead | None = None,
        shares: Shares | None = None,
    ):
        self.kernel, self.state, self.writer, self.info = kernel, state, writer, info
        self.noise = Noise(info.seed)
        self._files, self._past, self._ahead, self.shares = files, past, ahead, shares
        self._step = survive if ahead is None else ahead.advance
        if shares is not None:
            self._step = shares.advance
        self._lost: dict[str, int] = dict(past["lost"])
        self._evaluations = past["evaluations"]
        self._outside, self.over = outside.restored(past.get("outside")), False
        # their columns in the file
        self._columns = columns(writer.walkers, state)
        device = state.x.device
        self._total, self._of_frame = (
            Tally.from_dict(past[name], device)
            if name in past
            else Tally.empty(len(writer.walkers), device)
            for name in ("tally", "tally_of_frame")
        )
        self._began = time.monotonic()

    def advance(self) -> None:
        """One step; walkers that diverge are named, and the others go on.

        Raises ``DivergedError`` if nobody is left.
        """
        try:
            self.kernel, self.state, info = self._step(
                self.kernel, self.state, self.noise, self._lose
            )
        except DivergedError as error:
            self._lose(error)
            raise
        self._evaluations += len(self.state.x)
        if info.accepted is not None:
            self._total = self._total.add(info, self._columns)

    def write_frame(self) -> None:
        """A frame: the state, what the bias says of it, the acceptance since the last one."""
        since = self._total - self._of_frame
        fraction = since.accepted / since.judged  # 0/0 is NaN: plain dynamics
        if self.shares is None:
            described = self.kernel.describe(self.state)
        else:
            described = self.shares.describe(self.kernel, self.state)
        self.writer.append(self.state, described | {ACCEPTANCE: fraction[self._columns]})
        self._of_frame = self._total
        beyond = self._outside.look(self.kernel, self.state) if len(self.state.x) else None
        if self._outside.stop and beyond is not None and beyond.any():
            self._end(beyond)

    def _end(self, beyond: Tensor) -> None:
        """Walkers that are outside go no further; their last frame is written."""
        ids = self.state.walkers[beyond].tolist()
        self._outside.ended |= dict.fromkeys(map(str, ids), self.state.step)
        if beyond.all() and self.shares is None:
            self.over = True
            return
        kept = ~beyond
        if self.shares is not None:  # its kernel stays that of all
            self.state, self._columns = self.state.take(kept), self._columns[kept]
            return
        drift = () if self.kernel.drift is None else self.kernel.drift.terms
        for term in {id(t): t for t in (*self.kernel.potential.terms, *drift)}.values():
            term.select(kept)
        self.kernel, self.state = self.kernel.take(kept), self.state.take(kept)
        self._columns = self._columns[kept]
        if self._ahead is not None:  # its drafts are of all walkers
            self._ahead.cool()

    def nobody(self) -> None:
        """Raise ``DivergedError`` where walkers were lost, and none is left."""
        if self._lost:
            raise DivergedError(self.state.step, sorted(map(int, self._lost)))

    def save(self) -> None:
        """Frames and a checkpoint, from which the run can go on, are on disk.

        All ranks call this at the same step; rank 0 writes what they have in common.
        """
        self.writer.flush()
        state, facts = self.everyone()
        if self.shares is not None and not self.shares.ranks.leads:
            return
        parameters = facts | {"potential": self.kernel.potential.checkpoint()}
        save_checkpoint(self._files.restart, state, seed=self.info.seed, parameters=parameters)
        if self.shares is not None and self.shares.ranks.size > 1:
            self.index()
        if self._ahead is not None:  # as the run will that goes on from this file
            self._ahead.cool()

    def index(self) -> None:
        """The trajectory of all ranks, of the frames that all their files have, is on disk."""
        if self.shares is None:
            return
        path, walkers = Files(self._files.prefix).trajectory, self.shares.walkers
        parts = [part_path(path, rank, len(walkers)) for rank in range(len(walkers))]
        steps = min((read_file(part, lambda file: file[STEP][:])[0] for part in parts), key=len)
        write_index(path, self.writer.system, walkers, self.info, self.writer.columns, steps)

    def everyone(self) -> tuple[State, dict[str, Any]]:
        """State and `facts` of the walkers of all ranks, where there are several."""
        if self.shares is None or self.shares.ranks.size == 1:
            return self.state, self.facts()
        learned = self.kernel.potential.checkpoint()
        facts = self.shares.facts(self.facts(), learned)
        return self.shares.everyone(self.state), facts

    def facts(self) -> dict[str, Any]:
        """What has been counted so far; JSON values only."""
        return (
            self._past
            | self._together()
            | {
                "lost": self._lost,
                "seconds": self._past["seconds"] + time.monotonic() - self._began,
                "evaluations": self._evaluations,
                "outside": self._outside.facts(),
                "tally": self._total.to_dict(),
                "tally_of_frame": self._of_frame.to_dict(),
            }
        )

    def _together(self) -> dict[str, Any]:
        if self._ahead is None:
            return {}
        before = self._past.get("together", {})
        now = asdict(self._ahead.count).items()
        return {"together": {name: value + before.get(name, 0) for name, value in now}}

    def _lose(self, error: DivergedError) -> None:
        self._lost |= dict.fromkeys(map(str, error.walkers), error.step)
        if error.before is not None and error.after is not None:
            write_lost(self._files.lost, self.writer.system, error.before, error.after)
        if error.kept is not None:
            self._columns = self._columns[error.kept]


def columns(walkers: np.ndarray, state: State) -> Tensor:
    """Place (B,) among ``walkers`` (W,) of those of ``state``, which has them in their order."""
    left = np.isin(walkers, state.walkers.cpu().numpy())
    return torch.as_tensor(np.flatnonzero(left), device=state.x.device)
