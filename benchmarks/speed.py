"""All measurements of speed, and the table that the documentation shows.

    python benchmarks/speed.py [-o docs/speed.md] [--before FOLDER] [--only NAME …]

Runs the scripts in ``speeds``, each in a process of its own on one thread, and writes one table. A
row is a ratio (or a slope) of what took turns in one process, with its range and its goal. Rows for
a GPU say so where there is none. ``--before`` is a checkout of commit 031cfff, see
``speeds/evaluations.py``. Compiling is not counted; twenty minutes at first, ten afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from shared import versions

SCRIPTS = ("evaluations", "dynamics", "peers", "draws", "training", "large")
ON_A_GPU = {
    "4096 walkers, 22 atoms: molecule steps a second": "≥ 200 000",
    "1 walker, 22 atoms: steps a second": "≥ 3000",
    "4096 walkers: a loop of ASE over `run`": "≥ 100",
}
HEAD = """# Speed

`python benchmarks/speed.py -o docs/speed.md` writes this page: {day}, {machine}, one thread,
{versions}.

Two sides of a row take turns in one process, and are compared by CPU time unless the row says wall
clock: the median of their ratios, with the least and the largest. "As written" is `compile=False`,
the network by automatic differentiation. Compiling takes up to a minute for each network at first
and a few seconds afterwards; it is not counted. Half of the time of independent samples is in
matrix products, which no compiler makes faster.

| what | ratio | range | goal | | times | precision |
|---|---|---|---|---|---|---|
"""


def measured(name: str, before: str | None) -> list[dict]:
    """The rows of one script; one that says what went wrong, if it fails."""
    script = Path(__file__).parent / "speeds" / f"{name}.py"
    more = ["--before", before] if before and name in ("evaluations", "draws") else []
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "--json", *more],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return [{"what": f"{name}: failed, {last}", "value": None}]
    return json.loads(done.stdout)


def cells(row: dict) -> str:
    """One row of the table."""
    if row["value"] is None:
        return f"| {row['what']} | not measured | | {row.get('goal', '')} | | | |"
    spread = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
    good = {True: "met", False: "missed", None: ""}[row["good"]]
    head = f"| {row['what']} | {row['value']:.3g} | {spread} | {row['goal']} | {good} "
    return head + f"| {row['told']} | {row['precision']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--before")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.only:
        own = measured(name, options.before)
        print("\n".join(map(cells, own)), flush=True)
        rows += own
    rows += [{"what": f"GPU, {what}", "value": None, "goal": g} for what, g in ON_A_GPU.items()]
    words = ", ".join(f"{name} {version}" for name, version in versions().items())
    machine = f"{os.cpu_count()} shared cores, {platform.machine()}"
    head = HEAD.format(day=date.today().strftime("%B %Y"), machine=machine, versions=words)
    if options.output is not None:
        options.output.write_text(head + "\n".join(map(cells, rows)) + "\n")


if __name__ == "__main__":
    main()
