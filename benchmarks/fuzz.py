"""Malformed input of every kind, against every command: does each call end in one line of words?

    python benchmarks/fuzz.py                              # 1000 calls
    python benchmarks/fuzz.py --only card,h5 --calls 100 --seed 1
    python benchmarks/fuzz.py --only npz --call 17 --keep folder   # one of them, to look at

Files are spoiled behind their checksums, in a way that the seed and the number of the call name.
Each call has a process of its own, with a limit of 10 s of CPU (on a slow machine, of two sound
trainings) and of 1 GB above what the program takes.

*Refused*: one line, in our words, and an exit code. *Accepted*: it ended well, which is right where
what was spoiled does not matter; `--show accepted` lists them. *At work*: long work that shows its
progress, as an effort of 100 is. All else is a fault: a traceback or
words of a library, a hang, a growth beyond 1 GB, a crash, or code of a file that ran. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from fuzzing import kinds, trajectories, words
from fuzzing.attempt import Attempt, attempt
from fuzzing.materials import Materials, make

SECONDS = 10.0
KINDS = {
    "card": kinds.card,
    "weights": kinds.weights,
    "safetensors": kinds.safetensors,
    "checkpoint": kinds.checkpoint,
    "training": kinds.training,
    "h5": trajectories.h5,
    "h5-bytes": trajectories.h5_bytes,
    "npz": kinds.npz,
    "extxyz": kinds.extxyz,
    "ase": kinds.ase,
    "plumed": kinds.plumed,
    "yaml": words.options_file,
    "option": words.option,
    "argument": words.argument,
}
VERDICTS = (
    "refused",
    "accepted",
    "at work",
    "traceback",
    "library words",
    "hang",
    "memory",
    "crash",
    "ran",
)
FAULTS = VERDICTS[3:]
_SAMPLE = 100  # every so many calls one more, as a program of its own


def case(kind: str, number: int, seed: int, folder: Path, base: Materials) -> tuple[list[str], str]:
    """The words of a call, whose files are in ``folder``, and what is spoiled."""
    folder.mkdir()
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind), number])
    with np.errstate(all="ignore"):
        call, told = KINDS[kind](rng, folder, base)
    return (call.split() if isinstance(call, str) else call), told


def made(kind: str, number: int, seed: int, folder: Path, base: Materials) -> tuple[list[str], str]:
    """`case`, in a child: spoiling a file takes memory, and HDF5 may not survive it.

    No words of a call where it did not.
    """
    facts = folder.with_suffix(".json")
    child = os.fork()
    if not child:
        try:
            facts.write_text(json.dumps(case(kind, number, seed, folder, base)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return tuple(json.loads(facts.read_text())) if facts.exists() else ([], "")


def judged(call: list[str], folder: Path, seconds: float) -> tuple[Attempt, str]:
    """A call and its verdict, with a limit in seconds of CPU."""
    done = attempt(call, folder, seconds)
    return done, "ran" if (folder / "executed").exists() else done.verdict(seconds)


def limit(base: Materials, folder: Path) -> float:
    """Seconds of CPU for a call: those of a sound training twice, where a machine is slow."""
    folder.mkdir()
    call = f"train {base['data.npz']} -o o.safetensors --steps 2 --width 4 --processes 1"
    return max(SECONDS, 2.0 * attempt(call.split(), folder, 100.0).seconds)


def as_program(call: list[str], folder: Path) -> bool:
    """Whether the same call as a program of its own ends with a code and without a traceback."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "diffmd_ase", *call],
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
    except (subprocess.TimeoutExpired, ValueError):
        return False
    return done.returncode >= 0 and b"Traceback" not in done.stderr


