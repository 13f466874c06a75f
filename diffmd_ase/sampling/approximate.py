"""Acceptance without an energy: the score is integrated along each move. Not exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential, evaluate
from ..system import State
from .kernels import EulerMaruyama, Kernel
from .metropolis import decide, finite

__all__ = ["ApproximateMetropolis", "non_conservativeness"]

_PROBES = 2  # stream of the probes of `non_conservativeness`


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

    @property
    def potential(self) -> Potential:  # type: ignore[override]
        return self.proposal.potential

    @property
    def drift(self) -> Potential:  # type: ignore[override]
        return self.proposal.potential

    @property
    def kT(self):  # type: ignore[override]
        return self.proposal.kT

    def scaled(self, factor: float) -> ApproximateMetropolis:
        return replace(self, proposal=self.proposal.scaled(factor))

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


def non_conservativeness(
    potential: Potential, x: Tensor, *, n_probes: int = 8, step: float = 1e-3, noise: Any = None
) -> float:
    """How far the field is from a gradient: 0 for a gradient, ∞ for a pure rotation.

        c = ‖J − Jᵀ‖ / ‖J + Jᵀ‖        J = ∂F/∂x, Frobenius norms, root mean square over x

    which is ``(E|(J − Jᵀ)v|² / E|(J + Jᵀ)v|²)^½`` for random v. With two random directions
    ``u·(J ∓ Jᵀ)v = u·Jv ∓ v·Ju``, and Jv is a central difference of forces, so that any
    potential will do. Relative standard error about ``1/sqrt(2 n_probes B)`` or less.

    Parameters
    ----------
    x : (N, 3) or (B, N, 3) in Å, where the field is used
    n_probes : pairs of directions for each structure; four evaluations each
    step : length of the differences in Å, for one coordinate; float32 fields: 1e-2
    noise : a `Noise`, default ``Noise(0)``

    Raises
    ------
    ValueError : ``n_probes`` below 1, or a field that does not change with x at all
    """
    if n_probes < 1:
        raise ValueError(f"{n_probes=} must be at least 1")
    noise = Noise(0) if noise is None else noise
    x = x.double()
    rotation, stretch = 0.0, 0.0
    for probe in range(n_probes):
        u, v = (noise.normal(2 * probe + side, x, stream=_PROBES) for side in (0, 1))
        j_u, j_v = (_derivative(potential, x, direction, step) for direction in (u, v))
        uv, vu = ((a * b).sum((-2, -1)) for a, b in ((u, j_v), (v, j_u)))
        rotation += float((uv - vu).square().mean())
        stretch += float((uv + vu).square().mean())
    if not rotation + stretch > 0:
        raise ValueError("the forces do not change near these positions: nothing to compare")
    return (rotation / stretch) ** 0.5 if stretch > 0 else float("inf")


def _derivative(potential: Potential, x: Tensor, direction: Tensor, step: float) -> Tensor:
    ahead, behind = (evaluate(potential.terms, x + s * direction).forces for s in (step, -step))
    return (ahead.double() - behind.double()) / (2.0 * step)
