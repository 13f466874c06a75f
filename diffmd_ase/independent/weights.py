"""Samples with weights: normalising constants, means, and how many samples they are worth."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Weighted", "effective_fraction"]

_FEW = 0.05


@dataclass(frozen=True, eq=False)
class Weighted:
    """Samples x of one law with weights towards another, ``E[w] = Z_target/Z_start``.

    Parameters
    ----------
    log_weights : (B,) float64; -inf where a sample cannot be
    groups : independent groups of equal size, in order, on which errors are based; None: every
        sample is independent

    Raises
    ------
    ValueError : shapes or groups that do not fit; no finite weight
    """

    x: Tensor
    log_weights: Tensor
    groups: int | None = None

    def __post_init__(self):
        if self.log_weights.shape != self.x.shape[:1] or len(self.x) % self._groups:
            raise ValueError(
                f"log weights {tuple(self.log_weights.shape)} of {len(self.x)} samples in "
                f"{self.groups} groups: expected one for each, and groups of equal size"
            )
        if not (self.log_weights > -torch.inf).any():
            raise ValueError(
                "no sample has a finite weight: the energies are not finite, or the target is "
                "nowhere near the samples"
            )

    @property
    def ess(self) -> float:
        """Effective samples, ``(Σ w)²/(B Σ w²)``, as a fraction of B."""
        return float(effective_fraction(self.log_weights))

    @property
    def log_z(self) -> tuple[float, float]:
        """``log (Z_target/Z_start)`` and its standard error.

        The log of the mean weight, which is unbiased itself; the error is that of the mean
        of independent groups over the mean, NaN for a single group.
        """
        w, shift = self._relative
        mean, error = w.mean(-1).mean(), _standard_error(w.mean(-1))
        return float(mean.log() + shift), float(error / mean)

    def mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error under the target of values (B, …), one for each sample.

        ``Σ w f / Σ w`` of all; the error by linearisation over independent groups.
        """
        w, _ = self._relative
        total = w.sum()
        f = values.to(w).reshape(*w.shape, -1)
        parts = torch.einsum("gn,gnf->gf", w, f)
        mean = parts.sum(0) / total
        residual = parts - mean * w.sum(-1, keepdim=True)
        error = len(w) * _standard_error(residual) / total
        return mean.reshape(values.shape[1:]), error.reshape(values.shape[1:])

    def warn(self) -> Weighted:
        """Itself; with a ``RuntimeWarning`` if few samples carry the weight."""
        if not self.ess >= _FEW:
            warnings.warn(
                f"the weights of {len(self.x)} samples are worth {self.ess * len(self.x):.1f} "
                f"(below {_FEW:.0%}): their mean is then often too small, and so is its error; "
                "take more levels, or more steps at each",
                RuntimeWarning,
                stacklevel=3,
            )
        return self

    @property
    def _groups(self) -> int:
        return len(self.x) if self.groups is None else self.groups

    @property
    def _relative(self) -> tuple[Tensor, Tensor]:
        """Weights over the largest (groups, size), and its log."""
        shift = self.log_weights.max()
        return (self.log_weights - shift).exp().reshape(self._groups, -1), shift


def effective_fraction(log_weights: Tensor) -> Tensor:
    """``(Σ w)²/(n Σ w²)`` of ``log_weights`` (…, n); 0 where no weight is finite."""
    total = 2.0 * log_weights.logsumexp(-1) - (2.0 * log_weights).logsumexp(-1)
    return (total.exp() / log_weights.shape[-1]).nan_to_num(nan=0.0)


def _standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis; NaN for one value."""
    if len(values) < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0) / len(values) ** 0.5
