"""Steps that are made many at a time and handed out one by one; and whether that pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential
from ..state import State
from .drafts import step_sizes
from .kernels import DivergedError, Info, Kernel
from .parallel import check_parallel, iterate_parallel
from .rounds import Count
from .speculative import Speculative

__all__ = ["Ahead", "Predictability", "predictability", "worth_it"]

_ENDLESS = 1 << 48  # steps: those that a noise has
_STEPS_IN_A_ROUND = 9.0  # of Newton's method at hλ = 0.2, windows of 64: docs/time_parallel.md
_BLOCK = 32  # steps with one Jacobian
_WORTH = 1.3  # times faster, for a guess


class Ahead:
    """The next step of a chain, from windows that reach beyond it: in place of `run.survive`.

    Parameters
    ----------
    window : steps of a window
    speculative : exact in law (`speculative.Speculative`), instead of the chain of the noise
    draft : of speculative steps, see there

    Attributes
    ----------
    count : what was done
    """

    def __init__(
        self, *, window: int = 64, speculative: bool = False, draft: Potential | None = None
    ):
        self._window, self._speculative, self._draft = window, speculative, draft
        self.count = Count()
        self._kernel: Kernel | None = None
        self._state: State | None = None
        self._steps: Iterator[tuple[State, Info]] = iter(())

    def check(self, kernel: Kernel) -> None:
        """Raises what steps of ``kernel`` would, before any is made."""
        if self._speculative:
            Speculative(check_parallel(kernel), self._draft)
        check_parallel(kernel)

    def advance(
        self, kernel: Kernel, state: State, noise: Noise, lost: Callable[[DivergedError], None]
    ) -> tuple[Kernel, State, Info]:
        """The step after ``state``, without the walkers that diverge, as `run.survive` makes it.

        A state that is not the last one handed out begins anew, as does another ``kernel``. The
        ``noise`` is that of the chain, ``lost`` is told of walkers. Raises as `run.survive`.
        """
        while True:
            if kernel is not self._kernel or state is not self._state:
                self._kernel, self._steps = kernel, self._from(kernel, state, noise)
            try:
                self._state, info = next(self._steps)
                return kernel, self._state, info
            except DivergedError as error:
                if error.survivors is None:
                    raise
                lost(error)
                kernel, state = kernel.take(error.kept), error.survivors

    def cool(self) -> None:
        """Begin with an empty window after the last step, as a restart from there does."""
        self._state = None

    def _from(self, kernel: Kernel, state: State, noise: Noise) -> Iterator[tuple[State, Info]]:
        window, count = self._window, self.count
        if not self._speculative:
            return iterate_parallel(
                kernel, state, _ENDLESS, noise=noise, window=window, count=count
            )
        steps = Speculative(check_parallel(kernel), self._draft)
        return steps.iterate(state, _ENDLESS, noise=noise, window=window, count=count)


def worth_it(kernel: Kernel, state: State, *, window: int = 64) -> tuple[bool, str]:
    """Whether windows are likely to be faster than steps one by one, and why, in words.

    One structure at ``state`` is timed against the batch that a round has: ``window`` proposals
    and its share of the structures of a Jacobian. Raises as `check_parallel` for other kernels.
    """
    field, x = check_parallel(kernel).field, state.x
    walkers = x[..., 0, 0].numel()
    moving = int((step_sizes(check_parallel(kernel), x) > 0).sum())
    rows = window + math.ceil(3 * moving * _STEPS_IN_A_ROUND / _BLOCK)

    def seconds(count: int) -> float:
        many, times = x.expand(count, *x.shape), []
        many = many[:, None] if x.ndim == 2 else many
        for _ in range(4):
            begin = perf_counter()
            float(field(many).drift.forces.sum())  # waits for the device
            times.append(perf_counter() - begin)
        return min(times[1:])

    ratio = seconds(rows) / seconds(1)
    gain = _STEPS_IN_A_ROUND / ratio
    chosen = gain > _WORTH
    return chosen, (
        f"a batch of {rows * walkers} structures costs {ratio:.1f} times one of {walkers}, so that "
        f"about {gain:.1f} times the speed is expected of steps made together: they are made "
        f"{'together' if chosen else 'one by one'}. {rows} times the walkers would make "
        f"{rows / ratio:.0f} times the steps: better, where many chains serve as well as a long one"
    )


class Predictability(NamedTuple):
    """How chains with the same noise approach each other, and what that means for windows."""

    exponent: float  # of Lyapunov, for one step; negative: they approach
    error: float  # of the exponent, standard
    gain: float  # steps in a round, measured


def predictability(
    kernel: Kernel, x: Tensor, *, noise: Noise, n_steps: int = 256, window: int = 64
) -> Predictability:
    """The largest Lyapunov exponent of steps with common noise, and steps in a round.

        λ = ⟨log(|x'_2 - x'_1| / |x_2 - x_1|)⟩

    of two walkers with the same noise that are brought together again, to 1e-6 of a step's noise,
    after each step (arXiv 2508.16817: λ < 0 means that windows of T steps take of the order of
    (log T)² rounds).

    Parameters
    ----------
    kernel : of a chain without memory
    x : (N, 3) in Å
    n_steps : that the exponent is a mean over, after as many to begin with
    window : of the measured gain, in as many steps

    Raises
    ------
    TypeError : a kernel that cannot run parallel in time
    ValueError : several walkers
    """
    step = check_parallel(kernel)
    if x.ndim != 2:
        raise ValueError(f"positions {tuple(x.shape)}: expected those of one walker, (N, 3)")
    apart = 1e-6 * float((2.0 * step_sizes(step, x).max()).sqrt())
    away = step.kick_of(noise.normal(0, x, stream="probe"))
    both, logs = torch.tensor([0, 0]), []
    for n in range(2 * n_steps):
        away = away * (apart / float(away.norm()))
        pair = replace(step.init(torch.stack((x, x + away)), walkers=both), step=n)
        moved, _ = step.step(pair, noise)
        x, away = moved.x[0], moved.x[1] - moved.x[0]
        logs.append(math.log(max(float(away.norm()), 1e-300) / apart))
    late = torch.tensor(logs[n_steps:])
    count = Count()
    for _ in iterate_parallel(step, x, n_steps, noise=noise, window=window, count=count):
        pass
    error = float(late.std()) / math.sqrt(n_steps)
    return Predictability(float(late.mean()), error, count.gain)
