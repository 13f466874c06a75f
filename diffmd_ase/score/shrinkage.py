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
_SWEEPS, _MANY = 3, 1000


def solve(gram: Tensor, drive: Tensor, ridges: Tensor) -> Tensor:
    """``(G + diag ρ)⁻¹ b`` of ``gram`` G (F, F), ``drive`` b (F,) and ``ridges`` ρ (F,)."""
    return torch.linalg.solve(gram + torch.diag(ridges), drive)


def choose_ridges(grams: Tensor, drives: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """A ridge (G,) for each group, and the loss of each fold left out (K,).

    One group after the other, in the order of their numbers, until none gets better. Of more than a
    thousand parameters each trial takes seconds: there all groups begin with one ridge, the best,
    and each may be left out.

    Parameters
    ----------
    grams, drives : (K, F, F) and (K, F) means over the frames of each fold, in float64
    group : (F,) numbers from 0, which is always kept
    """
    choice = _Choice(grams, drives, group)
    count = int(group.max()) + 1
    if count == 1 or len(group) < _MANY:
        alone = torch.full((count,), NOTHING, dtype=torch.float64)
        alone[0] = _GRID[0]
        return choice.swept(alone, choice.losses(alone), _GRID)
    same = [(r.repeat(count), choice.losses(r.repeat(count))) for r in _GRID[::4]]
    best = min(same, key=lambda one: float(one[1].mean()))
    return choice.swept(*best, _GRID.new_tensor([NOTHING]))


class _Choice:
    """What is tried, and what it is worth to frames that were left out."""

    def __init__(self, grams: Tensor, drives: Tensor, group: Tensor):
        rest = [[m for m in range(len(grams)) if m != k] for k in range(len(grams))]
        self.training = [(grams[r].mean(0), drives[r].mean(0)) for r in rest]
        self.grams, self.drives, self.group = grams, drives, group
        self.known: dict[bytes, list[tuple[Tensor, ...]]] = {}  # folds, of the parameters in use

    def in_use(self, used: Tensor) -> list[tuple[Tensor, ...]]:
        """G and b of the other folds and of each, of the parameters ``used``."""
        if (key := used.numpy().tobytes()) not in self.known:
            self.known.clear()
            folds = zip(self.training, self.grams, self.drives, strict=True)
            self.known[key] = [
                (gram[used][:, used], drive[used], gram_out[used][:, used], drive_out[used])
                for (gram, drive), gram_out, drive_out in folds
            ]
        return self.known[key]

    def losses(self, ridges: Tensor) -> Tensor:
        """(K,) of each fold, by the parameters of the others."""
        of_all = ridges[self.group]
        used = torch.nonzero(of_all < NOTHING)[:, 0]
        found = []
        for gram, drive, gram_out, drive_out in self.in_use(used):
            lower, failed = torch.linalg.cholesky_ex(gram + torch.diag(of_all[used]))
            if failed:  # moments are rounded, and a ridge below that is none
                return torch.full((len(self.grams),), torch.inf, dtype=torch.float64)
            theta = torch.cholesky_solve(drive[:, None], lower)[:, 0]
            found.append(0.5 * theta @ gram_out @ theta - theta @ drive_out)
        return torch.stack(found)

    def surely(self, gain: Tensor) -> bool:
        """Whether a gain (K,) is no luck."""
        if not gain.isfinite().all():
            return bool((gain == torch.inf).all())
        return bool(gain.mean() > 2 * gain.std() / len(gain) ** 0.5)

    def swept(self, ridges: Tensor, best: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Ridges and losses after these, one group at a time to the values of a grid."""
        for _ in range(_SWEEPS):
            before = best.mean()
            for number in range(len(ridges)):
                for ridge in grid[:: 2 if number else 1]:
                    if not number and ridge == NOTHING:  # the first is always kept
                        continue
                    trial = ridges.clone()
                    trial[number] = ridge
                    found = self.losses(trial)
                    gain = best - found
                    # what was left out comes in only if that is no luck
                    new = ridges[number] == NOTHING
                    if self.surely(gain) if new else gain.mean() > 0:
                        ridges, best = trial, found
            if before - best.mean() < 1e-6 * before.abs():
                break
        return ridges, best
