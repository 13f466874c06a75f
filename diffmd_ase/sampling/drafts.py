"""What is believed of steps before they are evaluated: linear models, and cheap potentials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..potentials.base import Potential, common_system, evaluate
from ..state import State
from .metropolis import Metropolis
from .window import OneProposal, Points, Window, chosen, joined

__all__ = ["Draft", "Linear", "Surrogate", "step_sizes"]

_DIFFERENCE = 0.1  # of the noise of a step, over which forces are differentiated
_STALE = 2.0  # noises of a step by which a coordinate moves before its Jacobian is made again


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


class _Jacobian(NamedTuple):
    x: Tensor  # (*batch, N, 3) where it was taken
    of_forces: Tensor  # (*batch, D, D), J = ∂F/∂x of the coordinates that move
    of_step: Tensor  # (*batch, D, D), A = 1 + M J/kT


class Linear(Draft):
    """Each step linear about its reference, which is where its proposal was last evaluated.

    With E, F at the reference y° and a Jacobian J = ∂F/∂x, near y = y° + d

        F(y) ≈ F + J d        E(y) ≈ E - F·d - ½ d·J d

    and a chain of such steps needs no evaluation. In the deviations d it is

        d_n = r_n + A_m d_m     A = 1 + M J/kT     r_n = y°_m + M F(y°_m)/kT + kick_n - y°_n

    where step n starts from proposal m; all r_n are known at once. Where steps are accepted or
    rejected, choices are guessed (as in the last scan); they are made from the models, and from the
    first that turns out otherwise the scan goes on with the choice that was made.

    A step that was never evaluated has the last reference there is. The Jacobian of a step is the
    last one before it: of the first step of its block, by differences of forces over all
    coordinates that move, made again when its proposal has moved by more than twice the noise.
    So what is believed of the proposal of step n follows from evaluations of steps up to n.

    Parameters
    ----------
    kernel : of the chain
    state : where it is
    block : steps with one Jacobian; 0: J = 0, which is Picard's iteration
    clamp : J symmetric with eigenvalues at most 0, so that no direction runs away
    """

    def __init__(self, kernel: OneProposal, state: State, *, block: int = 16, clamp: bool = False):
        self._kernel, self._block, self._clamp = kernel, block, clamp
        h = step_sizes(kernel, state.x)
        self._moving = torch.nonzero(h > 0)[:, 0]
        self._sigma = float((2.0 * h[self._moving].min()).sqrt())
        start = Points(state.x, state.energy, state.forces, state.forces)
        self._last = start.each(lambda part: part[None])
        self._references = self._last.each(lambda part: part[:0])
        self._jacobians: dict[int, _Jacobian] = {}  # by the step whose proposal they are of
        self._asked: list[int] = []
        self._d: list[Tensor] = []  # deviations of the proposals, (*batch, D, 1)
        self._next: list[Tensor] = []  # A d: what they add to the deviation of the next one

    def scan(self, window, begin=0):
        self._fill(len(window))
        references, models = self._references, self._models(window)
        while True:
            sources, _ = window.sources()
            start = window.at(references, sources)
            moved = window.kernel.propose_from(start.x, start.forces, window.kicks)
            residual = self._flat(moved - references.x)[..., None]
            self._solve(window, residual, models, sources, begin)
            points = self._believed(models)
            if window.taken is None:
                return points
            points = self._from_step_to_step(window, points, sources)
            accepted = window.decide(points).accepted
            other = (accepted != window.taken).reshape(len(window), -1).any(1)[begin:].nonzero()
            if not len(other):
                return points
            begin += int(other[0])
            window.taken[begin] = accepted[begin]
            begin += 1
            if begin == len(window):
                return points

    def _solve(self, window: Window, residual, models, sources, begin: int) -> None:
        """The deviations of all proposals from number ``begin`` on."""
        del self._d[begin:], self._next[begin:]
        before = torch.zeros_like(residual[0])
        if 0 < begin < len(window):
            before = chosen(torch.stack((before, *self._next)), sources[begin : begin + 1])[0]
        for n in range(begin, len(window)):
            d = residual[n] + before
            after = d if models[n] is None else models[n].of_step @ d
            self._d.append(d)
            self._next.append(after)
            before = after
            if window.taken is not None:
                before = torch.where(window.taken[n][..., None, None], after, before)

    def _believed(self, models) -> Points:
        """The models of all steps at their proposals."""
        y, d = self._references, torch.stack(self._d)
        pairs = zip(models, self._d, strict=True)
        change = torch.stack([0.0 * d if m is None else m.of_forces @ d for m, d in pairs])
        energy = y.energy
        if energy is not None:
            slope = self._flat(y.pull)[..., None] + 0.5 * change
            energy = energy - (slope * d).sum((-2, -1))
        change = self._full(change[..., 0])
        return Points(y.x + self._full(d[..., 0]), energy, y.forces + change, y.pull + change)

    def _from_step_to_step(self, window: Window, points: Points, sources: Tensor) -> Points:
        """``points`` with energies that are sums of changes, from step to step.

        The errors of two models are of third order in d, and that of the trapezoidal rule between
        them, -½ (F_x + F_y)·(y - x), in the length of the step: it is used where d is not small.
        """
        old, pull = window.at(points, sources), points.pull
        old_pull = window.at(points._replace(forces=pull), sources).forces
        change = -0.5 * ((old_pull + pull) * (points.x - old.x)).sum((-2, -1))
        d = torch.stack([torch.zeros_like(self._d[0]), *self._d]).abs().amax((-2, -1))
        near = torch.maximum(d[1:], chosen(d, sources)) < 0.5 * self._sigma
        change = torch.where(near, points.energy - old.energy, change)
        before = torch.where(window.taken, change, 0.0).cumsum(0)
        before = torch.cat((torch.zeros_like(before[:1]), before[:-1]))
        return points._replace(energy=window.state.energy + before + change)

    def asks(self, window, x):
        if not self._block:
            return None
        first = window.state.step
        self._asked = [n for n in range(len(x)) if self._outdated(first + n, x[n])]
        if not self._jacobians:  # whatever its place in a block
            self._asked = sorted({0, *self._asked})
        return torch.cat([self._displaced(x[n]) for n in self._asked]) if self._asked else None

    def _outdated(self, step: int, x: Tensor) -> bool:
        if step % self._block:
            return False
        known = self._jacobians.get(step)
        stale = 0.0 if self._block == 1 else _STALE * self._sigma
        return known is None or float((x - known.x).abs().max()) > stale

    def learn(self, window, points, extra):
        self._references, self._last = points, points.each(lambda part: part[-1:])
        self._d = [torch.zeros_like(d) for d in self._d[: len(window)]]
        self._next = list(self._d)
        if extra is None:
            return
        for n, forces in zip(self._asked, extra.chunk(len(self._asked)), strict=True):
            if n >= len(points.x):  # the window was cut there
                break
            found = self._jacobian(points.x[n], points.forces[n], forces)
            if torch.isfinite(found.of_step).all():
                self._jacobians[window.state.step + n] = found
        before = [step for step in self._jacobians if step <= window.state.step]
        for step in sorted(before)[:-1]:
            del self._jacobians[step]

    def drop(self, count):
        self._references = self._references.each(lambda part: part[count:])
        del self._d[:count], self._next[:count]

    def _fill(self, size: int) -> None:
        """References for ``size`` steps: those that are missing are the last one before them."""
        more = size - len(self._references.x)
        if more < 0:
            self._references = self._references.each(lambda part: part[:size])
            self._last = self._references.each(lambda part: part[-1:])
        elif more > 0:
            tail = self._last.each(lambda part: part.expand(more, *part.shape[1:]))
            self._references = joined(self._references, tail)

    def _models(self, window: Window) -> list[_Jacobian | None]:
        """The Jacobian of each step: the last one up to it, of no later one; or None."""
        known, models = sorted(self._jacobians), []
        for step in range(window.state.step, window.state.step + len(window)):
            before = [k for k in known if k <= step]
            models.append(self._jacobians[before[-1]] if before else None)
        return models

    def _displaced(self, x: Tensor) -> Tensor:
        """x (*batch, N, 3) with each moving coordinate displaced in turn, (D, *batch, N, 3)."""
        size = 3 * len(self._moving)
        shift = x.new_zeros(size, *x.shape[-2:])
        rows = torch.arange(size, device=x.device)
        shift[rows, self._moving.repeat_interleave(3), rows % 3] = _DIFFERENCE * self._sigma
        return x + shift.reshape(size, *(1,) * (x.ndim - 2), *x.shape[-2:])

    def _jacobian(self, x: Tensor, forces: Tensor, displaced: Tensor) -> _Jacobian:
        J = self._flat((displaced - forces) / (_DIFFERENCE * self._sigma)).movedim(0, -1)
        if self._clamp:
            values, vectors = torch.linalg.eigh(torch.nan_to_num(0.5 * (J + J.mT)))
            J = (vectors * values.clamp(max=0.0)[..., None, :]) @ vectors.mT
        columns = self._full(J.movedim(-1, 0))
        drift = self._kernel.propose_from(torch.zeros_like(columns), columns, 0.0 * columns)
        A = self._flat(drift).movedim(0, -1)
        return _Jacobian(x, J, A + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device))

    def _flat(self, v: Tensor) -> Tensor:
        """The moving coordinates (…, D) of v (…, N, 3)."""
        return v[..., self._moving, :].flatten(-2)

    def _full(self, flat: Tensor) -> Tensor:
        """The inverse of `_flat`, with zeros for what does not move."""
        v = flat.new_zeros(*flat.shape[:-1], *self._last.x.shape[-2:])
        v[..., self._moving, :] = flat.unflatten(-1, (-1, 3))
        return v


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
