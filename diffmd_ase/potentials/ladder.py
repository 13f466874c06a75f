"""Potentials of a ladder of states: row b of a batch has state ``b mod K``.

What the states share is added as an ordinary term, ``model + Ladder(biases)``, and is then
evaluated once for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..state import Evaluation
from .base import Composed, Potential, part_by_part

__all__ = ["Blend", "Ladder", "weighted"]


class Ladder(Composed):
    """Another potential for each state: ``U_b(x) = U^(b mod K)(x_b)``.

    Noise levels of a model, biases, force fields. Each potential sees only its own rows.

    Parameters
    ----------
    potentials : (K,), of one system; their memory, if any, is that of their state

    Raises
    ------
    ValueError : less than two, of different systems, or that need a base; positions that
        are not (*batch, M·K, N, 3)
    """

    per_walker = True

    def __init__(self, potentials: Sequence[Potential]):
        super().__init__(potentials)
        if len(self.potentials) < 2:
            raise ValueError(f"{len(self.potentials)} potentials make no ladder: give at least 2")
        if any(p.needs_base for p in self.potentials):
            raise ValueError("a state that biases the potential energy must hold what it biases")

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        options = {"stress": True} if stress else {}
        values = [Evaluation(*p(self.seen(x, k), **options)) for k, p in enumerate(self.potentials)]
        axis = x.ndim - 3  # of the walkers; row b comes from state b mod K
        return part_by_part(
            lambda parts: torch.stack(parts, dim=axis + 1).flatten(axis, axis + 1), values
        )

    def seen(self, x, place) -> Tensor:
        return x[..., place :: _states(x, len(self.potentials)), :, :]


class Blend(Composed):
    """``U_b(x) = Σ_a w[b mod K, a] U_a(x_b)``: states that mix the same potentials.

    A coupling from A to B is ``Blend([A, B], [[1 - λ, λ] for λ in lambdas])``, a bias switched
    on in steps ``Blend([model, bias], [[1, s] for s in strengths])``. Every potential is
    evaluated once for the whole batch. A potential of weight 0 adds nothing, be it infinite; after
    walkers are lost, those that are left keep their states.

    Parameters
    ----------
    potentials : (A,), of one system, without memory
    weights : (A,), one state, for all walkers; or (K, A)

    Raises
    ------
    ValueError : shapes that do not fit, memory, different systems
    """

    def __init__(self, potentials: Sequence[Potential], weights):
        super().__init__(potentials)
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.weights.ndim not in (1, 2) or self.weights.shape[-1] != len(self.potentials):
            raise ValueError(
                f"weights {tuple(self.weights.shape)} for {len(self.potentials)} potentials: "
                "expected one weight for each, (A,), or a row of them for each state, (K, A)"
            )
        if not torch.isfinite(self.weights).all():
            raise ValueError(f"{weights=} must be finite")
        if any(p.has_memory or p.needs_base for p in self.potentials):
            raise ValueError(
                "a potential that learns, or biases the potential energy, cannot be blended: add "
                "it to the blend"
            )
        self.per_walker = self.weights.ndim == 2

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        return weighted(self.values(x, stress=stress), self.rows(x).to(x), x)

    def values(self, x: Tensor, *, stress: bool = False) -> list[Evaluation]:
        """What each of the potentials gives at ``x`` (*batch, N, 3), unmixed."""
        options = {"stress": True} if stress else {}
        return [Evaluation(*p(x, **options)) for p in self.potentials]

    def rows(self, x: Tensor) -> Tensor:
        """The weights (A,), or those of each row of positions x (*batch, B, N, 3), (B, A)."""
        if not self.per_walker:
            return self.weights
        return self.weights.repeat(x.shape[-3] // _states(x, len(self.weights)), 1)

    def select(self, keep: Tensor) -> None:
        if self.per_walker:
            every = self.weights.repeat(len(keep) // len(self.weights), 1)
            self.weights = every[keep.to(every.device)]
        for potential in self.potentials:
            potential.select(keep)


def weighted(values: Sequence[Evaluation], weights: Tensor, x: Tensor) -> Evaluation:
    """``Σ_a w_a U_a`` of ``values``, part by part; what has weight 0 is left out.

    Parameters
    ----------
    weights : (A,) or (*batch, A), broadcast over the batch axes of positions x (*batch, N, 3)
    """
    columns = weights.unbind(-1)

    def mixed(parts):
        total: Any = 0.0
        for w, part in zip(columns, parts, strict=True):
            # a weight broadcasts over the batch axes, from the right
            w = w.reshape(w.shape + (1,) * (part.ndim - x.ndim + 2))
            total = total + torch.where(w == 0, 0.0, w * part)
        return total

    return part_by_part(mixed, values)


def _states(x: Tensor, count: int) -> int:
    if x.ndim < 3 or x.shape[-3] % count:
        raise ValueError(
            f"positions {tuple(x.shape)} for {count} states: expected (*batch, M·{count}, N, 3), "
            "whole ladders, with state b mod K in row b"
        )
    return count
