"""A bias as it is now."""

from __future__ import annotations

from .base import Potential, Wrapped

__all__ = ["Frozen"]


class Frozen(Wrapped):
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
        super().__init__(bias)
        self.has_memory = False

    @property
    def cv(self):
        return self.inner.cv

    @property
    def columns(self) -> tuple[str, ...]:
        return self.inner.columns

    def update(self, x, step) -> bool:
        return False
