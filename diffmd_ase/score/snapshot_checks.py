"""What is looked for in snapshots: shapes, overlaps, order in time, duplicates.

Each look goes over the frames in blocks: its memory does not grow with their number, nor with the
square of the atoms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations

import numpy as np
import torch
from ase.data import chemical_symbols

from ..geometry import Lattice, distances, minimum_image
from ..libraries import quiet_pymbar
from ..system import System
from .neighbours import edges

__all__ = [
    "IMAGES",
    "ORDERED",
    "blocks",
    "check_labels",
    "check_positions",
    "check_shapes",
    "correlation",
    "duplicates",
    "held_in_place",
    "mean_and_std",
    "unwrapped",
]

_CLOSEST = 0.4  # Å; no two nuclei of an equilibrium frame come nearer
_STILL = 1e-6  # Å; what text formats round to
_BLOCK = 1 << 21  # numbers of a block: 16 MiB
IMAGES = 12  # numbers for one of a position, where the nearest of its images is looked for
ORDERED = 2.0
"""Statistical inefficiency of snapshots above which they are taken as ordered in time."""
_SHUFFLES = 40  # orders to compare with
_FEW = 64  # atoms, of which all pairs are looked at


def blocks(frames: int, numbers: int) -> Iterator[slice]:
    """All ``frames`` in order, some at a time: with ``numbers`` for each, they take 16 MiB."""
    size = max(1, _BLOCK // max(1, numbers))
    for first in range(0, frames, size):
        yield slice(first, min(first + size, frames))


def mean_and_std(
    x: np.ndarray, values: Callable[[np.ndarray], np.ndarray], numbers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the frames ``x`` (M, N, 3) of ``values`` of them.

    ``values`` makes (m, …) of some frames, with ``numbers`` for each, intermediate ones included.
    """
    parts = [x[part] for part in blocks(len(x), numbers)]
    mean = sum(values(part).sum(axis=0) for part in parts) / len(x)
    square = sum(((values(part) - mean) ** 2).sum(axis=0) for part in parts) / len(x)
    return mean, square**0.5


def check_shapes(system: System, positions, energies, forces, source: str) -> None:
    """``ValueError`` unless the arrays of snapshots go together, and there is a frame.

    Parameters
    ----------
    positions : (M, N, 3) with M > 0 and N > 0
    energies, forces : (M,) and (M, N, 3), or None
    source : for the message
    """
    if positions.ndim != 3 or positions.shape[1:] != (len(system), 3):
        raise ValueError(
            f"{source}: positions have shape {positions.shape}, expected (M, {len(system)}, 3)"
        )
    if not positions.size:
        what = "snapshots" if not len(positions) else "atoms"
        raise ValueError(f"{source} holds no {what}")
    for name, values, shape in (
        ("energies", energies, positions.shape[:1]),
        ("forces", forces, positions.shape),
    ):
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{source}: {name} have shape {np.shape(values)}, expected {shape}")


def check_labels(energies, forces, source: str) -> None:
    """``ValueError`` for energies (M,) or forces (M, N, 3) that are not finite; None is right.

    NaN in all numbers of a frame, beside frames that are finite, means that it has none.
    ``source`` is for the message.
    """
    for name, values in (("energies", energies), ("forces", forces)):
        some = values is not None and any(
            np.isfinite(values[p]).any() for p in blocks(len(values), values[0].size)
        )
        for part in [] if values is None else blocks(len(values), values[0].size):
            wrong = ~np.isfinite(values[part])
            own = np.isnan(values[part]).reshape(len(wrong), -1).all(1)
            if some:
                wrong[own] = False
            bad = np.argwhere(wrong)
            if len(bad):
                frame, *atom = bad[0].tolist()[:2]
                of_atom = f", atom {atom[0]}" if atom else ""
                raise ValueError(
                    f"{source}: {name} hold NaN or infinity, first in frame "
                    f"{part.start + frame}{of_atom}; leave out such frames, or the {name} of all"
                )


def check_positions(system: System, positions: np.ndarray, source: str) -> None:
    """``ValueError`` for ``positions`` that are not finite, or where atoms overlap.

    They are (M, N, 3) in Å; atoms nearer than 0.4 Å overlap. ``source`` is for the `ValueError`.
    """
    bad = np.concatenate(
        [
            part.start + np.flatnonzero(~np.isfinite(positions[part]).all(axis=(1, 2)))
            for part in blocks(len(positions), positions[0].size)
        ]
    )
    if len(bad):
        raise ValueError(
            f"{source}: {len(bad)} snapshots hold NaN or infinite positions, the first is "
            f"number {bad[0]}; remove them"
        )
    close = _overlaps(system, positions)
    if close:
        worst = min(close, key=close.__getitem__)
        raise ValueError(
            f"{source}: atoms overlap in {len(close)} snapshots (frame {worst}: "
            f"{close[worst]:.3f} Å); are the positions in Å? Equilibrium frames are needed"
        )


def duplicates(positions: np.ndarray) -> int:
    """How many of the frames, ``positions`` (M, N, 3), are exact copies of another."""
    seen = set()
    for part in blocks(len(positions), positions[0].size):
        for frame in positions[part] + 0.0:  # -0 is 0
            seen.add(hashlib.blake2b(frame.tobytes(), digest_size=16).digest())
    return len(positions) - len(seen)


