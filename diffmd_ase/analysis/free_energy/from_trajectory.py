"""Collective variables of plain trajectories, for `diffmd fes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...geometry import angles, dihedrals, distances
from ...io.plumed_tables import thermal_energy
from ...io.trajectory import Trajectory
from .reweighting import Samples

__all__ = ["measured"]

_FRAMES = 500  # held at a time
_WIDTHS = {"torsion": 4, "distance": 2, "angle": 3}


def measured(
    paths: Sequence[Path], variables: Sequence[str], progress: Callable[[float, str], None]
) -> tuple[Samples, float, list[str]]:
    """Samples, the temperature in K of the first run, and notes.

    ``variables`` : ``phi=torsion:4,6,8,14``, ``a=angle:0,1,2``, ``d=distance:0,5``: atoms
    counted from 0, rad and Å.

    Raises ``ValueError`` for other words, atoms that there are not, or empty trajectories.
    """
    definitions = [_definition(text) for text in variables]
    if not definitions:
        raise ValueError("a trajectory needs variables: --cv phi=torsion:4,6,8,14")
    parts, kelvin = [], []
    walkers: list[np.ndarray] = []
    for path in paths:
        trajectory = Trajectory(path)
        if not len(trajectory):
            raise ValueError(f"{path} has no frames yet")
        kT = np.unique(trajectory.info.kT)
        if len(kT) > 1:
            raise ValueError(f"{path}: its walkers ran at {len(kT)} temperatures; give one of them")
        kelvin.append(float(kT[0]) / thermal_energy(1.0, "eV"))
        values = _measure(trajectory, definitions, progress)
        offset = sum(w.max() + 1 for w in walkers)
        walkers.append(np.repeat(np.arange(values.shape[1]), len(values)) + offset)
        parts.append(np.swapaxes(values, 0, 1).reshape(-1, len(definitions)))
    s, walker = np.concatenate(parts), np.concatenate(walkers)
    fine = np.isfinite(s).all(1)
    notes = [] if fine.all() else [f"{(~fine).sum()} frames of lost walkers left out"]
    periods = np.array([2 * np.pi if what == "torsion" else 0.0 for _, what, _ in definitions])
    names = tuple(name for name, _, _ in definitions)
    samples = Samples(s[fine], np.zeros(fine.sum()), walker[fine], names, periods)
    return samples, kelvin[0], notes


def _definition(text: str) -> tuple[str, str, tuple[int, ...]]:
    name, _, rest = text.partition("=")
    what, _, atoms = rest.partition(":")
    try:
        numbers = tuple(int(a) for a in atoms.split(","))
    except ValueError:
        numbers = ()
    if not name or _WIDTHS.get(what) != len(numbers):
        raise ValueError(
            f"variable {text!r}: expected name=torsion:i,j,k,l, name=angle:i,j,k or "
            "name=distance:i,j with atoms counted from 0"
        )
    return name, what, numbers


def _measure(trajectory: Trajectory, definitions, progress) -> np.ndarray:
    """(frames, walkers, d), nan where a walker was lost."""
    for name, _, atoms in definitions:
        if min(atoms) < 0 or max(atoms) >= len(trajectory.system):
            raise ValueError(
                f"{name}: atoms {atoms} of {len(trajectory.system)} in {trajectory.path}, which "
                "count from 0"
            )
    parts = []
    for start in range(0, len(trajectory), _FRAMES):
        x = trajectory.positions[start : start + _FRAMES].astype(float)
        columns = []
        for _, what, atoms in definitions:
            if what == "distance":
                columns.append(distances(x, [atoms], system=trajectory.system)[..., 0])
            elif what == "angle":
                columns.append(angles(x, [atoms])[..., 0])
            else:
                columns.append(dihedrals(x, [atoms])[..., 0])
        parts.append(np.stack(columns, -1))
        progress(0.05 + 0.5 * (start + len(x)) / len(trajectory), "variables")
    return np.concatenate(parts)
