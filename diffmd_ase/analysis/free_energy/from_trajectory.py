"""Collective variables of plain trajectories, for `diffmd fes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...io.plumed_tables import thermal_energy
from ...io.trajectory import Trajectory
from ..observables import Coordinate
from .reweighting import Samples

__all__ = ["measured"]

_FRAMES = 500  # held at a time


def measured(
    paths: Sequence[Path], variables: Sequence[str], progress: Callable[[float, str], None]
) -> tuple[Samples, float, list[str]]:
    """Samples, the temperature in K of the first run, and notes.

    Parameters
    ----------
    paths : HDF5 trajectories
    variables : ``phi=torsion:4,6,8,14``, ``a=angle:0,1,2``, ``d=distance:0,5``: atoms counted
        from 0, rad and Å
    progress : called with the finished fraction and the stage

    Raises
    ------
    ValueError : other words, atoms that there are not, empty trajectories, several temperatures
    """
    if not variables:
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
        n_atoms = len(trajectory.system)
        coordinates = [Coordinate.parse(text, n_atoms) for text in variables]
        values = _measure(trajectory, coordinates, progress)
        offset = sum(w.max() + 1 for w in walkers)
        walkers.append(np.repeat(np.arange(values.shape[1]), len(values)) + offset)
        parts.append(np.swapaxes(values, 0, 1).reshape(-1, len(variables)))
    s, walker = np.concatenate(parts), np.concatenate(walkers)
    fine = np.isfinite(s).all(1)
    notes = [] if fine.all() else [f"{(~fine).sum()} frames of lost walkers left out"]
    periods = np.array([coordinate.period for coordinate in coordinates])
    names = tuple(coordinate.name for coordinate in coordinates)
    samples = Samples(s[fine], np.zeros(fine.sum()), walker[fine], names, periods)
    return samples, kelvin[0], notes


def _measure(trajectory: Trajectory, coordinates, progress) -> np.ndarray:
    """(frames, walkers, d), nan where a walker was lost."""
    parts = []
    for start in range(0, len(trajectory), _FRAMES):
        x = trajectory.positions[start : start + _FRAMES].astype(float)
        parts.append(np.stack([measure(x, trajectory.system) for measure in coordinates], -1))
        progress(0.05 + 0.5 * (start + len(x)) / len(trajectory), "variables")
    return np.concatenate(parts)
