"""What is measured on positions (*batch, N, 3) in Å, beyond distances and angles themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .._moved import forward
from ..geometry import Lattice, angles, by_cell, dihedrals, distances, signed_volumes
from ..system import System
from .statistics import Estimate, mean_estimate, std_estimate

__all__ = [
    "Coordinate",
    "angle_triples",
    "angular_vectors",
    "bonds_intact",
    "correct_hand",
    "mean_square_displacement",
    "WidthRow",
    "radial_distribution",
    "width_table",
]

_RIGID = 1e-6  # Å
_FORMS = {"torsion": "i,j,k,l", "angle": "i,j,k", "distance": "i,j"}


class Coordinate(NamedTuple):
    """A torsion or angle (rad) or a distance (Å) of some atoms, by name.

    Called with positions (*batch, N, 3) of a system it gives values (*batch); atoms are taken
    with the nearest images of those before them. ``cells`` (*batch, 3, 3) are those of the frames,
    where they have cells of their own.

    Attributes
    ----------
    name : what it is called
    kind : ``torsion``, ``angle`` or ``distance``
    atoms : four, three or two numbers, counted from 0

    `parse` makes it from words and raises ``ValueError`` where they say something else.
    """

    name: str
    kind: str
    atoms: tuple[int, ...]

    @classmethod
    def parse(
        cls,
        text: str,
        n_atoms: int,
        *,
        kinds: Sequence[str] = tuple(_FORMS),
        others: Sequence[str] = (),
    ) -> Coordinate:
        """From ``phi=torsion:4,6,8,14``, ``a=angle:0,1,2`` or ``d=distance:0,5``.

        Without a name the definition is the name; without a kind the number of atoms tells it.

        Parameters
        ----------
        n_atoms : of the system; atoms count from 0
        kinds : those that are allowed
        others : words that were expected as well, for the message

        Raises
        ------
        ValueError : other words, atoms that are not in the system, or one of them twice
        """
        name, _, definition = text.rpartition("=")
        kind, _, listed = definition.rpartition(":")
        try:
            atoms = tuple(int(part) for part in listed.split(","))
        except ValueError:
            atoms = ()
        counts = {len(form.split(",")): k for k, form in _FORMS.items() if k in kinds}
        kind = kind or counts.get(len(atoms), "")
        if counts.get(len(atoms)) != kind:
            forms = [*others, *(f"name={k}:{_FORMS[k]}" for k in kinds)]
            raise ValueError(
                f"{text!r}: expected {' or '.join(forms)}, such as phi=torsion:4,6,8,14 or "
                "d=distance:0,5, with atoms counted from 0"
            )
        if len(set(atoms)) < len(atoms) or not all(0 <= atom < n_atoms for atom in atoms):
            raise ValueError(
                f"{text!r}: atoms {', '.join(map(str, atoms))} must differ and lie in "
                f"0…{n_atoms - 1}, counted from 0"
            )
        return cls(name or definition, kind, atoms)

    @property
    def period(self) -> float:
        """2π of a torsion, 0 of what is not periodic."""
        return 2 * math.pi if self.kind == "torsion" else 0.0

    def __call__(self, x, system: System, *, cells: np.ndarray | None = None):
        if cells is not None:
            return by_cell(self, x, cells, system=system)
        measure = {"torsion": dihedrals, "angle": angles, "distance": distances}[self.kind]
        return measure(x, [self.atoms], system=system)[..., 0]


def angular_vectors(phi: np.ndarray) -> np.ndarray:
    """(cos φ, sin φ) of angles ``phi`` (rad) on a new last axis: what is averaged for an angle."""
    return np.stack((np.cos(phi), np.sin(phi)), axis=-1)


def angle_triples(bonds) -> np.ndarray:
    """All i-j-k with bonds i-j and j-k, from bonds (n, 2): (m, 3)."""
    near: dict[int, list[int]] = {}
    for i, j in np.asarray(bonds, int).reshape(-1, 2).tolist():
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    triples = [
        (i, centre, k) for centre in sorted(near) for i, k in combinations(sorted(near[centre]), 2)
    ]
    return np.array(triples, int).reshape(-1, 3)


def radial_distribution(
    x: np.ndarray, system: System, *, r_max: float | None = None, bins: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``g(r)`` of all pairs of a periodic system: bin centres (Å), g, standard error.

    ``g = n(r) V / (frames · N(N-1)/2 · 4π/3 (r₊³ - r₋³))``, which is 1 for an ideal gas of N
    atoms. The error is the spread of 10 blocks of frames.

    Parameters
    ----------
    x : (*batch, N, 3) in Å; the first axis is cut into blocks
    r_max : largest distance in Å; default and limit, half the smallest width of the cell
    bins : of [0, r_max]

    Raises
    ------
    ValueError : not periodic in three directions, a larger ``r_max``
    """
    if not system.pbc.all():
        raise ValueError(f"pbc={system.pbc.tolist()}: g(r) needs a system periodic in 3 directions")
    volume = abs(np.linalg.det(system.cell))
    limit = float(Lattice(system).widths.min()) / 2
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


