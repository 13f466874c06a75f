"""Where a chain stands (`State`), and what is selected or chosen of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Evaluation", "select", "State", "where_accepted"]


class Evaluation(NamedTuple):
    """Energy (*batch) in eV or None if the field is not a gradient; forces
    (*batch, N, 3) in eV/Å; stress (*batch, 6) in eV/Å³ (xx yy zz yz xz xy, tension
    positive) where it was asked for."""

    energy: Tensor | None
    forces: Tensor
    stress: Tensor | None = None


@dataclass(frozen=True, eq=False)
class State:
    """One point of one chain, or of a batch of chains.

    Parameters
    ----------
    x : (*batch, N, 3) positions in Å
    energy : (*batch) in eV, of the target; None where the field is not a gradient
    forces : (*batch, N, 3) in eV/Å, of the drift
    step : completed steps
    walkers : (B,) global ids of the last batch axis, which address the noise
    extra : what one kernel alone needs
    """

    x: Tensor
    energy: Tensor | None
    forces: Tensor
    step: int = 0
    walkers: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pick:
    """``torch.where`` over the leading axes, through dicts and evaluations."""

    mask: Tensor

    def __call__(self, new, old):
        if isinstance(new, Tensor):
            return torch.where(
                self.mask.reshape(self.mask.shape + (1,) * (new.ndim - self.mask.ndim)), new, old
            )
        if isinstance(new, Evaluation):
            return Evaluation(*map(self, new, old))
        if isinstance(new, dict):
            # a restored state lacks caches: they are back after the next refresh
            return {name: self(value, old[name]) for name, value in new.items() if name in old}
        return new


def where_accepted(accepted: Tensor, new: State, old: State) -> State:
    """``new`` for the walkers in the mask ``accepted`` (*batch), else ``old``; step of new."""
    pick = _Pick(accepted)
    return replace(
        new,
        x=pick(new.x, old.x),
        energy=pick(new.energy, old.energy),
        forces=pick(new.forces, old.forces),
        extra=pick(new.extra, old.extra),
    )


def _permuted(value, rows: Tensor):
    """Rows of every tensor that has them, through dicts and evaluations."""
    if isinstance(value, Tensor) and value.shape[:1] == rows.shape:
        return value[rows]
    if isinstance(value, Evaluation):
        return Evaluation(*(_permuted(part, rows) for part in value))
    if isinstance(value, dict):
        return {name: _permuted(part, rows) for name, part in value.items()}
    return value


def select(state: State, keep: Tensor) -> State:
    """The state of the walkers in the boolean mask ``keep`` (B,), with their ids."""
    ids = state.walkers
    if ids is None:
        ids = torch.arange(state.x.shape[0], device=state.x.device)

    def pick(value):
        if isinstance(value, Tensor) and value.shape[:1] == keep.shape:
            return value[keep]
        if isinstance(value, Evaluation):
            return Evaluation(*map(pick, value))
        if isinstance(value, dict):
            return {name: pick(entry) for name, entry in value.items()}
        return value

    return replace(
        state,
        x=state.x[keep],
        energy=None if state.energy is None else state.energy[keep],
        forces=state.forces[keep],
        walkers=ids[keep],
        extra=pick(state.extra),
    )
