"""Signals that end a run wait until what is on disk would be one moment of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Deferred"]


class Deferred:
    """Ctrl-C and SIGTERM act at the next `deliver`, a second one of them at once.

    ::

        with Deferred() as signals:
            while ...:
                step, write and count
                signals.deliver()

    A handler that raises would else leave state, frames and the hills of a bias of different
    steps. Outside of the main thread, where Python handles no signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):  # not the system's own action, and not ignored
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
        return self

    def __exit__(self, kind, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.deliver()

    def _defer(self, number: int, frame) -> None:
        if self.pending is not None:
            self._handlers[number](number, frame)
        self.pending = number

    def deliver(self) -> None:
        """Let the handler of a signal that has come do its work: mostly raise."""
        if self.pending is not None:
            number, self.pending = self.pending, None
            self._handlers[number](number, None)
