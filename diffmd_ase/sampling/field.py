"""Drift and target of a kernel, evaluated together and nothing twice.

The forces of the *drift* move the walkers, the energy of the *target* accepts them. Often
they share terms (the bias of both, or all of them), and some terms learn: a term that both
have is evaluated once, and after the bias has learned only what depends on it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..potentials.base import Potential, add_term, evaluate
from ..state import Evaluation, State

__all__ = ["Field", "FieldValue", "reduced", "target_of"]


class FieldValue(NamedTuple):
    """Evaluations (*batch) of the drift and of the target at the same positions.

    ``fixed`` holds the values of the terms that stay when others learn, by place.
    """

    drift: Evaluation
    target: Evaluation
    fixed: dict[int, Evaluation]


class Field:
    """``field(x) -> FieldValue`` of a drift and a target.

    Parameters
    ----------
    drift : gives the forces that move
    target : gives the energy that counts; None is the drift itself

    Attributes
    ----------
    learns : a term has memory, so that values at the same positions change

    Raises
    ------
    ValueError : the drift has memory that the target has not, so that it would never learn
    """

    def __init__(self, drift: Potential, target: Potential | None = None):
        self.drift, self.target = drift, drift if target is None else target
        known = {id(term) for term in self.target.terms}
        if any(term.has_memory and id(term) not in known for term in drift.terms):
            raise ValueError(
                "the drift has a term with memory that the target lacks: add the bias to both, "
                "or the walkers are driven by a bias that they are not weighted for"
            )
        self._same = self.target.terms == drift.terms
        self.learns = drift.has_memory or self.target.has_memory
        self._rows, self._fixed = _places(drift.terms, self.target.terms)

    @property
    def evaluations(self) -> int:
        """Evaluations of the drift and of the target in one call, shared ones counted once."""
        return 1 if self._same else 2

    def __call__(self, x: Tensor, *, fixed: dict[int, Evaluation] | None = None) -> FieldValue:
        """Evaluate at ``x`` (*batch, N, 3); ``fixed`` are values known from before."""
        if self._same and not self.learns:
            drift = evaluate(self.drift.terms, x)
            return FieldValue(drift, drift, {})
        values: dict[int, Evaluation] = dict(fixed or {})
        drift = _sum(self._rows[0], self.drift.terms, x, values)
        target = drift
        if not self._same:
            target = _sum(self._rows[1], self.target.terms, x, values)
        # kept only where a refresh can ask for it
        kept = {p: v for p, v in values.items() if p in self._fixed} if self.learns else {}
        return FieldValue(drift, target, kept)

    def state(
        self,
        x: Tensor,
        step: int,
        walkers: Tensor | None,
        *,
        fixed: dict[int, Evaluation] | None = None,
    ) -> State:
        """The state at ``x`` after ``step`` steps: energy of the target, forces of the drift.

        ``fixed`` are values known from before.
        """
        value = self(x, fixed=fixed)
        energy, forces = value.target.energy, value.drift.forces
        return State(x, energy, forces, step, walkers, fixed=value.fixed)


def _sum(places, terms, x: Tensor, values: dict[int, Evaluation]) -> Evaluation:
    total: Evaluation | None = None
    for place, term in zip(places, terms, strict=True):
        total, values[place] = add_term(total, term, x, value=values.get(place))
    return total


def _places(*sums: tuple[Potential, ...]) -> tuple[list[tuple[int, ...]], frozenset[int]]:
    """A number for each distinct value, for the terms of each sum; and which are fixed.

    A term that needs a base has another value behind other terms.
    """
    numbers: dict[tuple, int] = {}
    rows, fixed = [], set()
    for terms in sums:
        row: list[int] = []
        learned = False
        for index, term in enumerate(terms):
            learned = learned or term.has_memory
            behind = tuple(map(id, terms[:index])) if term.needs_base else ()
            row.append(numbers.setdefault((id(term), behind), len(numbers)))
            if not (term.has_memory or (term.needs_base and learned)):
                fixed.add(row[-1])
        rows.append(tuple(row))
    return rows, frozenset(fixed)


def target_of(drift: Potential, target: Potential | None) -> Potential:
    """The potential whose energy decides: ``target``, or the drift itself.

    Raises ``ValueError`` where it has no energy.
    """
    chosen = drift if target is None else target
    if not chosen.conservative:
        raise ValueError(
            "the target has no energy (its field is not a gradient), and a Metropolis step "
            "compares energies: give target= a potential that has one, or use "
            "sampling.approximate.ApproximateMetropolis, which integrates the score along each "
            "move and is not exact"
        )
    return chosen


def reduced(energy: Tensor, kT) -> Tensor:
    """``U/kT`` of an ``energy`` U (*batch) in eV, float64."""
    return energy.double() / torch.as_tensor(kT, dtype=torch.float64, device=energy.device)
