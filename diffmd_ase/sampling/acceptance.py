"""Counts of the steps of a run: acceptance, divergent proposals, evaluations.

Kept on the device of the walkers and added up without a transfer; read when a line is
written. A kernel without acceptance (plain dynamics) counts evaluations only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Info

__all__ = ["Tally", "acceptance_probability"]


def acceptance_probability(info: Info) -> Tensor:
    """``min(1, exp(log α))`` of one step's ``info``, float64 (*batch); 0 where divergent.

    Raises ``TypeError`` for a step that was not accepted or rejected.
    """
    if info.log_ratio is None:
        raise TypeError(
            "this kernel accepts every step, so that there is no acceptance: use a Metropolis "
            "kernel (target= a potential or 'model')"
        )
    probability = info.log_ratio.double().clamp(max=0.0).exp()
    if info.divergent is None:
        return torch.nan_to_num(probability, nan=0.0)
    return torch.where(info.divergent, 0.0, probability)


@dataclass(frozen=True)
class Tally:
    """Sums over steps, for each walker (W,) float64; `add` gives a new one."""

    steps: Tensor  # completed
    accepted: Tensor  # proposals that became the state
    divergent: Tensor  # proposals without a finite ratio (NaN, failed calculators), rejected
    judged: Tensor  # steps that were accepted or rejected at all
    drift: int | Tensor = 0  # structures evaluated by the drift
    target: int | Tensor = 0  # and by a separate target

    @classmethod
    def empty(cls, walkers: int, device: str | torch.device = "cpu") -> Tally:
        """No steps yet, for a number of ``walkers``."""
        zero = torch.zeros(walkers, dtype=torch.float64, device=device)
        return cls(zero, zero, zero, zero)

    def add(self, info: Info, columns: Tensor | None = None) -> Tally:
        """With the ``info`` of one more step of the walkers in ``columns`` (B,), default all."""
        count = len(self.steps) if columns is None else len(columns)

        def more(total: Tensor, part) -> Tensor:
            part = torch.as_tensor(part, device=total.device).double().expand(count)
            return total + part if columns is None else total.index_add(0, columns, part)

        judged = info.accepted is not None
        return Tally(
            more(self.steps, 1.0),
            more(self.accepted, info.accepted.reshape(-1)) if judged else self.accepted,
            self.divergent
            if info.divergent is None
            else more(self.divergent, info.divergent.reshape(-1)),
            more(self.judged, 1.0) if judged else self.judged,
            self.drift + _evaluated(info.drift_evaluations, count),
            self.target + _evaluated(info.target_evaluations, count),
        )

    def __sub__(self, other: Tally) -> Tally:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Tally(*(mine - theirs for mine, theirs in pairs))

    @property
    def acceptance(self) -> float:
        """Accepted fraction of all walkers and steps; NaN without any acceptance."""
        judged = float(self.judged.sum())
        return float(self.accepted.sum()) / judged if judged else float("nan")

    def to_dict(self) -> dict:
        """JSON values; `from_dict` reads them."""
        return {name: torch.as_tensor(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, saved: dict, device: str | torch.device = "cpu") -> Tally:
        """The tally that `to_dict` ``saved``, on ``device``."""
        sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in saved.items()
            if isinstance(value, list)
        }
        return cls(**{**saved, **sums})


def _evaluated(each: int | Tensor, count: int) -> int | Tensor:
    """Evaluations of all ``count`` walkers; without a transfer where they differ."""
    return each.sum() if isinstance(each, Tensor) else count * each
