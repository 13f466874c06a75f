"""Variables and biases of an input at the frames of a trajectory, as ``plumed driver`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from diffmd_ase.units import kT_from_temperature

from .at_hand import bring
from .check import check_input
from .driver import Driver
from .files import refuse_existing
from .frames import Frames, read_frames
from .instances import Instances
from .potential import WALKER, takes_walker
from .script import read_lines
from .units import Units

__all__ = ["reevaluate"]

# those of `plumed driver --length-units A`: numbers with all their digits depend on them
_UNITS = Units(length=0.1, energy=1.0, time=1.0)


def reevaluate(
    input: str | Path,
    trajectory: str | Path,
    *,
    directory: str | Path = ".",
    walkers: Sequence[int] | None = None,
    shared: bool = False,
    timestep_ps: float | None = None,
    stride: int | None = None,
    initial_step: int | None = None,
    kT: float | None = None,
    temperature_K: float | None = None,
    box: str | Sequence[float] | None = None,
    masses_charges: str | Path | None = None,
    allow_load: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a PLUMED input at the frames of a trajectory; what it prints is in ``directory``.

    Every frame is a step of PLUMED, with an update; then come its final jobs. The files are, as
    text, those of ``plumed driver`` with the same frames, step, kT and masses. One walker: they are
    in ``directory``; several: each walker has a PLUMED of its own in ``walker-0``, ``walker-1``, …,
    or one is ``shared`` by all, in turn at each step. A run that COMMITTOR stops ends there.

    Parameters
    ----------
    input : path of a PLUMED input; relative names in it mean the present folder
    trajectory : ``.h5`` of ``diffmd run``, or any file that ASE reads
    directory : of the files that PLUMED writes
    walkers : numbers of those to evaluate; None: all
    shared : one PLUMED for all walkers, as in ``diffmd run --plumed``
    timestep_ps : of a step; None: as the file says, or 1 ps
    stride : steps between frames; None: as the file says, or 1
    initial_step : step of the first frame; None: as the file says, or 0
    kT : in kJ/mol, or else ``temperature_K``; None: as the file says
    box : of all frames, 3 edges or 9 numbers of the vectors in Å; None: that of each frame
    masses_charges : file of DUMPMASSCHARGE; None: masses and charges of the trajectory
    allow_load : whether the input may run code of files, see `PlumedPotential`
    progress : called with frames done and their number

    Returns
    -------
    frames, walkers, first and last time in ps, and the files that were written

    Raises
    ------
    FileNotFoundError : no such trajectory, input or file
    FileExistsError : files would be overwritten
    PlumedInputError : a ValueError with the number of the line and PLUMED's own words
    ValueError : walkers that are not in the trajectory, frames that do not fit
    """
    folder = Path(os.path.abspath(directory))
    frames = read_frames(Path(trajectory)).numbered(stride, initial_step)
    columns = _columns(frames, walkers)
    shared = shared or len(columns) == 1
    cell = None if box is None else _cell(box)
    settings = _settings(frames, timestep_ps, kT, temperature_K, cell, masses_charges)
    lines = read_lines(input)
    checked = check_input(lines, len(frames.masses), allow_load=allow_load, **settings)
    if checked.needs_energy:
        raise ValueError("the input asks for ENERGY, which PLUMED is given in a run only")
    if shared:
        refuse_existing(folder, checked.files)
    folder.mkdir(parents=True, exist_ok=True)
    if folder != Path.cwd():
        variants = (bring(Path.cwd(), folder, v, checked.files) for v in checked.variants)
        checked = replace(checked, variants=tuple(map(tuple, variants)))
    instances = Instances(
        len(frames.masses),
        checked,
        lambda driver, labels: None,
        source=lines,
        walkers="shared" if shared else "independent",
        restart=False,
        directory=folder,
        first_step=int(frames.steps[0]),
        settings=settings,
        numbers=frames.walkers[columns].tolist(),
    )
    tagged = takes_walker(checked.script)
    try:
        done = _follow(instances, frames, columns, cell, tagged, progress)
    finally:
        instances.finalize()
    written = [folder / name for name in checked.files] + [
        path for name in checked.files for path in folder.glob(f"walker-*/{name}")
    ]
    times = settings["timestep"] * frames.steps[[0, done - 1]]
    return {
        "frames": done,
        "walkers": frames.walkers[columns].tolist(),
        "times_ps": times.tolist(),
        "files": sorted(os.path.relpath(path) for path in written if path.is_file()),
    }


