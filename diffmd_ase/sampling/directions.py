"""The directions in which atoms move: what linear constraints leave of them.

An atom in a plane or on a line moves in a subspace that stays the same wherever it is. With Q the
projectors on these subspaces, one for each atom, drift and noise of a step become

    x' = x + Q h F/kT + Q sqrt(2h) ξ        M = h Q

a constant metric: the chain is that of the coordinates in the subspace, and needs no correction,
as bonds and angles that are held would (Ciccotti, Lelièvre & Vanden-Eijnden, Commun. Pure Appl.
Math. 61, 371 (2008)).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["along", "check_directions", "split"]

_ROUNDED = 1e-9


def along(directions: Tensor, v: Tensor) -> Tensor:
    """``Q v``: the part of v (*batch, N, 3) along ``directions`` (N, 3, 3)."""
    return torch.einsum("nij,...nj->...ni", directions.to(v), v)


def check_directions(directions: Tensor | None, *, mean_free: bool) -> None:
    """Raise ``ValueError`` unless ``directions`` are None or (N, 3, 3) projectors.

    With ``mean_free`` those of all atoms must be the same: another one would move the mean.
    """
    if directions is None:
        return
    q = torch.as_tensor(directions, dtype=torch.float64)
    if q.ndim != 3 or q.shape[1:] != (3, 3):
        raise ValueError(
            f"directions {tuple(q.shape)}: expected a projector of each atom, (N, 3, 3)"
        )
    if not ((q - q.mT).abs() < _ROUNDED).all() or not ((q @ q - q).abs() < _ROUNDED).all():
        raise ValueError(
            "directions are no projectors: expected Q = Qᵀ = Q² of each atom, such as n nᵀ for a "
            "line along the unit vector n and 1 - n nᵀ for a plane across it"
        )
    if mean_free and not ((q - q[0]).abs() < _ROUNDED).all():
        raise ValueError(
            "mean_free=True with atoms that move in different directions: those that are held "
            "already hold the mean; use one of the two"
        )


def split(moving: np.ndarray) -> tuple[np.ndarray, Tensor | None]:
    """Which atoms move (N,), and in which directions (N, 3, 3), None: in all.

    ``moving`` is (N,) bool, or (N, 3, 3) projectors on the directions of each atom.
    """
    if np.ndim(moving) == 1:
        return moving.astype(bool), None
    some: np.ndarray = np.abs(moving).max(axis=(1, 2)) > 0
    if np.array_equal(moving[some], np.broadcast_to(np.eye(3), (int(some.sum()), 3, 3))):
        return some, None
    return some, torch.as_tensor(moving, dtype=torch.float64)
