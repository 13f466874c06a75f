"""The components of a probability: a sum of hills that merges those that are close.

    P(s) = Σ_k h_k (exp(-z_k) - e)  for z = ½ Σ_i (s_i - c_i)²/σ_i² < ½ c², else 0;  e = exp(-½ c²)

Two components become one of their total height, mean and variance (Sodkomkham et al., Knowl.-Based
Syst. 95, 1 (2016)). Merging is sequential and the components are few, so they live on the host,
with a copy where they are evaluated. PLUMED calls them kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cv import CV
from .hills import hill_sum, profile

__all__ = ["Components"]


class Components:
    """Components over the d variables of ``cv``: their sum, and what a deposit does to it.

    Parameters
    ----------
    cv : gives differences and periods
    cutoff : c, in sigmas
    threshold : components closer than this, in sigmas, are merged; 0: never

    Attributes
    ----------
    centres, sigmas, heights : (n, d), (n, d) and (n,), float64 on the host

    Raises ``ValueError`` for a threshold that is not below the cutoff.
    """

    def __init__(self, cv: CV, cutoff: float, threshold: float):
        if threshold >= cutoff:
            raise ValueError(f"compression {threshold} must be below the cutoff {cutoff:.3g}")
        self._cv, self._cutoff, self._threshold2 = cv, 0.5 * cutoff * cutoff, threshold * threshold
        self._end = 1.0 - math.exp(-self._cutoff)  # h of a component over that of a hill
        nothing = torch.zeros(0, len(cv), dtype=torch.float64)
        self.centres, self.sigmas, self.heights = nothing, nothing, nothing.sum(-1)
        self._total = 0.0  # of the sum at the centres of all components
        self._copy: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.heights)

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Sum (*batch) and its derivative (*batch, d) at s (*batch, d)."""
        if self._copy is None or self._copy[0].device != s.device:
            self._copy = self.centres.to(s), self.sigmas.to(s), self.heights.to(s)
        return self._sum(s, *self._copy)

    @property
    def mean_at_centres(self) -> float:
        """Mean over the components of the sum at their centres."""
        return self._total / len(self)

    def at(self, s: Tensor) -> float:
        """The sum at one point (d,) on the host."""
        return self._end * float(self.heights @ self._unit(s, self.centres, self.sigmas))

    def add(self, centre: Tensor, sigma: Tensor, height: float) -> None:
        """Add one at ``centre`` (d,), merged with its nearest, that with its nearest, and so on."""
        c, w, h = centre[None], sigma[None], torch.tensor([height], dtype=torch.float64)
        while (nearest := self._nearest(c)) is not None:
            c, w, h = self._merged(nearest, c, w, h)
            self._take(nearest)
        self._total += self._pairs(c, w, h)
        self._set(
            torch.cat((self.centres, c)), torch.cat((self.sigmas, w)), torch.cat((self.heights, h))
        )

    def saved(self) -> dict:
        """JSON values from which `restore` makes the same sum."""
        arrays = {name: getattr(self, name).tolist() for name in ("centres", "sigmas", "heights")}
        return arrays | {"total": self._total}

    def restore(self, saved: dict) -> None:
        names, d = ("centres", "sigmas", "heights"), len(self._cv)
        values = (torch.tensor(saved[name], dtype=torch.float64) for name in names)
        centres, sigmas, heights = values
        self._set(centres.reshape(-1, d), sigmas.reshape(-1, d), heights)
        self._total = saved["total"]

    def _set(self, centres: Tensor, sigmas: Tensor, heights: Tensor) -> None:
        self.centres, self.sigmas, self.heights, self._copy = centres, sigmas, heights, None

    def _unit(self, s: Tensor, centre: Tensor, sigma: Tensor) -> Tensor:
        z = 0.5 * (self._cv.difference(s, centre) / sigma).square().sum(-1)
        return profile(z, self._cutoff)

    def _sum(self, s, centres, sigmas, heights) -> tuple[Tensor, Tensor]:
        total = hill_sum(self._cv, s, centres, sigmas, self._end * heights, self._cutoff)
        return total[..., 0], total[..., 1:]

    def _nearest(self, centre: Tensor) -> int | None:
        if not len(self) or not self._threshold2:
            return None
        apart = self._cv.difference(centre, self.centres) / self.sigmas
        distance, best = apart.square().sum(-1).min(0)
        return int(best) if float(distance) < self._threshold2 else None

    def _pairs(self, centre: Tensor, sigma: Tensor, height: Tensor) -> float:
        """What a component (1, d) adds to `_total`: at the others, they at it, and at itself."""
        there = self._unit(self.centres, centre, sigma).sum()
        return self._end * float(height * (there + 1.0)) + self.at(centre[0])

    def _take(self, k: int) -> None:
        keep = torch.arange(len(self)) != k
        taken = self.centres[~keep], self.sigmas[~keep], self.heights[~keep]
        self._set(self.centres[keep], self.sigmas[keep], self.heights[keep])
        self._total -= self._pairs(*taken)

    def _merged(self, k: int, centre: Tensor, sigma: Tensor, height: Tensor):
        total = self.heights[k] + height
        share = self.heights[k] / total
        away = self._cv.difference(self.centres[k], centre)
        middle = centre + share * away
        wide = share * self.sigmas[k] ** 2 + (1 - share) * sigma**2 + share * (1 - share) * away**2
        return self._cv.wrap(middle), wide.sqrt(), total
