"""Runs that are killed at random moments, or asked to end, and go on."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

import diffmd_ase.simulation.pace as simulation

from .kinds import Kind, command, content, differences
from .sandbox import SIGNALS, Record, ended, fork, stopped, words

_LONG = 600.0


def whole(kind: Kind, folder: Path) -> tuple[dict, float]:
    """What an uninterrupted run leaves, and how long it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = ended(fork(lambda: kind.go(False), folder), _LONG)
    if code:
        raise RuntimeError(f"{folder.name} fails without any kill: {words(folder)}")
    return content(kind, folder), time.monotonic() - began


def start(kind: Kind, folder: Path, interval: float | None) -> int:
    """Begin the run in ``folder``, or go on with it; gives the pid."""
    there = (folder / kind.checkpoint).exists()
    if not there:  # nothing to go on from: as a user does, who removes what there is
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def work():
        if interval is not None:
            simulation._CHECKPOINT_SECONDS = interval
        return kind.go(there)

    return fork(work, folder)


def kill_runs(name: str, kind: Kind, count: int, seed: int, record: Record) -> None:
    """``count`` kills with -9, up to three of one run; then it goes on to its end.

    Every second run has a checkpoint every 0.1 s; the others have the default interval.
    """
    done = sum(row["kills"] for row in record.of("kills", name))
    if done >= count:
        return
    with tempfile.TemporaryDirectory() as scratch:
        expected, seconds = whole(kind, Path(scratch, "whole"))
        for n in record.missing("kills", name, 10 * count):
            if done >= count:
                break
            rng = np.random.default_rng([seed, n])
            folder, interval = Path(scratch, str(n)), 0.1 if n % 2 else None
            folder.mkdir()
            kills = 0
            for _ in range(3):
                pid = start(kind, folder, interval)
                if ended(pid, rng.uniform(0, 0.9 * seconds)) is not None:
                    break
                stopped(pid, signal.SIGKILL)
                kills += 1
            code = ended(start(kind, folder, interval), _LONG)
            wrong = [f"exit code {code}"]
            if code == 0:
                wrong = differences(kind, content(kind, folder), expected)
            record.add(
                "kills",
                name,
                n,
                kills=kills,
                default=interval is None,
                wrong=wrong,
                said=words(folder)[-600:] if wrong else "",
            )
            done += kills
            shutil.rmtree(folder)


def signal_runs(walkers: int, count: int, seed: int, record: Record) -> None:
    """SIGTERM and SIGINT in turn, at random moments of runs of so many walkers."""
    words_of = ("--walkers", str(walkers), "--every", "20", "--steps", "200")
    runs = {"plain": Kind(command(*words_of))}
    runs["Metropolis"] = Kind(command(*words_of, "--target", "model"))
    for name, kind in runs.items():
        what = f"{name}, {walkers} walkers"
        if len(record.of("signals", what)) >= count:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            expected, seconds = whole(kind, Path(scratch, "whole"))
            for n in record.missing("signals", what, count):
                rng = np.random.default_rng([seed, n])
                number = list(SIGNALS)[n % 2]
                folder = Path(scratch, str(n))
                folder.mkdir()
                pid = start(kind, folder, None)
                early = ended(pid, rng.uniform(0.05, 0.95) * seconds)
                began = time.monotonic()
                code = stopped(pid, number) if early is None else early
                took = time.monotonic() - began
                again = ended(start(kind, folder, None), _LONG)
                wrong = [f"exit code {again}"] if again else []
                wrong = wrong or differences(kind, content(kind, folder), expected)
                if early is None and code not in (0, SIGNALS[number]):
                    wrong.append(f"{signal.Signals(number).name} gave {code}")
                record.add("signals", what, n, seconds=took, sent=early is None, wrong=wrong)
                shutil.rmtree(folder)
