"""How much each group of linear terms is worth: a ridge for each, by cross-validation.

    θ = (G + diag ρ)⁻¹ b        ρ_f = ρ of the group of feature f

with G and b of score matching, `force_field_fit`, in units in which G has the diagonal one. The
loss of frames that were left out, ``½ θᵀ G_out θ - θᵀ b_out``, chooses ρ: a group that the data
do not pay for gets so large a one that it says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NOTHING", "choose_ridges", "solve"]

_GRID = torch.logspace(-8, 2, 21, dtype=torch.float64)
NOTHING = 1e6  # of groups that are left out
_SWEEPS = 3


def solve(gram: Tensor, drive: Tensor, ridges: Tensor) -> Tensor:
    """``(G + diag ρ)⁻¹ b`` of ``gram`` G (F, F), ``drive`` b (F,) and ``ridges`` ρ (F,)."""
    return torch.linalg.solve(gram + torch.diag(ridges), drive)


def choose_ridges(grams: Tensor, drives: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """A ridge (G,) for each group, and the loss of each fold left out (K,).

    One group after the other, in the order of their numbers, until none gets better.

    Parameters
    ----------
    grams, drives : (K, F, F) and (K, F) means over the frames of each fold, in float64
    group : (F,) numbers from 0, which is always kept
    """
    count = len(grams)
    rest = [[m for m in range(count) if m != k] for k in range(count)]
    training = [(grams[r].mean(0), drives[r].mean(0)) for r in rest]

    known: dict[bytes, list[tuple[Tensor, ...]]] = {}  # folds, of the parameters in use

    def in_use(used: Tensor) -> list[tuple[Tensor, ...]]:
        if (key := used.numpy().tobytes()) not in known:
            known.clear()
            known[key] = [
                (gram[used][:, used], drive[used], gram_out[used][:, used], drive_out[used])
                for (gram, drive), gram_out, drive_out in zip(training, grams, drives, strict=True)
            ]
        return known[key]

    def losses(ridges: Tensor) -> Tensor:
        of_all = ridges[group]
        used = torch.nonzero(of_all < NOTHING)[:, 0]
        found = []
        for gram, drive, gram_out, drive_out in in_use(used):
            theta = solve(gram, drive, of_all[used])
            found.append(0.5 * theta @ gram_out @ theta - theta @ drive_out)
        return torch.stack(found)

    ridges = torch.full((int(group.max()) + 1,), NOTHING, dtype=torch.float64)
    ridges[0] = _GRID[0]
    best = losses(ridges)
    for _ in range(_SWEEPS):
        before = best.mean()
        for number in range(len(ridges)):
            for ridge in _GRID[:: 2 if number else 1]:
                trial = ridges.clone()
                trial[number] = ridge
                found = losses(trial)
                gain = best - found
                # what was left out comes in only if that is no luck
                new = ridges[number] == NOTHING
                least = 2 * gain.std() / len(gain) ** 0.5 if new else 0.0
                if gain.mean() > least:
                    ridges, best = trial, found
        if before - best.mean() < 1e-6 * before.abs():
            break
    return ridges, best