def correlation(system: System, positions: np.ndarray) -> tuple[float, str]:
    """Statistical inefficiency of the slowest of a few collective distances, and its name.

    ``positions`` (M, N, 3) in Å; 1 for fewer than 50 frames. The estimator is that of pymbar
    (Chodera et al., JCTC 3, 26 (2007)), the worst of the size of the `system`, three distances
    between heavy atoms, of nearest images where it is periodic, and of a molecule the mean ⟨1/r⟩
    of each two elements. Like atoms that change places, as those of a methyl group, are no motion,
    and what frames in random order may have as well is none in time.
    """
    if len(positions) < 50:
        return 1.0, ""
    statistical_inefficiency = quiet_pymbar().timeseries.statistical_inefficiency
    collective = _collective(system)
    largest = 3 * len(system) * (len(system) if len(system) <= _FEW else 1)
    parts = [
        [series(positions[part]) for series in collective.values()]
        for part in blocks(len(positions), IMAGES * largest)
    ]
    every = np.concatenate(parts, axis=1)
    moving = np.flatnonzero(every.std(1) > 1e-9)
    if not len(moving):
        return 1.0, ""
    found = [statistical_inefficiency(series) for series in every[moving]]
    worst = max(found)
    if worst > ORDERED:  # of few frames any order may look like one in time
        rng = np.random.default_rng(0)
        for _ in range(_SHUFFLES):
            order = rng.permutation(len(positions))
            if max(statistical_inefficiency(series[order]) for series in every[moving]) >= worst:
                return 1.0, ""
    return float(worst), list(collective)[moving[int(np.argmax(found))]]


def held_in_place(system: System, positions: np.ndarray) -> np.ndarray:
    """(N,) bool: atoms that have one place in all of ``positions`` (M, N, 3), or images of it."""
    low = high = positions[0]
    for part in blocks(len(positions), IMAGES * positions[0].size):
        x = unwrapped(system, positions[part], positions[0])
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
    return (high - low).max(axis=-1) <= _STILL


def unwrapped(system: System, x: np.ndarray, first: np.ndarray, *, drift: bool = False):
    """The images of ``x`` (M, N, 3) nearest to the places in ``first`` (N, 3), in Å.

    With a ``drift`` nearest when atom 0 is put back to its place: those of a whole that drifts far
    would be cut by the boundary.
    """
    if not system.periodic:
        return x
    away = minimum_image(x - first, system)
    return first + (minimum_image(away - away[:, :1], system) if drift else away)


def _collective(system: System) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions (M, N, 3) → (M,) of frames, by name."""
    count, numbers = len(system), system.numbers
    found: dict[str, Callable] = {"size": partial(_size, system)}
    heavy = np.flatnonzero(numbers > 1)
    some = [heavy[0], heavy[len(heavy) // 2], heavy[-1]] if len(heavy) > 2 else []
    for pair in combinations(some, 2):
        found[f"distance of atoms {pair[0]} and {pair[1]}"] = partial(_mean_of, system, [pair], 1)
    if system.periodic or count > _FEW:
        return found
    i, j = np.triu_indices(count, 1)
    kinds = np.sort(numbers[np.stack([i, j], axis=1)], axis=1)
    for a, b in np.unique(kinds, axis=0):
        chosen = np.flatnonzero((kinds == [a, b]).all(1))
        name = f"mean 1/r of {chemical_symbols[a]} and {chemical_symbols[b]}"
        found[name] = partial(_mean_of, system, np.stack([i, j], axis=1)[chosen], -1)
    return found


def _size(system: System, x: np.ndarray) -> np.ndarray:
    if system.periodic:  # there is no centre; the nearest images of the others around one atom
        around = distances(x, [(0, n) for n in range(1, len(system))], system=system)
        return np.sqrt((around**2).sum(-1))
    return np.sqrt(((x - x.mean(axis=1, keepdims=True)) ** 2).sum((1, 2)))


def _mean_of(system: System, pairs, power: int, x: np.ndarray) -> np.ndarray:
    return (distances(x, pairs, system=system) ** float(power)).mean(-1)


def _overlaps(system: System, positions: np.ndarray) -> dict[int, float]:
    """Frames where atoms are nearer than 0.4 Å, with the smallest distance, in Å."""
    n_atoms = len(system)
    few = n_atoms <= _FEW
    found: dict[int, float] = {}
    for part in blocks(len(positions), 3 * n_atoms * (n_atoms if few else 1)):
        nearest = (_nearest_of_all if few else _nearest_listed)(system, positions[part])
        for frame in np.flatnonzero(nearest < _CLOSEST):
            found[part.start + int(frame)] = float(nearest[frame])
    return found


def _nearest_of_all(system: System, x: np.ndarray) -> np.ndarray:
    """Smallest distance of each frame (M,), right where it is below half of the cell."""
    i, j = np.triu_indices(len(system), 1)
    d = x[:, i] - x[:, j]
    d = Lattice(system).wrap(d) if system.periodic else d
    return np.sqrt(np.einsum("mpd,mpd->mp", d, d).min(axis=1, initial=np.inf))


def _nearest_listed(system: System, x: np.ndarray) -> np.ndarray:
    """The same of large systems, by lists of neighbours; inf where no two atoms overlap."""
    cell = None if system.cell is None else torch.as_tensor(system.cell)
    points = torch.as_tensor(np.array(x, dtype=float))
    _, target, vectors = edges(points, _CLOSEST, cell, tuple(system.pbc.tolist()))
    nearest = np.full(len(x), np.inf)
    np.minimum.at(nearest, (target // len(system)).numpy(), vectors.norm(dim=-1).numpy())
    return nearest
