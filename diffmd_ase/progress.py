"""Progress bars of several parts that run side by side."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bars"]


class Bars:
    """Progress bars of all experts: validation loss and time left; silent if not wanted."""

    def __init__(self, show: bool):
        self.bars = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self.tasks: dict = {}

    def __enter__(self):
        self.bars.start()
        return self.report

    def __exit__(self, *error):
        self.bars.stop()

    def report(self, message: dict) -> None:
        name = message["expert"]
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=1.0, note="")
        options = {"completed": message["fraction"]}
        if "note" in message:
            options["note"] = message["note"]
        if "validation_loss" in message:
            note = f"step {message['step']}  validation {message['validation_loss']:.4g}"
            options["note"] = note
        self.bars.update(self.tasks[name], **options)
