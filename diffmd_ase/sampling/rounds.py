"""A round: scan a window, evaluate it in one batch, keep the leading steps that are final."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..state import State
from .drafts import Draft, step_sizes
from .kernels import Info
from .linear import Linear
from .window import OneProposal, Points, Window, chosen

__all__ = ["Count", "Newton", "Rounds", "resolution"]

_FAR = 30.0  # noises of a step: no drift is believed to be longer
_FINE, _COARSE = 1e-9, 2e-4  # tolerances in noises of a step, for float64 and float32
_MANY = 8  # rounds of a window
_SURE = 0.01  # the least part of a move by which a correction to first order is wrong
_ROUNDED = 1e-8  # errors of forces, in noises of a step, that only float32 makes


@dataclass
class Count:
    """What a parallel run has done so far; it goes on counting while the run is iterated."""

    steps: int = 0  # made
    rounds: int = 0  # batches evaluated one after the other
    evaluations: int = 0  # structures, of proposals
    hessian_evaluations: int = 0  # structures, displaced for Jacobians
    sequential: int = 0  # steps made one by one

    @property
    def gain(self) -> float:
        """Steps for each evaluation that waits for another; NaN before the first."""
        waits = self.rounds + self.sequential
        return self.steps / waits if waits else math.nan


def resolution(kernel: OneProposal, state: State) -> float:
    """The tolerance that forces at ``state`` allow, in noises of a step of ``kernel``.

    From the second difference of drifts over 1e-7 Å, which is that of rounding.
    """
    if state.x.dtype != torch.float64:
        return _COARSE
    shift = 1e-7 * Noise(0).normal(0, state.x, walkers=state.walkers, stream="probe")
    x = torch.stack((state.x - shift, state.x, state.x + shift))
    forces = Points.evaluated(kernel.field, x)[0].forces
    error = kernel.noise_of(forces[0] - 2.0 * forces[1] + forces[2]).abs().max()
    return _FINE if float(error) < _ROUNDED else _COARSE


class Rounds(ABC):
    """A window, what is believed of its steps, and how they become final.

    Parameters
    ----------
    window : empty
    draft : what is believed
    width : steps of a full window
    count : counts what is done
    """

    def __init__(self, window: Window, draft: Draft, width: int, count: Count):
        self.window, self.draft, self._width, self._count = window, draft, width, count
        self._cold = True  # nothing is known: begin with one step
        self._scanned = 0  # steps that are as the last scan left them
        self._spent = (0, 0)  # evaluations of drift and separate target not told of yet
        self._sigma = float((2.0 * _positive(step_sizes(window.kernel, window.state.x))).sqrt())

    def go_on(self, state: State) -> Rounds:
        """The same from ``state``, whose energy and forces have changed."""
        self.window.state, self._scanned = state, 0
        return self

    def round(self, most: int) -> list[tuple[State, Info]]:
        """The next final steps, at most ``most``; none where the next one must be made alone."""
        window = self.window
        window.fill(1 if self._cold else min(self._width, most))
        drafted = self.draft.scan(window, min(self._scanned, len(window)))
        drafted = self._believable(drafted)
        window.fill(len(drafted.x))
        if not math.isfinite(drafted.x.sum()):
            return []
        extra = self.draft.asks(window, drafted.x)
        try:
            points, forces = Points.evaluated(window.kernel.field, drafted.x, extra)
        except RuntimeError as error:
            self._shrink(error)
            return self.round(most)
        self._counted(drafted.x, extra)
        if window.taken is None:  # a proposal that is not finite can only be rejected
            size = int(points.finite().long().cumprod(0).sum())
            points, drafted = (p.up_to(size) for p in (points, drafted))
            window.fill(size)
            if not size:
                return []
        self._cold = False
        return self._final(drafted, points, forces)

    @abstractmethod
    def _final(self, drafted: Points, points: Points, extra: Tensor | None):
        """The steps that are final now that the ``drafted`` proposals are ``points``."""

    def _believable(self, drafted: Points) -> Points:
        """Up to the first drift that is absurd, or not finite; the first proposal is exact."""
        window, state = self.window, self.window.state
        first = window.kernel.propose_from(state.x, state.forces, window.kicks[0])
        drafted = drafted._replace(x=torch.cat((first[None], drafted.x[1:])))
        start = chosen(torch.cat((state.x[None], drafted.x)), window.sources()[0])
        # without the kick: whether a draft is believed may not depend on its own noise
        drift = (drafted.x - window.kicks - start).abs().flatten(1).amax(1)
        drift[0] = 0.0
        far = (~(drift < _FAR * self._sigma)).nonzero()
        return drafted.up_to(int(far[0])) if len(far) else drafted

    def _shrink(self, error: RuntimeError) -> None:
        """Halve the window where ``error`` says that memory does not suffice; else raise it."""
        words = str(error)
        if len(self.window) < 2 or not (
            isinstance(error, torch.OutOfMemoryError) or "allocate memory" in words
        ):
            raise error
        self._width = max(1, len(self.window) // 2)
        self._scanned = min(self._scanned, self._width)
        warnings.warn(
            f"a window of {len(self.window)} steps does not fit into memory: {self._width} now",
            RuntimeWarning,
            stacklevel=2,
        )

    def _counted(self, x: Tensor, extra: Tensor | None) -> None:
        walkers = x[0, ..., 0, 0].numel()
        self._count.rounds += 1
        self._count.evaluations += walkers * len(x)
        displaced = 0 if extra is None else len(extra)
        self._count.hessian_evaluations += walkers * displaced
        drift, target = self._spent
        separate = len(x) * (self.window.kernel.field.evaluations - 1)
        self._spent = drift + len(x) + displaced, target + separate

    def _keep(self, points: Points, info: Info, count: int) -> list[tuple[State, Info]]:
        """The first ``count`` steps, which are final with proposals ``points``, are taken out.

        The first one has the evaluations of the rounds since the last one that was.
        """
        steps = self.window.final(
            points, info._replace(drift_evaluations=0, target_evaluations=0), count
        )
        (state, told), (drift, target) = steps[0], self._spent
        steps[0] = state, told._replace(drift_evaluations=drift, target_evaluations=target)
        self._spent = (0, 0)
        self.draft.drop(count)
        self.window.drop(count, steps[-1][0])
        return steps


class Newton(Rounds):
    """Final is what a second scan finds with an error of no more than ``tolerance``.

    It moves proposals by d, to first order in d. When their forces were evaluated models were wrong
    by the part ρ of how far they reached: the error is Σ ρ d, of all steps up to one, in noises of
    a step. A round may add a tenth of the tolerance, since later ones do not forget it at once.

    Parameters
    ----------
    window, draft, width, count : as of `Rounds`
    tolerance : in noises of a step
    adapts : the blocks of the draft are halved when a window takes more than 8 rounds, if Jacobians
        then take fewer structures than proposals
    """

    draft: Linear

    def __init__(
        self,
        window: Window,
        draft: Linear,
        width: int,
        count: Count,
        *,
        tolerance: float,
        adapts: bool = False,
    ):
        super().__init__(window, draft, width, count)
        self._tolerance, self._adapts = 0.1 * tolerance, adapts
        self._made, self._since = -width, 0  # steps and rounds since the last look; the first: cold

    def _final(self, drafted, points, extra):
        window = self.window
        self.draft.learn(window, points, extra)
        exact = self.draft.scan(window)
        moved = (exact.x - drafted.x).abs().flatten(1).amax(1) / self._sigma
        # what is kept is corrected to first order: its error is that of the correction
        wrong, apart = self.draft.missed
        doubt = (wrong / apart.clamp(min=self._tolerance)).amax(1).clamp(min=_SURE)
        error = (doubt * moved).cumsum(0)
        final = error <= self._tolerance
        info = window.decide(exact)
        if info.log_ratio is not None and window.log_u is not None:
            # log α moves by less than this for all that is still open
            bound = error * drafted.x[0].numel()
            apart = (info.log_ratio - window.log_u).abs().reshape(len(moved), -1).amin(1)
            final &= (apart >= bound) | (bound == 0)
        count = max(1, int(final.long().cumprod(0).sum()))
        steps = self._keep(exact, info, count)
        self._scanned = len(window)
        self._look(count)
        return steps

    def _look(self, count: int) -> None:
        """Whether Jacobians of shorter blocks are worth it, once a window."""
        draft, self._made, self._since = self.draft, self._made + count, self._since + 1
        if self._made >= 0 and self._made - count < 0:
            self._made, self._since = 0, 0
        if self._made >= self._width:
            rounds = self._since * self._width / self._made
            if self._adapts and rounds > max(_MANY, 2 * draft.size / draft.block):
                draft.block = max(1, draft.block // 2)
            self._made, self._since = 0, 0


def _positive(h: Tensor) -> Tensor:
    return h[h > 0].min()
