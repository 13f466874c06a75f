"""Tests that nobody here wrote: ASE's own on our classes, PLUMED's own inputs through our driver.

Both are in our test suite, which says how; here they are run and counted, test by test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tried.outcome import ABSENT, DIFFERS, HOLDS, REFUSED, Outcome, Trial, said

__all__ = ["ase_trials", "plumed_trials"]

ROOT = Path(__file__).parents[2]
REGTESTS = "PLUMED_REGTESTS"


def ase_trials() -> list[Trial]:
    """One for each class of ``tests/adapters/test_ase_suite.py``, with its count."""
    return _trials("ASE's own tests", "tests/adapters/test_ase_suite.py")


def plumed_trials() -> list[Trial]:
    """One for each regression case of the folder that PLUMED_REGTESTS names."""
    kind = "PLUMED's own regression cases"
    if REGTESTS not in os.environ:
        words = f"{REGTESTS} names the folder of cases"
        return [Trial(kind, "none", lambda: Outcome(ABSENT, words))]
    return _trials(kind, "plugins/plumed/tests/test_conformance.py")


def _trials(kind: str, file: str) -> list[Trial]:
    found: dict[str, Counter] = {}
    words: dict[str, str] = {}
    for name, verdict, why in _run(ROOT / file):
        found.setdefault(name, Counter())[verdict] += 1
        words.setdefault(name, why)
    return [Trial(kind, name, _counted(count, words[name])) for name, count in found.items()]


def _counted(count: Counter, why: str):
    def outcome() -> Outcome:
        verdict = next(v for v in (DIFFERS, REFUSED, ABSENT, HOLDS) if count[v])
        many = f"{count[HOLDS]} of {count.total()} tests" if count.total() > 1 else ""
        return Outcome(verdict, "; ".join(part for part in (many, why) if part))

    return outcome


def _run(path: Path) -> Iterator[tuple[str, str, str]]:
    """(name, verdict, words) of every test in a file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, capture_output=True, check=False
        )
        for case in ElementTree.parse(report).iter("testcase"):
            name, _, given = case.get("name", "").partition("[")
            name = given.rstrip("]") if name == "test_reference" else name.removeprefix("test_")
            problems = [case.find(kind) for kind in ("failure", "error")]
            problem = next((found for found in problems if found is not None), None)
            skipped = case.find("skipped")
            if problem is not None:
                yield name, DIFFERS, said(problem.get("message", ""))
            elif skipped is not None:
                yield name, ABSENT, said(skipped.get("message", ""))
            else:
                yield name, HOLDS, ""
