"""Distances, angles, images and rotations, of arrays and of tensors alike.

Positions are (*batch, N, 3) in Å, angles in rad. What takes an array gives an array; what takes
a tensor gives a tensor of its precision and device, through which derivatives flow. Networks,
which evaluate all coordinates of a molecule at once, have fused forms of their own
(`score.force_field`).

Where a function has no derivative (the distance of two atoms in one place, the angle of three in
a line) its first and second derivatives are zero, the mean over all directions, and not NaN: a
force that is not there does no harm, and one that is there vanishes by symmetry. PLUMED's ANGLE
and COORDINATION do the same. An angle or a dihedral that is not defined is 0.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from ase.geometry import minkowski_reduce

from .system import System

__all__ = [
    "Lattice",
    "angle",
    "angles",
    "by_cell",
    "dihedral",
    "dihedrals",
    "direction",
    "distances",
    "is_straight",
    "minimum_image",
    "norm",
    "quotient",
    "rotate_about",
    "shortest",
    "signed_volumes",
    "triple_product",
]


def distances(x, pairs, *, system: System | None = None):
    """``|x_j - x_i|`` in Å of ``pairs`` (n, 2) in ``x`` (*batch, N, 3): (*batch, n).

    Of the nearest images if ``system`` is periodic.
    """
    (d,) = _bonds(x, pairs, [(0, 1)], system)
    return norm(d)


def angles(x, triples, *, system: System | None = None):
    """Angles i-j-k in [0, π] at the middle atom of ``triples`` (n, 3) in ``x``: (*batch, n).

    Of the nearest images if ``system`` is periodic.
    """
    return angle(*_bonds(x, triples, [(1, 0), (1, 2)], system))


def dihedrals(x, quadruples, *, system: System | None = None):
    """Dihedrals i-j-k-l in (-π, π] of ``quadruples`` (n, 4) in ``x``: (*batch, n); IUPAC sign.

    Of the nearest images if ``system`` is periodic.
    """
    return dihedral(*_bonds(x, quadruples, [(0, 1), (1, 2), (2, 3)], system))


def angle(u, v):
    """Angle in [0, π] between vectors (…, 3): ``atan2(|u×v|, u·v)``; 0 if one of them is 0.

    It keeps its precision at 0 and π, which arccos does not.
    """
    sine, cosine = norm(_cross(u, v)), (u * v).sum(-1)
    if _differentiated(sine):
        sine, cosine = _constant((sine == 0.0) & (cosine == 0.0), sine, cosine)
    return _namespace(sine).atan2(sine, cosine)


def dihedral(b1, b2, b3):
    """Dihedral in (-π, π] of three bonds (…, 3) in a row.

    ``atan2(|b2| b1·(b2×b3), (b1×b2)·(b2×b3))``, the sign of ``ase.Atoms.get_dihedral``, there in
    [0°, 360°).
    """
    n1, n2 = _cross(b1, b2), _cross(b2, b3)
    sine, cosine = norm(b2) * (b1 * n2).sum(-1), (n1 * n2).sum(-1)
    if _differentiated(sine):
        u, v, w, m, n = ((a * a).sum(-1) for a in (b1, b2, b3, n1, n2))
        straight = is_straight(m, u, v) | is_straight(n, v, w)
        sine, cosine = _constant(straight, sine, cosine)
    return _namespace(sine).atan2(sine, cosine)


def is_straight(n2: torch.Tensor, u2: torch.Tensor, v2: torch.Tensor) -> torch.Tensor:
    """Whether a normal n = u×v is rounding only, ``|n| ≤ 64 ε |u||v|``.

    ``n2``, ``u2`` and ``v2`` are the squares of the three (any shape), ε is their precision. Such
    a normal has no direction that means anything.
    """
    return n2 <= (64.0 * torch.finfo(n2.dtype).eps) ** 2 * u2 * v2


def norm(v):
    """``|v|`` of vectors (…, 3); of tensors with derivatives zero where v is."""
    square = (v * v).sum(-1)
    if not _differentiated(square):
        return square**0.5
    zero = square == 0.0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square) ** 0.5)


def direction(v):
    """``v/|v|`` of vectors (…, 3), and 0 where v is."""
    return quotient(v, norm(v)[..., None])


def quotient(a, b):
    """``a/b``, and 0 where b is 0: a direction or a slope where there is none."""
    xp, zero = _namespace(b), b == 0.0
    return xp.where(zero, 0.0, a) / xp.where(zero, 1.0, b)


def triple_product(a, b, c, *, axis: int = -1):
    """``a·(b×c)`` of vectors whose components run along ``axis``, which is gone from the result."""
    return (a * _cross(b, c, axis)).sum(axis)


def signed_volumes(x, centres):
    """Signed volumes of ``centres`` (C, 4) in ``x`` (*batch, N, 3): (*batch, C) in Å³.

    ``(i-c)·((j-c)×(k-c))`` of the atoms c, i, j, k of each.
    """
    return triple_product(*_bonds(x, centres, [(0, 1), (0, 2), (0, 3)]))


def rotate_about(x, a, b, angle):
    """Positions x (*batch, N, 3) after a turn about the line from a to b (Rodrigues' formula).

        v cos φ + (u×v) sin φ + u (u·v) (1 - cos φ)    v = x - a, u along b - a

    Where a = b there is no line, and nothing turns.

    Parameters
    ----------
    a, b : (*batch, 3)
    angle : φ (*batch) in rad
    """
    xp = _namespace(x)
    u, v = direction(b - a)[..., None, :], x - a[..., None, :]
    angle = xp.where(norm(b - a) == 0.0, 0.0, angle)
    cosine, sine = xp.cos(angle)[..., None, None], xp.sin(angle)[..., None, None]
    along = u * (u * v).sum(-1)[..., None]
    return a[..., None, :] + v * cosine + _cross(u, v) * sine + along * (1.0 - cosine)


def shortest(difference, periods):
    """``d - p round(d/p)``: differences brought into half a period about zero.

    ``difference``: (…, d); ``periods``: (d,), ``inf`` where nothing is to change.
    """
    xp, periods = _namespace(difference), _like(difference, periods)
    return difference - (difference / periods).round() * xp.nan_to_num(periods, posinf=0.0)


def minimum_image(d, system: System):
    """The shortest of the periodic images of displacements ``d`` (…, 3) in Å, in any cell."""
    return Lattice(system).nearest(d) if system.periodic else d


def by_cell(measure, x: np.ndarray, cells: np.ndarray, *, system: System) -> np.ndarray:
    """``measure(x, system)`` where each frame has a cell of its own, as at constant pressure.

    Parameters
    ----------
    measure : function of positions (M, N, 3) and their system, gives (M, …)
    x : (*batch, N, 3)
    cells : (*batch, 3, 3) in Å
    system : with another cell in each call

    Returns (*batch, …).
    """
    frames = x.reshape(-1, *x.shape[-2:])
    own, number, counts = np.unique(
        cells.reshape(-1, 9), axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(number.ravel(), kind="stable")
    rows = np.split(order, np.cumsum(counts)[:-1])
    values = np.concatenate(
        [
            measure(frames[of], replace(system, cell=cell.reshape(3, 3)))
            for of, cell in zip(rows, own, strict=True)
        ]
    )
    return values[np.argsort(order)].reshape(*x.shape[:-2], *values.shape[1:])


class Lattice:
    """The k periodic directions of a system, as the shortest vectors that span them.

    In a basis that is reduced in the sense of Minkowski (Nguyen & Stehlé, ACM Trans. Algorithms
    5, 46 (2009)) the shortest image of a displacement is the wrapped one or next to it.

    Attributes
    ----------
    vectors : (k, 3) in Å
    widths : (k,) distances of the lattice planes, in Å

    Raises ``ValueError`` for a system without periodic directions.
    """

    vectors: np.ndarray
    widths: np.ndarray

    def __init__(self, system: System):
        if not system.periodic:
            raise ValueError(f"pbc={system.pbc.tolist()}: expected a direction with images")
        reduced, _ = minkowski_reduce(system.cell, system.pbc)
        self.vectors = np.array(reduced)[system.pbc]
        self._inverse = np.linalg.pinv(self.vectors)
        self.widths = 1.0 / np.linalg.norm(self._inverse, axis=0)
        square = self.vectors @ self.vectors.T
        skew = np.abs(square - np.diag(np.diag(square))).max() > 1e-12 * np.abs(square).max()
        self._near = self.images([1] * len(square)) if skew else None

    def images(self, reach) -> np.ndarray:
        """Shifts (n, 3) by up to ``reach`` (k,) times each vector, either way; zero first."""
        times = product(*(range(-r, r + 1) for r in reach))
        return np.array(sorted(times, key=any), float) @ self.vectors

    def wrap(self, d):
        """The images (…, 3) with coordinates in [-½, ½] along the vectors.

        Those that are shorter than half the smallest of the widths are the nearest ones.
        """
        inverse, vectors = _like(d, self._inverse), _like(d, self.vectors)
        return d - (d @ inverse).round() @ vectors

    def nearest(self, d):
        """The shortest images (…, 3)."""
        d = self.wrap(d)
        if self._near is None:
            return d
        near = _like(d, self._near)
        longer = d @ (2.0 * near.T) + (near * near).sum(-1)  # |d + s|² - |d|²
        return d + near[longer.argmin(-1)]


def _bonds(x, rows, ends, system: System | None = None) -> list[Any]:
    """Vectors (*batch, n, 3) from one column of ``rows`` to another, for each of ``ends``."""
    rows = np.asarray(rows, dtype=int).reshape(len(rows), -1 if len(rows) else 4)
    bonds = [x[..., rows[:, j], :] - x[..., rows[:, i], :] for i, j in ends]
    if system is None or not system.periodic:
        return bonds
    lattice = Lattice(system)
    return [lattice.nearest(d) for d in bonds]


def _constant(where, *values):
    """``values``, without derivatives ``where`` it says."""
    return (torch.where(where, value.detach(), value) for value in values)


def _differentiated(x) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def _cross(a, b, axis: int = -1):
    if isinstance(a, torch.Tensor):
        return torch.linalg.cross(a, b, dim=axis)
    return np.cross(a, b, axis=axis)


def _namespace(x) -> Any:
    return torch if isinstance(x, torch.Tensor) else np


def _like(x, values):
    if not isinstance(x, torch.Tensor):
        return values
    # a float does not pass through torch's default precision
    return torch.as_tensor(values, dtype=x.dtype, device=x.device)
