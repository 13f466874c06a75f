"""A sum of truncated Gaussian kernels that merges those that are close.

    K(s) = h (exp(-z) - e)  for z = ½ Σ_i (s_i - c_i)²/σ_i² < ½ c², else 0;   e = exp(-½ c²)

Two kernels become one of their total height, mean and variance (Sodkomkham et al., Knowl.-Based
Syst. 95, 1 (2016)). Merging is sequential and the kernels are few, so they live on the host,
with a copy where they are evaluated.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .cv import CV

__all__ = ["Kernels"]


class Kernels:
    """Kernels over the variables of ``cv``.

    Parameters
    ----------
    cutoff : c, in sigmas
    threshold : kernels closer than this, in sigmas, are merged; 0: never
    """

    def __init__(self, cv: CV, cutoff: float, threshold: float):
        if threshold >= cutoff:
            raise ValueError(f"compression {threshold} must be below the cutoff {cutoff:.3g}")
        d = len(cv)
        self._cutoff2, self._threshold2 = cutoff * cutoff, threshold * threshold
        self._edge = math.exp(-0.5 * self._cutoff2)
        # a variable without a domain never turns
        self._low = np.array([0.0 if d is None else d[0] for d in cv.domains])
        self._period = np.array([0.0 if d is None else d[1] - d[0] for d in cv.domains])
        self._frequency = np.divide(1.0, self._period, np.zeros(d), where=self._period > 0)
        self._difference = cv.difference
        self.centres, self.sigmas, self.heights = np.empty((0, d)), np.empty((0, d)), np.empty(0)
        self._total = 0.0  # of the sum at the centres of all kernels
        self._copy: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.heights)

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Sum (*batch) and its derivative (*batch, d) at s (*batch, d)."""
        if self._copy is None or self._copy[0].device != s.device:
            arrays = (self.centres, self.sigmas, self.heights)
            self._copy = tuple(torch.from_numpy(a.copy()).to(s.device) for a in arrays)
        centres, sigmas, heights = self._copy
        scaled = self._difference(s[..., None, :], centres) / sigmas
        z = 0.5 * scaled.square().sum(-1)
        near = z < 0.5 * self._cutoff2
        e = torch.where(near, heights * torch.exp(-z), 0.0)
        value = (e - heights * self._edge * near).sum(-1)
        slope = -torch.einsum("...n,...nd->...d", e, scaled / sigmas)
        nothing = 0.0 * s  # but NaN
        return value + nothing.sum(-1), slope + nothing

    def at(self, s: np.ndarray) -> float:
        """The sum at one point (d,)."""
        return float(self._values(s, self.centres, self.sigmas, self.heights).sum())

    @property
    def mean_at_centres(self) -> float:
        """Mean over the kernels of the sum at their centres."""
        return self._total / len(self)

    def add(self, centre: np.ndarray, sigma: np.ndarray, height: float) -> None:
        """Add a kernel, merged with its nearest, that with its nearest, and so on."""
        self._copy = None
        while (nearest := self._nearest(centre)) is not None:
            centre, sigma, height = self._merged(nearest, centre, sigma, height)
            self._take(nearest)
        self._total += self._cross(centre, sigma, height) + height * (1.0 - self._edge)
        self.centres = np.concatenate((self.centres, centre[None]))
        self.sigmas = np.concatenate((self.sigmas, sigma[None]))
        self.heights = np.append(self.heights, height)

    def saved(self) -> dict:
        """JSON values from which `restore` makes the same sum."""
        arrays = {name: getattr(self, name).tolist() for name in ("centres", "sigmas", "heights")}
        return arrays | {"total": self._total}

    def restore(self, saved: dict) -> None:
        d = self.centres.shape[1]
        self.centres = np.array(saved["centres"], dtype=float).reshape(-1, d)
        self.sigmas = np.array(saved["sigmas"], dtype=float).reshape(-1, d)
        self.heights = np.array(saved["heights"], dtype=float)
        self._total, self._copy = saved["total"], None

    def _apart(self, s, centres):
        away = s - centres
        return away - np.round(away * self._frequency) * self._period

    def _values(self, s, centres, sigmas, heights):
        z = 0.5 * np.square(self._apart(s, centres) / sigmas).sum(-1)
        return np.where(z < 0.5 * self._cutoff2, heights * (np.exp(-z) - self._edge), 0.0)

    def _nearest(self, centre) -> int | None:
        if not len(self) or not self._threshold2:
            return None
        distance = np.square(self._apart(centre, self.centres) / self.sigmas).sum(-1)
        best = int(distance.argmin())
        return best if distance[best] < self._threshold2 else None

    def _cross(self, centre, sigma, height) -> float:
        """What a kernel adds at the centres of the others, and they at its centre."""
        there = self._values(self.centres, centre, sigma, height).sum()
        return float(there) + self.at(centre)

    def _take(self, k: int) -> None:
        kernel = self.centres[k], self.sigmas[k], self.heights[k]
        self.centres, self.sigmas = np.delete(self.centres, k, 0), np.delete(self.sigmas, k, 0)
        self.heights = np.delete(self.heights, k)
        self._total -= self._cross(*kernel) + kernel[2] * (1.0 - self._edge)

    def _merged(self, k: int, centre, sigma, height):
        total = self.heights[k] + height
        share = self.heights[k] / total
        away = self._apart(self.centres[k], centre)
        middle = centre + share * away
        wide = share * self.sigmas[k] ** 2 + (1 - share) * sigma**2 + share * (1 - share) * away**2
        turns = np.floor((middle - self._low) * self._frequency)
        return middle - turns * self._period, np.sqrt(wide), total
