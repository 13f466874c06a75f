"""Reads a PLUMED input where a crash hurts nobody: the child process of `check_input`.

    python -m diffmd_plumed.child CASE.json

Line by line, so that the line that fails, or crashes, is known: its number is on the last
line of CASE.out. Then as in a run, with an update at made-up positions.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from . import library
from .driver import Driver
from .ending import words
from .script import parse, readable
from .units import Units


def main(case_path: str) -> int:
    case = json.loads(Path(case_path).read_text())
    lines, settings = case["lines"], case["settings"]
    settings["units"] = Units(**settings["units"])
    report = Path(case_path).with_suffix(".out").open("w", buffering=1, encoding="utf-8")
    alone, together = case["folders"]
    try:
        one_by_one(lines, settings, alone, report)
        whole(lines, settings, together, case["positions"], report)
    except ValueError as error:
        report.write(f"{readable(str(error))}\n")
        return 1
    return 0


def one_by_one(lines, settings, folder, report) -> None:
    with Driver(input=[], directory=folder, **settings) as driver:
        numbers = sorted({action.number for action in parse(lines)})
        for number, following in zip(numbers, (*numbers[1:], None), strict=True):
            report.write(f"{number}\n")
            text = "\n".join(lines[number - 1 : None if following is None else following - 1])
            try:
                with library.working_directory(driver.directory):
                    # Python's PLUMED takes characters only
                    driver._cmd("readInputLines", readable(text) + "\n")
            except (RuntimeError, ValueError, TypeError, OSError, MemoryError) as error:
                raise ValueError(words(error)) from error


def whole(lines, settings, folder, positions, report) -> None:
    report.write("0\n")
    # made-up positions may be outside a grid, and leave nothing for the end: the run will say
    with suppress(RuntimeError), Driver(input=lines, directory=folder, **settings) as driver:
        with suppress(ValueError):
            for action in parse(lines):
                if action.name == "PUT":
                    driver.set_value(action.label, 0.0)
                elif action.name == "EXTRACV":
                    driver.set_extra(action.keywords.get("NAME", ""), 0.0)
            # two steps: some actions crash only where they learn
            for step in range(2):
                driver.evaluate(np.array(positions).reshape(-1, 3), step=step)
                driver.update()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
