"""Formats of ASE: frames written in each, and read as snapshots."""

from __future__ import annotations

import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import ioformats

from diffmd_ase import Snapshots
from tried.outcome import ABSENT, DIFFERS, HOLDS, REFUSED, Outcome, Trial, said

__all__ = ["trials"]

FRAMES = 3
PICTURES = {"eps", "gif", "html", "mp4", "png", "pov", "vti", "vtu", "x3d", "py"}
DATABASES = {"mysql", "postgresql"}
NAMES = {  # where the format is told by the name of a file, and not by its end
    "castep-cell": "some.cell",
    "dlp4": "CONFIG",
    "gpumd": "xyz.in",
    "turbomole": "coord",
    "vasp": "POSCAR",
    "vasp-xdatcar": "XDATCAR",
    "dftb": "geo_end.gen",
    "crystal": "fort.34",
}
OPTIONS = {"espresso-in": {"pseudopotentials": {"Cu": "Cu.upf", "C": "C.upf", "H": "H.upf"}}}


def trials() -> list[Trial]:
    """One for each format that ASE writes, but pictures and servers."""
    written = [
        name
        for name, form in sorted(ioformats.items())
        if form.can_write and name not in PICTURES | DATABASES
    ]
    return [Trial("Formats", name, partial(_try, name)) for name in written]


def _frames(periodic: bool) -> list[Atoms]:
    start = bulk("Cu", cubic=True) if periodic else molecule("CH4")
    frames = []
    for seed in range(FRAMES):
        atoms = start.copy()
        atoms.rattle(0.05, seed=seed)
        forces = np.zeros((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - seed, forces=forces)
        frames.append(atoms)
    return frames


def _try(name: str) -> Outcome:
    """A crystal and a molecule: what either of them shows."""
    found = [_read_back(name, _frames(periodic)) for periodic in (True, False)]
    if found[0].row == found[1].row:
        return found[0]
    for verdict in (DIFFERS, HOLDS):
        for outcome, what in zip(found, ("a crystal", "a molecule"), strict=True):
            if outcome.verdict == verdict:
                rest = next(o for o in found if o is not outcome)
                other = "a molecule" if what == "a crystal" else "a crystal"
                said_of = f"{what}: {outcome.words or 'as written'}"
                return Outcome(verdict, f"{said_of}; {other}: {rest.verdict}, {rest.words}")
    return found[0]


def _read_back(name: str, frames: list[Atoms]) -> Outcome:
    form = ioformats[name]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            return _as_snapshots(name, frames[:1] if form.single else frames)
        finally:
            os.chdir(before)


def _as_snapshots(name: str, frames: list[Atoms]) -> Outcome:
    form = ioformats[name]
    path = NAMES.get(name, f"some.{form.extensions[0] if form.extensions else name}")
    given = frames if len(frames) > 1 else frames[0]
    try:
        ase.io.write(path, given, format=name, **OPTIONS.get(name, {}))
    except ImportError as error:
        return Outcome(ABSENT, said(error))
    except Exception as error:
        return Outcome(ABSENT, f"ASE does not write it so: {type(error).__name__}, {said(error)}")
    if not form.can_read:
        return Outcome(ABSENT, "ASE does not read it")
    try:
        again = ase.io.read(path, ":")
    except Exception as error:
        again = error
    try:
        snapshots = Snapshots.read(Path(path), temperature_K=300)
    except ValueError as error:
        return Outcome(REFUSED, said(error))
    if isinstance(again, Exception):
        return Outcome(DIFFERS, "read, although ASE cannot")
    return _same(snapshots, again, frames)


def _same(snapshots: Snapshots, again: list[Atoms], frames: list[Atoms]) -> Outcome:
    """Equal to what ASE reads; and what the format has kept of what was written."""
    read = np.array([atoms.positions for atoms in again])
    system = snapshots.system
    if not (
        np.array_equal(snapshots.positions, read.astype(snapshots.positions.dtype))
        and np.array_equal(system.numbers, again[0].numbers)
        and np.array_equal(system.pbc, again[0].pbc)
    ):
        return Outcome(DIFFERS, "other positions, elements or pbc than ASE reads")
    words = []
    if len(again) != len(frames):
        words.append(f"{len(again)} of {len(frames)} frames")
    if not np.array_equal(again[0].numbers, frames[0].numbers):
        words.append("other elements")
    else:
        words += _moved(read[0] - frames[0].positions, again[0])
    if not np.array_equal(system.pbc, frames[0].pbc):
        words.append("no pbc")
    kept = {"energies": snapshots.energies, "forces": snapshots.forces}
    lost = [name for name, values in kept.items() if values is None]
    words += [f"no {' or '.join(lost)}"] * bool(lost)
    return Outcome(HOLDS, f"the format has {', '.join(words)}" if words else "")


def _moved(d: np.ndarray, atoms: Atoms) -> list[str]:
    """What the format has made of positions, from the differences ``d`` (N, 3)."""
    if np.abs(d).max() < 2e-3:
        return []
    if np.abs(d).max() < 1.1e-2:
        return ["two decimals"]
    whole = atoms.cell.scaled_positions(d) if atoms.cell.rank == 3 else d
    if np.abs(whole - whole.round()).max() < 1e-3:
        return ["atoms wrapped into the cell"]
    return ["another origin or axes"]
