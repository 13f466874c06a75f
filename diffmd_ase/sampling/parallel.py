"""One trajectory, many steps at a time: the chain of `sampling.run.run`, found in rounds.

A round scans a window of W steps with what is believed of them (`linear.Linear`), evaluates all
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

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..state import State
from .euler import EulerMaruyama
from .kernels import Info, Kernel
from .linear import Linear
from .metropolis import Metropolis
from .rounds import Count, Newton, Rounds, resolution
from .run import advance
from .window import OneProposal, Window

__all__ = [
    "ParallelReport",
    "check_parallel",
    "collected",
    "followed",
    "iterate_parallel",
    "run_parallel",
]

_METHODS = ("newton", "picard")


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
    block: int | None = None,
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
    block : steps with one Jacobian; 1 takes fewest rounds, where Jacobians cost nothing. None: 16,
        32 or 64, by what a Jacobian costs, halved when a window takes more than 8 rounds
    tolerance : to which chains agree, in units of the noise of a step; None: 1e-9, or 2e-4 where
        forces have the precision of float32. A choice that is nearer than the error times the
        number of coordinates waits until its proposal is exact
    count : counts what is done

    Raises
    ------
    TypeError : a kernel whose step is not one proposal
    ValueError : ``n_steps`` negative, ``window`` or ``block`` below 1, another method
    DivergedError : as `run`, at the first step that is not final
    """
    step = check_parallel(kernel)
    if n_steps < 0 or window < 1 or (1 if block is None else block) < 1 or method not in _METHODS:
        raise ValueError(
            f"{n_steps=} must be >= 0, {window=} and {block=} >= 1, {method=} one of {_METHODS}"
        )
    count = Count() if count is None else count
    state = x if isinstance(x, State) else step.init(x)
    within = resolution(step, state) if tolerance is None else tolerance
    taken = block if method == "newton" else 0

    def rounds(at: State) -> Rounds:
        draft = Linear(step, at, block=taken)
        return Newton(
            Window(step, at, noise), draft, window, count, tolerance=within, adapts=taken is None
        )

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
