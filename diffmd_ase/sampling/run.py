"""A chain from a kernel, a start and steps; what survives where walkers diverge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..noise import Noise
from ..state import State
from .kernels import DivergedError, Info, Kernel

__all__ = ["advance", "move", "run", "survive"]


def run(
    kernel: Kernel, x: Tensor | State, n_steps: int, *, noise: Noise, every: int = 1
) -> Iterator[tuple[State, Info]]:
    """Yield ``(State, Info)`` after every ``every`` steps, ``n_steps`` in all.

    Parameters
    ----------
    kernel : makes the steps
    x : positions (N, 3) or (*batch, B, N, 3) in Å, or a `State`, whose step count
        (and so its noise) goes on: a restart gives the uninterrupted chain
    noise : a `Noise`; step n of walker w sees the same numbers in any batch

    Raises
    ------
    DivergedError : names step and walkers and carries the surviving state
    ValueError : ``n_steps`` negative, ``every`` below 1; a start that the kernel refuses
    """
    if n_steps < 0 or every < 1:
        raise ValueError(f"{n_steps=} must be >= 0 and {every=} >= 1")
    state = x if isinstance(x, State) else kernel.init(x)
    first = state.step
    while state.step < first + n_steps:
        state, info = advance(kernel, state, noise)
        if (state.step - first) % every == 0:
            yield state, info


def advance(kernel: Kernel, state: State, noise: Noise) -> tuple[State, Info]:
    """One completed ``kernel`` step: move, check, let the potential learn from the new positions.

    Before the first one a potential with memory learns from the start.

    Raises `DivergedError` where positions, forces or energy are not finite.
    """
    learns = kernel.potential.has_memory
    if learns and kernel.potential.begin(state.x, state.step):
        state = kernel.refresh(state)
    new, info = move(kernel, state, noise)
    if learns and kernel.potential.update(new.x, new.step):
        new = kernel.refresh(new)
    return new, info


def move(kernel: Kernel, state: State, noise: Noise) -> tuple[State, Info]:
    """One ``kernel`` step from ``state`` with ``noise``, from which nothing learns.

    Raises `DivergedError` where positions, forces or energy are not finite.
    """
    new, info = kernel.step(state, noise)
    _check(new, state, kernel)
    return new, info


def survive(
    kernel: Kernel,
    state: State,
    noise: Noise,
    lost: Callable[[DivergedError], None],
    step: Callable[[Kernel, State, Noise], tuple[State, Info]] = advance,
) -> tuple[Kernel, State, Info]:
    """`advance`, going on without the walkers that diverge, and the kernel of those that are left.

    Parameters
    ----------
    kernel : of all walkers of ``state``
    lost : told of every loss, before the step is made again without those walkers
    step : `advance` or `move`

    Raises
    ------
    DivergedError : nobody is left
    """
    while True:
        try:
            new, info = step(kernel, state, noise)
            return kernel, new, info
        except DivergedError as error:
            if error.survivors is None:
                raise
            lost(error)
            kernel, state = kernel.take(error.kept), error.survivors


def _check(new: State, old: State, kernel: Kernel) -> None:
    # one number to look at: NaN and inf survive the products and the sums
    total = (new.x * new.forces).sum()
    if math.isfinite(total if new.energy is None else total + new.energy.sum()):
        return
    fine = (torch.isfinite(new.x) & torch.isfinite(new.forces)).flatten(-2).all(-1)
    if new.energy is not None:
        fine = fine & torch.isfinite(new.energy)
    if fine.all():  # finite numbers whose sum is not
        return
    if fine.ndim == 0:
        one = [0] if new.walkers is None else new.walkers.tolist()
        raise DivergedError(new.step, one, before=old, after=new)
    lost = ~fine
    ids = lost.nonzero()[:, -1] if new.walkers is None else new.walkers[lost]
    survivors = None
    if fine.ndim == 1 and fine.any():
        survivors = old.take(fine)
        drift = () if kernel.drift is None else kernel.drift.terms
        for term in {id(term): term for term in (*kernel.potential.terms, *drift)}.values():
            term.select(fine)
    kept = None if survivors is None else fine
    before, after = (old.take(lost), new.take(lost)) if fine.ndim == 1 else (None, None)
    raise DivergedError(new.step, sorted(set(ids.tolist())), survivors, kept, before, after)
