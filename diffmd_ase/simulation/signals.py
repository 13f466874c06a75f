"""Signals that end a run wait until what is on disk would be one moment of it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Deferred", "Ending"]


class Ending:
    """A handler that ends the program with 128 + the number of the signal, and remembers it.

    Python drops what a handler raises inside of a destructor, a callback or some ``except:`` of a
    library, of which a start with its imports has thousands; `Deferred` then looks at ``number``,
    so that a run which such a signal did not stop ends after its first step.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.number = number
        sys.exit(128 + number)


class Deferred:
    """Ctrl-C and SIGTERM act at the next `deliver`, a second one of them at once.

    ::

        with Deferred() as signals:
            while ...:
                step, write and count
                signals.deliver()

    A handler that raises would else leave state, frames and the hills of a bias of different
    steps. Outside of the main thread, where Python handles no signals, nothing is changed.

    Parameters
    ----------
    apart : s after the first in which further signals are the same one: a launcher passes on what
        a terminal has sent to all already
    """

    def __init__(self, apart: float = 0.0) -> None:
        self.pending: int | None = None
        self._apart, self._came = apart, 0.0
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):  # not the system's own action, and not ignored
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
                if isinstance(handler, Ending) and handler.number is not None:
                    self.pending = number
        return self

    def __exit__(self, kind, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.deliver()

    def _defer(self, number: int, frame) -> None:
        if self.pending is None:
            self._came = time.monotonic()
        elif time.monotonic() - self._came >= self._apart:
            self._handlers[number](number, frame)
        self.pending = number

    def deliver(self) -> None:
        """Let the handler of a signal that has come do its work: mostly raise."""
        if self.pending is not None:
            number, self.pending = self.pending, None
            self._handlers[number](number, None)
