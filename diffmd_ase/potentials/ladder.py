"""Potentials of a ladder of states: row b of a batch has state ``b mod K``.

What the states share is added as an ordinary term, ``model + Ladder(biases)``, and is then
evaluated once for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..state import Evaluation
from .base import Potential

__all__ = ["Blend", "Ladder"]


class Ladder(Potential):
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
        self.potentials = tuple(potentials)
        if len(self.potentials) < 2:
            raise ValueError(f"{len(self.potentials)} potentials make no ladder: give at least 2")
        if any(p.needs_base for p in self.potentials):
            raise ValueError("a state that biases the potential energy must hold what it biases")
        self.system = _one_system(self.potentials)
        self.conservative = all(p.conservative for p in self.potentials)
        self.has_memory = any(p.has_memory for p in self.potentials)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        K = _states(x, len(self.potentials))
        options = {"stress": True} if stress else {}
        values = [
            Evaluation(*p(x[..., k::K, :, :], **options)) for k, p in enumerate(self.potentials)
        ]
        energies, forces, stresses = zip(*values, strict=True)
        return Evaluation(
            _interleave(energies, -1), _interleave(forces, -3), _interleave(stresses, -2)
        )

    def begin(self, x, step) -> bool:
        K = _states(x, len(self.potentials))
        # a list, not a generator: every state must begin, or learn
        return any([p.begin(x[..., k::K, :, :], step) for k, p in enumerate(self.potentials)])

    def update(self, x, step) -> bool:
        K = _states(x, len(self.potentials))
        return any([p.update(x[..., k::K, :, :], step) for k, p in enumerate(self.potentials)])

    def flush(self) -> None:
        for p in self.potentials:
            p.flush()

    def finish(self) -> None:
        for p in self.potentials:
            p.finish()

    def checkpoint(self) -> dict:
        saved = {str(k): p.checkpoint() for k, p in enumerate(self.potentials)}
        return {state: value for state, value in saved.items() if value}

    def restore(self, saved, x, step) -> None:
        K = _states(x, len(self.potentials))
        for k, p in enumerate(self.potentials):
            p.restore(saved.get(str(k), {}), x[..., k::K, :, :], step)


class Blend(Potential):
    """``U_b(x) = Σ_a w[b mod K, a] U_a(x_b)``: states that mix the same potentials.

    A coupling from A to B is ``Blend([A, B], [[1 - λ, λ] for λ in lambdas])``, a bias switched
    on in steps ``Blend([model, bias], [[1, s] for s in strengths])``. Every potential is
    evaluated once for the whole batch.

    Parameters
    ----------
    potentials : (A,), of one system, without memory
    weights : (A,), one state, for all walkers; or (K, A)

    Raises
    ------
    ValueError : shapes that do not fit, memory, different systems
    """

    def __init__(self, potentials: Sequence[Potential], weights):
        self.potentials = tuple(potentials)
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
        self.system = _one_system(self.potentials)
        self.conservative = all(p.conservative for p in self.potentials)
        self.per_walker = self.weights.ndim == 2

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        weights = self.weights
        if self.per_walker:
            K = _states(x, len(weights))
            weights = weights.repeat(x.shape[-3] // K, 1)
        options = {"stress": True} if stress else {}
        values = [Evaluation(*p(x, **options)) for p in self.potentials]
        columns = weights.to(x).unbind(-1)
        # a weight broadcasts over the batch axes, from the right
        energies, forces, stresses = zip(*values, strict=True)
        return Evaluation(
            _mix(columns, energies, 0), _mix(columns, forces, 2), _mix(columns, stresses, 1)
        )


def _one_system(potentials: Sequence[Potential]):
    systems = [p.system for p in potentials if p.system is not None]
    for system in systems[1:]:
        if system != systems[0]:
            raise ValueError(
                "the potentials of a ladder are bound to different systems: "
                f"{systems[0].formula} and {system.formula}"
            )
    return systems[0] if systems else None


def _states(x: Tensor, count: int) -> int:
    if x.ndim < 3 or x.shape[-3] % count:
        raise ValueError(
            f"positions {tuple(x.shape)} for {count} states: expected (*batch, M·{count}, N, 3), "
            "whole ladders, with state b mod K in row b"
        )
    return count


def _interleave(parts, dim: int) -> Tensor | None:
    """Row b from part ``b mod K``; None if a part is."""
    if any(part is None for part in parts):
        return None
    return torch.stack(parts, dim=dim).flatten(dim - 1, dim)


def _mix(columns, parts, trailing: int) -> Tensor | None:
    if any(part is None for part in parts):
        return None
    weights = [c.reshape(c.shape + (1,) * trailing) for c in columns]
    return sum(w * part for w, part in zip(weights, parts, strict=True))
