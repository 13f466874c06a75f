"""Biases on collective variables: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ...io.plumed_writer import plumed_number
from ...state import Evaluation
from ..base import Potential
from .cv import CV, join

__all__ = ["CVBias", "domain_constants", "per_variable"]


class CVBias(Potential):
    """``V(s(x))`` with forces ``-Σ_i dV/ds_i ds_i/dx``; no stress.

    A subclass gives `bias`. The sum is float64, results have the precision of the positions.
    """

    def __init__(self, cvs: CV | Sequence[CV]):
        self.cv = join(cvs)
        self.system = self.cv.system

    @abstractmethod
    def bias(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """V (*batch) in eV and dV/ds (*batch, d) at values s (*batch, d) of the variables."""

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        s, back = self.cv.vjp(x)
        energy, slope = self.bias(s)
        return Evaluation(energy.to(x.dtype), back(-slope).to(x.dtype))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what `describe` says."""
        return (*self.cv.names, "bias")

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """The variables at positions x by name, and ``bias`` (eV), each (*batch)."""
        s = self.cv(x)
        said = dict(zip(self.cv.names, s.unbind(-1), strict=True))
        return said | {"bias": self.bias(s)[0]}


def per_variable(cv: CV, value, name: str, *, positive: bool = False) -> Tensor:
    """``value`` as (d,) float64; a number counts for every variable.

    Raises ``ValueError`` for another shape, for what is not finite, or not positive if asked.
    """
    given = torch.as_tensor(value, dtype=torch.float64)
    if given.ndim > 1 or (given.ndim and len(given) != len(cv)):
        raise ValueError(
            f"{name}={value} must be a number or one for each of {', '.join(cv.names)}"
        )
    if not torch.isfinite(given).all() or (positive and not (given > 0).all()):
        kind = "positive" if positive else "finite"
        raise ValueError(f"{name}={value} must be {kind}")
    return given.expand(len(cv)).clone()


def domain_constants(cv: CV) -> dict[str, str]:
    """``min_NAME`` and ``max_NAME`` of the periodic variables, in PLUMED's units."""
    constants: dict[str, str] = {}
    for name, domain, unit in zip(cv.names, cv.domains, cv.plumed_units, strict=True):
        if domain is not None:
            low, high = (plumed_number(unit * limit) for limit in domain)
            constants |= {f"min_{name}": low, f"max_{name}": high}
    return constants
