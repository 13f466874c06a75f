"""Kernels made of kernels: one of several at each step, all for the same target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..noise import Noise
from ..state import Record, State
from .kernels import Info, Kernel

__all__ = ["Mixture", "Sequence"]


@dataclass(frozen=True, eq=False)
class Owner(Record):
    """Which kernel of a combination made the state."""

    number: Tensor  # (*batch), so that states can be selected and exchanged
    record: Record | None = None  # what that kernel remembers


@dataclass(frozen=True)
class _Combination(Kernel, ABC):
    kernels: SequenceOf[Kernel]

    def __post_init__(self):
        self._derive(kernels=tuple(self.kernels))
        if not self.kernels:
            raise ValueError("no kernels: give at least one")
        first, *others = self.kernels
        for number, kernel in enumerate(others, 1):
            if kernel.potential.terms != first.potential.terms:
                raise ValueError(
                    f"kernel {number} ({type(kernel).__name__}) has another target than kernel 0: "
                    "a combination leaves one law invariant; give all kernels the same target="
                )
            # a float and a tensor of any precision are compared as they are
            kT, other = (torch.as_tensor(k.kT, dtype=torch.float64) for k in (kernel, first))
            if not torch.equal(kT, other):
                raise ValueError(f"kernel {number} has kT={kernel.kT}, kernel 0 {first.kT} (eV)")
        drifts = [kernel.drift for kernel in self.kernels]
        shared = all(d is not None and d.terms == drifts[0].terms for d in drifts)
        self._derive(
            potential=first.potential,
            kT=first.kT,
            drift=drifts[0] if shared else None,
            exact=all(kernel.exact for kernel in self.kernels),
        )

    @abstractmethod
    def chosen(self, step: int, noise: Noise) -> int:
        """The number of the kernel that makes state ``step + 1``; the same for all walkers."""

    def scaled(self, factor: float):
        """Kernels with a step size get it multiplied; the others stay."""
        # one that appears twice stays one
        changed = {id(kernel): _scaled(kernel, factor) for kernel in self.kernels}
        if all(kernel is None for kernel in changed.values()):
            raise TypeError("none of the kernels has a step size to scale")
        return replace(self, kernels=[changed[id(kernel)] or kernel for kernel in self.kernels])

    def take(self, rows: Tensor):
        taken = {id(kernel): kernel.take(rows) for kernel in self.kernels}
        return replace(self, kernels=[taken[id(kernel)] for kernel in self.kernels])

    def init(self, x, *, walkers=None) -> State:
        # an exact kernel looks whether a chain may start there
        number = next((i for i, kernel in enumerate(self.kernels) if kernel.exact), 0)
        return _owned(self.kernels[number].init(x.double(), walkers=walkers), number)

    def step(self, state, noise) -> tuple[State, Info]:
        number = self.chosen(state.step, noise)
        new, info = self.kernels[number].step(self._for(number, state), noise.child(number))
        return _owned(new, number), info

    def refresh(self, state) -> State:
        owner, state = _disowned(state)
        if owner is None:
            return _owned(self.kernels[0].adopt(state), 0)
        return _owned(self.kernels[owner].refresh(state), owner)

    def adopt(self, state, drift=None) -> State:
        return _owned(self.kernels[0].adopt(state, drift), 0)

    def _for(self, number: int, state: State) -> State:
        owner, state = _disowned(state)
        if owner is not None and self.kernels[owner] is self.kernels[number]:
            return state
        drift = self.drift if owner is None else self.kernels[owner].drift
        return self.kernels[number].adopt(state, drift)


@dataclass(frozen=True)
class Mixture(_Combination):
    """At each step one kernel, drawn with its weight: ``P = Σ_k w_k P_k``.

    Leaves invariant what all of them do, and keeps detailed balance (Tierney, Ann. Stat. 22,
    1701 (1994)). The draw is that of walker 0 in the stream "mixture" of the step, the same for all
    walkers in any batch; kernel k draws from ``noise.child(k)``. A kernel that follows
    another evaluates its own drift again if that is another one, and starts with new momenta.

    Parameters
    ----------
    kernels : of the same target and temperature
    weights : positive, one for each kernel; normalised; default equal

    Raises
    ------
    ValueError : no kernels, different targets or temperatures, weights that do not fit
    """

    weights: SequenceOf[float] | None = field(default=None)

    def __post_init__(self):
        super().__post_init__()
        given = [1.0] * len(self.kernels) if self.weights is None else list(self.weights)
        weights = torch.tensor(given, dtype=torch.float64)
        if weights.shape != (len(self.kernels),) or not (
            torch.isfinite(weights).all() and (weights > 0).all()
        ):
            raise ValueError(
                f"weights={given}: expected {len(self.kernels)} positive numbers, one per kernel"
            )
        self._derive(
            weights=tuple((weights / weights.sum()).tolist()),
            reversible=all(kernel.reversible for kernel in self.kernels),
        )

    def chosen(self, step, noise) -> int:
        like = torch.zeros((), dtype=torch.float64)
        u = float(noise.uniform(step, like, stream="mixture"))
        total = 0.0
        for number, weight in enumerate(self.weights):
            total += weight
            if u <= total:
                return number
        return len(self.weights) - 1  # the sum of the weights, rounded


@dataclass(frozen=True)
class Sequence(_Combination):
    """The kernels in turn, one at each step: step n is made by kernel ``n mod len(kernels)``.

    Leaves invariant what all of them do; a whole turn has no detailed balance. Noise, states,
    ``kernels`` and errors as in `Mixture`. ``[mala] * 9 + [swap]`` is nine moves and a swap.
    """

    def chosen(self, step, noise) -> int:
        return step % len(self.kernels)


def _scaled(kernel: Kernel, factor: float) -> Kernel | None:
    try:
        return kernel.scaled(factor)
    except TypeError:
        return None


def _owned(state: State, number: int) -> State:
    owner = torch.full(state.x.shape[:-2], number, dtype=torch.int64, device=state.x.device)
    return replace(state, record=Owner(owner, state.record))


def _disowned(state: State) -> tuple[int | None, State]:
    """The kernel that made the state, None if not one made all of it; and the plain state."""
    owner = state.record
    if not isinstance(owner, Owner):
        return None, state
    first = owner.number.flatten()[:1]
    whole = bool(first.numel()) and bool((owner.number == first).all())
    return int(first) if whole else None, replace(state, record=owner.record)
