"""Acceptance without an energy: the score is integrated along each move. Not exact."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..potentials.base import evaluate
from ..state import State
from .euler import EulerMaruyama
from .kernels import Kernel
from .metropolis import decide, finite

__all__ = ["ApproximateMetropolis"]


@dataclass(frozen=True)
class ApproximateMetropolis(Kernel):
    """One reverse step, accepted by the work of the score along the move; *not exact*.

        −ΔU/kT ≈ (y − x)·[s(x) + 4 s((x+y)/2) + s(y)]/6        s = F/kT
        log α = −ΔU/kT + log q(x|y) − log q(y|x)

    Simpson's rule, for a score that has no energy (Sjöberg et al., arXiv 2307.14012). The
    error is that of the rule, O(|y − x|⁵) in a move, and that of a score that is no
    gradient, for which the work depends on the path and no density is sampled:
    `non_conservativeness` measures it. Two drift evaluations per step.

    Parameters
    ----------
    proposal : its potential is drift and target, its ``kT`` the temperature

    Raises
    ------
    ValueError : at a start where forces are not finite, naming the walkers
    """

    proposal: EulerMaruyama

    def __post_init__(self):
        p = self.proposal
        self._derive(potential=p.potential, drift=p.potential, kT=p.kT)

    def scaled(self, factor: float) -> ApproximateMetropolis:
        return replace(self, proposal=self.proposal.scaled(factor))

    def take(self, rows: Tensor) -> ApproximateMetropolis:
        return replace(self, proposal=self.proposal.take(rows))

    def init(self, x, *, walkers=None) -> State:
        return finite(self.proposal.init(x.double(), walkers=walkers))

    def step(self, state, noise):
        x = state.x
        y = self.proposal.propose(x, state.forces, state.step, state.walkers, noise)
        # what is not finite is rejected, but no calculator should see it
        fine = torch.isfinite(y).all(-1, keepdim=True).all(-2, keepdim=True)
        y = torch.where(fine, y, x)
        middle = evaluate(self.potential.terms, 0.5 * (x + y)).forces
        new = self.proposal.refresh(State(y, None, state.forces, state.step + 1, state.walkers))
        forces = (state.forces.double() + 4.0 * middle.double() + new.forces.double()) / 6.0
        kT = torch.as_tensor(self.kT, dtype=torch.float64, device=x.device)
        delta_u = -((y - x) * forces).sum((-2, -1)) / kT
        log_q = self.proposal.log_proposal_ratio(x, state.forces, y, new.forces)
        log_q = torch.where(fine[..., 0, 0], log_q, torch.nan)
        return decide(state, new, delta_u, log_q, noise, evaluations=(2, 0))

    def refresh(self, state) -> State:
        return finite(self.proposal.refresh(state))