def _follow(
    instances: Instances,
    frames: Frames,
    columns: np.ndarray,
    box: np.ndarray | None,
    tagged: bool,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Give PLUMED the frames; how many it took."""
    number = 0

    def commit(walker: int, x: np.ndarray, step: int) -> dict:
        driver = instances.of(walker)
        driver.set_box(frames.cell(number, columns[walker]) if box is None else box)
        if tagged:
            driver.set_extra(WALKER, float(instances.name(walker)))
        driver.calculate(x, step)
        driver.update()
        return {}

    for number, (step, every) in enumerate(frames):
        x = every[columns]
        left = np.isfinite(x).all((1, 2)) & ~_stopped(instances, len(columns))
        if not left.all():  # lost, or where COMMITTOR has stopped them
            if not left.any():
                return number
            instances.select(left.tolist())
            columns, x = columns[left], x[left]
        (instances.learn if instances.begun else instances.begin)(step, x, "positions", commit)
        if progress is not None:
            progress(number + 1, len(frames))
    return len(frames)


def _stopped(instances: Instances, walkers: int) -> np.ndarray:
    drivers: list[Driver] = instances.drivers
    stopped = np.array([driver.stopped for driver in drivers], bool)
    return np.resize(stopped, walkers) if len(drivers) else np.zeros(walkers, bool)


def _table(path: str | Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError:
        table = np.empty((0, 0))
    if table.shape != (count, 3):
        raise ValueError(
            f"{path}: expected index, mass and charge of each of {count} atoms, as "
            f"DUMPMASSCHARGE writes them, got a table of shape {table.shape}"
        )
    return table[:, 1], table[:, 2]


def _cell(box: str | Sequence[float]) -> np.ndarray:
    numbers = box.split(",") if isinstance(box, str) else box
    try:
        values = np.array([float(number) for number in numbers])
        return np.diag(values) if len(values) == 3 else values.reshape(3, 3)
    except ValueError:
        raise ValueError(f"{box=}: expected 3 or 9 numbers in Å, with commas") from None


def _columns(frames: Frames, walkers: Sequence[int] | None) -> np.ndarray:
    if walkers is None:
        return np.arange(len(frames.walkers))
    places = {number: place for place, number in enumerate(frames.walkers.tolist())}
    missing = [number for number in walkers if number not in places]
    if missing or not walkers:
        raise ValueError(f"no walkers {missing}: the trajectory has {list(places)}")
    return np.array(sorted({places[number] for number in walkers}))


def _settings(
    frames: Frames,
    timestep_ps: float | None,
    kT: float | None,
    temperature_K: float | None,
    box: np.ndarray | None,
    masses_charges: str | Path | None,
) -> dict[str, Any]:
    if kT is not None and temperature_K is not None:
        raise ValueError(f"{kT=} kJ/mol and {temperature_K=}: give one of them")
    if temperature_K is not None:
        kT = kT_from_temperature(temperature_K) * units.mol / units.kJ
    masses, charges = frames.masses, frames.charges
    if masses_charges is not None:
        masses, charges = _table(masses_charges, len(masses))
    if kT is None and frames.kT is not None:
        kT = frames.kT * units.mol / units.kJ
    if timestep_ps is None:
        timestep_ps = 1.0 if frames.timestep_ps is None else frames.timestep_ps
    return {
        "kT": kT,
        "timestep": float(timestep_ps),
        "units": _UNITS,
        "masses": masses,
        "charges": charges,
        "box": frames.cell(0, 0) if box is None else box,
    }
