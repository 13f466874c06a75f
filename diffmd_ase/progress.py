"""Progress of long work on standard error: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Bars", "Report"]

Report = Callable[[str, float, str | None], None]
"""Told of a part of the work: its name, the fraction that is done, a note or None for the last."""


class Bars:
    """Progress of one part or several that go on side by side; nothing before the first report.

    ``with Bars() as report: report("fine", 0.3, "step 200")``

    Parameters
    ----------
    shown : False: reports are taken and nothing is shown
    console : of rich; default, standard error
    every : s between the lines of one part where the console is no terminal
    """

    def __init__(self, shown: bool = True, *, console: Console | None = None, every: float = 30.0):
        self._shown, self._every = shown, every
        self._console = console or Console(stderr=True)
        animated = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bars: Progress | None = None
        if animated or self._console.is_jupyter:
            self._bars = Progress(
                TextColumn("{task.description:>6}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._notes: dict[str, str] = {}
        self._newest: dict[str, str] = {}  # line of each part
        self._told: dict[str, tuple[float, str]] = {}  # when a line was written, and which

    def __enter__(self) -> Report:
        return self._report

    def __exit__(self, *error) -> None:
        if self._bars is not None and self._bars.live.is_started:
            self._bars.stop()
        for part in self._newest:
            self._write(part)

    def _report(self, part: str, fraction: float, note: str | None = None) -> None:
        if not self._shown:
            return
        note = self._notes[part] = self._notes.get(part, "") if note is None else note
        if self._bars is None:
            self._newest[part] = f"{part} {fraction:4.0%}  {note}".rstrip()
            since = time.monotonic() - self._told.setdefault(part, (time.monotonic(), ""))[0]
            if fraction >= 1 or since >= self._every:
                self._write(part)
            return
        self._bars.start()  # again and again is as once
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=1.0, note="")
        self._bars.update(self._tasks[part], completed=fraction, note=note)

    def _write(self, part: str) -> None:
        line = self._newest[part]
        if line != self._told[part][1]:
            self._told[part] = time.monotonic(), line
            self._console.print(Text(line), soft_wrap=True)
