"""Where a chain stands (`State`): evaluations, momenta, and what one kernel alone remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Evaluation", "Record", "State"]


class Evaluation(NamedTuple):
    """What a potential gives.

    Parameters
    ----------
    energy : (*batch) in eV, or None if the field is not a gradient
    forces : (*batch, N, 3) in eV/Å
    stress : (*batch, 6) in eV/Å³ (xx yy zz yz xz xy, tension positive) where it was asked for
    """

    energy: Tensor | None
    forces: Tensor
    stress: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """What one kernel alone remembers of a state: a frozen dataclass that derives from this.

    Its fields are tensors (B, …), one row for each walker, another `Record`, evaluations that can
    be made again (and have a default, since checkpoints leave them out), or None.
    """


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
    momenta : (*batch, N, 3) in u Å/ASE time, of kernels that keep them
    fixed : values of the terms that stay when others learn, by their place in a `Field`
    record : what the kernel that made the state remembers besides
    """

    x: Tensor
    energy: Tensor | None
    forces: Tensor
    step: int = 0
    walkers: Tensor | None = None
    momenta: Tensor | None = None
    fixed: dict[int, Evaluation] = field(default_factory=dict)
    record: Record | None = None

    def take(self, rows: Tensor) -> State:
        """The walkers in ``rows``, a mask (B,) or indices (M,), in that order, with their ids."""
        new = _mapped(lambda value: value[rows], self)
        if self.walkers is None:
            ids = torch.arange(self.x.shape[0], device=self.x.device)
            new = replace(new, walkers=ids[rows])
        return new

    def packed(self) -> State:
        """The same with its numbers row behind row in memory, by which sums may differ."""
        return _mapped(lambda value: value.contiguous(), self)

    @classmethod
    def joined(cls, parts: Sequence[State]) -> State:
        """Batches of one step, walker behind walker; itself, where there is one."""
        first, *others = parts
        return _mapped(lambda *values: torch.cat(values), first, *others) if others else first

    def where(self, mask: Tensor, other: State) -> State:
        """This state for the walkers in ``mask`` (*batch), ``other`` for the rest; step of this."""

        def pick(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)

        new = _mapped(pick, self, other)
        return replace(new, walkers=self.walkers)


def _mapped(change: Callable[..., Tensor], value, *others):
    """``change`` of every tensor in a state, record or evaluation, and of the same in others."""
    if isinstance(value, Tensor):
        return change(value, *others)
    if isinstance(value, Evaluation):
        parts = zip(value, *others, strict=True)
        return Evaluation(*(_mapped(change, *part) for part in parts))
    if isinstance(value, dict):
        # a restored state lacks what can be evaluated again: it is back after the next refresh
        names = [name for name in value if all(name in other for other in others)]
        return {n: _mapped(change, value[n], *(other[n] for other in others)) for n in names}
    if isinstance(value, State | Record):
        changed = {}
        for name in (f.name for f in fields(value)):
            part = [getattr(one, name) for one in (value, *others)]
            # what one of them lacks, the result lacks
            changed[name] = None if any(p is None for p in part) else _mapped(change, *part)
        return replace(value, **changed)
    return value
