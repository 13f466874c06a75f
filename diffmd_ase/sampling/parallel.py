"""One trajectory, many steps at a time: the chain of `sampling.run.run`, found in rounds.

A round scans a window of W steps with what is believed of them (`drafts.Linear`), evaluates all
proposals in one batch, and keeps the leading steps that are final. With Newton's method a step is
final when a second scan, with the new evaluations, moves its proposal by no more than the
tolerance, and no choice before it hangs on that. What is kept is corrected to first order, so that
residuals do not add up, and the first step of a window is exact: a round makes at least one step.
With J = 0 this is Picard's iteration, with Jacobians Newton's.

The chain is that of the same noise, step by step, with the same choices (Lim et al.,
arXiv 2309.12252, and Zoltowski et al., arXiv 2508.18413: Newton's method in time; Shih et al.,
arXiv 2305.16317: Picard's, in sliding windows). It pays where a batch costs less than its
structures one by one. Overdamped chains with the same noise approach each other, which is why few
rounds are enough (arXiv 2508.16817); `predictability` measures it.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..state import State
from .drafts import Draft, Linear, step_sizes
from .euler import EulerMaruyama
from .kernels import Info, Kernel
from .metropolis import Metropolis
from .run import advance
from .window import OneProposal, Points, Window

__all__ = [
    "Count",
    "ParallelReport",
    "Rounds",
    "check_parallel",
    "collected",
    "followed",
    "iterate_parallel",
    "run_parallel",
]

log = logging.getLogger(__name__)

_METHODS = ("newton", "picard")
_FAR = 30.0  # noises of a step: no drift is believed to be longer
_FINE, _COARSE = 1e-9, 1e-4  # tolerances in noises of a step, for float64 and float32
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


@dataclass(frozen=True)
class ParallelReport:
    """What a parallel run took, and where it ended.

    Parameters
    ----------
    rounds : batches evaluated one after the other
    evaluations : structures evaluated as proposals
    hessian_evaluations : structures evaluated for Jacobians
    sequential : steps made one by one, where there were no windows
    accepted : (n_steps, *batch) bool
    state : after the last step
    """

    rounds: int
    evaluations: int
    hessian_evaluations: int
    sequential: int
    accepted: Tensor
    state: State


def run_parallel(
    kernel: Kernel,
    x: Tensor | State,
    n_steps: int,
    *,
    noise: Noise,
    window: int = 64,
    method: str = "newton",
) -> tuple[Tensor, ParallelReport]:
    """All positions (n_steps, *batch, N, 3) of `iterate_parallel`, and what they took.

    ``kernel``, ``x``, ``n_steps``, ``noise``, ``window`` and ``method`` are those of
    `iterate_parallel`, as is what is raised.
    """
    count = Count()
    steps = iterate_parallel(
        kernel, x, n_steps, noise=noise, window=window, method=method, count=count
    )
    return collected(check_parallel(kernel), x, steps, count)


def iterate_parallel(
    kernel: Kernel,
    x: Tensor | State,
    n_steps: int,
    *,
    noise: Noise,
    window: int = 64,
    method: str = "newton",
    block: int = 16,
    tolerance: float | None = None,
    count: Count | None = None,
) -> Iterator[tuple[State, Info]]:
    """Yield ``(State, Info)`` after every step, as `sampling.run.run` does, within the tolerance.

    Walkers of a batch go in step: what is final is final for all. A potential with memory learns
    from each step in turn; windows end where it says that it changes next (`next_change`), and one
    of which that is not known runs one by one.

    Parameters
    ----------
    kernel : `EulerMaruyama`, or `Metropolis` with one step for a proposal
    x : positions (*batch, N, 3) in Å, or a `State`, whose step count goes on
    noise : that of the sequential chain
    window : steps evaluated together; halved where memory does not suffice
    method : "newton", or "picard", which needs no Jacobians and many rounds
    block : steps with one Jacobian; 1 takes fewest rounds, where Jacobians cost nothing
    tolerance : in units of the noise of a step; None: 1e-9, or 1e-4 where forces have the
        precision of float32. Of those two also the choices within 1e-4 times the number of
        coordinates are made one by one
    count : counts what is done

    Raises
    ------
    TypeError : a kernel whose step is not one proposal
    ValueError : ``n_steps`` negative, ``window`` or ``block`` below 1, another method
    DivergedError : as `run`, at the first step that is not final
    """
    step = check_parallel(kernel)
    if n_steps < 0 or window < 1 or block < 1 or method not in _METHODS:
        raise ValueError(
            f"{n_steps=} must be >= 0, {window=} and {block=} >= 1, {method=} one of {_METHODS}"
        )
    count = Count() if count is None else count
    state = x if isinstance(x, State) else step.init(x)
    within = resolution(step, state) if tolerance is None else tolerance
    taken = block if method == "newton" else 0

    def rounds(at: State) -> Rounds:
        draft = Linear(step, at, block=taken)
        return Newton(Window(step, at, noise), draft, window, count, tolerance=within)

    return followed(step, state, n_steps, noise, rounds, count)


def check_parallel(kernel: Kernel) -> OneProposal:
    """``kernel``, if it can run parallel in time; else a ``TypeError`` with the reason."""
    name = type(kernel).__name__
    if not isinstance(kernel, EulerMaruyama | Metropolis):
        raise TypeError(
            f"{name} cannot run parallel in time: its step is not one proposal from positions and "
            "forces; use EulerMaruyama or Metropolis, or more walkers"
        )
    if isinstance(kernel, Metropolis) and kernel.n_steps != 1:
        raise TypeError(
            f"{name} with n_steps={kernel.n_steps} cannot run parallel in time: its proposal has "
            "steps that are evaluated one after the other; use n_steps=1"
        )
    return kernel


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
        if not torch.isfinite(drafted.x).all():
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
            points, drafted = (p.each(lambda part: part[:size]) for p in (points, drafted))
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
        start = window.at(drafted, window.sources()[0]).x
        # without the kick: whether a draft is believed may not depend on its own noise
        drift = (drafted.x - window.kicks - start).abs().flatten(1).amax(1)
        fine = drift < _FAR * self._sigma
        fine[0] = True
        size = int(fine.long().cumprod(0).sum())
        return drafted.each(lambda part: part[:size])

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
        self._count.hessian_evaluations += 0 if extra is None else walkers * len(extra)

    def _keep(self, points: Points, info: Info, count: int) -> list[tuple[State, Info]]:
        """The first ``count`` steps, which are final with proposals ``points``, are taken out."""
        steps = self.window.final(points, info, count)
        self.draft.drop(count)
        self.window.drop(count, steps[-1][0])
        return steps


class Newton(Rounds):
    """Final is what a second scan moves by no more than ``tolerance``, in noises of a step."""

    def __init__(self, *args, tolerance: float):
        super().__init__(*args)
        self._tolerance = tolerance

    def _final(self, drafted, points, extra):
        window = self.window
        self.draft.learn(window, points, extra)
        exact = self.draft.scan(window)
        moved = (exact.x - drafted.x).abs().flatten(1).amax(1) / self._sigma
        final = moved <= self._tolerance
        info = window.decide(exact)
        if info.log_ratio is not None and window.log_u is not None:
            # log α moves by less than this for all that is still open
            error = moved.cummax(0).values * drafted.x[0].numel()
            apart = (info.log_ratio - window.log_u).abs().reshape(len(moved), -1).amin(1)
            final &= (apart >= error) | (moved.cummax(0).values == 0)
        count = max(1, int(final.long().cumprod(0).sum()))
        steps = self._keep(exact, info, count)
        self._scanned = len(window)
        return steps


def followed(
    kernel: OneProposal,
    state: State,
    n_steps: int,
    noise: Noise,
    rounds: Callable[[State], Rounds],
    count: Count,
) -> Iterator[tuple[State, Info]]:
    """Yield the steps of ``rounds`` from ``state``, and let potentials with memory learn from them.

    A step that no round makes is made by `sampling.run.advance`, which raises or rejects as ever.
    ``kernel``, ``n_steps``, ``noise`` and ``count`` are those of `iterate_parallel`; ``rounds``
    begins at a state.
    """
    learns, last = kernel.potential.has_memory, state.step + n_steps
    alone = learns and all(kernel.potential.next_change(n) == n + 1 for n in range(4))
    if alone:
        warnings.warn(
            f"{type(kernel.potential).__name__} may change after every step, so that none can be "
            "evaluated ahead: steps are made one by one",
            RuntimeWarning,
            stacklevel=3,
        )
    current: Rounds | None = None
    while state.step < last:
        if learns and kernel.potential.begin(state.x, state.step):
            state, current = kernel.refresh(state), None
        made: list[tuple[State, Info]] = []
        if not alone:
            current = rounds(state) if current is None else current
            ends = min(last, kernel.potential.next_change(state.step))
            made = current.round(int(ends) - state.step)
        if not made:
            state, info = advance(kernel, state, noise)
            current, count.sequential, count.steps = None, count.sequential + 1, count.steps + 1
            yield state, info
        for place, (state, info) in enumerate(made, 1):
            count.steps += 1
            if learns and kernel.potential.update(state.x, state.step):
                state = kernel.refresh(state)
                # what was evaluated beyond it is void
                current = current.go_on(state) if place == len(made) else None
                yield state, info
                break
            yield state, info


def collected(
    kernel: OneProposal,
    x: Tensor | State,
    steps: Iterator[tuple[State, Info]],
    count: Count,
) -> tuple[Tensor, ParallelReport]:
    """All positions of ``steps``, and the report; ``kernel``, ``x`` for a run of no steps."""
    states, taken = [], []
    for state, info in steps:
        states.append(state)
        everyone = torch.ones(state.x.shape[:-2], dtype=torch.bool, device=state.x.device)
        taken.append(everyone if info.accepted is None else info.accepted)
    if not states:
        state = x if isinstance(x, State) else kernel.init(x)
        positions = state.x.new_empty(0, *state.x.shape)
        accepted = torch.empty(0, *state.x.shape[:-2], dtype=torch.bool)
    else:
        positions, accepted = torch.stack([s.x for s in states]), torch.stack(taken)
        state = states[-1]
    report = ParallelReport(
        count.rounds,
        count.evaluations,
        count.hessian_evaluations,
        count.sequential,
        accepted,
        state,
    )
    return positions, report


def _positive(h: Tensor) -> Tensor:
    return h[h > 0].min()
