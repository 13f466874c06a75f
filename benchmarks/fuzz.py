"""Malformed input of every kind, against every command: does each call end in one line of words?

    python benchmarks/fuzz.py                              # 1000 calls
    python benchmarks/fuzz.py --only card,h5 --calls 100 --seed 1
    python benchmarks/fuzz.py --only npz --call 17 --keep folder   # one of them, to look at

Files are spoiled behind their checksums, in a way that the seed and the number of the call name.
Each call has a process of its own, with a limit of 10 s and of 1 GB above what the program takes.

*Refused*: one line, in our words, and an exit code. *Accepted*: it ended well, which is right where
what was spoiled does not matter; `--show accepted` lists them. *At work*: long work that shows its
progress, as an effort of 100 is. All else is a fault: a traceback or
words of a library, a hang, a growth beyond 1 GB, a crash, or code of a file that ran. Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from fuzzing import kinds, words
from fuzzing.attempt import Attempt, attempt
from fuzzing.materials import Materials, make

SECONDS = 10.0
KINDS = {
    "card": kinds.card,
    "weights": kinds.weights,
    "safetensors": kinds.safetensors,
    "checkpoint": kinds.checkpoint,
    "training": kinds.training,
    "h5": kinds.h5,
    "h5-bytes": kinds.h5_bytes,
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


def judged(call: list[str], folder: Path) -> tuple[Attempt, str]:
    """A call and its verdict."""
    done = attempt(call, folder, SECONDS)
    return done, "ran" if (folder / "executed").exists() else done.verdict(SECONDS)


def as_program(call: list[str], folder: Path) -> bool:
    """Whether the same call as a program of its own ends with a code and without a traceback."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "diffmd_ase", *call],
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS + 20,  # it imports all
        )
    except (subprocess.TimeoutExpired, ValueError):
        return False
    return done.returncode >= 0 and b"Traceback" not in done.stderr


def main() -> int:
    """Exit code 1 where there is a fault."""
    options = _options()
    chosen = options.only.split(",") if options.only else list(KINDS)
    counts: Counter = Counter()
    spent: Counter = Counter()
    worst = {"seconds": 0.0, "growth": 0.0}
    programs: list[bool] = []
    with tempfile.TemporaryDirectory() as home:
        base = Path(home) / "sound"
        base.mkdir()
        materials = make(base)
        warm_up()
        last = options.first + options.calls
        for n in [options.call] if options.call is not None else range(options.first, last):
            kind, folder = chosen[n % len(chosen)], Path(home) / f"call-{n}"
            call, told = case(kind, n, options.seed, folder, materials)
            done, verdict = judged(call, folder)
            counts[kind, verdict] += 1
            spent[kind] += done.seconds
            worst = {k: max(v, getattr(done, k)) for k, v in worst.items()}
            if verdict in FAULTS or verdict in options.show.split(",") or options.call is not None:
                short = " ".join(call).replace(str(base), "SOUND")[:160]
                print(f"{n} {verdict}: {kind}: {told!r}\n    {short}", flush=True)
                print(f"    {done.seconds:.1f} s, {done.growth / 1e6:.0f} MB, {_last(done)}")
            if n % _SAMPLE == 0 and verdict not in ("at work", "hang", "memory"):
                again, _ = case(kind, n, options.seed, folder.with_suffix(".again"), materials)
                programs.append(as_program(again, folder.with_suffix(".again")))
            if options.keep:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(folder)
    _print(counts, worst, programs, chosen)
    print(dict(spent))
    return int(any(counts[key] for key in counts if key[1] in FAULTS) or not all(programs))


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


def _print(counts: Counter, worst: dict, programs: list[bool], chosen: list[str]) -> None:
    print("\n| kind | calls | " + " | ".join(VERDICTS) + " |")
    print("|---" * (len(VERDICTS) + 2) + "|")
    for kind in [*chosen, "all"]:
        row = [
            sum(n for (k, v), n in counts.items() if kind in (k, "all") and v == verdict)
            for verdict in VERDICTS
        ]
        print(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    print(f"\nlongest {worst['seconds']:.1f} s, largest growth {worst['growth'] / 1e6:.0f} MB")
    print(f"as programs of their own: {sum(programs)} of {len(programs)} end in words")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="call, to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--call", type=int, help="this one only")
    parser.add_argument("--keep", type=Path, help="a folder for its files")
    parser.add_argument("--show", default="", help="verdicts to list besides faults")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
