"""Reads a PLUMED input where a crash hurts nobody: the child process of `check_input`.

    python -m diffmd_plumed.child CASE.json

Line by line, so that the line that fails, or crashes, is known: its number is on the last
line of CASE.out. Then as in a run, with an update at made-up positions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from . import library
from .driver import Driver, words
from .script import parse
from .units import Units


def main(case_path: str) -> int:
    case = json.loads(Path(case_path).read_text())
    lines, settings = case["lines"], case["settings"]
    settings["units"] = Units(**settings["units"])
    report = open(Path(case_path).with_suffix(".out"), "w", buffering=1)
    try:
        one_by_one(lines, settings, report)
        whole(lines, settings, case["positions"], report)
    except ValueError as error:
        report.write(f"{error}\n")
        return 1
    return 0


def one_by_one(lines, settings, report) -> None:
    with Driver(input=[], directory="lines", **settings) as driver:
        for action in parse(lines):
            report.write(f"{action.number}\n")
            end = next((a.number for a in parse(lines) if a.number > action.number), None)
            text = "\n".join(lines[action.number - 1 : None if end is None else end - 1])
            try:
                with library.working_directory(driver.directory):
                    driver._cmd("readInputLines", text + "\n")
            except (RuntimeError, ValueError, TypeError, OSError, MemoryError) as error:
                raise ValueError(words(error)) from error


def whole(lines, settings, positions, report) -> None:
    report.write("0\n")
    with Driver(input=lines, directory="whole", **settings) as driver:
        (Path(driver.directory) / "written").write_text(
            json.dumps([p.name for p in Path(driver.directory).iterdir()])
        )
        try:
            for action in parse(lines):
                if action.name == "PUT":
                    driver.set_value(action.label, 0.0)
                elif action.name == "EXTRACV":
                    driver.set_extra(action.keywords.get("NAME", ""), 0.0)
            # two steps: some actions crash only where they learn
            for step in range(2):
                driver.evaluate(np.array(positions).reshape(-1, 3), step=step)
                driver.update()
        except (RuntimeError, ValueError):
            pass  # made-up positions may be outside a grid; that is for the run to say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
