"""Constraints of ASE as what moves: those that are linear hold, the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
)

__all__ = ["LINEAR", "what_moves"]


def _along_cell(constraint: FixScaled, atoms: Atoms) -> np.ndarray:
    """Normals of what keeps a scaled coordinate: rows of the reciprocal cell."""
    return atoms.cell.complete().reciprocal()[constraint.mask]


# the directions (k, 3) that a constraint takes from each of its atoms
LINEAR: dict[type, Callable[[Any, Atoms], np.ndarray]] = {
    FixAtoms: lambda constraint, atoms: np.eye(3),
    FixCartesian: lambda constraint, atoms: np.eye(3)[constraint.mask],
    FixScaled: _along_cell,
    FixedPlane: lambda constraint, atoms: constraint.dir[None],
    FixedLine: lambda constraint, atoms: np.eye(3) - np.outer(constraint.dir, constraint.dir),
}
"""Constraints on atoms of their own, as subspaces that are the same wherever the atoms are."""


def what_moves(atoms: Atoms) -> tuple[np.ndarray, bool]:
    """Projectors (N, 3, 3) on the directions in which each atom moves; whether the centre is held.

    Several constraints on one atom leave what all of them leave.

    Raises
    ------
    ValueError : a constraint that is not linear; `FixCom` where atoms move in different directions
    """
    taken: list[list[np.ndarray]] = [[] for _ in range(len(atoms))]
    com = False
    for constraint in atoms.constraints:
        kind = type(constraint)
        if kind is FixCom:
            com = True
        elif kind in LINEAR:
            normals = LINEAR[kind](constraint, atoms)
            for index in np.arange(len(atoms))[constraint.index]:
                taken[index].append(normals)
        else:
            raise ValueError(
                f"{kind.__name__} is not supported: overdamped steps projected on "
                "internal constraints sample with a metric factor, and energies do not belong "
                f"in constraints; use {', '.join(c.__name__ for c in LINEAR)}, FixCom, or a "
                "restraint as bias"
            )
    moving = np.stack([_left(parts) for parts in taken])
    if com and not np.allclose(moving, moving[:1]):
        others = {type(c).__name__ for c in atoms.constraints} - {"FixCom"}
        raise ValueError(
            f"FixCom with {' and '.join(sorted(others))} of some atoms: those that are held "
            "already hold the origin, drop FixCom"
        )
    if com and not moving.any():
        com = False  # and nothing moves, which is another error
    return moving, com


def _left(normals: list[np.ndarray]) -> np.ndarray:
    """The projector (3, 3) on what is across all ``normals``; exact where these are axes."""
    if not normals:
        return np.eye(3)
    rows = np.concatenate(normals)
    _, sizes, axes = np.linalg.svd(rows)
    axes = axes[: np.count_nonzero(sizes > 1e-9)]
    left = np.eye(3) - axes.T @ axes
    near = np.round(left)
    return np.where(np.abs(left - near) < 1e-14, near, left)
