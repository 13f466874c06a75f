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

from .._moved import forward
from ..noise import Noise
from ..potentials.base import Potential, evaluate
from ..state import State, where_accepted
from .euler import EulerMaruyama
from .field import Field, adopted, checked_start, field_state, finite, reduced, target_of
from .kernels import Info, Kernel

__all__ = ["Metropolis", "accept", "decide"]

_INNER = 0x100  # streams of the noise of further steps of one proposal


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


__getattr__ = forward(__name__, "sampling.field state")