def main() -> int:
    """Exit code 1 where there is a fault."""
    options = _options()
    chosen = options.only.split(",") if options.only else list(KINDS)
    records = _before(options.log)
    done = {record["number"] for record in records}
    numbers = range(options.calls) if options.call is None else [options.call]
    with tempfile.TemporaryDirectory() as home:
        base = Path(home) / "sound"
        base.mkdir()
        materials = make(base)
        warm_up()
        seconds = limit(materials, Path(home) / "limit")
        try:
            for n in (n for n in numbers if n not in done):
                kind, folder = chosen[n % len(chosen)], Path(home) / f"call-{n}"
                call, told = made(kind, n, options.seed, folder, materials)
                if not call:
                    print(f"{n} {kind}: could not be made", flush=True)
                    continue
                attempt, verdict = judged(call, folder, seconds)
                record = {"number": n, "kind": kind, "verdict": verdict}
                record |= {"seconds": attempt.seconds, "growth": attempt.growth}
                shown = verdict in FAULTS or verdict in options.show.split(",")
                if shown or options.call is not None:
                    short = " ".join(call).replace(str(base), "SOUND")[:160]
                    print(f"{n} {verdict}: {kind}: {told!r}\n    {short}", flush=True)
                    took = f"{attempt.seconds:.1f} s, {attempt.growth / 1e6:.0f} MB"
                    print(f"    {took}, {_last(attempt)}")
                if n % _SAMPLE == 0 and verdict not in ("at work", "hang", "memory"):
                    again = folder.with_suffix(".again")
                    call, _ = made(kind, n, options.seed, again, materials)
                    record["program"] = as_program(call, again)
                if options.keep:
                    shutil.copytree(folder, options.keep, dirs_exist_ok=True, symlinks=True)
                shutil.rmtree(folder)
                records.append(record)
                if options.log:
                    with options.log.open("a") as log:
                        log.write(json.dumps(record) + "\n")
        except KeyboardInterrupt:
            print("interrupted: the same --log goes on")
    return _table(records, seconds)


def _before(log: Path | None) -> list[dict]:
    """What an earlier run with this log has done."""
    if log is None or not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]


def warm_up() -> None:
    """Import what commands import, so that forks share it and are quick."""
    import arviz_stats  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    from diffmd_ase.analysis.free_energy import from_files  # noqa: F401
    from diffmd_ase.report import make  # noqa: F401
    from diffmd_ase.score import training  # noqa: F401
    from diffmd_ase.simulation import planned  # noqa: F401
    from diffmd_ase.validation import validate  # noqa: F401


def _last(done: Attempt) -> str:
    lines = done.text.strip().splitlines() or [""]
    return (done.error or lines[-1])[:300]


def _table(records: list[dict], seconds: float) -> int:
    counts = Counter((r["kind"], r["verdict"]) for r in records)
    print("\n| kind | calls | " + " | ".join(VERDICTS) + " |")
    print("|---" * (len(VERDICTS) + 2) + "|")
    for kind in [*dict.fromkeys(r["kind"] for r in records), "all"]:
        row = [
            sum(n for (k, v), n in counts.items() if kind in (k, "all") and v == verdict)
            for verdict in VERDICTS
        ]
        print(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    ended = [r for r in records if r["verdict"] not in ("at work", "hang")]
    longest = max((r["seconds"] for r in ended), default=0.0)
    growth = max((r["growth"] for r in records), default=0)
    programs = [r["program"] for r in records if "program" in r]
    print(f"\nlongest {longest:.1f} s of CPU, largest growth {growth / 1e6:.0f} MB")
    if seconds > SECONDS:
        print(f"limit: {seconds:.1f} s of CPU, twice what a sound training takes here")
    print(f"as programs of their own: {sum(programs)} of {len(programs)} end in words")
    return int(any(r["verdict"] in FAULTS for r in records) or not all(programs))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--log", type=Path, help="of calls that are done: goes on from there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--call", type=int, help="this one only")
    parser.add_argument("--keep", type=Path, help="a folder for its files")
    parser.add_argument("--show", default="", help="verdicts to list besides faults")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
