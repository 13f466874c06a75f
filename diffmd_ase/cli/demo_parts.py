"""The parts of the demonstration: train, sample, run, report, with the commands of a user."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import replacing
from ..processes import Command, run_side_by_side
from ..report.make import make_report
from ..score.model import ScoreModel
from ..simulation.settings import Files

__all__ = ["run_demo"]


def run_demo(
    directory: Path,
    *,
    snapshots: str = "alanine-dipeptide",
    minutes: float = 5.0,
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

    Parameters
    ----------
    minutes : of training, at most
    d_t : D·t of each walker in Å²
    """
    directory.mkdir(parents=True, exist_ok=True)
    model, drawn = directory / "model.safetensors", directory / "samples.npz"
    common = ["--seed", str(seed), "--device", device]
    shown = "--progress" if progress else "--no-progress"
    clock = directory / "times.json"
    times: dict[str, float] = json.loads(clock.read_text()) if clock.exists() else {}

    def part(name: str, *commands: list[str]) -> None:
        began = time.monotonic()
        run_side_by_side([_diffmd(command) for command in commands])
        times[name] = round(times.get(name, 0.0) + time.monotonic() - began, 1)
        _write_json(clock, times)

    if not model.exists():
        keep = ["--directory", str(directory / "training"), "--max-minutes", str(minutes)]
        part("train", ["train", snapshots, "-o", str(model), *keep, *common, shown])
    if not drawn.exists():
        drawing = ["sample", str(model), "-o", str(drawn), "-n", str(samples)]
        part("sample", [*drawing, *common, shown])
    h = 0.2 / ScoreModel.load(model).card.lambda_max  # the default step of `diffmd run`
    every = max(1, round(0.02 / h))  # a frame every 0.02 Å² of D·t
    steps = every * -(-round(d_t / h) // every)
    commands, paths = [], []
    for first, count in _shares(walkers, min(2, os.cpu_count() or 1)):
        files = Files(str(directory / f"md-{first:04d}"))
        paths.append(files.trajectory)
        command = ["run", str(model), "--start", str(drawn), "--prefix", files.prefix]
        command += ["--walkers", str(count), "--first-walker", str(first)]
        command += ["--steps", str(steps), "--every", str(every), *common]
        if files.restart.exists():
            command.append("--restart")
        # two bars would overwrite each other
        commands.append([*command, shown if first == 0 else "--no-progress"])
    part("run", *commands)
    runs = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    speed = sum(run["walker_steps_per_second"] for run in runs)
    began = time.monotonic()
    summary = make_report(
        model,
        directory / "report.html",
        snapshots=snapshots,
        samples=drawn,
        trajectories=paths,
        skip=0.2,
        summary={"times_s": times, "steps": steps, "evaluations_per_s": speed},
        title=f"{Path(snapshots).stem.replace('-', ' ').capitalize()}: score dynamics",
    )
    summary["times_s"]["report"] = round(time.monotonic() - began, 1)
    _write_json(directory / "summary.json", summary)
    return summary


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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=1))
