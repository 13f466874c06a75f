"""The classic bugs of a Metropolis step, put on purpose into any kernel.

A check that does not catch these proves nothing. Each mutant is a kernel that wraps
another one and uses the documented seams alone: the uniform number of the acceptance
(stream "accept"), which makes the kernel's own step show what it would do if it accepted and
if it rejected, and the ratio in `Info`. No kernel knows that it is tested.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..noise import Noise
from ..sampling.euler import EulerMaruyama
from ..sampling.kernels import Info, Kernel
from ..sampling.metropolis import Metropolis
from ..state import State
from .noise import Prescribed

__all__ = [
    "HalfRatio",
    "KeptMomenta",
    "MUTANTS",
    "NoRatio",
    "NotRepeated",
    "Rebuilt",
    "ReversedRatio",
    "StaleDrift",
    "StaleEnergy",
    "Unadjusted",
    "forward_drift",
]


@dataclass(frozen=True)
class _Wrapped(Kernel, ABC):
    kernel: Kernel

    def __post_init__(self):
        self._derive(potential=self.kernel.potential)

    def init(self, x, *, walkers=None) -> State:
        return self.kernel.init(x, walkers=walkers)

    def refresh(self, state) -> State:
        return self.kernel.refresh(state)

    def ratio(self, info: Info) -> Tensor:
        """The log ratio that decides."""
        return info.log_ratio

    def kept(self, state: State, accepted: Tensor, proposed: State) -> State:
        """The state that goes on."""
        return state

    def step(self, state, noise) -> tuple[State, Info]:
        # the same numbers again, from a twin: no address counts as drawn twice
        twin = Noise(noise.seed)
        proposed, info = self.kernel.step(state, Prescribed(noise, uniform={"accept": 0.0}))
        stayed, _ = self.kernel.step(state, Prescribed(twin, uniform={"accept": torch.inf}))
        ratio = self.ratio(info)
        u = noise.uniform(state.step, like=ratio, walkers=state.walkers)
        accepted = (u.log() <= ratio) & ~info.divergent
        new = proposed.where(accepted, stayed)
        info = info._replace(accepted=accepted, log_ratio=ratio)
        return self.kept(new, accepted, proposed), info


class Rebuilt(_Wrapped):
    """No bug: the kernel taken apart and put together again makes the same chain."""


class NoRatio(_Wrapped):
    """The ratio of the proposals is left out: ``log α = -ΔU/kT``."""

    def ratio(self, info):
        return -info.delta_u


class ReversedRatio(_Wrapped):
    """The ratio of the proposals has the wrong sign."""

    def ratio(self, info):
        return -info.delta_u - info.log_q


class HalfRatio(_Wrapped):
    """Half of the ratio of the proposals."""

    def ratio(self, info):
        return 0.5 * info.log_q - info.delta_u


class Unadjusted(_Wrapped):
    """Every finite proposal is accepted."""

    def ratio(self, info):
        return torch.zeros_like(info.log_ratio)


class StaleDrift(_Wrapped):
    """After a rejection the forces are those of the proposal."""

    def kept(self, state, accepted, proposed):
        return replace(state, forces=proposed.forces)


class StaleEnergy(_Wrapped):
    """After a rejection the energy is that of the proposal."""

    def kept(self, state, accepted, proposed):
        return replace(state, energy=proposed.energy)


class KeptMomenta(_Wrapped):
    """Momenta that persist are not reversed on rejection."""

    def kept(self, state, accepted, proposed):
        p = state.momenta
        return replace(state, momenta=torch.where(accepted[..., None, None], p, -p))


class NotRepeated(_Wrapped):
    """A rejected state does not count again: proposals until one is accepted, 20 at most."""

    def step(self, state, noise):
        new, info = self.kernel.step(state, noise)
        done = info.accepted
        for attempt in range(1, 20):
            if done.all():
                break
            other = Noise((noise.seed + attempt * 0x9E3779B97F4A7C15) % 2**64)
            again, info = self.kernel.step(state, other)
            new = again.where(~done & info.accepted, new)
            done = done | info.accepted
        return new, info._replace(accepted=done)


class _ForwardDrift(EulerMaruyama):
    def log_proposal_ratio(self, x, forces_x, y, forces_y):
        return super().log_proposal_ratio(x, forces_x, y, forces_x)


def forward_drift(kernel: Metropolis) -> Metropolis:
    """``kernel`` whose reverse proposal drifts with the forces at x instead of those at y."""
    p = kernel.proposal
    return replace(
        kernel, proposal=_ForwardDrift(p.potential, p.kT, p.h, p.mean_free, p.directions)
    )


MUTANTS: dict[str, Callable[[Kernel], Kernel]] = {
    "proposal ratio omitted": NoRatio,
    "proposal ratio of wrong sign": ReversedRatio,
    "half the proposal ratio": HalfRatio,
    "rejected states not repeated": NotRepeated,
    "stale drift after rejection": StaleDrift,
    "stale energy after rejection": StaleEnergy,
    "every proposal accepted": Unadjusted,
}
"""Mutants of any kernel; `forward_drift` is for `Metropolis`, `KeptMomenta` where they persist."""
