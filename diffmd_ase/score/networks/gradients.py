"""The energy of a network and its gradient, compiled.

    e = E(x (1 + ε); cell (1 + ε)),    ∂e/∂x and, where a stress is asked for, ∂e/∂ε at ε = 0

``torch.compile`` turns the energy and its gradient into one function of positions, of any number
of structures and neighbours. It costs some twenty seconds at first, then a few: torch keeps what
it made in its cache on disk (TORCHINDUCTOR_CACHE_DIR). Sums are rounded in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...io.limits import lacks_memory
from ..neighbours import Pairs
from .direct import directly
from .inputs import Inputs

__all__ = ["CannotCompile", "Compile", "Compiled", "compiling", "deformed"]

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
        self.failed, self._network = False, network
        self._made: dict[Any, Callable] = {}

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
        count, x = len(x), x.contiguous()
        if count == 1 and pairs is None:  # one structure would be compiled anew: two then
            x = x.repeat(2, 1, 1)
            strain = None if strain is None else strain.repeat(2, 1, 1)
        make = _by_positions if strain is None else _by_both
        made = self._call(make, x, strain, sigma, told, pairs)
        if made is None:
            return None
        slopes, energy = made
        return tuple(slope[:count] for slope in slopes), energy[:count]

    def within(
        self,
        step: Callable[..., tuple[Tensor, ...]],
        rows: Sequence[Tensor],
        sigma: Tensor,
        told: Inputs,
        kT: float = 1.0,
    ) -> tuple[Tensor, ...] | None:
        """``step(at, *rows)`` as one function, ``at(y)`` being (kT e, -kT ∂e/∂y); None: it failed.

        For networks without a list of neighbours. Positions may have another precision than these.

        Parameters
        ----------
        step : a function of a module, which is compiled once; all its tensors have structures first
        rows : the first are positions (N, 3) or (B, N, 3) in Å; others have as many axes, or fewer
            and no B
        sigma, told : as above
        kT : the same in all calls
        """
        if self.failed:
            return None
        alone = rows[0].ndim == 2
        if alone:
            rows = [row[None] if row.ndim == 2 else row for row in rows]
        single = len(rows[0]) == 1
        shapes = [(row.ndim, row.shape[-2:]) for row in rows]
        key = step, told.pbc, *shapes, *[row.dtype for row in rows]
        # one structure has a function of its own, unless there is one of any number: two then,
        # so that nothing is compiled where walkers are lost until one is left. Its own computes
        # two as well: of one row, products are rounded in another way, which a restart would see
        own = "single", *key
        twice = single and key in self._made and own not in self._made
        if twice:
            rows = [torch.cat((row, row)) if row.ndim == 3 else row for row in rows]
        elif single:
            key = own
        told_of = (told.numbers,) if told.cell is None else (told.numbers, told.cell)
        given = [*[row.contiguous() for row in rows], sigma, *told_of]
        with torch.no_grad():  # another mode would be compiled anew
            if key in self._made:
                made = self._made[key](*given)
            else:
                copies = 2 if key[0] == "single" else 1
                function = _around(self._network, step, kT, len(rows), told.pbc, copies)
                made = self._compiled(key, partial(directly, function, given))
        if made is None or not (alone or twice):
            return made
        return tuple(part[0] if alone else part[:1] for part in made)

    def _call(self, make: Callable[..., Callable], *given):
        if self.failed:
            return None
        with torch.no_grad():  # another mode, or layout, would be compiled anew
            if make in self._made:
                return self._made[make](*given)
            return self._compiled(make, partial(_of_any_size, make(self._network), *given))

    def _compiled(self, key, first: Callable[[], tuple[Callable, Any]]):
        """The value of the ``first`` call, whose function is kept for others; None: it failed."""
        try:
            with compiling():
                self._made[key], result = first()
        except CannotCompile as error:
            self.failed = True
            warnings.warn(str(error), stacklevel=3)
            return None
        return result


def _total(network: nn.Module, x, strain, sigma, told, pairs):
    if strain is not None:
        x, told = deformed(x, strain, told)
    neighbours = {} if pairs is None else {"pairs": pairs}
    energy = network(x, sigma, **told._asdict(), **neighbours)
    return energy.sum(), energy


def _by_positions(network: nn.Module) -> Callable:
    def slopes(x, strain, sigma, told, pairs):
        gradient = torch.func.grad(partial(_total, network), has_aux=True)
        slope, energy = gradient(x, strain, sigma, told, pairs)
        return (slope,), energy

    return slopes


def _by_both(network: nn.Module) -> Callable:
    def slopes(x, strain, sigma, told, pairs):
        gradient = torch.func.grad(partial(_total, network), argnums=(0, 1), has_aux=True)
        return gradient(x, strain, sigma, told, pairs)

    return slopes


def _around(
    network: nn.Module, step: Callable, kT: float, count: int, pbc, copies: int
) -> Callable:
    def whole(*given):
        sigma, numbers, *cell = given[count:]
        told = Inputs(numbers, cell[0] if cell else None, pbc)

        def at(y):
            gradient = torch.func.grad(partial(_total, network), has_aux=True)
            asked = y.to(sigma.dtype)
            if copies > 1:
                asked = asked.repeat(copies, 1, 1)
            slope, energy = gradient(asked, None, sigma, told, None)
            if copies > 1:
                slope, energy = slope[:1], energy[:1]
            return (kT * energy).to(y.dtype), (-kT * slope).to(y.dtype)

        return step(at, *given[:count])

    return whole


def _of_any_size(written: Callable, *given) -> tuple[Callable, Any]:
    """``written`` compiled, whatever the sizes of what it is ``given``, and its value."""
    # torch counts what it compiles by code, and gives up at eight: each has its own
    written.__code__ = written.__code__.replace()
    # what is looked at in each call: arguments, and not the network, which stays
    options: Any = {"guard_filter_fn": _of_arguments}
    function = torch.compile(written, dynamic=True, options=options)
    return function, function(*given)


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    return [not g.is_global and not g.name.startswith("network") for g in guards]


class CannotCompile(RuntimeError):
    """A function that torch could not compile, and what it needs for that."""


@contextmanager
def compiling():
    """The first call of a compiled function.

    What torch warns itself of meanwhile is no matter of its callers. Raises `CannotCompile`; what
    memory does not hold is an error as it is, since fewer structures may do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            yield
        except Exception as error:  # torch raises what it likes
            if lacks_memory(error):
                raise
            inner = getattr(error, "inner_exception", error)
            raise CannotCompile(
                f"the network cannot be compiled ({type(inner).__name__}: "
                f"{str(inner).strip().splitlines()[0]}): it is computed as it is written, two "
                "times slower or more; torch.compile needs a C++ compiler (CXX, or g++ in PATH) "
                "and a folder to write to (TORCHINDUCTOR_CACHE_DIR), without halves of files in it"
            ) from error
