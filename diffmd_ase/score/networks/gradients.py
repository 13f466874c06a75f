"""The energy of a network and its gradient, compiled.

    e = E(x (1 + ε); cell (1 + ε)),    ∂e/∂x and, where a stress is asked for, ∂e/∂ε at ε = 0

``torch.compile`` turns the energy and its gradient into one function of positions, of any number
of structures and neighbours. It costs some twenty seconds at first, then a few: torch keeps what
it made in its cache on disk (TORCHINDUCTOR_CACHE_DIR). Sums are rounded in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from ..neighbours import Pairs
from .inputs import Inputs

__all__ = ["Compile", "Compiled", "deformed"]

Compile = bool | Literal["auto"]


def deformed(x: Tensor, strain: Tensor, told: Inputs) -> tuple[Tensor, Inputs]:
    """``x (1 + ε)`` and what a network is ``told``, with the cell ``cell (1 + ε)``, symmetric ε.

    ``x`` (B, N, 3) in Å, ``strain`` ε (B, 3, 3).
    """
    deform = torch.eye(3, dtype=x.dtype, device=x.device) + 0.5 * (
        strain + strain.transpose(-1, -2)
    )
    return x @ deform, told._replace(cell=told.cell @ deform)


class Compiled:
    """``(∂e/∂x, ∂e/∂ε), e`` of one ``network`` as one function, compiled when it is first called.

    Where it cannot be made, for want of a C++ compiler or of a place to write to, a warning says
    so, once, and there is no value: the network is to be computed as it is written.
    """

    def __init__(self, network: nn.Module):
        self.failed = False

        def total(x, strain, sigma, told, pairs):
            if strain is not None:
                x, told = deformed(x, strain, told)
            neighbours = {} if pairs is None else {"pairs": pairs}
            energy = network(x, sigma, **told._asdict(), **neighbours)
            return energy.sum(), energy

        def by_positions(x, strain, sigma, told, pairs):
            slope, energy = torch.func.grad(total, has_aux=True)(x, strain, sigma, told, pairs)
            return (slope,), energy

        def by_both(x, strain, sigma, told, pairs):
            gradient = torch.func.grad(total, argnums=(0, 1), has_aux=True)
            return gradient(x, strain, sigma, told, pairs)

        # torch counts what it compiles by code, and gives up at eight: each network has its own
        for function in (by_positions, by_both):
            function.__code__ = function.__code__.replace()
        self._written = {False: by_positions, True: by_both}
        self._made: dict[bool, Callable] = {}  # by whether there is a strain

    def __call__(
        self,
        x: Tensor,
        strain: Tensor | None,
        sigma: Tensor,
        told: Inputs,
        pairs: Pairs | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor] | None:
        """The gradient, by x alone without a ``strain``, and the energies in kT; None: it failed.

        Parameters
        ----------
        x : (B, N, 3) positions in Å
        strain : ε (B, 3, 3), zeros; or None
        sigma : (1,) noise level in Å
        told : of the system; with a cell where there is a strain
        pairs : neighbours, of networks that have them
        """
        if self.failed:
            return None
        count, x = len(x), x.contiguous()
        if count == 1 and pairs is None:  # one structure would be compiled anew: two then
            x = x.repeat(2, 1, 1)
            strain = None if strain is None else strain.repeat(2, 1, 1)
        strained, given = strain is not None, (x, strain, sigma, told, pairs)
        with torch.no_grad():  # another mode, or layout, would be compiled anew
            if strained in self._made:
                slopes, energy = self._made[strained](*given)
            else:
                try:
                    with _torch_alone():
                        function = torch.compile(self._written[strained], dynamic=True)
                        slopes, energy = function(*given)
                except Exception as error:  # torch raises what it likes
                    self._fail(error)
                    return None
                self._made[strained] = function
        return tuple(slope[:count] for slope in slopes), energy[:count]

    def _fail(self, error: Exception) -> None:
        self.failed = True
        warnings.warn(
            f"the network cannot be compiled ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}): it is computed as it is written, several "
            "times slower; torch.compile needs a C++ compiler (CXX, or g++ in PATH) and a "
            "folder to write to (TORCHINDUCTOR_CACHE_DIR)",
            stacklevel=4,
        )


@contextmanager
def _torch_alone():
    """What torch warns itself of while it compiles is no matter of its callers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
