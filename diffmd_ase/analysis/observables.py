"""What is measured on positions: arrays or tensors (*batch, N, 3) in Å, angles in rad."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from ..score.topology import signed_volumes
from ..system import System
from .statistics import Estimate, mean_estimate, std_estimate

__all__ = [
    "BondRow",
    "angle_triples",
    "angles",
    "angular_vectors",
    "bond_table",
    "bonds_intact",
    "correct_hand",
    "dihedrals",
    "distances",
    "mean_square_displacement",
    "minimum_image",
    "radial_distribution",
    "radius_of_gyration",
]

_RIGID = 1e-6  # Å


def distances(x, pairs, *, system: System | None = None):
    """``|x_j - x_i|`` for pairs (n, 2): (*batch, n); of the nearest image if periodic."""
    pairs = _index(pairs, 2)
    d = x[..., pairs[:, 1], :] - x[..., pairs[:, 0], :]
    if system is not None and system.periodic:
        d = minimum_image(d, system)
    return (d * d).sum(-1) ** 0.5


def angles(x, triples):
    """Angles i-j-k in [0, π] at the middle atom of triples (n, 3): (*batch, n)."""
    triples = _index(triples, 3)
    a = x[..., triples[:, 0], :] - x[..., triples[:, 1], :]
    b = x[..., triples[:, 2], :] - x[..., triples[:, 1], :]
    xp = _namespace(x)
    normal = xp.linalg.cross(a, b)
    # atan2 keeps its precision at 0 and π, arccos does not
    return xp.atan2((normal * normal).sum(-1) ** 0.5, (a * b).sum(-1))


def dihedrals(x, quadruples):
    """Dihedrals i-j-k-l in (-π, π] of quadruples (n, 4), IUPAC sign: (*batch, n).

    ``atan2(|b2| b1·(b2×b3), (b1×b2)·(b2×b3))`` with b1, b2, b3 the three bonds; the sign
    of ``ase.Atoms.get_dihedral``, there in [0°, 360°).
    """
    quadruples = _index(quadruples, 4)
    i, j, k, m = (x[..., quadruples[:, n], :] for n in range(4))
    b1, b2, b3 = j - i, k - j, m - k
    xp = _namespace(x)
    n1, n2 = xp.linalg.cross(b1, b2), xp.linalg.cross(b2, b3)
    sine = (b2 * b2).sum(-1) ** 0.5 * (b1 * n2).sum(-1)
    return xp.atan2(sine, (n1 * n2).sum(-1))


def angular_vectors(phi: np.ndarray) -> np.ndarray:
    """(cos φ, sin φ) on a new last axis: what is averaged and correlated for an angle."""
    return np.stack((np.cos(phi), np.sin(phi)), axis=-1)


def angle_triples(bonds) -> np.ndarray:
    """All i-j-k with bonds i-j and j-k, from bonds (n, 2): (m, 3)."""
    near: dict[int, list[int]] = {}
    for i, j in _index(bonds, 2).tolist():
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    found = [
        (i, centre, k) for centre in sorted(near) for i, k in combinations(sorted(near[centre]), 2)
    ]
    return np.array(found, int).reshape(-1, 3)


def radius_of_gyration(x, masses):
    """``sqrt(Σ m |x - x_cm|² / Σ m)`` in Å: (*batch)."""
    weights = np.asarray(masses, float) / np.sum(masses)
    weights = torch.as_tensor(weights).to(x) if isinstance(x, torch.Tensor) else weights
    centre = (weights[:, None] * x).sum(-2)[..., None, :]
    return (weights * ((x - centre) ** 2).sum(-1)).sum(-1) ** 0.5


def minimum_image(d, system: System):
    """The shortest of the periodic images of displacements (…, 3).

    Exact below half the smallest width of the cell; beyond it, for any cell whose
    neighbours of neighbours are farther than its neighbours (as after a Niggli reduction).
    """
    cell: Any = np.asarray(system.cell)
    inverse: Any = np.linalg.inv(cell)
    pbc: Any = np.asarray(system.pbc, float)
    if isinstance(d, torch.Tensor):
        cell, inverse, pbc = (torch.as_tensor(a).to(d) for a in (cell, inverse, pbc))
    fraction = d @ inverse
    fraction = fraction - fraction.round() * pbc
    d = fraction @ cell
    if abs(float(_off_diagonal(system.cell))) < 1e-12:
        return d
    best, shortest = d, (d * d).sum(-1)
    xp = _namespace(d)
    for shift in np.ndindex(3, 3, 3):
        moved = d + _like(d, ((np.array(shift) - 1) * system.pbc) @ system.cell)
        length = (moved * moved).sum(-1)
        best = xp.where((length < shortest)[..., None], moved, best)
        shortest = xp.where(length < shortest, length, shortest)
    return best


def radial_distribution(
    x: np.ndarray, system: System, *, r_max: float | None = None, bins: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``g(r)`` of all pairs of a periodic system: bin centres (Å), g, standard error.

    ``g = n(r) V / (frames · N(N-1)/2 · 4π/3 (r₊³ - r₋³))``, which is 1 for an ideal gas of N
    atoms. The error is the spread of 10 blocks of frames. ``x``: (*batch, N, 3), the first
    axis is cut into blocks. Raises ``ValueError`` beyond half the smallest width.
    """
    if not system.pbc.all():
        raise ValueError(f"pbc={system.pbc.tolist()}: g(r) needs a system periodic in 3 directions")
    volume = abs(np.linalg.det(system.cell))
    widths = volume / np.linalg.norm(
        np.cross(system.cell[[1, 2, 0]], system.cell[[2, 0, 1]]), axis=1
    )
    limit = float(widths.min()) / 2
    r_max = limit if r_max is None else r_max
    if not 0 < r_max <= limit * (1 + 1e-9):
        raise ValueError(f"{r_max=} must lie in (0, {limit:.3f}] Å, half the smallest cell width")
    edges = np.linspace(0.0, r_max, bins + 1)
    pairs = np.array(list(combinations(range(len(system)), 2)))
    shells = len(pairs) * 4 * np.pi / 3 * np.diff(edges**3) / volume
    parts = []
    for block in np.array_split(np.asarray(x, float), min(10, len(x))):
        r = distances(block.reshape(-1, len(system), 3), pairs, system=system)
        parts.append(np.histogram(r, edges)[0] / (len(r) * shells))
    error = (
        np.std(parts, axis=0, ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else shells * np.nan
    )
    return (edges[1:] + edges[:-1]) / 2, np.mean(parts, axis=0), error


def mean_square_displacement(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``⟨|x(n+t) - x(n)|²⟩`` in Å² at lags 0…T-1, averaged over all but time; and its error.

    By FFT, from unwrapped positions (T, W, N, 3) or (T, N, 3). The error is the spread over
    walkers (nan for one).
    """
    x = np.asarray(x, float)
    x = x[:, None] if x.ndim == 3 else x
    count = len(x)
    x = x - x.mean(axis=0)  # precision of the differences below
    square = (x**2).sum(-1)
    cumulative = np.concatenate((np.zeros((1, *square.shape[1:])), np.cumsum(square, axis=0)))
    lags = np.arange(count)
    # Σ_n |x(n)|² + |x(n+t)|² over the T-t pairs of each lag
    ends = cumulative[count - lags] + cumulative[count] - cumulative[lags]
    spectrum = np.fft.rfft(x, n=2 * count, axis=0)
    cross = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:count].sum(-1)
    each = ((ends - 2 * cross) / (count - lags)[:, None, None]).mean(-1)
    walkers = each.shape[1]
    error = each.std(1, ddof=1) / np.sqrt(walkers) if walkers > 1 else np.full(count, np.nan)
    return np.maximum(each.mean(1), 0.0), error


class BondRow(NamedTuple):
    """One bond: mean and std (Å) of the samples and the reference, and the ratio of stds."""

    bond: tuple[int, int]
    mean: Estimate
    std: Estimate
    reference_mean: Estimate
    reference_std: Estimate
    ratio: Estimate


def bond_table(x: np.ndarray, reference: np.ndarray, bonds) -> list[BondRow]:
    """Lengths of samples (T, N, 3) or (T, W, N, 3) against the reference (M, N, 3).

    Sorted by how far the ratio of the standard deviations is from 1, worst first.
    """
    bonds = _index(bonds, 2)
    samples, expected = distances(x, bonds), distances(reference, bonds)
    rows = []
    for n, bond in enumerate(bonds.tolist()):
        lengths, reference_lengths = samples[..., n], expected[..., n]
        std, reference_std = std_estimate(lengths), std_estimate(reference_lengths)
        # rigid bonds (constraints) have no width; a floor keeps their ratio finite
        a, b = max(std.value, _RIGID), max(reference_std.value, _RIGID)
        value, relative = a / b, np.hypot(std.error / a, reference_std.error / b)
        ratio = Estimate(value, float(value * relative), std.n_effective)
        rows.append(
            BondRow(
                tuple(bond),
                mean_estimate(lengths),
                std,
                mean_estimate(reference_lengths),
                reference_std,
                ratio,
            )
        )
    return sorted(rows, key=lambda row: -abs(np.log(row.ratio.value)))


def bonds_intact(x, reference, bonds, *, n_std: float = 6.0) -> np.ndarray:
    """(*batch) bool: every bond within ``n_std`` standard deviations of the reference."""
    expected = distances(np.asarray(reference, float), bonds)
    mean, std = (
        expected.reshape(-1, expected.shape[-1]).mean(0),
        expected.std(axis=tuple(range(expected.ndim - 1))),
    )
    return (np.abs(distances(np.asarray(x, float), bonds) - mean) <= n_std * std).all(-1)


def correct_hand(x, reference, centres) -> np.ndarray:
    """(*batch) bool: every tetrahedral centre (C, 4) has the sign of the reference.

    The sign is that of the signed volume ``(i-c)·((j-c)×(k-c))``; the reference (M, N, 3)
    votes, so it must hold one hand only.
    """
    centres = _index(centres, 4)
    sign = np.sign(np.median(signed_volumes(np.asarray(reference, float), centres), axis=0))
    return (signed_volumes(np.asarray(x, float), centres) * sign > 0).all(-1)


def _index(values, width: int) -> np.ndarray:
    values = (
        np.asarray(values, dtype=int).reshape(-1, width)
        if len(values)
        else np.zeros((0, width), int)
    )
    return values


def _namespace(x):
    return torch if isinstance(x, torch.Tensor) else np


def _like(d, values):
    return torch.as_tensor(values).to(d) if isinstance(d, torch.Tensor) else values


def _off_diagonal(cell: np.ndarray) -> float:
    gram = cell @ cell.T
    return float(np.abs(gram - np.diag(np.diag(gram))).max())
