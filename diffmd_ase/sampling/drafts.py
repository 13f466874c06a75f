"""What is believed of steps before they are evaluated, and cheap potentials that say so."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..potentials.base import Potential, common_system, evaluate
from ..state import State
from .metropolis import Metropolis
from .window import OneProposal, Points, Window

__all__ = ["Draft", "Surrogate", "step_sizes"]


class Draft(ABC):
    """A belief about the proposals of a window, which learns from their evaluations."""

    @abstractmethod
    def scan(self, window: Window, begin: int = 0) -> Points:
        """The proposals of a ``window``, with what is believed of them; evaluates no target.

        Those before ``begin`` are as they were in the last scan. Sets ``window.taken``.
        """

    def asks(self, window: Window, x: Tensor) -> Tensor | None:
        """Structures (K, *batch, N, 3) to evaluate besides proposals x of ``window``, or None."""
        return None

    def learn(self, window: Window, points: Points, extra: Tensor | None) -> None:  # noqa: B027
        """The proposals of ``window`` are ``points``; ``extra``: the forces that it asked for."""

    def drop(self, count: int) -> None:  # noqa: B027
        """The first ``count`` steps are final."""


class Surrogate(Draft):
    """A cheap potential in place of the target, with the last error that is known of it.

        F̃(y) = F_s(y) + [F - F_s](x)        Ẽ(y) - E(x) = [E_s(y) - E_s(x)] - [F - F_s](x)·(y - x)

    where x is the state before the window. One evaluation of the surrogate for each step.

    Parameters
    ----------
    kernel : of the chain
    potential : the surrogate, without memory; of the system of the chain

    Raises
    ------
    ValueError : a surrogate without energy where a target decides; with memory; of another system
    """

    def __init__(self, kernel: OneProposal, potential: Potential):
        judged = isinstance(kernel, Metropolis)
        if judged and not potential.conservative:
            raise ValueError(
                f"the draft {type(potential).__name__} has no energy, and a Metropolis step "
                "compares energies: use a draft that has one, or plain dynamics"
            )
        if potential.has_memory:
            raise ValueError(
                f"the draft {type(potential).__name__} has a memory, which only accepted steps may "
                "change: use one without"
            )
        common_system((kernel.potential, potential), "the draft and the target are")
        self._judged, self._potential = judged, potential

    def scan(self, window, begin=0):
        state, here = window.state, evaluate(self._potential.terms, window.state.x)
        error = state.forces - here.forces
        now, proposals = state, []
        for n in range(len(window)):
            y = window.kernel.propose_from(now.x, now.forces, window.kicks[n])
            value = evaluate(self._potential.terms, y)
            energy = state.energy
            if self._judged:
                work = (error * (y - state.x)).sum((-2, -1))
                energy = state.energy + (value.energy - here.energy) - work
            new = State(y, energy, value.forces + error, now.step, now.walkers)
            proposals.append(new)
            if window.taken is not None:
                window.taken[n] = window.kernel.decide_from(now, new, window.log_u[n]).accepted
                new = new.where(window.taken[n], now)
            now = new
        energies = None if state.energy is None else torch.stack([p.energy for p in proposals])
        forces = torch.stack([p.forces for p in proposals])
        return Points(torch.stack([p.x for p in proposals]), energies, forces, forces)


def step_sizes(kernel: OneProposal, x: Tensor) -> Tensor:
    """h (N,) in Å² of the atoms of x (*batch, N, 3), the largest of all walkers, float64."""
    step = kernel.proposal if isinstance(kernel, Metropolis) else kernel
    h = torch.as_tensor(step.h, dtype=torch.float64, device=x.device)
    return h.expand(x.shape[-2]) if h.ndim < 2 else h.amax(0)
