"""Steps that are not final yet: their noise, and how proposals make a chain.

A step from x proposes ``y = x + M F(x)/kT + kick`` and takes y, or stays where it is; a plain step
always takes it. The unknowns of a window are the proposals y_n of its steps. The state that step n
starts from is the last proposal before it that was taken, or the state before the window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import evaluate
from ..state import State
from .euler import EulerMaruyama
from .field import Field
from .kernels import Info
from .metropolis import Metropolis

__all__ = ["Drawn", "OneProposal", "Points", "Window", "chosen", "joined"]

OneProposal = EulerMaruyama | Metropolis
"""Kernels whose step is one proposal from positions and forces, taken or not."""

_DRAWN_STEPS, _DRAWN_NUMBERS = 64, 1 << 14  # at a time, at least and about


class Points(NamedTuple):
    """Positions of several steps with what is known, or believed, of them.

    Parameters
    ----------
    x : (T, *batch, N, 3) in Å
    energy : (T, *batch) in eV, of the target; None where the field is not a gradient
    forces : (T, *batch, N, 3) in eV/Å, of the drift
    pull : likewise of the target: minus the gradient of the energy
    """

    x: Tensor
    energy: Tensor | None
    forces: Tensor
    pull: Tensor

    @classmethod
    def evaluated(
        cls, field: Field, x: Tensor, extra: Tensor | None = None
    ) -> tuple[Points, Tensor | None]:
        """The ``field`` at x, and the drift's forces at ``extra`` (K, *batch, N, 3), or None.

        One batch where drift and target are one.
        """
        every = x if extra is None or field.evaluations > 1 else torch.cat((x, extra))
        # one walker is a batch of one: an axis before N is that of walkers
        value = field(every[:, None] if every.ndim == 3 else every)
        energy, forces, pull = value.target.energy, value.drift.forces, value.target.forces
        energy = None if energy is None else energy.reshape(every.shape[:-2])
        told = forces.reshape(every.shape)
        same = pull is forces
        points = cls(every, energy, told, told if same else pull.reshape(every.shape))
        if extra is None:
            return points, None
        if field.evaluations > 1:
            alone = extra[:, None] if extra.ndim == 3 else extra
            return points, evaluate(field.drift.terms, alone).forces.reshape(extra.shape)
        return points.each(lambda part: part[: len(x)]), points.forces[len(x) :]

    def each(self, change: Callable[[Tensor], Tensor]) -> Points:
        """``change`` of every part that there is."""
        x, energy, forces, pull = self
        changed = change(forces)
        return Points(
            change(x),
            None if energy is None else change(energy),
            changed,
            changed if pull is forces else change(pull),
        )

    def up_to(self, end: int) -> Points:
        """The first ``end``."""
        return self.each(lambda part: part[:end])

    def finite(self) -> Tensor:
        """(T,): positions, energies and forces of all walkers are finite."""
        total = (self.x * self.forces).flatten(1).sum(1)
        if self.energy is not None:
            total = total + self.energy.reshape(len(total), -1).sum(1)
        return torch.isfinite(total)


def joined(first: Points, second: Points) -> Points:
    """The points of ``first`` and then those of ``second``."""
    energy = first.energy
    if energy is not None:
        energy = torch.cat((energy, second.energy))
    forces = torch.cat((first.forces, second.forces))
    same = first.pull is first.forces and second.pull is second.forces
    pull = forces if same else torch.cat((first.pull, second.pull))
    return Points(torch.cat((first.x, second.x)), energy, forces, pull)


class Drawn:
    """Numbers of consecutive steps, drawn for many steps at a time.

    Parameters
    ----------
    draw : the numbers (T, …) of steps (T,)
    size : how many numbers a step has, by which is found for how many it is worth it
    """

    def __init__(self, draw: Callable[[Tensor], Tensor], size: int):
        self._draw, self._first = draw, 0
        self._least = min(_DRAWN_STEPS, max(1, _DRAWN_NUMBERS // max(1, size)))
        self._rows: Tensor | None = None

    def rows(self, first: int, count: int) -> Tensor:
        """Those of ``count`` steps from ``first`` on, not before that of the last call.

        What is written into them stays.
        """
        known = None if self._rows is None else self._rows[first - self._first :]
        have = 0 if known is None else len(known)
        if count > have:
            begin = first + have
            more = self._draw(torch.arange(begin, begin + max(count - have, self._least)))
            known = more if known is None or not have else torch.cat((known, more))
        self._rows, self._first = known, first
        return known[:count]


class Window:
    """Consecutive steps of a kernel after a ``state`` that is exact.

    Parameters
    ----------
    kernel : a plain or a Metropolis step, of one proposal
    state : after which the first step begins
    noise : that of the sequential chain

    Attributes
    ----------
    xi, kicks : (W, *batch, N, 3), noise of each step and its displacement in Å
    log_u : (W, *batch) that decide, or None: every step is accepted
    taken : (W, *batch) bool, whether a step takes its proposal, as far as is known; or None
    """

    def __init__(self, kernel: OneProposal, state: State, noise: Noise):
        self.kernel, self.state, self.noise = kernel, state, noise
        self.xi = self.kicks = state.x.new_empty(0, *state.x.shape)
        self.log_u: Tensor | None = None
        self.taken: Tensor | None = None
        self._xi = Drawn(self._normal, state.x.numel())
        if isinstance(kernel, Metropolis):
            self.log_u = state.x.new_empty(0, *state.x.shape[:-2], dtype=torch.float64)
            self.taken = self.log_u.bool()
            self._log_u = Drawn(self._uniform, state.x.numel())

    def __len__(self) -> int:
        return len(self.kicks)

    def fill(self, width: int) -> None:
        """Make it ``width`` steps long; those that are new are believed to be taken."""
        size, first = len(self), self.state.step
        if width == size:
            return
        self.xi = self._xi.rows(first, width)
        self.kicks = self.kernel.kick_of(self.xi)
        if self.taken is not None:
            self.log_u = self._log_u.rows(first, width)
            new = self.taken.new_ones(max(0, width - size), *self.taken.shape[1:])
            self.taken = torch.cat((self.taken[:width], new))

    def drop(self, count: int, state: State) -> None:
        """The first ``count`` steps are final, and led to ``state``."""
        self.state = state
        self.xi, self.kicks = self.xi[count:], self.kicks[count:]
        if self.log_u is not None and self.taken is not None:
            self.log_u, self.taken = self.log_u[count:], self.taken[count:]

    def _normal(self, steps: Tensor) -> Tensor:
        like = self.state.x.expand(len(steps), *self.state.x.shape)
        return self.noise.normal(steps, like, walkers=self.state.walkers)

    def _uniform(self, steps: Tensor) -> Tensor:
        like = self.state.x[..., 0, 0].expand(len(steps), *self.state.x.shape[:-2])
        return self.kernel.log_u(steps, like, noise=self.noise, walkers=self.state.walkers)

    def sources(self) -> tuple[Tensor, Tensor]:
        """Which of (state, proposals…) each step starts from, and ends in: (W, *batch), or (W,)."""
        order = torch.arange(1, len(self) + 1, device=self.kicks.device)
        if self.taken is None:
            return order - 1, order
        place = order.reshape(-1, *(1,) * (self.taken.ndim - 1))
        after = torch.where(self.taken, place, 0).cummax(0).values
        return torch.cat((torch.zeros_like(after[:1]), after[:-1])), after

    def at(self, points: Points, sources: Tensor) -> State:
        """The states (W, *batch) that ``sources`` name, where the proposals are ``points``."""
        start = self.state
        x, energy, forces = (
            None if first is None else chosen(torch.cat((first[None], part)), sources)
            for first, part in (
                (start.x, points.x),
                (start.energy, points.energy),
                (start.forces, points.forces),
            )
        )
        return State(x, energy, forces, start.step, start.walkers)

    def decide(self, points: Points, begin: int = 0) -> Info:
        """The choices between ``points``, all proposals, and where they start from.

        Of the steps from number ``begin`` on.
        """
        if self.log_u is None:
            return self.kernel.decide_from(self.state, self.state, None)
        old = self.at(points, self.sources()[0][begin:])
        x, energy, forces, _ = points.each(lambda part: part[begin:])
        new = State(x, energy, forces, old.step, old.walkers)
        return self.kernel.decide_from(old, new, self.log_u[begin:])

    def final(self, points: Points, info: Info, count: int) -> list[tuple[State, Info]]:
        """The first ``count`` steps as `sampling.run.run` yields them.

        ``points`` are the proposals, ``info`` is of `decide`.
        """
        states = self.at(points, self.sources()[1][:count])
        energies = [None] * count if states.energy is None else states.energy.unbind(0)
        parts = zip(states.x.unbind(0), energies, states.forces.unbind(0), strict=True)
        first, walkers = self.state.step + 1, self.state.walkers
        return [(State(*part, first + n, walkers), info.of(n)) for n, part in enumerate(parts)]


def chosen(parts: Tensor, index: Tensor) -> Tensor:
    """``parts[index]`` along the first axis; ``index`` (W,), or (W, *batch), of each walker."""
    if index.ndim == 1:
        return parts[index]
    wide = index.reshape(*index.shape, *(1,) * (parts.ndim - index.ndim))
    return parts.gather(0, wide.expand(-1, *parts.shape[1:]))
