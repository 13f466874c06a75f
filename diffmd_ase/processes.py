"""Child processes: commands side by side, each with one thread, the first failure stops all."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable

__all__ = ["run_side_by_side"]


def run_side_by_side(
    commands: list[list[str]], processes: int, report: Callable[[dict], None]
) -> None:
    """Run commands, ``processes`` at a time, each with one thread; pass on their reports.

    Two OpenMP threads on a shared machine wait for each other. The first failure stops all
    and is a ``RuntimeError`` with the last words of the process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    waiting = list(commands)
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(_Child(waiting.pop(0), environment, report))
            time.sleep(0.2)
            for child in [c for c in running if c.finished()]:
                running.remove(child)
    finally:
        for child in running:
            child.stop()


class _Child:
    """A training process: reports come as JSON lines on its standard output."""

    def __init__(self, command, environment, report):
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.words: list[str] = []
        self.threads = [
            threading.Thread(target=self._reports, args=(report,), daemon=True),
            threading.Thread(target=self._complaints, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _reports(self, report):
        for line in self.process.stdout:
            report(json.loads(line))

    def _complaints(self):
        for line in self.process.stderr:
            self.words.append(line)

    def finished(self) -> bool:
        if self.process.poll() is None:
            return False
        for thread in self.threads:
            thread.join()
        if self.process.returncode:
            last = "".join(self.words[-15:]).strip() or "no message"
            raise RuntimeError(f"training stopped with code {self.process.returncode}: {last}")
        self.stop()
        return True

    def stop(self) -> None:
        """End the process, if it has not ended, and let go of its pipes."""
        self.process.terminate()
        self.process.wait()
        for thread in self.threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
