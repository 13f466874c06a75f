"""How many steps a run makes before it looks up: at the clock, at signals, at other ranks."""

from __future__ import annotations

import time
from typing import NamedTuple

from .course import Course

__all__ = ["Agreed", "Pace"]

_CHECKPOINT_SECONDS = 30.0
_BLOCK = 1000  # steps between looks, at most
_LOOK_SECONDS = 2.0  # between looks of ranks at each other, of which one may have a signal
_APART = 5.0  # s in which a launcher passes on a signal that ranks have already


class Agreed(NamedTuple):
    """What all ranks do now."""

    alive: int  # walkers
    save: bool  # a checkpoint
    ends: bool  # a signal has come to some of them


class Pace:
    """Steps of a ``course`` up to ``n_steps``, never past a frame, of which one is ``every``.

    Attributes
    ----------
    alone : there are no other ranks
    apart : s in which signals are one and the same
    """

    def __init__(self, course: Course, n_steps: int, every: int):
        self._course, self._n_steps, self._every = course, n_steps, every
        self.alone = course.shares is None or course.shares.ranks.size == 1
        self.apart = 0.0 if self.alone else _APART
        self._most = _BLOCK if self.alone else 1
        self._saved = self._begun = time.monotonic()

    def steps(self) -> int:
        """To be made until the next `agree`; 0 at the end."""
        step, self._begun = self._course.state.step, time.monotonic()
        self._next = min(self._every - step % self._every, self._n_steps - step, self._most)
        return self._next

    def agree(self, pending: int | None) -> Agreed:
        """What is done now, where this process has a ``pending`` signal, or none."""
        now, alive = time.monotonic(), len(self._course.state.x)
        save = now - self._saved > _CHECKPOINT_SECONDS
        if self.alone or self._course.shares is None:
            return Agreed(alive, save, False)
        each = (now - self._begun) / max(1, self._next)
        told = self._course.shares.ranks.told([alive, save, pending is not None, each])
        counts, saves, signals, seconds = zip(*told, strict=True)
        self._most = max(1, min(_BLOCK, int(_LOOK_SECONDS / max(1e-9, *seconds))))
        # rank 0 has the clock; whoever is told to end leaves a checkpoint of this step
        return Agreed(sum(counts), saves[0] or any(signals), any(signals))

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()
