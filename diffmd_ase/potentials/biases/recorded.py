"""A record of a bias along a run: a COLVAR file."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...io.plumed_writer import KJ_PER_MOL, PlumedFile
from ..base import Potential, Wrapped
from .base import CVBias, domain_constants

__all__ = ["Frozen", "Recorded"]

# what a bias says of itself that is an energy
_ENERGIES = ("bias", "rbias", "rct", "work")


class Recorded(Wrapped):
    """A bias whose variables and values are written to a COLVAR file as the run goes on.

    One line for each walker at the start and after every ``every`` steps, in PLUMED's units
    (nm, kJ/mol, ps): ``time``, the walker where there are several, the variables, and what the
    bias says of itself (``bias``, ``rbias``, ``rct``, …) before it learns from that step. So
    ``bias`` is the one that acted on the configuration, as PLUMED's PRINT shows it.

    Parameters
    ----------
    bias : `Metadynamics`, `OPES`, a restraint; use the recorded one in its place
    file : name of the file
    every : steps
    timestep_ps : of the column ``time``; without it time counts steps
    restart : go on with the ``file`` that is there

    Raises
    ------
    ValueError : ``every`` below 1
    FileExistsError : ``file`` exists without ``restart``
    """

    def __init__(
        self, bias: CVBias, file, *, every: int, timestep_ps: float = 1.0, restart: bool = False
    ):
        if every < 1:
            raise ValueError(f"{every=} must be at least 1 step")
        super().__init__(bias)
        self.has_memory = True  # of where the file ends
        self.every, self.timestep_ps = every, timestep_ps
        names = ["time", "walker", *bias.columns]
        self._file = PlumedFile(file, names, domain_constants(bias.cv), restart=restart)
        energies = [KJ_PER_MOL if name in _ENERGIES else 1.0 for name in names[2:]]
        energies[: len(bias.cv)] = bias.cv.plumed_units
        self._units = np.array(energies)
        self._ids: list[int] | None = None
        self._begun = restart  # the start is in the file already

    def begin(self, x, step) -> bool:
        if not self._begun and torch.isfinite(x).all():
            self._begun = True
            self._write(x, step)
        return self.inner.begin(x, step)

    def update(self, x, step) -> bool:
        self._begun = True
        self._write(x, step)
        return self.inner.update(x, step)

    def _write(self, x, step) -> None:
        if step % self.every == 0:
            said = torch.stack(list(self.inner.describe(x).values()), -1)
            said = said.reshape(-1, said.shape[-1]).cpu().numpy() * self._units
            ids = range(len(said)) if self._ids is None else self._ids
            time = np.full(len(said), step * self.timestep_ps)
            self._file.append(np.column_stack((time, list(ids), said)))

    def select(self, keep) -> None:
        ids = range(len(keep)) if self._ids is None else self._ids
        self._ids = [w for w, kept in zip(ids, keep.tolist(), strict=True) if kept]
        self.inner.select(keep)

    def checkpoint(self) -> dict:
        saved = {"length": self._file.length, "ids": self._ids, "begun": self._begun}
        return saved | {"bias": self.inner.checkpoint()}

    def restore(self, saved, x, step) -> None:
        self._file.truncate(saved["length"])
        self._ids, self._begun = saved["ids"], saved.get("begun", True)
        self.inner.restore(saved["bias"], x, step)


class Frozen(Wrapped):
    """``V(x)`` of a bias that learns no more: for equilibrium sampling of U + V.

    The second half of a biased run in two: metadynamics or OPES grow a bias, then
    ``model + Frozen(bias)`` is an ordinary potential, Metropolis corrections are exact, and
    frames have the weights exp(V/kT) without a c(t) (Torrie & Valleau, J. Comput. Phys. 23,
    187 (1977)). The bias itself is not copied: what still trains it changes this too.

    Parameters
    ----------
    bias : any potential; it is evaluated, and never told of a step
    """

    def __init__(self, bias: Potential):
        super().__init__(bias)
        self.has_memory = False

    @property
    def cv(self):
        return self.inner.cv

    @property
    def columns(self) -> tuple[str, ...]:
        return self.inner.columns

    def begin(self, x, step) -> bool:
        return False

    def update(self, x, step) -> bool:
        return False

    def next_change(self, step) -> float:
        return math.inf

    def finish(self) -> None:
        """The end of the run that it grew in is not this one."""
