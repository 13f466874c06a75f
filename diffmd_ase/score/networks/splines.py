"""Cubic B-splines of distances that end smoothly at a cutoff, and the wall inside of all data."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["END", "splines", "splines_apart", "wall"]

_WALL = 0.05  # Å
END = 3  # splines that reach over the cutoff: without them a function ends smoothly


def splines(r: Tensor, begin: Tensor, cutoff: float, size: int) -> tuple[Tensor, Tensor]:
    """The four cubic B-splines that are not zero at r (E,): the first one's number, their values.

    Of ``size`` equal intervals from ``begin`` (E,) to the ``cutoff``, in Å; nearer than ``begin``
    they go on as straight lines. Returns (E,) and (E, 4).
    """
    first, values = splines_apart(r, begin, cutoff, size)
    return first, torch.stack(values, dim=-1)


def splines_apart(
    r: Tensor, begin: Tensor, cutoff: float, size: int
) -> tuple[Tensor, list[Tensor]]:
    """`splines` at ``r``, of ``begin``, ``cutoff`` and ``size``, their values as four tensors."""
    t = (r - begin) * (size / (cutoff - begin))
    first = t.detach().floor().clamp(0, size - 1).long()
    u = t - first
    line, u = u.clamp(max=0.0), u.clamp(min=0.0)
    v = 1 - u
    return first, [
        v**3 / 6 - 0.5 * line,
        2 / 3 - u**2 + u**3 / 2,
        2 / 3 - v**2 + v**3 / 2 + 0.5 * line,
        u**3 / 6,
    ]


def wall(r: Tensor, begin: Tensor) -> Tensor:
    """Of pairs at r (E,) nearer than ``begin`` (E,), in kT (E,)."""
    return 0.5 * (torch.relu(begin - r) / _WALL).square()
