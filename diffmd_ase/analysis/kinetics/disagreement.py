"""Without a reference: how far the members of a committee are from each other.

An estimate, never a bound: what all members have wrong alike is not seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...potentials.base import evaluate, unwrapped
from ...potentials.committee import Mean
from ...sampling.euler import EulerMaruyama
from ..statistics import Estimate, mean_estimate
from .path_error import clock

__all__ = ["committee_rate"]


def committee_rate(kernel: EulerMaruyama, x: Tensor) -> Estimate:
    """Rate of the score's error of one member, nats per Å² of D·t, from the spread of them all.

        r ≈ Σ_m ¼ E (s_m - s̄)ᵀ M (s_m - s̄) / (M - 1) / h

    which is the rate r of `path_error` for members whose errors are independent with mean zero;
    that of their mean is smaller by their number. Label it an estimate.

    Parameters
    ----------
    kernel : its drift is a committee (`potentials.committee.Mean`) alone
    x : (T, B, N, 3) or (B, N, 3) in Å, of its chain

    Raises
    ------
    ValueError : the drift is no committee
    """
    drift = unwrapped(kernel.potential)
    if not isinstance(drift, Mean):
        raise ValueError(
            f"the drift is a {type(drift).__name__}: without a reference only a committee "
            "of models says anything of its error; train several, or give a reference"
        )
    frames = x.double() if x.ndim == 4 else x.double()[None]
    rows = []
    for frame in frames:
        mean = drift(frame).forces
        members = [evaluate(m.terms, frame).forces for m in drift.potentials]
        apart = torch.stack([kernel.divergence(forces, mean) for forces in members])
        rows.append(apart.sum(0) / (len(members) - 1) / clock(kernel))
    return mean_estimate(torch.stack(rows).cpu().numpy())
