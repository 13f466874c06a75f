"""The one interface of everything that has forces: models, biases, calculators.

``model + bias`` is the physics: a sum of potentials is a potential. Evaluation is
pure; a potential that learns (metadynamics, PLUMED) does so only in ``begin``, at the start, and
in ``update``, which `sampling.run.advance` calls once per completed step with accepted positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..state import Evaluation
from ..system import System

__all__ = [
    "Composed",
    "Potential",
    "Sum",
    "Wrapped",
    "add_term",
    "common_system",
    "evaluate",
    "part_by_part",
    "unwrapped",
]


class Potential(ABC):
    """Positions to energy and forces.

    A potential in a user's script is a subclass with ``__call__(self, x)`` alone.
    One with ``needs_base`` (a bias on the potential energy) is called as
    ``bias(x, base=evaluation)`` with the evaluation of the terms before it in the sum.

    Attributes
    ----------
    system : what it is bound to, or None
    conservative : forces are minus the gradient of an energy; otherwise the energy is None
    has_memory : `update` may change it
    per_walker : row b of a batch has a function of its own, as the states of a ladder have
    compiles : tensors in, tensors out, of any batch: a network's compiled step may hold its call
    """

    system: System | None = None
    conservative: bool = True
    has_memory: bool = False
    needs_base: bool = False
    per_walker: bool = False
    compiles: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        """Evaluate at ``x`` (*batch, N, 3); never changes the potential."""

    def begin(self, x: Tensor, step: int) -> bool:
        """A step is about to be made from positions x after ``step`` steps; True if this changed.

        The first call is the start of a run, where records have their first row; what has begun, or
        was restored, does nothing.
        """
        return False

    def update(self, x: Tensor, step: int) -> bool:
        """Learn from the accepted positions x of ``step``; True if the potential changed."""
        return False

    def next_change(self, step: int) -> float:
        """The first step after ``step`` whose `update` may change the potential; inf: none.

        What is evaluated ahead of it is of use, what is evaluated beyond is not; an answer too late
        costs evaluations and changes no result. Memory of which nothing is known may learn in every
        step.
        """
        return step + 1 if self.has_memory else math.inf

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """What logs and frames say of positions x (*batch, N, 3), by name, each (*batch).

        A bias names its variables and ``bias`` (eV). Called for a line or a frame only, after
        the `update` of that step; never changes the potential.
        """
        return {}

    def select(self, keep: Tensor) -> None:  # noqa: B027  # most have nothing to do
        """Forget the walkers outside the boolean mask ``keep`` (B,), which were lost.

        Only what remembers each walker on its own has anything to do; `advance` calls this
        once, when walkers of a batch diverge and the others go on.
        """

    def flush(self) -> None:  # noqa: B027
        """Files are complete on disk up to the last `update`; dynamics call it after a run."""

    def finish(self) -> None:  # noqa: B027
        """The run is over: write what is known at its end only; `simulate` calls it."""

    def checkpoint(self) -> dict:
        """What a restart needs, JSON values only; files written so far are safe on disk.

        Called with the state of a completed step, after its ``update``.
        """
        return {}

    def restore(self, saved: dict, x: Tensor, step: int) -> None:  # noqa: B027
        """Go on from ``saved``, what `checkpoint` gave at positions ``x`` after ``step``.

        Called on a new potential, built with the settings of the run, before it is evaluated;
        from then on it is the one of the uninterrupted run.
        """

    def observer(self, dyn) -> Callable[[], None]:
        """``dyn.attach(bias.observer(dyn))``: learn once per step of a plain ASE dynamics.

        A calculator only evaluates and cannot know that a step has ended; ``dyn`` does. Call
        it with the bias of ``dyn.atoms.calc``. Our own dynamics let their potentials learn and
        need no observer. A step is learned once, however often the observer is called; at the
        start the bias begins. Frames of ``dyn``, whenever its trajectory was attached, have what
        `describe` says in ``atoms.info``, of the bias that acted: before it learns from them.
        """
        # a name of this room, the work of the adapters: the one import against the arrow here
        from ..adapters.observer import Observer

        return Observer(self, dyn)

    @property
    def terms(self) -> tuple[Potential, ...]:
        """The terms of a sum; of any other potential, itself."""
        return (self,)

    def __add__(self, other: Potential) -> Sum:
        if not isinstance(other, Potential):
            return NotImplemented
        return Sum(*self.terms, *other.terms)


class Composed(Potential, ABC):
    """Several ``potentials`` of one system as one; those with memory learn.

    Raises
    ------
    ValueError : potentials of different systems
    """

    def __init__(self, potentials: Sequence[Potential]):
        self.potentials = tuple(potentials)
        which = f"the potentials of a {type(self).__name__} are"
        self.system = common_system(self.potentials, which)
        self.conservative = all(p.conservative for p in self.potentials)
        self.has_memory = any(p.has_memory for p in self.potentials)

    def seen(self, x: Tensor, place: int) -> Tensor:
        """Those of positions x that potential number ``place`` is of."""
        return x

    def begin(self, x, step) -> bool:
        # a list, not a generator: every one must begin, or learn
        return any([p.begin(self.seen(x, i), step) for i, p in enumerate(self.potentials)])

    def update(self, x, step) -> bool:
        return any([p.update(self.seen(x, i), step) for i, p in enumerate(self.potentials)])

    def next_change(self, step) -> float:
        return min(p.next_change(step) for p in self.potentials)

    def flush(self) -> None:
        for potential in self.potentials:
            potential.flush()

    def finish(self) -> None:
        for potential in self.potentials:
            potential.finish()

    def checkpoint(self) -> dict:
        saved = {str(i): p.checkpoint() for i, p in enumerate(self.potentials)}
        return {place: value for place, value in saved.items() if value}

    def restore(self, saved, x, step) -> None:
        for i, potential in enumerate(self.potentials):
            potential.restore(saved.get(str(i), {}), self.seen(x, i), step)


class Sum(Composed):
    """``Σ_i U_i(x)``, in order; built by ``a + b``.

    Raises
    ------
    ValueError : terms of different systems; one first that needs a base
    """

    def __init__(self, *terms: Potential):
        super().__init__(terms)
        if terms[0].needs_base:
            raise ValueError(
                f"{type(terms[0]).__name__} biases the potential energy: add it after "
                "the potential it biases (model + bias)"
            )
        self.per_walker = any(t.per_walker for t in terms)

    @property
    def terms(self) -> tuple[Potential, ...]:
        return self.potentials

    def __call__(self, x, *, stress=False) -> Evaluation:
        return evaluate(self.terms, x, stress=stress)

    def describe(self, x) -> dict[str, Tensor]:
        said: dict[str, Tensor] = {}
        for i, term in enumerate(self.terms):
            for name, value in term.describe(x).items():
                # two biases may have one name for their own
                said[name if name not in said else f"{name}_{i}"] = value
        return said

    def select(self, keep) -> None:
        for term in self.terms:
            term.select(keep)


class Wrapped(Potential):
    """A potential around another, ``inner``, which it is in all that it does not define."""

    def __init__(self, inner: Potential):
        self.inner: Any = inner
        self.system, self.conservative = inner.system, inner.conservative
        self.has_memory, self.needs_base = inner.has_memory, inner.needs_base
        self.per_walker = inner.per_walker

    def __call__(self, x, **options) -> Evaluation:
        return self.inner(x, **options)

    def begin(self, x, step) -> bool:
        return self.inner.begin(x, step)

    def update(self, x, step) -> bool:
        return self.inner.update(x, step)

    def next_change(self, step) -> float:
        return self.inner.next_change(step)

    def describe(self, x) -> dict[str, Tensor]:
        return self.inner.describe(x)

    def select(self, keep) -> None:
        self.inner.select(keep)

    def flush(self) -> None:
        self.inner.flush()

    def finish(self) -> None:
        self.inner.finish()

    def checkpoint(self) -> dict:
        return self.inner.checkpoint()

    def restore(self, saved, x, step) -> None:
        self.inner.restore(saved, x, step)


def common_system(bound: Iterable[Any], which: str) -> System | None:
    """The system of all that is ``bound`` to one (potentials, variables); None if nothing is.

    ``which`` begins the message of the ``ValueError`` where two of them differ.
    """
    first: System | None = None
    for own in (b.system for b in bound if b.system is not None):
        first = own if first is None else first
        if difference := first.difference(own):
            raise ValueError(
                f"{which} bound to different systems, which differ in {difference}: make all of "
                "them for one, System.from_atoms(atoms)"
            )
    return first


def unwrapped(term: Potential) -> Potential:
    """The potential inside ``term``: itself, or what all that is `Wrapped` is around."""
    while isinstance(term, Wrapped):
        term = term.inner
    return term


def evaluate(
    terms: tuple[Potential, ...],
    x: Tensor,
    *,
    stress: bool = False,
    base: Evaluation | None = None,
) -> Evaluation:
    """``base`` plus the ``terms`` in order at ``x`` (*batch, N, 3), nothing without either.

    Each is called with only the arguments it needs. ``stress`` asks for one. A missing energy
    or stress of one term makes that of the sum missing.
    """
    for term in terms:
        base, _ = add_term(base, term, x, stress=stress)
    return base


def add_term(
    base: Evaluation | None,
    term: Potential,
    x: Tensor,
    *,
    stress: bool = False,
    value: Evaluation | None = None,
) -> tuple[Evaluation, Evaluation]:
    """``base`` plus one ``term``, and the term's own ``value``, evaluated at ``x`` unless known.

    ``stress`` asks for one. Without a ``base`` the sum is the value.
    """
    if value is None:
        options: dict = {"stress": True} if stress else {}
        if term.needs_base:
            options["base"] = base
        value = Evaluation(*term(x, **options))
    if base is None:
        return value, value
    return part_by_part(lambda parts: parts[0] + parts[1], (base, value)), value


def part_by_part(
    change: Callable[[tuple[Tensor, ...]], Tensor], values: Sequence[Evaluation]
) -> Evaluation:
    """``change`` of the energies of all ``values``, of their forces and of their stresses.

    What one of them lacks, the result lacks.
    """
    parts = zip(*values, strict=True)
    return Evaluation(*(None if any(p is None for p in part) else change(part) for part in parts))
