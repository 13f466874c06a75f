"""Several potentials as one: their mean, and how far they spread."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import Evaluation
from .base import Potential, evaluate

__all__ = ["Mean"]


class Mean(Potential):
    """Committee: ``U(x) = (1/M) Σ_m U_m(x)``, M ≥ 2 potentials of one system.

    Energies, forces and stresses are averaged; see :meth:`members` for the spread.
    """

    def __init__(self, *members: Potential):
        if len(members) < 2:
            raise ValueError(f"a committee has at least 2 members, not {len(members)}")
        if any(m.has_memory or m.needs_base for m in members):
            raise ValueError("biases cannot be members of a committee: add them to it")
        self.potentials = members
        self.system = members[0].system
        self.conservative = all(m.conservative for m in members)

    def members(self, x: Tensor, *, stress: bool = False) -> list[Evaluation]:
        """One evaluation for each member."""
        return [evaluate(m.terms, x, stress=stress) for m in self.potentials]

    def __call__(self, x, *, stress=False) -> Evaluation:
        return _mean(self.members(x, stress=stress))


def _mean(values: list[Evaluation]) -> Evaluation:
    return Evaluation(
        *(
            None if any(v is None for v in part) else torch.stack(part).mean(0)
            for part in zip(*values, strict=True)
        )
    )
