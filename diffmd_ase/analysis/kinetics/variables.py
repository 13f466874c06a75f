"""Variables of trajectories that have a clock, evaluated block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...io.blocks import measured
from ...io.trajectory import Trajectory
from ...score.topology import Topology
from ...system import System
from ..observables import Coordinate, angular_vectors
from .clock import Clock, clock_of

__all__ = [
    "Variable",
    "Variables",
    "common_clock",
    "cut_off",
    "gyration",
    "opened",
    "read_variables",
]

_PARTS = 20  # of one walker
_LOOK = 1000  # frames that say which atoms are bonded


@dataclass(frozen=True)
class Variable:
    """A ``function`` of positions (T', W, N, 3) in Å that gives (T', W), by ``name``.

    ``angular``: it is an angle in rad with the period 2π.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    angular: bool = False


@dataclass(frozen=True, eq=False)
class Variables:
    """Variables of all frames; made by `read_variables`, or of arrays."""

    names: tuple[str, ...]  # (n,) of the variables
    values: np.ndarray  # (T, W, n), rad and Å
    angular: tuple[bool, ...]  # (n,) whether each has the period 2π
    spacing: float  # between two frames, in ``unit``
    unit: str  # "Å²" of D·t, or "fs"
    notes: tuple[str, ...] = ()  # what was left out or cut, in words

    def series(self, name: str) -> np.ndarray:
        """(T, W), or (T, W, 2) with cosine and sine of an angle. Raises ``ValueError``."""
        if name not in self.names:
            raise ValueError(f"no variable {name!r}: there are {', '.join(self.names)}")
        n = self.names.index(name)
        values = self.values[..., n]
        return angular_vectors(values) if self.angular[n] else values

    def features(self) -> np.ndarray:
        """(T, W, m): cosines and sines of angles, others less their mean over their spread."""
        columns = []
        for name, angular in zip(self.names, self.angular, strict=True):
            v = self.series(name)
            scaled = v if angular else ((v - v.mean()) / (v.std() or 1.0))[..., None]
            columns.append(scaled)
        return np.concatenate(columns, axis=-1)

    def in_parts(self) -> Variables:
        """The same, one walker alone cut into 20 parts, whose spread is the error.

        Raises ``ValueError`` for one walker of fewer than 80 frames.
        """
        if self.values.shape[1] > 1:
            return self
        length = len(self.values) // _PARTS
        if length < 4:
            raise ValueError(
                f"{len(self.values)} frames of one walker: expected {4 * _PARTS} at least"
            )
        parts = self.values[: length * _PARTS, 0].reshape(_PARTS, length, -1).swapaxes(0, 1)
        note = f"one walker, cut into {_PARTS} parts whose spread gives the errors"
        return replace(self, values=parts, notes=(*self.notes, note))


def gyration(x: np.ndarray) -> np.ndarray:
    """Radius of gyration in Å, all atoms alike, of positions ``x`` (*batch, N, 3): (*batch)."""
    centred = x - x.mean(-2, keepdims=True)
    return np.sqrt((centred.astype(float) ** 2).sum(-1).mean(-1))


def read_variables(
    paths: Sequence[Path],
    wanted: Sequence[str | Variable] = (),
    *,
    skip: float = 0.0,
    force: bool = False,
) -> Variables:
    """Variables of all walkers of H5MD files, side by side, with one block of frames in memory.

    Parameters
    ----------
    paths : files of one system and one clock; cut to the shortest
    wanted : ``phi=torsion:4,6,8,14``, ``d=distance:0,5``, ``a=angle:0,1,2`` (atoms from 0),
        ``gyration``, ``torsions``, or functions; default ``torsions``: one for each bond between
        heavy atoms that turns
    skip : fraction of the frames left out at first
    force : as of `clock_of`

    Raises
    ------
    FileNotFoundError : no such file
    ValueError : no clock, clocks or systems that differ, no variables, all walkers lost
    """
    if not paths:
        raise ValueError("no files: give at least one trajectory of `diffmd run`")
    readers = [opened(Path(path)) for path in paths]
    one, clock = readers[0], common_clock(readers, force)
    notes = cut_off(readers)
    variables = _variables(wanted or ["torsions"], one)

    def measure(x: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(v.function(x)) for v in variables], axis=-1)

    parts = [measured(reader, measure, skip=skip) for reader in readers]
    count = min(map(len, parts))
    values = np.concatenate([part[:count] for part in parts], axis=1).astype(float)
    kept = np.isfinite(values).all((0, 2))
    if not kept.any():
        raise ValueError(f"{one.path}: all walkers were lost, there is nothing to analyse")
    if not kept.all():
        notes.append(f"{int((~kept).sum())} lost walkers are left out")
    names = tuple(v.name for v in variables)
    angular = tuple(v.angular for v in variables)
    return Variables(names, values[:, kept], angular, clock.spacing, clock.unit, tuple(notes))


