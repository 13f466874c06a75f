"""How far the atoms of trajectories go: displacements, diffusion, or the width of their cages."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...io.atomic import replacing
from ...io.blocks import measured
from ...io.json_text import to_json
from ...io.limits import check_memory
from ...system import System
from ..statistics import Estimate, jackknife_error
from .correlations import autocorrelation
from .diffusion import Diffusion, Displacements, diffusion, mean_squared_displacement
from .variables import common_clock, cut_off, opened

__all__ = ["Motion", "motion", "read_motion", "write_motion"]

_SHOWN = 40  # lags
_GROUPS = 20  # of walkers


@dataclass(frozen=True, eq=False)
class Motion:
    """Of the atoms of one element; made by `motion`."""

    name: str  # of the atoms
    unit: str  # of time: "Å²" of D·t, or "fs"
    displacements: Displacements
    diffusion: Diffusion | None  # None where atoms are caged, or walkers too short
    plateau: Estimate | None  # Å², of the displacements of caged atoms
    relaxation: Estimate | None  # integrated time of places in a cage, in ``unit``
    notes: tuple[str, ...]  # what could not be said, and why

    def to_dict(self) -> dict[str, Any]:
        """All numbers for JSON."""
        d, msd = self.diffusion, self.displacements
        return {
            "name": self.name,
            "unit": self.unit,
            "diffusion": None if d is None else d.coefficient.to_dict(),
            "offset": None if d is None else d.offset.to_dict(),
            "fitted_lags": None if d is None else d.lags.tolist(),
            "quality": None if d is None else d.quality,
            "plateau": None if self.plateau is None else self.plateau.to_dict(),
            "relaxation": None if self.relaxation is None else self.relaxation.to_dict(),
            "lags": msd.lags.tolist(),
            "msd": msd.values.tolist(),
            "msd_errors": msd.errors.tolist(),
            "notes": list(self.notes),
        }


def motion(x: np.ndarray, spacing: float, *, name: str = "atoms", unit: str = "Å²") -> Motion:
    """Displacements of atoms, their diffusion coefficient, and the plateau of those in cages.

    In a cage ``MSD(t) = 2 Σ var(x) [1 - C(t)]``, with C the autocorrelation of the places.

    Parameters
    ----------
    x : (T, W, n, 3) in Å, not wrapped into a cell
    spacing : between frames, in ``unit``
    name : of the atoms
    unit : of time

    Raises ``ValueError`` for another shape.
    """
    frames, walkers = x.shape[:2]
    lags = np.unique(np.geomspace(1, max(frames // 2, 1), _SHOWN).astype(int))
    moved, notes = mean_squared_displacement(x, spacing, lags=lags), []
    found = plateau = relaxation = None
    try:
        found = diffusion(x, spacing)
    except ValueError as error:
        notes.append(f"{name}: no diffusion coefficient: {error}")
    try:
        places = np.asarray(x, float).reshape(frames, walkers, -1)
        relaxation = autocorrelation(places, spacing).time
        plateau = _plateau(places, x.shape[2])
    except ValueError as error:  # they leave their cages, or one walker
        notes.append(f"{name}: no plateau: {error}")
    return Motion(name, unit, moved, found, plateau, relaxation, tuple(notes))


def _plateau(places: np.ndarray, atoms: int) -> Estimate:
    """``2 Σ var(x)`` of an atom: of places (T, W, 3 n) about those of all frames."""
    spread = 2 * ((places - places.mean((0, 1))) ** 2).mean(0).sum(-1) / atoms  # (W,)
    groups = np.array_split(np.arange(len(spread)), min(_GROUPS, len(spread)))
    left = [np.delete(spread, group).mean() for group in groups]
    return Estimate(float(spread.mean()), float(jackknife_error(left)), float(len(spread)))


def read_motion(
    paths: Sequence[Path], symbol: str, *, skip: float = 0.0, force: bool = False
) -> Motion:
    """`motion` of the atoms of an element in H5MD files, about the mean of all atoms.

    The places of those atoms are in memory, all else is read block by block.

    Parameters
    ----------
    paths : files of one system and one clock; cut to the shortest
    symbol : of the element, or "all"
    skip : fraction of the frames left out at first
    force : as of `clock_of`

    Raises
    ------
    FileNotFoundError : no such file
    ValueError : no clock, clocks or systems that differ, no such atoms, all walkers lost
    """
    if not paths:
        raise ValueError("no files: give at least one trajectory of `diffmd run`")
    readers = [opened(Path(path)) for path in paths]
    clock = common_clock(readers, force)
    chosen = _atoms(readers[0].system, symbol)
    for r in readers:
        numbers = len(r) * r.positions.shape[1] * 3 * len(chosen)
        check_memory(24 * numbers, f"{r.path}: places of {symbol}", "skip frames (--skip)")

    def places(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-2, keepdims=True))[..., chosen, :]

    parts = [measured(reader, places, skip=skip) for reader in readers]
    count = min(map(len, parts))
    x = np.concatenate([part[:count] for part in parts], axis=1)
    kept, notes = np.isfinite(x).all((0, 2, 3)), cut_off(readers)
    if not kept.any():
        raise ValueError(f"{paths[0]}: all walkers were lost, there is nothing to analyse")
    if not kept.all():
        notes.append(f"{int((~kept).sum())} lost walkers are left out")
    found = motion(x[:, kept], clock.spacing, name=symbol, unit=clock.unit)
    return replace(found, notes=(*notes, *found.notes))


def write_motion(found: Sequence[Motion], path: Path) -> list[Path]:
    """JSON of what was ``found`` to ``path``, and the displacements to .csv; gives the files."""
    table = path.with_suffix(".csv")
    with replacing(path) as part:
        part.write_text(to_json({"motion": [one.to_dict() for one in found]}) + "\n")
    with replacing(table) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["atoms", "lag", "unit", "msd", "error"])
        for one in found:
            moved = one.displacements
            for row in zip(moved.lags, moved.values, moved.errors, strict=True):
                writer.writerow([one.name, row[0], one.unit, *row[1:]])
    return [path, table]


def _atoms(system: System, symbol: str) -> np.ndarray:
    if symbol == "all":
        return np.arange(len(system))
    symbols = np.array(system.to_atoms(np.zeros((len(system), 3))).get_chemical_symbols())
    if symbol not in symbols:
        raise ValueError(
            f"no atoms of {symbol!r}: there are {', '.join(sorted(set(symbols)))}, or all"
        )
    return np.flatnonzero(symbols == symbol)
