"""Child processes: commands side by side, each with one thread, the first failure stops all."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

__all__ = ["Command", "run_side_by_side"]

_LAST = 15  # lines of its standard error that are told of a process that failed


class Command(NamedTuple):
    """A command and what becomes of its output.

    ``report`` is called with each line of its standard output, which is JSON; its standard error is
    kept for the message of a failure. None: both go where ours go.
    """

    arguments: list[str]  # the program and its arguments
    name: str  # what it is called where it fails
    report: Callable[[Any], None] | None = None
    quiet: bool = False  # without a report, its standard output is dropped


def run_side_by_side(commands: Sequence[Command], *, at_once: int | None = None) -> None:
    """Run ``commands``, ``at_once`` at a time, by default all, each with one thread.

    Two OpenMP threads on a shared machine wait for each other. Reports are passed on in the
    thread of the caller. The first failure, an error of a report included, ends all that run.

    Raises
    ------
    RuntimeError : a process failed; with its name, its code and its last words
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    waiting = deque(commands)
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < (at_once or len(commands)):
                running.append(_Child(waiting.popleft(), environment))
            time.sleep(0.05)
            for child in list(running):
                if child.finished():
                    running.remove(child)
    finally:
        for child in running:
            child.stop()


class _Child:
    """A process; threads read its pipes, so that it never waits for us."""

    def __init__(self, command: Command, environment: dict[str, str]):
        self.command = command
        self.reports: SimpleQueue = SimpleQueue()
        self.last_words: deque[str] = deque(maxlen=_LAST)
        piped = command.report is not None
        dropped = subprocess.DEVNULL if command.quiet else None
        self.process = subprocess.Popen(
            command.arguments,
            env=environment,
            stdout=subprocess.PIPE if piped else dropped,
            stderr=subprocess.PIPE if piped else None,
            text=True,
        )
        readers = (self._read_reports, self._read_errors) if piped else ()
        self.threads = [Thread(target=reader, daemon=True) for reader in readers]
        for thread in self.threads:
            thread.start()

    def _read_reports(self) -> None:
        for line in self.process.stdout:
            try:
                self.reports.put(json.loads(line))
            except ValueError:  # some library talks
                self.last_words.append(line)

    def _read_errors(self) -> None:
        self.last_words.extend(self.process.stderr)

    def finished(self) -> bool:
        """Pass on what it reported; whether it has ended, and well."""
        ended = self.process.poll() is not None
        if ended:
            self.stop()
        while not self.reports.empty():
            self.command.report(self.reports.get())
        if self.process.returncode:
            message = "see above"
            if self.command.report is not None:
                message = "".join(self.last_words).strip() or "no message"
            raise RuntimeError(
                f"{self.command.name} stopped with code {self.process.returncode}: {message}"
            )
        return ended

    def stop(self) -> None:
        """End the process, if it has not ended, and let go of its pipes."""
        self.process.terminate()
        self.process.wait()
        for thread in self.threads:
            thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
