"""The demonstration: snapshots in, trajectories and a report out; and the report alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .analysis.report import write_report
from .h5md import replacing
from .score.model import ScoreModel
from .simulation import Files, read_frames
from .storage import RunInfo, Trajectory

__all__ = ["NAMED_TORSIONS", "make_report", "run_demo"]

# backbone torsions of the shipped set
NAMED_TORSIONS = {"alanine-dipeptide": {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}}
_MAX_STRUCTURES = 400_000  # of the trajectories, that the report looks at
_MAX_ENERGIES = 5_000  # snapshots, and 200 frames of the walkers: enough for a histogram


def make_report(
    model: str | Path,
    output: Path,
    *,
    snapshots: str | None = None,
    samples: Path | None = None,
    trajectories: Sequence[Path] = (),
    skip: float = 0.0,
    summary: dict[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Write the HTML report of a model to ``output``; returns its numbers.

    Parameters
    ----------
    snapshots : reference; default, the shipped set that the model was trained on
    samples, trajectories : files of ``diffmd sample`` and ``diffmd run``
    skip : fraction of each trajectory that is left out at its beginning
    """
    loaded = ScoreModel.load(model)
    card = loaded.card
    source = Path(card.data["source"]).stem if snapshots is None else snapshots
    try:
        reference = read_frames(source, loaded)
    except FileNotFoundError as error:
        if snapshots is not None:
            raise
        raise ValueError(
            f"this model was trained on {card.data['source']}, which is no shipped set: name the "
            "reference (--snapshots)"
        ) from error
    potential = loaded.potential(reference.system)

    def energy(x: np.ndarray) -> np.ndarray:
        parts = [potential(torch.as_tensor(p)).energy for p in np.array_split(x, 1 + len(x) // 512)]
        return torch.cat(parts).double().cpu().numpy()

    few = reference.positions[:: max(1, len(reference) // _MAX_ENERGIES)]
    energies = {"data": energy(few)}
    options: dict[str, Any] = {}
    if samples is not None:
        options["iid"] = read_frames(samples, loaded).positions
        energies["iid"] = energy(options["iid"][: 4 * _MAX_ENERGIES])
    if trajectories:
        positions, steps, energies["md"], info = _side_by_side(trajectories, skip)
        options["trajectory"] = positions
        options["Dt"] = steps * info.h
        options["kinetics_valid"] = info.kinetics_valid
    return write_report(
        output,
        system=reference.system,
        reference=reference.positions,
        temperature_K=card.temperature_K,
        energies=energies,
        torsions=NAMED_TORSIONS.get(Path(source).stem),
        card=_readable(loaded),
        training=_training_rows(loaded),
        summary=summary,
        title=title or f"{card.formula}: score dynamics",
        **options,
    )


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
        _together([[sys.executable, "-m", "diffmd_ase", *command] for command in commands])
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


def _together(commands: list[list[str]]) -> None:
    """Run processes side by side; the first failure stops all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # the results are ours to tell; errors and progress pass through
    running = [
        (command, subprocess.Popen(command, env=environment, stdout=_stream(command)))
        for command in commands
    ]
    waiting = list(running)
    try:
        while waiting:
            time.sleep(0.05)
            for command, process in [one for one in waiting if one[1].poll() is not None]:
                waiting.remove((command, process))
                if process.returncode:
                    raise RuntimeError(f"`diffmd {' '.join(command[3:])}` failed, see above")
    finally:
        for _, process in waiting:
            process.terminate()
        for _, process in running:
            process.wait()


def _stream(command: list[str]) -> int | None:
    # training shows its bars on standard output
    return None if "train" in command and "--progress" in command else subprocess.DEVNULL


def _shares(walkers: int, processes: int) -> list[tuple[int, int]]:
    """(first, count) of the walkers of each process."""
    bounds = np.linspace(0, walkers, min(processes, walkers) + 1).astype(int)
    return [(int(a), int(b - a)) for a, b in pairwise(bounds)]


def _side_by_side(
    paths: Sequence[Path], skip: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, RunInfo]:
    """Positions (T, B, N, 3), steps (T,), energies (T, B) of shares of one batch."""
    readers = [Trajectory(path) for path in paths]
    one = readers[0]
    count = min(len(reader) for reader in readers)
    for reader in readers[1:]:
        same = reader.info.h == one.info.h and np.array_equal(
            reader.steps[:count], one.steps[:count]
        )
        if not same or reader.system != one.system:
            raise ValueError(
                f"{reader.path} and {one.path} differ in system, step size or frames: they are "
                "not shares of one batch; report them one by one"
            )
    structures = count * sum(len(reader.walkers) for reader in readers)
    kept = slice(int(skip * count), count, max(1, structures // _MAX_STRUCTURES))
    positions = np.concatenate([reader.positions[kept] for reader in readers], axis=1)
    energies = np.concatenate([reader.energies[kept] for reader in readers], axis=1)
    return positions, one.steps[kept], energies, one.info


def _readable(model: ScoreModel) -> dict[str, Any]:
    card = model.card.model_dump(mode="json")
    for name in ("numbers", "masses", "covariance"):
        del card[name]
    card["experts"] = [{k: v for k, v in e.items() if k != "history"} for e in card["experts"]]
    return card


def _training_rows(model: ScoreModel) -> list[dict[str, Any]]:
    """Losses of all networks, one row a step; None where a network was not validated."""
    columns: list[str] = []
    rows: dict[int, dict[str, float]] = {}
    for expert in model.card.experts:
        for kind in ("training", "validation"):
            columns.append(f"{expert.name}: {kind} loss")
            for entry in expert.history:
                rows.setdefault(entry["step"], {})[columns[-1]] = entry[f"{kind}_loss"]
    return [{"step": step} | {c: rows[step].get(c) for c in columns} for step in sorted(rows)]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=1))
