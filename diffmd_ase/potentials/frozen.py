"""A bias as it is now."""

from __future__ import annotations

from typing import Any

from .base import Potential

__all__ = ["Frozen"]


class Frozen(Potential):
    """``V(x)`` of a bias that learns no more: for equilibrium sampling of U + V.

    The second half of a biased run in two: metadynamics or OPES grow a bias, then
    ``model + Frozen(bias)`` is an ordinary potential, Metropolis corrections are exact, and
    frames have the weights exp(V/kT) without a c(t) (Torrie & Valleau, J. Comput. Phys. 23,
    187 (1977)). The bias itself is not copied: what still trains it changes this too.

    Parameters
    ----------
    bias : any potential; it is evaluated, and never told of a step
    """

    def __init__(self, bias: Potential):
        self.bias: Any = bias
        self.system = bias.system
        self.conservative, self.needs_base = bias.conservative, bias.needs_base
        self.per_walker = bias.per_walker

    @property
    def cv(self):
        return self.bias.cv

    @property
    def columns(self) -> tuple[str, ...]:
        return self.bias.columns

    def __call__(self, x, **options):
        return self.bias(x, **options)

    def describe(self, x) -> dict:
        return self.bias.describe(x)

    def select(self, keep) -> None:
        self.bias.select(keep)

    def flush(self) -> None:
        self.bias.flush()

    def checkpoint(self) -> dict:
        return self.bias.checkpoint()

    def restore(self, saved, x, step) -> None:
        self.bias.restore(saved, x, step)
