"""A training run on disk and in processes: the job's folder, children, progress bars."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..system import System
from .experts import TrainConfig
from .sets import joint_hash
from .snapshots import Snapshots

__all__ = ["Bars", "read_job", "run_side_by_side", "write_job"]


def write_job(folder: Path, sets: tuple[Snapshots, ...], config: TrainConfig, seed, device) -> None:
    """Leave all that a training process needs in ``folder``; refuse one of another job."""
    job = {
        "data": joint_hash(sets),
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "device": device,
        "sets": [
            {key: getattr(part, key) for key in ("source", "temperature_K", "correlation")}
            for part in sets
        ],
    }
    path = folder / "job.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = json.loads(path.read_text())
        changed = [k for k in ("data", "config", "seed") if before[k] != job[k]]
        if changed:
            raise ValueError(
                f"{folder} holds a training run with another {' and '.join(changed)}; give "
                "another directory, or remove it to start afresh"
            )
    arrays: dict[str, Any] = {}
    for n, part in enumerate(sets):
        system = part.system
        arrays |= {f"{n}.{key}": getattr(system, key) for key in ("numbers", "masses", "pbc")}
        arrays[f"{n}.positions"] = part.positions
        if config.force_weight:
            arrays[f"{n}.forces"] = part.forces
        if system.cell is not None:
            arrays[f"{n}.cell"] = system.cell
    np.savez(folder / "job.npz", **arrays)
    path.write_text(json.dumps(job, indent=1))


def read_job(folder: Path) -> tuple[tuple[Snapshots, ...], TrainConfig, dict]:
    """What `write_job` left: sets of snapshots, config, and the rest."""
    job = json.loads((folder / "job.json").read_text())
    sets = []
    with np.load(folder / "job.npz") as raw:
        for n, facts in enumerate(job["sets"]):
            cell = raw[f"{n}.cell"] if f"{n}.cell" in raw.files else None
            numbers, masses, pbc = (raw[f"{n}.{key}"] for key in ("numbers", "masses", "pbc"))
            system = System(numbers, masses, cell, pbc)
            forces = raw[f"{n}.forces"] if f"{n}.forces" in raw.files else None
            sets.append(Snapshots(system, raw[f"{n}.positions"], forces=forces, **facts))
    return tuple(sets), TrainConfig(**job["config"]), job


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
