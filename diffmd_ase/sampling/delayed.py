"""Delayed acceptance: a cheap surrogate filters what an expensive reference decides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..potentials.base import Potential, evaluate
from ..state import Evaluation, Record, State
from .field import Field, reduced
from .kernels import Kernel
from .metropolis import TargetKernel, accept, finite

__all__ = ["DelayedAcceptance"]


@dataclass(frozen=True, eq=False)
class Surrogate(Record):
    """What the state of a `DelayedAcceptance` knows of the surrogate."""

    energy: Tensor  # (*batch) of the surrogate, eV
    fixed: dict[int, Evaluation] = field(default_factory=dict)  # of the inner kernel's state
    record: Record | None = None  # likewise


@dataclass(frozen=True)
class DelayedAcceptance(TargetKernel):
    """``n_inner`` exact steps on a surrogate energy E as one proposal to the reference U.

        log α = −[(U − E)(y) − (U − E)(x)]/kT

    The inner kernel satisfies detailed balance with ``exp(−E/kT)``, so that its proposal
    ratio is known and nothing but the *difference* of the energies is left to decide
    (Christen & Fox, J. Comput. Graph. Stat. 14, 795 (2005); Gelb, J. Chem. Phys. 118,
    7747 (2003)). One evaluation of the reference per step, all walkers in one batch, those
    that the inner steps did not move left out; a reference that gives NaN is a rejection.

    The noise of the inner steps is ``noise.child("surrogate")`` at steps ``n_inner·step + j``.
    Momenta of the inner kernel are new at each step. A bias with memory belongs in both
    energies, as one object; it learns once per step, from the accepted positions.

    Parameters
    ----------
    inner : an exact and reversible kernel; its ``potential`` is the surrogate
    target : the reference, has the energy that decides
    n_inner : inner steps of one proposal

    Raises
    ------
    TypeError : an inner kernel without detailed balance
    ValueError : a target without energy, ``n_inner`` below 1, memory in the surrogate alone
    """

    inner: Kernel
    target: Potential
    n_inner: int = 10

    def __post_init__(self):
        if self.n_inner < 1:
            raise ValueError(f"n_inner={self.n_inner!r} must be at least 1")
        name = type(self.inner).__name__
        if not self.inner.exact:
            raise TypeError(
                f"{name} is not Metropolised: its proposal ratio is not that of the surrogate's "
                "Boltzmann law, and the second stage would keep its error; wrap it in Metropolis"
            )
        if not self.inner.reversible:
            raise TypeError(
                f"{name} does not satisfy detailed balance (a fixed order of kernels, or walkers "
                "that meet): use a Mixture, or one of its kernels"
            )
        Field(self.inner.potential, self.target)  # memory in the surrogate alone
        self._derive(kT=self.inner.kT)
        self._bind(self.target, None)
        self._derive(drift=self.inner.drift)

    def scaled(self, factor: float) -> DelayedAcceptance:
        return replace(self, inner=self.inner.scaled(factor))

    def take(self, rows: Tensor) -> DelayedAcceptance:
        return replace(self, inner=self.inner.take(rows))

    def init(self, x, *, walkers=None) -> State:
        reference = super().init(x, walkers=walkers)
        inner = self.inner.init(x, walkers=walkers)
        return _joined(inner, reference.energy, reference.fixed, 0)

    def step(self, state, noise):
        inner, within = self._inner_state(state), noise.child("surrogate")
        evaluations: int | Tensor = 0
        for _ in range(self.n_inner):
            inner, info = self.inner.step(inner, within)
            evaluations += info.drift_evaluations + info.target_evaluations
        moved = (inner.x != state.x).flatten(-2).any(-1)
        energy, fixed = self._reference_at(inner.x, state.energy, moved)
        new = _joined(inner, energy, fixed, state.step + 1)
        log_q = reduced(inner.energy, self.kT) - reduced(state.record.energy, self.kT)
        every = self.target.has_memory or self.target.per_walker
        calls = torch.ones_like(moved) if every else moved
        counts = (evaluations, calls.long())
        return accept(state, new, log_q, self.kT, noise, evaluations=counts)

    def refresh(self, state) -> State:
        inner = self.inner.refresh(self._inner_state(state))
        reference = self.field.state(state.x, state.step, state.walkers, fixed=state.fixed)
        return finite(_joined(inner, reference.energy, reference.fixed, state.step))

    def adopt(self, state, drift=None) -> State:
        """Surrogate energy and forces anew; a reference that does not learn is kept."""
        bare = State(state.x, None, state.forces, state.step * self.n_inner, state.walkers)
        inner = self.inner.refresh(bare)
        if not self.field.learns:
            return _joined(inner, state.energy, {}, state.step)
        reference = self.field.state(state.x, state.step, state.walkers)
        return _joined(inner, reference.energy, reference.fixed, state.step)

    def _reference_at(self, x: Tensor, known: Tensor, moved: Tensor):
        """Energies (*batch) at ``x``, ``known`` where nothing moved, and what a refresh needs."""
        if self.target.has_memory or self.target.per_walker:  # all rows, and its values kept
            value = self.field(x)
            return value.target.energy, value.fixed
        if moved.all():
            return evaluate(self.target.terms, x).energy, {}
        energy = known.clone()
        if moved.any():
            energy[moved] = evaluate(self.target.terms, x[moved]).energy.to(energy)
        return energy, {}

    def _inner_state(self, state: State) -> State:
        surrogate: Any = state.record
        return replace(
            state,
            energy=surrogate.energy,
            step=state.step * self.n_inner,
            fixed=surrogate.fixed,
            record=surrogate.record,
        )


def _joined(inner: State, energy: Tensor, fixed: dict[int, Evaluation], step: int) -> State:
    # momenta would tie the next proposal to this one, and the ratio does not know them
    surrogate = Surrogate(inner.energy, inner.fixed, inner.record)
    return replace(inner, energy=energy, step=step, momenta=None, fixed=fixed, record=surrogate)