def opened(path: Path) -> Trajectory:
    """The trajectory at ``path``, H5MD. Raises ``ValueError`` for another ending."""
    if path.suffix != ".h5":
        raise ValueError(
            f"{path} says nothing of its time step: time correlations need .h5 of `diffmd run`"
        )
    return Trajectory(path)


def cut_off(readers: Sequence[Trajectory]) -> list[str]:
    """In words, which of the ``readers`` were not closed: their whole frames are used."""
    return [
        f"{r.path.name}: being written, or cut off by a kill; its {len(r)} whole frames are used"
        for r in readers
        if not r.closed_cleanly
    ]


def common_clock(readers: Sequence[Trajectory], force: bool) -> Clock:
    """The clock that all of the ``readers`` have, ``force`` as of `clock_of`.

    Raises ``ValueError`` for clocks or systems that differ.
    """
    one, clock = readers[0], clock_of(readers[0], force=force)
    for reader in readers[1:]:
        other = clock_of(reader, force=force)
        if other.unit != clock.unit or not np.isclose(other.spacing, clock.spacing, rtol=1e-9):
            raise ValueError(
                f"{reader.path} has a frame every {other.spacing:.6g} {other.unit}, {one.path} "
                f"every {clock.spacing:.6g} {clock.unit}: analyse them one by one"
            )
        if difference := reader.system.difference(one.system):
            raise ValueError(
                f"{reader.path} and {one.path} are of different systems, which differ in "
                f"{difference}; analyse them one by one"
            )
    return clock


def _variables(wanted: Sequence[str | Variable], trajectory: Trajectory) -> list[Variable]:
    found: list[Variable] = []
    for item in wanted:
        if isinstance(item, Variable):
            found.append(item)
        elif item == "torsions":
            found += _torsions(trajectory)
        elif item == "gyration":
            found.append(Variable("gyration", gyration))
        else:
            others = ("torsions", "gyration")
            coordinate = Coordinate.parse(item, len(trajectory.system), others=others)
            found.append(_of_coordinate(coordinate, trajectory.system))
    if not found:
        raise ValueError(
            "no torsion of heavy atoms turns in this system: name a variable, such as "
            "d=distance:0,1"
        )
    names = [v.name for v in found]
    if len(set(names)) < len(names):
        raise ValueError(f"variables {', '.join(names)}: each needs a name of its own")
    return found


def _of_coordinate(coordinate: Coordinate, system: System) -> Variable:
    def function(x: np.ndarray) -> np.ndarray:
        return np.asarray(coordinate(x, system))

    return Variable(coordinate.name, function, coordinate.kind == "torsion")


def _torsions(trajectory: Trajectory) -> list[Variable]:
    system = trajectory.system
    if system.periodic or len(system) < 4:
        return []
    frames = trajectory.positions[:: max(1, len(trajectory) // _LOOK), 0]
    frames = frames[np.isfinite(frames).all((1, 2))]
    rows = Topology.from_positions(system.numbers, frames.astype(float)).torsions.tolist()
    heavy = [row for row in rows if (system.numbers[row] > 1).all()]
    found = (Coordinate(f"torsion:{','.join(map(str, q))}", "torsion", tuple(q)) for q in heavy)
    return [_of_coordinate(coordinate, system) for coordinate in found]
