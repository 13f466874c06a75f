"""Metropolis acceptance: what makes a chain exact, whatever proposes its steps.

Drift and target are separate potentials. The drift (a learned score, conservative or not)
proposes; only the energy U of the target decides,

    log α = -[U(y) - U(x)]/kT + log q(x|y) - log q(y|x)

so that the chain leaves ``exp(-U/kT)`` invariant with any drift, at any step size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Evaluation, Potential, evaluate
from ..system import State
from .field import Field
from .kernels import EulerMaruyama, Info, Kernel

__all__ = [
    "Metropolis",
    "accept",
    "adopted",
    "checked_start",
    "decide",
    "field_state",
    "finite",
    "reduced",
    "target_of",
    "where_accepted",
]

_INNER = 0x100  # streams of the noise of further steps of one proposal
_SAME = 1e-3  # kT by which two evaluations of one energy may differ


@dataclass(frozen=True)
class Metropolis(Kernel):
    """``n_steps`` reverse steps as one proposal, accepted to the Boltzmann law of a target.

    One step is MALA with any drift (Roberts & Tweedie, Bernoulli 2, 341 (1996); Diamond &
    Lill, arXiv 2511.17741, for the step). Of several the path is accepted as a whole,

        log α = -ΔU/kT + Σ_i [log q(x_i|x_{i+1}) - log q(x_{i+1}|x_i)]

    with the same drift in both directions. Positions are float64: the energies of a target
    are differences of large numbers.

    Parameters
    ----------
    proposal : its potential is the drift, its ``kT`` the temperature of the target
    target : has the energy that decides; None: that of the drift
    n_steps : reverse steps of one proposal; the target is evaluated only at the end

    Raises
    ------
    ValueError : a target without energy, ``n_steps`` below 1, memory in the drift alone
    """

    proposal: EulerMaruyama
    target: Potential | None = None
    n_steps: int = 1

    exact = True
    reversible = True

    def __post_init__(self):
        if self.n_steps < 1:
            raise ValueError(f"{self.n_steps=} must be at least 1")
        target_of(self.proposal.potential, self.target)
        _ = self._field

    @property
    def potential(self) -> Potential:  # type: ignore[override]  # what learns
        return self._field.target

    @property
    def kT(self):  # type: ignore[override]
        return self.proposal.kT

    @property
    def drift(self) -> Potential:  # type: ignore[override]
        return self.proposal.potential

    def scaled(self, factor: float) -> Metropolis:
        return replace(self, proposal=self.proposal.scaled(factor))

    def init(self, x, *, walkers=None) -> State:
        return checked_start(self._field, x, self.kT, walkers)

    def step(self, state, noise) -> tuple[State, Info]:
        x, forces = state.x, state.forces
        log_q: Any = 0.0
        for inner in range(self.n_steps):
            stream = _INNER + inner if inner else 0
            y = self.proposal.propose(x, forces, state.step, state.walkers, noise, stream)
            # what is not finite is rejected, but no calculator should see it
            fine = torch.isfinite(y).all(-1, keepdim=True).all(-2, keepdim=True)
            y = torch.where(fine, y, state.x)
            if inner + 1 < self.n_steps:
                new_forces = evaluate(self.proposal.potential.terms, y).forces
            else:
                value = self._field(y)
                new_forces = value.drift.forces
            part = self.proposal.log_proposal_ratio(x, forces, y, new_forces)
            log_q = log_q + torch.where(fine[..., 0, 0], part, torch.nan)
            x, forces = y, new_forces
        new = field_state(value, y, state.step + 1, state.walkers)
        separate = self._field.evaluations - 1
        return accept(state, new, log_q, self.kT, noise, evaluations=(self.n_steps, separate))

    def refresh(self, state) -> State:
        value = self._field(state.x, fixed=state.extra.get("fixed"))
        return finite(field_state(value, state.x, state.step, state.walkers))

    def adopt(self, state, drift=None) -> State:
        return adopted(self._field, state, drift)

    @cached_property
    def _field(self) -> Field:
        return Field(self.proposal.potential, self.target)


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
    """``U/kT``, float64 (*batch)."""
    return energy.double() / torch.as_tensor(kT, dtype=torch.float64, device=energy.device)


def field_state(value, x: Tensor, step: int, walkers: Tensor | None) -> State:
    """The state of a `Field` evaluated at x."""
    extra = {"fixed": value.fixed} if value.fixed else {}
    return State(x, value.target.energy, value.drift.forces, step, walkers, extra)


def checked_start(field: Field, x: Tensor, kT, walkers: Tensor | None) -> State:
    """State of ``field`` at x, in float64, if a Metropolis chain may start there.

    Raises
    ------
    ValueError : energy or forces that are not finite, with the walkers; an energy that
        changes by more than 0.001 kT when it is evaluated again
    """
    x = x.double()
    value = field(x)
    state = field_state(value, x, 0, walkers)
    if state.energy is None:
        raise ValueError(
            "the target gave no energy although it is called conservative: a Metropolis step "
            "compares energies; give a target that has one"
        )
    finite(state)
    again = evaluate(field.target.terms, x).energy
    change = float(reduced((again - state.energy).abs(), kT).max())
    if not change < _SAME:
        raise ValueError(
            f"the energy of the target changed by {change:.3g} kT when it was evaluated again at "
            "the same positions: detailed balance needs a function of positions; switch off "
            "dropout, TF32 and random neighbour lists, or converge the calculator more tightly"
        )
    return state


def finite(state: State) -> State:
    """``state``, if a chain can go on from it.

    Raises ``ValueError`` naming the walkers whose energy or forces are not finite.
    """
    fine = torch.isfinite(state.forces).flatten(-2).all(-1)
    if state.energy is not None:
        fine = fine & torch.isfinite(state.energy)
    if not fine.all():
        ids = (~fine).reshape(-1).nonzero().flatten()
        ids = ids if state.walkers is None else state.walkers[ids.to(state.walkers.device)]
        raise ValueError(
            f"energy or forces of walkers {ids.tolist()} are not finite at step {state.step}, "
            "where they stand: look for overlapping atoms, positions that are NaN, a bias that "
            "overflowed, or a calculator that failed there"
        )
    return state


def adopted(field: Field, state: State, drift: Potential | None) -> State:
    """`Kernel.adopt` for states of a `Field`; a target that does not learn is not evaluated."""
    if drift is not None and drift.terms == field.drift.terms:
        return replace(state, extra={n: v for n, v in state.extra.items() if n == "fixed"})
    if field.learns:  # a later refresh needs the values of all terms
        return field_state(field(state.x), state.x, state.step, state.walkers)
    return replace(state, forces=evaluate(field.drift.terms, state.x).forces, extra={})


def accept(
    old: State,
    new: State,
    log_q: Tensor,
    kT,
    noise: Noise,
    *,
    evaluations: tuple[int | Tensor, int | Tensor] = (1, 0),
) -> tuple[State, Info]:
    """The Metropolis choice between two states, for each walker.

        log α = -[U(y) - U(x)]/kT + log_q        accept if log u ≤ log α, u in (0, 1]

    A ratio that is NaN or infinite upwards is a rejection and counted as divergent; after a
    rejection energy and forces are the old ones, kept, not evaluated again.

    Parameters
    ----------
    log_q : (*batch) float64, what the proposal adds; NaN where it failed
    evaluations : of drift and separate target, for `Info`
    """
    delta_u = reduced(new.energy, kT) - reduced(old.energy, kT)
    return decide(old, new, delta_u, log_q, noise, evaluations=evaluations)


def decide(
    old: State,
    new: State,
    delta_u: Tensor,
    log_q: Tensor,
    noise: Noise,
    *,
    evaluations: tuple[int | Tensor, int | Tensor] = (1, 0),
) -> tuple[State, Info]:
    """`accept` for a given ``delta_u`` (*batch), ΔU/kT from old to new."""
    log_ratio = log_q - delta_u
    finite = torch.isfinite(new.forces).flatten(-2).all(-1)
    divergent = ~finite | torch.isnan(log_ratio) | (log_ratio == torch.inf)
    log_u = noise.uniform(old.step, like=delta_u, walkers=old.walkers).log()
    accepted = (log_u <= log_ratio) & ~divergent
    info = Info(accepted, log_ratio, delta_u, log_q, divergent, *evaluations)
    return where_accepted(accepted, new, old), info


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
