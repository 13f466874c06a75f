"""An input is tried in a child process before anything is opened or overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import units as ase_units

from . import library
from .at_hand import mentioned, mirror, written
from .driver import LOG
from .plan import Plan, actions_of, merged, plan
from .script import (
    RUN_CODE,
    InputLine,
    parse,
    read_lines,
    readable,
    resolve,
    written_files,
)
from .units import ASE_UNITS, Units

__all__ = ["Checked", "PlumedInputError", "check_input"]

_SECONDS = 120.0
_NEED_CHARGES = {"DIPOLE", "DHENERGY", "DHENERGY_ENERGY"}


class PlumedInputError(ValueError):
    """PLUMED refuses an input, or would crash on it.

    Attributes
    ----------
    message : what is wrong, with the line's text
    line : number of the line, from 1; None where no single line is to blame
    """

    def __init__(self, message: str, line: int | None = None):
        self.line = line
        super().__init__(message)


@dataclass(frozen=True)
class Checked:
    """An input that PLUMED accepts.

    Attributes
    ----------
    variants : the lines as they are given to PLUMED, included files in their place: one for
        all walkers, or one for each where there is ``@replicas:``
    script : the actions, of all variants
    plan : what they do at which steps
    log : of PLUMED, with the first variant
    files : names of the files that it opens to write
    """

    variants: tuple[tuple[str, ...], ...]
    script: tuple[InputLine, ...]
    plan: Plan
    log: str
    files: frozenset[str]

    def lines(self, walker: int) -> tuple[str, ...]:
        """What PLUMED is given for a walker."""
        return self.variants[walker if len(self.variants) > 1 else 0]

    @property
    def needs_energy(self) -> bool:
        return any(line.name == "ENERGY" for line in self.script)


def check_input(
    input: str | Path | Sequence[str],
    natoms: int,
    *,
    kT: float | None = None,
    timestep: float = 1.0,
    units: Units = ASE_UNITS,
    masses=None,
    charges=None,
    box=None,
    directory: str | Path = ".",
    positions=None,
    kernel: str | None = None,
    allow_load: bool = True,
) -> Checked:
    """Try an input in a child process, in a folder that is thrown away.

    Some wrong inputs crash PLUMED, and the process with it; here they are errors like
    others. Two steps are made, at ``positions`` (natoms, 3) or, by default, made-up ones.

    Parameters
    ----------
    directory : relative names of files to read mean this folder
    allow_load : False refuses actions that run code of a file, `RUN_CODE`, before PLUMED sees them
    input, natoms, kT, timestep, units, masses, charges, box, kernel : as of `Driver`

    Raises
    ------
    PlumedInputError : with the number of the line and PLUMED's own words; also vectors for
        METAD, RESTART in the input, charges that are needed and not given
    ImportError : no library of PLUMED
    """
    source, folder = read_lines(input), Path(os.path.abspath(directory))
    variants = _variants(source, folder)
    if not allow_load:
        _refuse_code(variants)
    settings = {
        "natoms": natoms,
        "units": asdict(units),
        "kT": None if kT is None else float(kT),
        "timestep": float(timestep),
        "masses": np.ones(natoms).tolist() if masses is None else np.asarray(masses).tolist(),
        "charges": None if charges is None else np.asarray(charges).tolist(),
        "box": None if box is None else np.asarray(box).tolist(),
        "kernel": kernel,
    }
    if positions is None:
        # about a molecule: 1.5 Å between neighbours on a random walk
        walk = np.random.default_rng(0).normal(size=(natoms, 3)).cumsum(0)
        positions = 0.087 / units.length * walk
    case = {"settings": settings, "positions": np.asarray(positions).tolist()}
    library.new_instance(kernel).finalize()  # an ImportError here has the install line
    tried = []
    for lines in variants:
        script = parse(lines)
        for line in script:
            _check_line(line, kT=kT, energy=units.energy, charges=charges)
        tried.append(_tried(case | {"lines": lines}, script, source, folder))
    scripts, plans, logs, files = zip(*tried, strict=True)
    # walkers whose values differ do so in files and paces as well
    script = [
        line for own in scripts for line in own if own is scripts[0] or line not in scripts[0]
    ]
    return Checked(variants, tuple(script), merged(plans), logs[0], frozenset().union(*files))


def _refuse_code(variants: Sequence[Sequence[str]]) -> None:
    """Files of INCLUDE are in these lines."""
    for line in (line for lines in variants for line in parse(lines) if line.name in RUN_CODE):
        raise PlumedInputError(
            f"line {line.number}: {line.name} runs code of a file, with all your rights "
            f"({line.text}): read that code, then give --allow-load (in Python allow_load=True)"
        )


def _variants(source: Sequence[str], folder: Path) -> tuple[tuple[str, ...], ...]:
    """The lines for each walker; of all, where there is no ``@replicas:``."""
    lines, counts = resolve(source, folder, 0)
    if len(counts) > 1:
        raise PlumedInputError(
            f"the lists of @replicas: have {' and '.join(map(str, sorted(counts)))} values: give "
            "each one value for every walker"
        )
    count = max(counts, default=1)
    return (tuple(lines), *(tuple(resolve(source, folder, k)[0]) for k in range(1, count)))


def _tried(case: dict, script: Sequence[InputLine], source: Sequence[str], directory: Path):
    """Actions, plan, log and written files of lines that PLUMED accepts."""
    with tempfile.TemporaryDirectory(prefix="diffmd-plumed-") as root:
        failure, opened, log = _run(Path(root), case, script, directory)
    if failure is not None:
        number, said = failure if failure[0] else _first_failure(case, script, directory)
        place = "the input"
        if number is not None:
            place = f"line {number} of the input, {readable(source[number - 1]).strip()!r}"
        raise PlumedInputError(f"{place}: {said}", number)
    try:
        planned = plan(actions_of(log), script)
    except ValueError as error:
        raise PlumedInputError(str(error)) from None
    absolute = {n for n in mentioned(case["lines"]) if os.path.isabs(n)}
    inside = {os.path.relpath(name, directory) for name in absolute}
    files = {name for name in opened if name not in inside}
    files |= {n for n in absolute if os.path.relpath(n, directory) in opened}
    return script, planned, log, files | written_files(script)


def _first_failure(
    case: dict, script: Sequence[InputLine], directory: Path
) -> tuple[int | None, str]:
    """Line and words of a failure that comes only when all is read: lines are added in turn."""
    numbers = sorted({line.number for line in script})
    for number, following in zip(numbers, (*numbers[1:], None), strict=True):
        end = None if following is None else following - 1
        with tempfile.TemporaryDirectory(prefix="diffmd-plumed-") as root:
            part = {**case, "lines": case["lines"][:end]}
            failure, _, _ = _run(Path(root), part, script, directory)
        if failure is not None:
            return number, failure[1]
    return None, "PLUMED failed once and not again"


def _run(
    root: Path, case: dict, script: Sequence[InputLine], directory: Path
) -> tuple[tuple[int | None, str] | None, set[str], str]:
    """The line that failed, if it is known, and why (None if none did); files written; the log."""
    # one by one and as a whole, each in a copy of the user's folder
    places = [mirror(directory, case["lines"], root / name) for name in ("lines", "whole")]
    before = written(root)
    (folders, (lines, _)) = zip(*places, strict=True)
    path = root / "case.json"
    path.write_text(json.dumps({**case, "lines": lines, "folders": list(map(str, folders))}))
    failure = _child(path, script)
    whole = folders[1]
    files = {
        os.path.relpath(file, whole)
        for file, facts in written(root / "whole").items()
        if before.get(file) != facts and file.name[:4] != "bck." and file.name != LOG
    }
    log = whole / LOG
    return failure, files, log.read_text("utf-8", errors="replace") if log.is_file() else ""


def _child(path: Path, script: Sequence[InputLine]) -> tuple[int | None, str] | None:
    """The line that failed, if it is known, and why; None if none did."""
    # the child runs elsewhere, and must find this package, and what the input imports
    paths = (str(Path(__file__).resolve().parents[1]), *map(os.path.abspath, sys.path))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "diffmd_plumed.child", str(path)],
            cwd=path.parent,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"PLUMED did not finish with it in {_SECONDS:g} s"
    if done.returncode == 0:
        return None
    out = path.with_suffix(".out")
    report = out.read_text("utf-8").splitlines() if out.exists() else []
    numbers = [int(row) for row in report if row.isdigit()]
    said = " ".join(row for row in report if not row.isdigit())
    number = (numbers or [0])[-1] or None
    if done.returncode < 0:
        sort = signal.Signals(-done.returncode).name
        said = f"PLUMED crashes on it ({sort}); look for keywords and files that are missing"
    elif not said:
        said = f"the check failed: {done.stderr.decode(errors='replace').strip()[-500:]}"
    elif "temperature" in said:
        said += "; give kT, the thermal energy"
    if number is None:  # the message may name the action
        number = next((s.number for s in script if s.label and f"label {s.label} " in said), None)
    return number, said


def _check_line(line: InputLine, *, kT, energy: float, charges) -> None:
    place = f"line {line.number} of the input, {line.text!r}"
    if line.name == "RESTART" and line.keywords.get("NO") is None:
        raise PlumedInputError(
            f"{place}: remove it; restart=True restarts with the files as they were at the "
            "checkpoint",
            line.number,
        )
    if line.name in _NEED_CHARGES and charges is None:
        raise PlumedInputError(f"{place} needs charges: give charges=", line.number)
    if line.name == "UNITS":
        _check_units(line, place)
    temperature = _number(line.keywords.get("TEMP"))
    if temperature is not None and kT is not None and line.name not in ("UNITS", "REWEIGHT_TEMP"):
        mine = kT * energy * ase_units.kJ / ase_units.mol / ase_units.kB
        if abs(temperature - mine) > 1e-2 * mine:
            raise PlumedInputError(
                f"{place}: TEMP={temperature:g} K, but kT is that of {mine:.4g} K; remove TEMP",
                line.number,
            )


def _check_units(line: InputLine, place: str) -> None:
    """A UNITS line is about the input and the files; numbers in it are easily wrong."""
    known = {
        "TIME": (1.0, 1e-3, 1e3, 1e-3 / ase_units.fs, 2.418884326509e-5),
        "ENERGY": (1.0, 4.184, ase_units.mol / ase_units.kJ, 2625.499638, 1e-3),
        "LENGTH": (1.0, 0.1, 0.0529177210903),
    }
    for key, values in known.items():
        value = _number(line.keywords.get(key))
        if value is None or any(abs(value - v) < 1e-4 * v for v in values):
            continue
        meant = {"TIME": "ps", "ENERGY": "kJ/mol", "LENGTH": "nm"}[key]
        warnings.warn(
            f"{place}: {key}={value:g} makes a unit of {value:g} {meant}, which is neither a "
            "common one nor one of ASE; positions, kT and time steps are converted whatever it "
            "says: it only sets the units of the input and of the files (Å, eV and ASE time: "
            f"UNITS LENGTH=A ENERGY={values_of_ase()['ENERGY']:.6f} "
            f"TIME={values_of_ase()['TIME']:.9f})",
            stacklevel=4,
        )


def values_of_ase() -> dict[str, float]:
    """The factors that make PLUMED's input and files use ASE's units."""
    return {"LENGTH": 0.1, "ENERGY": ASE_UNITS.energy, "TIME": ASE_UNITS.time}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
