"""Terms and calculators that keep their value at the state of a walker, whatever is proposed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor

from ..potentials.base import Potential, Wrapped, add_term
from ..state import Evaluation

__all__ = ["LastResults", "Remembered", "total"]


class Remembered(Wrapped):
    """A term that keeps its value at the state of each walker, whatever is proposed."""

    def __init__(self, term: Potential):
        super().__init__(term)
        self._last: tuple[Tensor, Evaluation] | None = None
        self._kept: tuple[Tensor, Evaluation] | None = None
        self._complete = False

    def __call__(self, x, **options) -> Evaluation:
        value = Evaluation(*self.inner(x, **options))
        self._last = x, value
        return value

    def keep(self, x: Tensor, *, first: bool) -> None:
        """Positions of the walkers are ``x`` now."""
        seen, value = self._last
        kept = None if first else self._kept
        if seen is x or kept is None or kept[0].shape != x.shape or seen.shape != x.shape:
            self._kept = self._last
        else:
            here = (seen == x).flatten(-2).all(-1)
            before, old = kept
            self._kept = _rows(here, seen, before), _rows(here, value, old)
        self._complete = self._kept[0] is x or torch.equal(self._kept[0], x)

    def at_state(self) -> Evaluation | None:
        """The value at the state, if it has been evaluated there."""
        return self._kept[1] if self._complete else None


class LastResults:
    """What a calculator of ASE knew at the state of its one walker, whatever it has seen since."""

    def __init__(self):
        self._kept: tuple[np.ndarray, dict] | None = None

    def tell(self, calculator: Calculator, atoms: Atoms) -> None:
        """Let the cache of ``calculator`` answer for ``atoms``, if it has ever seen them there.

        Also where it has seen a proposal last, and where the dynamics has written into their info.
        """
        if calculator.atoms is None:
            return
        if np.array_equal(calculator.atoms.positions, atoms.positions):
            self._kept = atoms.positions.copy(), calculator.results
        if self._kept is not None and np.array_equal(self._kept[0], atoms.positions):
            calculator.atoms = atoms.copy()
            calculator.results = {
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in self._kept[1].items()
            }


def _rows(mask: Tensor, new, old):
    """``new`` where ``mask`` (*batch), else ``old``, of tensors and evaluations."""
    if isinstance(new, Evaluation):
        return Evaluation(*(_rows(mask, a, b) for a, b in zip(new, old, strict=True)))
    if new is None or old is None:
        return None
    return torch.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)


def total(terms: Iterable[Remembered], x: Tensor) -> Evaluation:
    """Sum of the terms at the state x (*batch, N, 3); what they remember is not evaluated."""
    value = None
    for term in terms:
        value, _ = add_term(value, term, x, value=term.at_state())
    return value
