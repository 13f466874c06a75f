"""Delayed acceptance: a cheap surrogate filters what an expensive reference decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..potentials.base import Potential, evaluate
from ..state import State
from .field import Field, checked_start, field_state, finite, reduced, target_of
from .kernels import Kernel
from .metropolis import accept

__all__ = ["DelayedAcceptance"]

_INNER = "inner."  # prefix of what the inner kernel keeps in ``extra``


@dataclass(frozen=True)
class DelayedAcceptance(Kernel):
    """``n_inner`` exact steps on a surrogate energy E as one proposal to the reference U.

        log α = −[(U − E)(y) − (U − E)(x)]/kT

    The inner kernel satisfies detailed balance with ``exp(−E/kT)``, so that its proposal
    ratio is known and nothing but the *difference* of the energies is left to decide
    (Christen & Fox, J. Comput. Graph. Stat. 14, 795 (2005); Gelb, J. Chem. Phys. 118,
    7747 (2003)). One evaluation of the reference per step, all walkers in one batch, those
    that the inner steps did not move left out; a reference that gives NaN is a rejection.

    The noise of the inner steps is ``noise.child(0)`` at steps ``n_inner·step + j``. Momenta
    of the inner kernel are new at each step. A bias with memory belongs in both energies, as
    one object; it learns once per step, from the accepted positions.

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

    exact = True
    reversible = True

    def __post_init__(self):
        if self.n_inner < 1:
            raise ValueError(f"{self.n_inner=} must be at least 1")
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
        target_of(self.target, None)
        Field(self.inner.potential, self.target)  # memory in the surrogate alone

    @property
    def potential(self) -> Potential:  # type: ignore[override]
        return self.target

    @property
    def kT(self):  # type: ignore[override]
        return self.inner.kT

    @property
    def drift(self) -> Potential | None:  # type: ignore[override]
        return self.inner.drift

    def scaled(self, factor: float) -> DelayedAcceptance:
        return replace(self, inner=self.inner.scaled(factor))

    def init(self, x, *, walkers=None) -> State:
        reference = checked_start(self._reference, x, self.kT, walkers)
        inner = self.inner.init(x, walkers=walkers)
        return self._joined(inner, reference.energy, reference.extra, 0)

    def step(self, state, noise):
        inner, within = self._inner_state(state), noise.child(0)
        evaluations: int | Tensor = 0
        for _ in range(self.n_inner):
            inner, info = self.inner.step(inner, within)
            evaluations += info.drift_evaluations + info.target_evaluations
        moved = (inner.x != state.x).flatten(-2).any(-1)
        energy, fixed = self._reference_at(inner.x, state.energy, moved)
        new = self._joined(inner, energy, fixed, state.step + 1)
        old_e, new_e = state.extra["surrogate"], new.extra["surrogate"]
        log_q = reduced(new_e, self.kT) - reduced(old_e, self.kT)
        calls = torch.ones_like(moved) if self.target.has_memory else moved
        counts = (evaluations, calls.long())
        return accept(state, new, log_q, self.kT, noise, evaluations=counts)

    def refresh(self, state) -> State:
        inner = self.inner.refresh(self._inner_state(state))
        value = self._reference(state.x, fixed=state.extra.get("fixed"))
        reference = field_state(value, state.x, state.step, state.walkers)
        return finite(self._joined(inner, reference.energy, reference.extra, state.step))

    def adopt(self, state, drift=None) -> State:
        """Surrogate energy and forces anew; a reference that does not learn is kept."""
        inner = self.inner.refresh(replace(state, step=state.step * self.n_inner, extra={}))
        energy, fixed = state.energy, {}
        if self._reference.learns:
            value = self._reference(state.x)
            energy, fixed = value.target.energy, {"fixed": value.fixed}
        return self._joined(inner, energy, fixed, state.step)

    def _reference_at(self, x: Tensor, known: Tensor, moved: Tensor):
        """Energies (*batch) at ``x``, ``known`` where nothing moved, and what a refresh needs."""
        if self.target.has_memory:  # it may remember each walker: all rows, and its values kept
            value = self._reference(x)
            return value.target.energy, {"fixed": value.fixed}
        if moved.all():
            return evaluate(self.target.terms, x).energy, {}
        energy = known.clone()
        if moved.any():
            energy[moved] = evaluate(self.target.terms, x[moved]).energy.to(energy)
        return energy, {}

    def _joined(self, inner: State, energy: Tensor, fixed: dict, step: int) -> State:
        # momenta would tie the next proposal to this one, and the ratio does not know them
        kept = {_INNER + n: v for n, v in inner.extra.items() if n != "momenta"}
        extra = {"surrogate": inner.energy, **fixed, **kept}
        return replace(inner, energy=energy, step=step, extra=extra)

    def _inner_state(self, state: State) -> State:
        names = (n for n in state.extra if n.startswith(_INNER))
        return replace(
            state,
            energy=state.extra["surrogate"],
            step=state.step * self.n_inner,
            extra={n.removeprefix(_INNER): state.extra[n] for n in names},
        )

    @cached_property
    def _reference(self) -> Field:
        return Field(self.target)