class WidthRow(NamedTuple):
    """One coordinate of samples against the reference.

    Attributes
    ----------
    number : of the coordinate
    shift : difference of the means
    ratio : of the standard deviations
    """

    number: int
    shift: Estimate
    ratio: Estimate


def width_table(samples: np.ndarray, reference: np.ndarray) -> list[WidthRow]:
    """Coordinates of ``samples`` (T, n) or (T, W, n) against those of the ``reference`` (M, n).

    Sorted by how far the ratio of the standard deviations is from 1, worst first. ``ratio`` is
    that of widths of 1e-6 at least, since constrained bonds have none.
    """
    rows = []
    for n in range(reference.shape[-1]):
        ours, data = samples[..., n], reference[..., n]
        means, stds = ([f(v) for v in (ours, data)] for f in (mean_estimate, std_estimate))
        gap, error = means[0].value - means[1].value, np.hypot(means[0].error, means[1].error)
        # rigid bonds (constraints) have no width; a floor keeps their ratio finite
        a, b = (max(std.value, _RIGID) for std in stds)
        relative = np.hypot(stds[0].error / a, stds[1].error / b)
        shift = Estimate(gap, float(error), means[0].n_effective)
        ratio = Estimate(a / b, float(a / b * relative), stds[0].n_effective)
        rows.append(WidthRow(n, shift, ratio))
    return sorted(rows, key=lambda row: -abs(np.log(row.ratio.value)))


def bonds_intact(x, reference, bonds, *, n_std: float = 6.0) -> np.ndarray:
    """(*batch) bool: every bond within ``n_std`` standard deviations of the mean of the reference.

    ``x`` (*batch, N, 3) and ``reference`` (M, N, 3) in Å; ``bonds`` (n, 2).
    """
    expected = distances(np.asarray(reference, float), bonds)
    mean, std = (
        expected.reshape(-1, expected.shape[-1]).mean(0),
        expected.std(axis=tuple(range(expected.ndim - 1))),
    )
    return (np.abs(distances(np.asarray(x, float), bonds) - mean) <= n_std * std).all(-1)


def correct_hand(x, reference, centres) -> np.ndarray:
    """(*batch) bool: every tetrahedral centre has the sign of the reference.

    The sign is that of the signed volume ``(i-c)·((j-c)×(k-c))`` of ``centres`` c, i, j, k (C, 4)
    in ``x`` (*batch, N, 3). The ``reference`` (M, N, 3) votes, so it must hold one hand only. See
    `signed_volumes`.
    """
    sign = np.sign(np.median(signed_volumes(np.asarray(reference, float), centres), axis=0))
    return (signed_volumes(np.asarray(x, float), centres) * sign > 0).all(-1)


__getattr__ = forward(__name__, "geometry")
