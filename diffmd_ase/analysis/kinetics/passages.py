"""How long it takes from one set of states to another, and how often it happens.

By the state that was visited last (milestoning with two sets; Vanden-Eijnden & Venturoli, J. Chem.
Phys. 130, 194101 (2009)): of a stationary chain, with T_A the time for which A was the last set
visited and n the number of passages from A to B,

    mean first passage time A → B = T_A/n        rate = n/T_A

Between frames a visit is not seen, so that times are too long by the order of the square root of
their spacing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..statistics import Estimate, jackknife_error

__all__ = ["ChainTooShort", "Passages", "passages"]

_FEWEST = 10  # passages each way
_GROUPS = 20  # of walkers, or of parts of one


class ChainTooShort(ValueError):
    """The data cannot support the number that was asked for."""


@dataclass(frozen=True)
class Passages:
    """Between two sets A and B of states."""

    to_b: Estimate  # mean first passage time A → B, in the unit of the spacing
    to_a: Estimate  # and back
    counts: tuple[int, int]  # passages each way
    share_a: Estimate  # fraction of the time for which A was visited last


def passages(in_a: np.ndarray, in_b: np.ndarray, spacing: float) -> Passages:
    """Mean first passage times between two sets, errors by a jackknife over walkers.

    Parameters
    ----------
    in_a, in_b : (T,) or (T, W) bool, whether a frame is in A, and in B
    spacing : between frames

    Raises
    ------
    ValueError : shapes that differ, a frame in both
    ChainTooShort : fewer than 10 passages one way
    """
    a, b = (np.asarray(s, bool).reshape(len(s), -1) for s in (in_a, in_b))
    if a.shape != b.shape or (a & b).any():
        raise ValueError(f"sets {a.shape} and {b.shape}: expected one shape, and no frame in both")
    if a.shape[1] == 1:  # parts of one chain, in place of walkers
        parts = np.array_split(np.arange(len(a)), _GROUPS)
        rows = np.array([_tallies(a[part], b[part])[0] for part in parts])
    else:
        rows = _tallies(a, b)
    total = rows.sum(0)
    if min(total[2:]) < _FEWEST:
        raise ChainTooShort(
            f"{total[2]:.0f} passages from A to B and {total[3]:.0f} back: expected at least "
            f"{_FEWEST} each way; run longer, or choose states that are left more often"
        )
    groups = np.array_split(np.arange(len(rows)), min(_GROUPS, len(rows)))
    left = np.array([_times(total - rows[group].sum(0)) for group in groups])
    values, errors = _times(total), jackknife_error(left)
    to_b, to_a, share = (
        Estimate(float(v), float(e), float(n))
        for v, e, n in zip(values, errors, (*total[2:], min(total[2:])), strict=True)
    )
    scaled = [Estimate(e.value * spacing, e.error * spacing, e.n_effective) for e in (to_b, to_a)]
    return Passages(scaled[0], scaled[1], (int(total[2]), int(total[3])), share)


def _tallies(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(W, 4): steps after A, steps after B, passages A → B, B → A, of each walker."""
    visited = np.where(a, 0, np.where(b, 1, -1))
    place = np.where(visited >= 0, np.arange(len(a))[:, None], -1)
    place = np.maximum.accumulate(place, axis=0)
    last = np.take_along_axis(visited, np.maximum(place, 0), axis=0)
    last = np.where(place >= 0, last, -1)
    before, after = last[:-1], last[1:]
    columns = (
        before == 0,
        before == 1,
        (before == 0) & (after == 1),
        (before == 1) & (after == 0),
    )
    return np.stack([c.sum(0) for c in columns], axis=1).astype(float)


def _times(total: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        to_b, to_a = total[0] / total[2], total[1] / total[3]
    return np.array([to_b, to_a, total[0] / max(total[0] + total[1], 1.0)])
