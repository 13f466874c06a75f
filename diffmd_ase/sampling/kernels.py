"""Markov kernels: state and noise to state; hyper-parameters frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._moved import forward
from ..noise import Noise
from ..potentials.base import Potential
from ..state import State

__all__ = ["DivergedError", "Info", "Kernel", "check_kT", "take_rows"]


class DivergedError(RuntimeError):
    """Walkers left the region where numbers are finite.

    Attributes
    ----------
    step : the step that failed
    walkers : global ids of the lost walkers
    survivors : State of the others before that step, or None; continue with it
    kept : (B,) mask of the survivors among the walkers of that step, or None
    before, after : State of the lost walkers before that step and as it made them, or None
    """

    def __init__(
        self,
        step: int,
        walkers: Sequence[int],
        survivors: State | None = None,
        kept: Tensor | None = None,
        before: State | None = None,
        after: State | None = None,
    ):
        self.step, self.walkers = step, list(walkers)
        self.survivors, self.kept = survivors, kept
        self.before, self.after = before, after
        left = 0 if survivors is None else survivors.x.shape[0]
        super().__init__(
            f"step {step}: walkers {self.walkers} diverged (positions, forces or energy are not "
            f"finite), {left} are kept; use a smaller step h, or start from relaxed "
            "positions inside the data of the model"
        )


class Info(NamedTuple):
    """Diagnostics of one step, never fed back; (*batch) where they are tensors.

    Evaluations are int64 where walkers differ; a potential that is both counts as drift.
    """

    accepted: Tensor | None = None  # the proposal became the state
    log_ratio: Tensor | None = None  # of Metropolis, float64; NaN or infinite where divergent
    delta_u: Tensor | None = None  # ΔU/kT of the target, from the old state to the proposal
    log_q: Tensor | None = None  # log of the ratio of proposal densities, reverse over forward
    divergent: Tensor | None = None  # no finite ratio: a rejection, and counted
    drift_evaluations: int | Tensor = 1  # structures evaluated for each walker
    target_evaluations: int | Tensor = 0  # likewise

    def of(self, step: int) -> Info:
        """That of one ``step``, by its place, of several whose tensors have them in front."""
        parts = self._asdict().items()
        return self._replace(**{name: p[step] for name, p in parts if isinstance(p, Tensor)})


class Kernel(ABC):
    """``init(x) -> State`` and ``step(state, noise) -> (State, Info)``.

    A frozen dataclass of hyper-parameters. What follows from them is set once, at the end of
    ``__post_init__``, with `_derive`.

    Attributes
    ----------
    potential : the target; its ``update`` is what learns
    kT : thermal energy in eV, scalar or (B,)
    drift : gives the forces of the state, where it is one potential; else None
    exact : leaves ``exp(-U/kT)`` of the target invariant at any step size
    reversible : and a step from and to positions alone satisfies detailed balance

    Raises
    ------
    TypeError : `scaled`, of a kernel without a step size
    """

    potential: Potential
    kT: float | Tensor
    drift: Potential | None = None
    exact: bool = False
    reversible: bool = False

    @abstractmethod
    def init(self, x: Tensor, *, walkers: Tensor | None = None) -> State:
        """The state at positions ``x`` (*batch, N, 3), evaluated once."""

    @abstractmethod
    def step(self, state: State, noise: Noise) -> tuple[State, Info]:
        """One step; noise number ``state.step`` makes state ``state.step + 1``."""

    @abstractmethod
    def refresh(self, state: State) -> State:
        """Evaluate again the terms with memory, after they have learned."""

    def adopt(self, state: State, drift: Potential | None = None) -> State:
        """Another kernel's state of the same target, as one of this kernel.

        What the other alone needs (momenta) is left behind. ``drift`` is that of the state's
        forces, if it is known: forces that are those of this kernel are not evaluated again.
        """
        return self.refresh(replace(state, momenta=None, fixed={}, record=None))

    def scaled(self, factor: float) -> Kernel:
        """The same kernel with its step size h multiplied by ``factor``."""
        raise TypeError(f"{type(self).__name__} has no step size to scale")

    def describe(self, state: State) -> dict[str, Tensor]:
        """What frames say of ``state``, by name, each (*batch): see `Potential.describe`."""
        return self.potential.describe(state.x)

    def take(self, rows: Tensor) -> Kernel:
        """The same kernel for the walkers in ``rows``, a mask (B,) or indices.

        Hyper-parameters of each walker go on with those that are left; a kernel without any is
        the same.
        """
        return self

    def _derive(self, **values) -> None:
        """Set attributes that follow from the hyper-parameters."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def check_kT(kT) -> None:
    """Raise ``ValueError`` unless kT is positive (eV), a scalar or one for each walker (B,)."""
    values = torch.as_tensor(kT, dtype=torch.float64)
    if values.ndim > 1 or not (torch.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{kT=} must be positive (eV), a scalar or (B,)")


def take_rows(value, rows: Tensor, *, ndim: int):
    """``rows`` of a hyper-parameter ``value``, where it is a tensor of ``ndim`` axes.

    With that many axes there is one row for each walker; any other value is one for all.
    """
    if not isinstance(value, Tensor) or value.ndim != ndim:
        return value
    return value[rows.to(value.device)]  # walkers on a GPU, a temperature that is not


__getattr__ = forward(__name__, "sampling.euler")
