"""What of PLUMED, ASE and MDAnalysis was tried, and holds: writes ``docs/compatibility.md``.

    python benchmarks/compatibility.py
    python benchmarks/compatibility.py --only "ASE" --output part.md

Every row of the page is a use that is made for real: inputs of PLUMED beside PLUMED's own driver,
features of ASE with our classes beside the same with ASE's, trajectories in MDAnalysis.
PLUMED_REGTESTS names a folder of PLUMED's regression cases, MDANALYSIS_PYTHON a Python that has
MDAnalysis. The page does not depend on the machine, and says no times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import matplotlib
from tried import ase_dynamics, ase_features, ase_formats, mdanalysis, plumed, suites
from tried.outcome import VERDICTS, Outcome, Section, Trial

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
INTRODUCTION = """# What was tried

*Written by [`compatibility.py`](../benchmarks/compatibility.py), which has run every row.*

*Holds*: the same as in the program itself, to the last digit of its files or to 1e-8 of its
numbers. *Differs*: the words say how. *Refused*: an error says why, these are its words. *Not
here*: the program itself does not do it, or something is not installed.
"""
OF_PLUMED = """Each input is run by `plumed driver` and by `PlumedPotential`, in the loop of a
run, on the same 13 frames. All files are compared as text, and the forces. Variables and
functions are printed and pulled at."""
OF_ASE = """Each feature is used with EMT and with EMT behind `ScoreCalculator`, and gives the same
numbers. Constraints, calculators and what a dynamics can do are those of `ReverseDiffusion`. ASE's
own tests are imported from `ase.test`."""
OF_FILES = """Frames of a crystal and of a molecule, with energies and forces, are written by
`ase.io` and read by `Snapshots.read`: positions, elements and pbc are those that `ase.io` reads.
The words say what a format does not keep."""
OF_MDANALYSIS = """Trajectories of `diffmd run` are opened by the reader of H5MD in MDAnalysis:
positions are equal bit by bit, times and cells in number."""


def sections() -> list[Section]:
    """All there is, in the order of the page."""
    of_ase = [*ase_features.trials(), *ase_dynamics.trials(), *suites.ase_trials()]
    of_plumed = [*plumed.trials(), *suites.plumed_trials()]
    return [
        Section(f"PLUMED {plumed.version()}", OF_PLUMED, of_plumed),
        Section(f"ASE {version('ase')}", OF_ASE, of_ase),
        Section("Files of ASE", OF_FILES, ase_formats.trials()),
        Section("MDAnalysis", OF_MDANALYSIS, mdanalysis.trials()),
    ]


def outcomes(trials: Sequence[Trial], jobs: int = 1) -> Iterator[Outcome]:
    """One for each, in order, as they come, from ``jobs`` processes."""
    matplotlib.use("Agg")
    if jobs == 1:
        yield from (trial.outcome() for trial in trials)
        return
    # a forked child has the trials already, and is told which: not all of them can be sent
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, _inherit, (trials,)) as pool:
        yield from pool.map(_outcome, range(len(trials)))


_TRIALS: list[Trial] = []


def _inherit(trials: Sequence[Trial]) -> None:
    _TRIALS[:] = trials


def _outcome(number: int) -> Outcome:
    return _TRIALS[number].outcome()


def table(trials: Sequence[Trial], found: Sequence[Outcome]) -> list[str]:
    """Lines of the page for one section: a table for each kind."""
    lines: list[str] = []
    kind = None
    for trial, outcome in zip(trials, found, strict=True):
        if trial.kind != kind:
            kind = trial.kind
            of_kind = [o for t, o in zip(trials, found, strict=True) if t.kind == kind]
            lines += ["", f"### {kind[0].upper()}{kind[1:]}", "", counts(of_kind), ""]
            lines += ["| tried | verdict | |", "|---|---|---|"]
        lines.append(row(trial, outcome))
    return lines


def row(trial: Trial, outcome: Outcome) -> str:
    """The line of one use."""
    return f"| {trial.name} | {outcome.verdict} | {outcome.words} |"


def counts(found: Sequence[Outcome]) -> str:
    """How many of each verdict, in words."""
    count = Counter(outcome.verdict for outcome in found)
    return "; ".join(f"{verdict}: {count[verdict]}" for verdict in VERDICTS if count[verdict]) + "."


def page(parts: Sequence[tuple[Section, Sequence[Outcome]]]) -> str:
    """The whole text."""
    lines = [INTRODUCTION, f"| program | tried | {' | '.join(VERDICTS)} |"]
    lines.append("|---|---" + "|---" * len(VERDICTS) + "|")
    for section, found in parts:
        count = Counter(outcome.verdict for outcome in found)
        numbers = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        lines.append(f"| {section.title} | {len(found)} | {numbers} |")
    for section, found in parts:
        lines += ["", f"## {section.title}", "", section.words, *table(section.trials, found)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="sections whose title begins so")
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args()
    parts = []
    for section in sections():
        if not section.title.startswith(options.only):
            continue
        found: list[Outcome] = []
        for outcome in outcomes(section.trials, options.jobs):
            print(f"{section.title}: {row(section.trials[len(found)], outcome)}", flush=True)
            found.append(outcome)
        parts.append((section, found))
    options.output.write_text(page(parts))
    print(f"{options.output}: {counts([o for _, found in parts for o in found])}")


if __name__ == "__main__":
    main()
