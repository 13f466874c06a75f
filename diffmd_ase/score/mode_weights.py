"""The relative weight of modes: what score matching hardly sees, and moves between them do.

    θ = argmin ½(θ - θ_SM)ᵀ V⁻¹ (θ - θ_SM) + Σ softplus(E(x) - E(y) - log q(y)/q(x))

over snapshots x and moves y of them that were drawn with density q (`torsion_moves`). It is convex
in θ, and its second derivative at the minimum is the inverse covariance of θ.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .baseline import BaselineValues
from .linear_form import Form, square
from .topology import Topology
from .torsion_moves import TorsionProposals

__all__ = ["Pairs", "weigh_modes"]

log = logging.getLogger(__name__)

_AT_ONCE = 4096  # frames
_BEYOND = 50.0  # kT of walls: there snapshots say nothing, and features may be of any size


class Pairs(NamedTuple):
    """Snapshots x and moves y of them.

    Attributes
    ----------
    change : (K, F) ``f(x) - f(y)``, in units of the parameters
    offset : (K,) what else the logit ``E(x) - E(y) - log q(y)/q(x)`` holds
    """

    change: Tensor
    offset: Tensor

    @classmethod
    def drawn(
        cls, form: Form, unit, positions: Tensor, topology: Topology, generator, moves: int
    ) -> Pairs:
        """``moves`` of each of the ``positions`` (M, N, 3), from the ``generator``.

        ``form`` gives the features, ``unit`` (size,) their units, ``topology`` the rotors.
        """
        proposals = TorsionProposals(topology, positions)
        parts = []
        for x in positions.repeat(moves, 1, 1).split(_AT_ONCE):
            y, log_ratio = proposals.propose(x, generator)
            parts.append(_logits(form, unit, x, y, log_ratio))
        change, offset = (torch.cat(p) for p in zip(*parts, strict=True))
        return cls(change, offset)

    @classmethod
    def of_baseline(
        cls, form: Form, unit, positions: Tensor, values: BaselineValues, kT: float
    ) -> Pairs:
        """Those that a baseline was asked for: its ``values`` at ``positions`` (M, N, 3)."""
        x = positions[torch.as_tensor(values.origin)]
        y = torch.as_tensor(values.moved, dtype=x.dtype)
        known = (values.energies[values.origin] - values.moved_energies) / kT
        ratio = torch.as_tensor(values.log_ratio - known)
        parts = [
            _logits(form, unit, *own)
            for own in zip(*(t.split(_AT_ONCE) for t in (x, y, ratio)), strict=True)
        ]
        change, offset = (torch.cat(p) for p in zip(*parts, strict=True))
        return cls(change, offset)


def _logits(form: Form, unit, x: Tensor, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """``change`` and ``offset`` of moves that do not end far beyond all snapshots."""
    (fx, wall_x), (fy, wall_y) = (form.features(p.transpose(-1, -2)) for p in (x, y))
    near = wall_y < _BEYOND
    return ((fx - fy) * unit.float())[near], (wall_x - wall_y - log_ratio.float())[near]


def weigh_modes(pairs: Pairs, start: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """θ (F,) by Newton's method, and the second derivative (F, F) of what the moves add.

    Parameters
    ----------
    pairs : snapshots and moves of them
    start : θ_SM (F,)
    precision : V⁻¹ (F, F)
    """
    change, offset = pairs

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        logit = change @ theta.float() + offset
        away = theta - start
        value = 0.5 * away @ precision @ away + softplus(logit).double().sum()
        return value, logit

    theta = start
    value, logit = objective(theta)
    for _ in range(30):
        p = torch.sigmoid(logit)
        gradient = precision @ (theta - start) + (change.T @ p).double()
        curvature = square(change.T * (p * (1 - p)).sqrt()).double()
        step = torch.linalg.solve(precision + curvature, gradient)
        for halvings in range(20):
            size = 0.5**halvings
            trial, trial_logit = objective(theta - size * step)
            if trial <= value:
                break
        else:  # rounding: it gets no better
            break
        decrease = value - trial
        theta, value, logit = theta - size * step, trial, trial_logit
        log.info("mode weights: objective %.6g, step %.3g", float(value), size)
        if decrease < 1e-3:
            break
    return theta, curvature
