"""Several sets of snapshots that one energy explains: compositions, sizes, temperatures.

    p_n(x) ∝ exp[-U(x)/kT_n]        E = U/kT_1        s_n = -(T_1/T_n) ∇E

The potential energy of all atoms does not depend on temperature: sets of several temperatures
tell of one U, each through its own kT, and the model holds at every temperature between. Losses
of score matching are added as

    Σ_n (T_n/T_1) Σ_frames [½|s_n|² + ∇·s_n]

which is, in units of 1/kT_1, ½|F|²/kT_n + ∇·F: the same stiffness is known equally well from
as many frames of any temperature, and has the same weight in each. A free energy, of coarse
grains or of a solvent averaged out, does depend on temperature: train on one temperature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from .snapshots import Snapshots
from .spacing import nearest_by_element

__all__ = ["Sets", "as_sets", "joined", "joint_hash", "temperings"]

_UNITS = 1.5  # nearest neighbours of one element differ less; Å and bohr differ by 1.9


class Sets(tuple[Snapshots, ...]):
    """Sets that were seen to go together; `as_sets` looks, and does not look again at these."""


def as_sets(snapshots: Snapshots | Iterable[Snapshots]) -> Sets:
    """One set of ``snapshots`` or several, the same for all functions of this package.

    Raises
    ------
    TypeError, ValueError : no sets; one of them twice; with and without periodicity; lengths
        that look like different units
    """
    if isinstance(snapshots, Sets):
        return snapshots
    sets = Sets((snapshots,) if isinstance(snapshots, Snapshots) else snapshots)
    if not sets:
        raise ValueError("no snapshots: give at least one set")
    for part in sets:
        if not isinstance(part, Snapshots):
            raise TypeError(f"expected Snapshots or several of them, got {type(part).__name__}")
    if len(sets) > 1:
        _check_together(sets)
    return sets


def joined(sets: Sets) -> Sets:
    """The ``sets``, of which those of one isolated molecule at one temperature are made one.

    So frames with forces may lie in another file than those without. Frames of either come evenly
    one after the other, so that what is held out of them has both.
    """
    groups: dict[tuple, list[Snapshots]] = {}
    for n, part in enumerate(sets):
        alike = (part.system.numbers.tobytes(), part.temperature_K)
        groups.setdefault((n,) if part.system.periodic else alike, []).append(part)
    return Sets(_joined(group) for group in groups.values())


def _joined(group: list[Snapshots]) -> Snapshots:
    first, *others = group
    if not others:
        return first
    counts = [len(part) for part in group]
    order = np.argsort(np.concatenate([np.arange(n) / n for n in counts]), kind="stable")

    def together(name: str) -> np.ndarray | None:
        columns = [getattr(part, name) for part in group]
        shape = next((np.shape(c)[1:] for c in columns if c is not None), None)
        if shape is None:
            return None
        filled = [
            np.full((n, *shape), np.nan) if c is None else np.asarray(c, float)
            for n, c in zip(counts, columns, strict=True)
        ]
        return np.concatenate(filled)[order]

    return Snapshots(
        first.system,
        np.concatenate([part.positions for part in group])[order],
        first.temperature_K,
        together("energies"),
        ", ".join(part.source for part in group),
        max(part.correlation for part in group),
        together("forces"),
        checked=True,
    )


def temperings(sets: tuple[Snapshots, ...]) -> tuple[float, ...]:
    """T_1/T_n of each of ``sets``, which turns the score of the first into its own."""
    return tuple(sets[0].kT / part.kT for part in sets)


def joint_hash(sets: tuple[Snapshots, ...]) -> str:
    """Hash of all ``sets`` in their order; of one set, its own."""
    if len(sets) == 1:
        return sets[0].sha256
    return hashlib.sha256("".join(part.sha256 for part in sets).encode()).hexdigest()


def _check_together(sets: tuple[Snapshots, ...]) -> None:
    first = sets[0]
    hashes: dict[str, str] = {}
    nearest = nearest_by_element(first)
    for part in sets:
        if part.sha256 in hashes:
            twin = hashes[part.sha256]
            raise ValueError(f"{twin} and {part.source} hold the same snapshots: drop one")
        hashes[part.sha256] = part.source
        if (part.system.pbc != first.system.pbc).any():
            raise ValueError(
                f"{part.source} has pbc={part.system.pbc.tolist()} but {first.source} has "
                f"{first.system.pbc.tolist()}: train on sets of the same periodicity"
            )
        near = nearest_by_element(part)
        ratios = {z: near[z] / nearest[z] for z in near.keys() & nearest.keys()}
        if ratios and (min(ratios.values()) > _UNITS or max(ratios.values()) < 1 / _UNITS):
            z = min(ratios)
            raise ValueError(
                f"nearest neighbours are {near[z]:.2f} Å apart in {part.source} but "
                f"{nearest[z]:.2f} Å in {first.source}: are the positions of both in Å?"
            )
