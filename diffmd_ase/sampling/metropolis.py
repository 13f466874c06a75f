"""Metropolis acceptance: what makes a chain exact, whatever proposes its steps.

Drift and target are separate potentials. The drift (a learned score, conservative or not)
proposes; only the energy U of the target decides,

    log α = -[U(y) - U(x)]/kT + log q(x|y) - log q(y|x)

so that the chain leaves ``exp(-U/kT)`` invariant with any drift, at any step size.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._moved import forward
from ..noise import Noise, Stream
from ..potentials.base import Potential, evaluate
from ..state import State
from .euler import EulerMaruyama, reversal, without_mean
from .field import Field, reduced, target_of
from .kernels import Info, Kernel

__all__ = ["Metropolis", "TargetKernel", "accept", "decide", "finite", "judged"]

_SAME = 1e-3  # kT by which two evaluations of one energy may differ


class TargetKernel(Kernel, ABC):
    """A kernel whose steps are accepted to the energy of a target, whatever moves.

    A subclass has its ``kT`` and calls `_bind` with its drift and target when it is made.

    Attributes
    ----------
    field : drift and target, evaluated together

    Raises
    ------
    ValueError : a target without energy, memory in the drift alone; a start as `init` says
    """

    exact = True
    reversible = True
    field: Field

    def _bind(self, drift: Potential, target: Potential | None) -> None:
        """Raises ``ValueError`` for a target without energy, and for memory in the drift alone."""
        field = Field(drift, target_of(drift, target))
        self._derive(field=field, drift=drift, potential=field.target)

    def init(self, x, *, walkers=None) -> State:
        """The state at positions x (*batch, N, 3), in float64, if a chain may start there.

        Raises
        ------
        ValueError : energy or forces that are not finite, with the walkers; an energy that
            changes by more than 0.001 kT when it is evaluated again
        """
        state = self.field.state(x.double(), 0, walkers)
        if state.energy is None:
            raise ValueError(
                "the target gave no energy although it is called conservative: a Metropolis step "
                "compares energies; give a target that has one"
            )
        finite(state)
        again = evaluate(self.potential.terms, state.x).energy
        # a calculator may fail now and then: that is a rejection, and no other energy
        apart = (again - state.energy).abs().nan_to_num(nan=0.0)
        change = float(reduced(apart, self.kT).max())
        if not change < _SAME:
            raise ValueError(
                f"the energy of the target changed by {change:.3g} kT when it was evaluated again "
                "at the same positions: detailed balance needs a function of positions; switch off "
                "dropout, TF32 and random neighbour lists, or converge the calculator more tightly"
            )
        return state

    def refresh(self, state) -> State:
        new = self.field.state(state.x, state.step, state.walkers, fixed=state.fixed)
        return finite(replace(new, momenta=state.momenta, record=state.record))

    def adopt(self, state, drift=None) -> State:
        """`Kernel.adopt`; a target that does not learn is not evaluated."""
        bare = replace(state, momenta=None, record=None)
        if drift is not None and drift.terms == self.field.drift.terms:
            return bare
        if self.field.learns:  # a later refresh needs the values of all terms
            return self.field.state(state.x, state.step, state.walkers)
        return replace(bare, forces=evaluate(self.field.drift.terms, state.x).forces, fixed={})


@dataclass(frozen=True)
class Metropolis(TargetKernel):
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

    def __post_init__(self):
        if self.n_steps < 1:
            raise ValueError(f"n_steps={self.n_steps!r} must be at least 1")
        self._derive(kT=self.proposal.kT)
        self._bind(self.proposal.potential, self.target)

    def scaled(self, factor: float) -> Metropolis:
        return replace(self, proposal=self.proposal.scaled(factor))

    def take(self, rows: Tensor) -> Metropolis:
        return replace(self, proposal=self.proposal.take(rows))

    def step(self, state, noise) -> tuple[State, Info]:
        if (made := self._at_once(state, noise)) is not None:
            return made
        x, forces = state.x, state.forces
        log_q: Any = 0.0
        for inner in range(self.n_steps):
            stream: Stream = ("within", inner) if inner else "kernel"
            kick = self.proposal.kicks(
                state.step, x, noise=noise, walkers=state.walkers, stream=stream
            )
            y = self.propose_from(x, forces, kick)
            # what is not finite is rejected, but no calculator should see it
            fine = torch.isfinite(y).all(-1, keepdim=True).all(-2, keepdim=True)
            y = torch.where(fine, y, state.x)
            if inner + 1 < self.n_steps:
                new_forces = evaluate(self.proposal.potential.terms, y).forces
            else:
                new = self.field.state(y, state.step + 1, state.walkers)
                new_forces = new.forces
            part = self.proposal.log_proposal_ratio(x, forces, y, new_forces)
            log_q = log_q + torch.where(fine[..., 0, 0], part, torch.nan)
            x, forces = y, new_forces
        log_u = self.log_u(state.step, state.energy, noise=noise, walkers=state.walkers)
        info = self.decide_from(state, new, log_u, log_q=log_q)
        return new.where(info.accepted, state), info

    def _at_once(self, state: State, noise: Noise) -> tuple[State, Info] | None:
        """The step by one compiled function, where there is one."""
        drift = self.proposal._fused
        if drift is None or not drift.compiled or self.n_steps > 1:
            return None
        if drift is not self.proposal.potential or self.field.evaluations > 1:
            return None
        x, energy, number = state.x, state.energy, state.step
        if energy is None or x.dtype != torch.float64:
            return None
        xi = noise.normal(number, x, walkers=state.walkers)
        log_u = self.log_u(number, energy, noise=noise, walkers=state.walkers)
        one = _accepted_mean_free if self.proposal.mean_free else _accepted
        wide = (energy[..., None, None], log_u[..., None, None])
        made = drift.within(one, x, state.forces, xi, *wide, *self.proposal.wide(x))
        if made is None:
            return None
        x, energy, forces, *info = made
        return State(x, energy, forces, number + 1, state.walkers), Info(*info)

    def kicks(
        self, steps: int | Tensor, like: Tensor, *, noise: Noise, walkers: Tensor | None = None
    ) -> Tensor:
        """`EulerMaruyama.kicks` of ``steps``, ``like``, ``noise`` and ``walkers``."""
        return self.proposal.kicks(steps, like, noise=noise, walkers=walkers)

    def kick_of(self, xi: Tensor) -> Tensor:
        """`EulerMaruyama.kick_of` noise ``xi``."""
        return self.proposal.kick_of(xi)

    def noise_of(self, forces: Tensor) -> Tensor:
        """`EulerMaruyama.noise_of` drift ``forces``."""
        return self.proposal.noise_of(forces)

    def propose_from(self, x: Tensor, forces: Tensor, kick: Tensor) -> Tensor:
        """`EulerMaruyama.propose_from` of x, drift ``forces`` and ``kick``."""
        return self.proposal.propose_from(x, forces, kick)

    def log_u(
        self, steps: int | Tensor, like: Tensor, *, noise: Noise, walkers: Tensor | None = None
    ) -> Tensor:
        """Logarithms of the uniform numbers that decide ``steps``, int or (T,), float64.

        ``like`` has the shape wanted, energies (*batch), with T in front where steps have it;
        ``walkers`` are those of ``noise``.
        """
        return noise.uniform(steps, like=like.double(), walkers=walkers).log()

    def decide_from(
        self, old: State, new: State, log_u: Tensor, *, log_q: Tensor | None = None
    ) -> Info:
        """The choice between states ``old`` at x and ``new`` at y, accepted if ``log_u ≤ log α``.

        Nothing is evaluated. ``log_q`` is that of several steps; None: of one from x to y.
        """
        if log_q is None:
            log_q = self.proposal.log_proposal_ratio(old.x, old.forces, new.x, new.forces)
        delta_u = reduced(new.energy, self.kT) - reduced(old.energy, self.kT)
        evaluations = self.n_steps, self.field.evaluations - 1
        return judged(new, delta_u, log_q, log_u, evaluations=evaluations)


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
    old, new : the states at x and at y
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
    """`accept` for a given ``delta_u`` (*batch), ΔU/kT from ``old`` to ``new``.

    ``log_q`` and ``evaluations`` are those of `accept`.
    """
    log_u = noise.uniform(old.step, like=delta_u, walkers=old.walkers).log()
    info = judged(new, delta_u, log_q, log_u, evaluations=evaluations)
    return new.where(info.accepted, old), info


def judged(
    new: State,
    delta_u: Tensor,
    log_q: Tensor,
    log_u: Tensor,
    *,
    evaluations: tuple[int | Tensor, int | Tensor] = (1, 0),
) -> Info:
    """The `Info` of a choice by ``log_u`` (*batch): ``new`` is accepted or not.

    ``delta_u``, ``log_q`` and ``evaluations`` are those of `decide`.
    """
    accepted, log_ratio, divergent = _choice(new.forces, delta_u, log_q, log_u)
    return Info(accepted, log_ratio, delta_u, log_q, divergent, *evaluations)


def _choice(forces: Tensor, delta_u: Tensor, log_q: Tensor, log_u: Tensor) -> tuple[Tensor, ...]:
    """Accepted, log α and divergent, each (*batch)."""
    log_ratio = log_q - delta_u
    finite = torch.isfinite(forces).flatten(-2).all(-1)
    divergent = ~finite | torch.isnan(log_ratio) | (log_ratio == torch.inf)
    return (log_u <= log_ratio) & ~divergent, log_ratio, divergent


def _accepted(at: Callable, *rows: Tensor) -> tuple[Tensor, ...]:
    return _one_step(at, lambda v: v, *rows)


def _accepted_mean_free(at: Callable, *rows: Tensor) -> tuple[Tensor, ...]:
    return _one_step(at, without_mean, *rows)


def _one_step(at, projected, x, forces, xi, energy, log_u, h, kT) -> tuple[Tensor, ...]:
    """`Metropolis.step` of one proposal: positions, energies, forces, and the start of `Info`."""
    sx = projected(forces / kT)
    y = x + projected(h * sx) + projected((2.0 * h).sqrt() * xi)
    fine = torch.isfinite(y).all(-1, keepdim=True).all(-2, keepdim=True)
    y = torch.where(fine, y, x)
    new, new_forces = at(y)
    log_q = reversal(y - x, sx, projected(new_forces / kT), h)
    log_q = torch.where(fine[..., 0, 0], log_q, torch.nan)
    delta_u = (new - energy[..., 0, 0]) / (kT[..., 0, 0] if kT.ndim else kT)
    accepted, log_ratio, divergent = _choice(new_forces, delta_u, log_q, log_u[..., 0, 0])
    wide = accepted[..., None, None]
    x, forces = torch.where(wide, y, x), torch.where(wide, new_forces, forces)
    energy = torch.where(accepted, new, energy[..., 0, 0])
    return x, energy, forces, accepted, log_ratio, delta_u, log_q, divergent


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


__getattr__ = forward(__name__, "sampling.field")
