"""The parts of the demonstration: train, sample, run, report, with the commands of a user."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import replacing
from ..io.json_text import to_json
from ..processes import Command, run_side_by_side
from ..report.make import make_report
from ..score.model import ScoreModel
from ..simulation.prepare import prepare
from ..simulation.settings import Files

__all__ = ["run_demo"]


def run_demo(
    directory: Path,
    *,
    snapshots: str = "alanine-dipeptide",
    minutes: float = 2.5,
    walkers: int = 64,
    d_t: float = 8.0,
    samples: int = 4000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Train on snapshots, sample, run walkers, report; finished parts are not done again.

    Every part runs the command a user would run, so that the demo shows nothing else:
    walkers are shared between two processes of one thread, which changes no number.

    ``directory``, ``snapshots``, ``minutes``, ``d_t`` and ``samples`` are those of ``diffmd demo``.
    Gives what ``summary.json`` holds: numbers and verdicts of the report, and times of the parts.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model, drawn = directory / "model.safetensors", directory / "samples.npz"
    common = ["--seed", str(seed), "--device", device]
    shown = "--progress" if progress else "--no-progress"
    part = partial(_part, directory / "times.json")
    if not model.exists():
        keep = ["--directory", str(directory / "training"), "--max-minutes", str(minutes)]
        part("train", ["train", snapshots, "-o", str(model), *keep, *common, shown])
    if not drawn.exists():
        drawing = ["sample", str(model), "-o", str(drawn), "-n", str(samples)]
        part("sample", [*drawing, *common, shown])
    steps, every = _steps(model, d_t)
    run = ["run", str(model), "--start", str(drawn), "--steps", str(steps), "--every", str(every)]
    shares = _shares(walkers, min(2, os.cpu_count() or 1))
    files = [Files(str(directory / f"md-{first:04d}")) for first, _ in shares]
    # one bar: two would overwrite each other
    commands = [
        [*run, *common, *_share(first, count, into), shown if first == 0 else "--no-progress"]
        for (first, count), into in zip(shares, files, strict=True)
    ]
    times = part("run", *commands)
    runs = [json.loads(one.summary.read_text()) for one in files]
    speed = sum(run["walker_steps_per_second"] for run in runs)
    told = {"times_s": times, "steps": steps, "evaluations_per_s": speed}
    return _report(directory, model, snapshots, drawn, [one.trajectory for one in files], told)


def _report(
    directory: Path, model: Path, snapshots: str, drawn: Path, trajectories, told: dict[str, Any]
) -> dict[str, Any]:
    """Page and summary, which also holds what is ``told`` of the parts."""
    began = time.monotonic()
    summary = make_report(
        model,
        directory / "report.html",
        snapshots=snapshots,
        samples=drawn,
        trajectories=trajectories,
        skip=0.2,
        summary=told,
        title=f"{Path(snapshots).stem.replace('-', ' ').capitalize()}: score dynamics",
    )
    summary["times_s"]["report"] = round(time.monotonic() - began, 1)
    _write_json(directory / "summary.json", summary)
    return summary


def _steps(model: Path, d_t: float) -> tuple[int, int]:
    """Steps in all and between frames, one every 0.02 Å² of D·t, at the default step."""
    loaded = ScoreModel.load(model)
    prepared = prepare(loaded.potential(device="cpu"), temperature_K=loaded.card.temperature_K)
    h = float(prepared.step.h)
    every = max(1, round(0.02 / h))
    return every * math.ceil(d_t / (h * every)), every


def _part(clock: Path, name: str, *commands: list[str]) -> dict[str, float]:
    """Run commands side by side; the seconds of all parts so far, which ``clock`` keeps."""
    times = json.loads(clock.read_text()) if clock.exists() else {}
    began = time.monotonic()
    run_side_by_side([_diffmd(command) for command in commands])
    times[name] = round(times.get(name, 0.0) + time.monotonic() - began, 1)
    _write_json(clock, times)
    return times


def _diffmd(arguments: list[str]) -> Command:
    """A command of ours: errors and progress pass through, the results are ours to tell."""
    facts_shown = "train" in arguments and "--progress" in arguments  # those of the model
    return Command(
        [sys.executable, "-m", "diffmd_ase", *arguments],
        name=f"`diffmd {' '.join(arguments)}`",
        quiet=not facts_shown,
    )


def _shares(walkers: int, processes: int) -> list[tuple[int, int]]:
    """(first, count) of the walkers of each process."""
    bounds = np.linspace(0, walkers, min(processes, walkers) + 1).astype(int)
    return [(int(a), int(b - a)) for a, b in pairwise(bounds)]


def _share(first: int, count: int, files: Files) -> list[str]:
    """Options of one process: its walkers, its files, and whether it goes on."""
    options = ["--first-walker", str(first), "--walkers", str(count), "--prefix", files.prefix]
    return [*options, "--restart"] if files.restart.exists() else options


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(to_json(values))
