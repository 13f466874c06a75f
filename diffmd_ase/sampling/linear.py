"""Steps that are linear about where they were evaluated last: what Newton's method believes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..state import State
from .drafts import Draft, step_sizes
from .window import OneProposal, Points, Window, chosen, joined

__all__ = ["Linear"]

_DIFFERENCE = 0.1  # of the noise of a step, over which forces are differentiated
_STALE = 2.0  # noises of a step by which a coordinate moves before its Jacobian is made again


class _Jacobian(NamedTuple):
    x: Tensor  # (*batch, N, 3) where it was taken
    of_forces: Tensor  # (B, D, D), J = ∂F/∂x of the coordinates that move
    of_step: Tensor  # (B, D, D), A = 1 + M J/kT


class Linear(Draft):
    """Each step linear about its reference, which is where its proposal was last evaluated.

    With E, F at the reference y° and a Jacobian J = ∂F/∂x, near y = y° + d

        F(y) ≈ F + J d        E(y) ≈ E - F·d - ½ d·J d

    and a chain of such steps needs no evaluation. In the deviations d it is

        d_n = r_n + A_m d_m     A = 1 + M J/kT     r_n = y°_m + M F(y°_m)/kT + kick_n - y°_n

    where step n starts from proposal m; all r_n are known at once. Where steps are accepted or
    rejected, choices are guessed (as in the last scan); they are made from the models, and from the
    first that turns out otherwise the scan goes on with the choice that was made.

    A step that was never evaluated has the last reference there is. Jacobians are of the first step
    of each block, by differences of forces over all coordinates that move, made again when its
    proposal has moved by more than twice the noise. A step has the nearest one. If it is `causal`
    that is the last one before it, so that what is believed of the proposal of step n follows from
    evaluations of steps up to n; eigenvalues of J are then at most 0, so that no direction runs
    away.

    Parameters
    ----------
    kernel : of the chain
    state : where it is
    block : steps with one Jacobian; 0: J = 0, which is Picard's iteration; None: 16, 32 or 64, more
        where a Jacobian takes more structures and where steps are drafted only
    causal : as speculative steps need

    Attributes
    ----------
    block : may be changed between rounds
    missed : by how much the drifts that were believed of proposals were wrong, when they were
        learned, and how far from their references these were; each (T, B), in noises of a step
    """

    def __init__(
        self, kernel: OneProposal, state: State, *, block: int | None = None, causal: bool = False
    ):
        self._kernel, self._causal = kernel, causal
        h = step_sizes(kernel, state.x)
        self._moving = torch.nonzero(h > 0)[:, 0]
        self.block = self._dear() if block is None else block
        self._all_move = len(self._moving) == len(h)
        self._sigma = float((2.0 * h[self._moving].min()).sqrt())
        start = Points(state.x, state.energy, state.forces, state.forces)
        self._last = start.each(lambda part: part[None])
        self._references = self._last.each(lambda part: part[:0])
        self.missed = torch.empty(0), torch.empty(0)
        self._points = self._references  # as the last scan left them
        self._jacobians: dict[int, _Jacobian] = {}  # by the step whose proposal they are of
        self._asked: list[int] = []
        # deviations d of proposals, (T, B, D, 1), and A d, behind one row of zeros: the state
        self._d = self._flat(self._references.x)
        self._next = torch.zeros_like(self._flat(self._last.x))

    def _dear(self) -> int:
        """The shortest block of which a step pays for less than 2.5 displaced structures."""
        shortest = next((b for b in (16, 32) if self.size <= 2.5 * b), 64)
        return min(64, 2 * shortest) if self._causal else shortest

    @property
    def size(self) -> int:
        """D, the coordinates that move: structures that one Jacobian takes."""
        return 3 * len(self._moving)

    def scan(self, window, begin=0):
        self._fill(len(window))
        spans = self._spans(window)
        if begin == len(window):
            return self._points.up_to(begin)
        while True:
            sources = window.sources()[0][begin:]
            start = window.at(self._references, sources)
            moved = window.kernel.propose_from(start.x, start.forces, window.kicks[begin:])
            self._solve(self._flat(moved - self._references.x[begin:]), spans, sources, begin)
            before, rest = self._points.up_to(begin), self._believed(spans, begin)
            points = self._points = joined(before, rest)
            if window.taken is None:
                return points
            energy = self._from_step_to_step(window, points, sources, begin)
            points = self._points = points._replace(energy=energy)
            accepted = window.decide(points, begin).accepted
            other = (accepted != window.taken[begin:]).reshape(len(accepted), -1).any(1).nonzero()
            if not len(other):
                return points
            first = int(other[0])
            window.taken[begin + first] = accepted[first]
            begin += first + 1
            if begin == len(window):
                return points

    def _solve(self, residual: Tensor, spans, sources: Tensor, begin: int) -> None:
        """The deviations of all proposals from number ``begin`` on."""
        add, times, view = _small(residual.device)
        rest, d, after = view(residual), view(self._d), view(self._next)
        models = [None if known is None else view(known.of_step) for *_, known in spans]
        alone = sources.ndim == 1 or sources[0].numel() == 1
        place = sources.reshape(-1).tolist() if alone else sources.tolist()
        walkers = list(range(residual.shape[1]))
        rows, ahead, behind = list(rest), list(d), list(after)
        for (first, last, _), A in zip(spans, models, strict=True):
            for n in range(max(first, begin), last):
                m, own = place[n - begin], ahead[n]
                add(rows[n - begin], behind[m] if alone else after[m, walkers], out=own)
                if A is None:
                    after[n + 1] = own
                else:
                    times(A, own, out=behind[n + 1])

    def _believed(self, spans, begin: int) -> Points:
        """The models of all steps from number ``begin`` on, at their proposals."""
        y, d = self._references.each(lambda part: part[begin:]), self._d[begin:, ..., 0]
        change = torch.zeros_like(d)
        for first, last, known in spans:
            if known is not None and last > begin:
                part = slice(max(first, begin) - begin, last - begin)
                change[part] = (d[part].transpose(0, 1) @ known.of_forces.mT).transpose(0, 1)
        energy = y.energy
        if energy is not None:
            slope = self._flat(y.pull)[..., 0] + 0.5 * change
            energy = energy - (slope * d).sum(-1).reshape(energy.shape)
        moved = self._full(change)
        forces = y.forces + moved
        pull = forces if y.pull is y.forces else y.pull + moved
        return Points(y.x + self._full(d), energy, forces, pull)

    def _from_step_to_step(self, window: Window, points: Points, sources, begin: int) -> Tensor:
        """Energies of ``points`` that are sums of changes, from step to step.

        The errors of two models are of third order in d, and that of the trapezoidal rule between
        them, -½ (F_x + F_y)·(y - x), in the length of the step: it is used where d is not small.
        """
        old, pull = window.at(points, sources), points.pull
        old_pull = window.at(points._replace(forces=pull), sources).forces
        new = points.each(lambda part: part[begin:])
        change = -0.5 * ((old_pull + new.pull) * (new.x - old.x)).sum((-2, -1))
        d = self._d.abs().amax((-2, -1)).reshape(points.energy.shape)
        d = torch.cat((torch.zeros_like(d[:1]), d))
        near = torch.maximum(d[begin + 1 :], chosen(d, sources)) < 0.5 * self._sigma
        change = torch.where(near, new.energy - old.energy, change)
        before = torch.where(window.taken[begin:], change, 0.0).cumsum(0)
        before = torch.cat((torch.zeros_like(before[:1]), before[:-1]))
        return torch.cat((points.energy[:begin], old.energy[:1] + before + change))

    def asks(self, window, x):
        if not self.block:
            return None
        begin, size = window.state.step, len(x)
        self._asked = [
            n
            for n in range(-begin % self.block, size, self.block)
            if self._outdated(begin + n, x[n])
        ]
        if not self._jacobians:  # whatever its place in a block
            self._asked = sorted({0, *self._asked})
        return torch.cat([self._displaced(x[n]) for n in self._asked]) if self._asked else None

    def _outdated(self, step: int, x: Tensor) -> bool:
        known = self._jacobians.get(step)
        stale = 0.0 if self.block == 1 else _STALE * self._sigma
        return known is None or float((x - known.x).abs().max()) > stale

    def learn(self, window, points, extra):
        self.missed = self._misses(points)
        self._references, self._last = points, points.each(lambda part: part[-1:])
        self._d = torch.zeros_like(self._d[: len(points.x)])
        self._next = torch.zeros_like(self._next[: len(points.x) + 1])
        if extra is None:
            return
        for n, forces in zip(self._asked, extra.chunk(len(self._asked)), strict=True):
            if n >= len(points.x):  # the window was cut there
                break
            if torch.isfinite(forces).all():
                found = self._jacobian(points.x[n], points.forces[n], forces)
                self._jacobians[window.state.step + n] = found
        before = [step for step in self._jacobians if step <= window.state.step]
        for step in sorted(before)[:-1]:
            del self._jacobians[step]

    def _misses(self, points: Points) -> tuple[Tensor, Tensor]:
        wrong = points.forces - self._points.forces[: len(points.x)]
        nothing = torch.zeros_like(wrong[:1])
        parts = (
            self._flat(self._kernel.propose_from(nothing, wrong, nothing)),
            self._d[: len(wrong)],
        )
        error, moved = (part.abs().amax((-2, -1)) / self._sigma for part in parts)
        return error, moved

    def drop(self, count):
        self._references = self._references.each(lambda part: part[count:])
        self._points = self._points.each(lambda part: part[count:])
        self._d, self._next = self._d[count:], self._next[count:]
        self._next[:1] = 0.0

    def _fill(self, size: int) -> None:
        """References for ``size`` steps: those that are missing are the last one before them."""
        more = size - len(self._references.x)
        if more < 0:
            self._references = self._references.each(lambda part: part[:size])
            self._last = self._references.each(lambda part: part[-1:])
            self._d, self._next = self._d[:size], self._next[: size + 1]
        elif more > 0:
            tail = self._last.each(lambda part: part.expand(more, *part.shape[1:]))
            self._references = joined(self._references, tail)
            new = self._next.new_zeros(more, *self._next.shape[1:])
            self._d, self._next = torch.cat((self._d, new)), torch.cat((self._next, new))

    def _spans(self, window: Window) -> list[tuple[int, int, _Jacobian | None]]:
        """Steps ``first … last - 1`` of the ``window`` that have one Jacobian, or none."""
        start, end = window.state.step, window.state.step + len(window)
        steps = sorted(self._jacobians)
        if not steps:
            return [(0, len(window), None)]
        spans: list[tuple[int, int, _Jacobian | None]] = []
        first = start
        if self._causal and steps[0] > start:
            first = min(end, steps[0])
            spans.append((0, first - start, None))
        for step, then in zip(steps, [*steps[1:], None], strict=True):
            last = end if then is None else then if self._causal else (step + then + 1) // 2
            last = min(end, last)
            if last > first:
                spans.append((first - start, last - start, self._jacobians[step]))
                first = last
        return spans

    def _displaced(self, x: Tensor) -> Tensor:
        """x (*batch, N, 3) with each moving coordinate displaced in turn, (D, *batch, N, 3)."""
        shift = x.new_zeros(self.size, *x.shape[-2:])
        rows = torch.arange(self.size, device=x.device)
        shift[rows, self._moving.repeat_interleave(3), rows % 3] = _DIFFERENCE * self._sigma
        return x + shift.reshape(self.size, *(1,) * (x.ndim - 2), *x.shape[-2:])

    def _jacobian(self, x: Tensor, forces: Tensor, displaced: Tensor) -> _Jacobian:
        J = self._flat((displaced - forces) / (_DIFFERENCE * self._sigma))[..., 0].movedim(0, -1)
        if self._causal:
            values, vectors = torch.linalg.eigh(0.5 * (J + J.mT))
            J = (vectors * values.clamp(max=0.0)[..., None, :]) @ vectors.mT
        columns = self._full(J.movedim(-1, 0))
        drift = self._kernel.propose_from(torch.zeros_like(columns), columns, 0.0 * columns)
        A = self._flat(drift)[..., 0].movedim(0, -1)
        A = A + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return _Jacobian(x, J.contiguous(), A.contiguous())

    def _flat(self, v: Tensor) -> Tensor:
        """The moving coordinates (T, B, D, 1) of v (T, *batch, N, 3)."""
        v = v if self._all_move else v[..., self._moving, :]
        return v.reshape(len(v), self._last.x[0, ..., 0, 0].numel(), self.size, 1)

    def _full(self, flat: Tensor) -> Tensor:
        """v (T, *batch, N, 3) of (T, B, D), with zeros for what does not move."""
        shape = (len(flat), *self._last.x.shape[1:])
        if self._all_move:
            return flat.reshape(shape)
        v = flat.new_zeros(shape)
        v[..., self._moving, :] = flat.reshape(*shape[:-2], len(self._moving), 3)
        return v


def _small(device: torch.device) -> tuple[Callable, Callable, Callable[[Tensor], Any]]:
    """Sum and product for few numbers, and the view of tensors that they take.

    On a CPU those of NumPy, which sees the same memory and is faster.
    """
    if device.type == "cpu":
        return np.add, np.matmul, Tensor.numpy
    return torch.add, torch.bmm, lambda tensor: tensor
