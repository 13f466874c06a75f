"""Biases on collective variables: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...io.plumed_writer import PlumedFile, plumed_number
from ...state import Evaluation
from ..base import Potential
from .cv import CV, join

__all__ = ["CVBias", "DepositedBias", "domain_constants", "per_variable"]


class CVBias(Potential):
    """``V(s(x))`` with forces ``-Σ_i dV/ds_i ds_i/dx``; no stress.

    A subclass gives `bias`. The sum is float64, results have the precision of the positions.
    ``cvs`` is one `CV` or several of one system, see `join` for what it raises.
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


class DepositedBias(CVBias):
    """A bias that grows: every ``pace`` steps each walker deposits a Gaussian where it is.

    A subclass gives `deposit`. Its file has one row for each deposit, in PLUMED's units.

    Parameters
    ----------
    cvs : one or several `CV` of one system, d variables in all
    kT : in eV
    sigma : widths of the Gaussians in the units of the variables, one or d
    pace : steps between deposits
    timestep_ps : ps of one step, for the column ``time``

    Raises
    ------
    ValueError : kT or sigma not positive, pace below 1; `update`: variables that are not finite
    """

    has_memory = True

    def __init__(self, cvs: CV | Sequence[CV], *, kT: float, sigma, pace: int, timestep_ps: float):
        super().__init__(cvs)
        if not kT > 0:
            raise ValueError(f"{kT=} must be positive (eV)")
        if pace < 1:
            raise ValueError(f"{pace=} must be at least 1 step")
        self.kT, self.pace, self.timestep_ps = kT, pace, timestep_ps
        self.sigma = per_variable(self.cv, sigma, "sigma", positive=True)

    @abstractmethod
    def deposit(self, step: int, s: Tensor) -> None:
        """Learn from the values s (*batch, d) of all walkers, which are finite."""

    def update(self, x, step) -> bool:
        """Deposit if ``step`` is a multiple of ``pace``.

        Raises ``ValueError`` for variables that are not finite.
        """
        if step % self.pace:
            return False
        s = self.cv(x)
        if not torch.isfinite(s).all():
            raise ValueError(
                f"step {step}: {', '.join(self.cv.names)} are not finite for some walker, and a "
                "deposit there would be lost: look for NaN positions or overlapping atoms"
            )
        self.deposit(step, s)
        return True

    def next_change(self, step) -> float:
        return step - step % self.pace + self.pace

    def open_file(
        self, path, more: Sequence[str], constants: dict[str, str], *, restart: bool
    ) -> PlumedFile:
        """The file of deposits: time, variables, sigmas and ``more`` columns."""
        fields = ["time", *self.cv.names, *(f"sigma_{name}" for name in self.cv.names), *more]
        return PlumedFile(path, fields, constants | domain_constants(self.cv), restart=restart)

    def rows(self, step: int, centres: Tensor, sigmas: Tensor, *more) -> np.ndarray:
        """Rows of that file for m deposits: (m, d), (m, d) and columns (m,) or numbers."""
        unit = np.array(self.cv.plumed_units)
        columns = [np.broadcast_to(column, len(centres)) for column in more]
        time = np.full(len(centres), step * self.timestep_ps)
        return np.column_stack(
            (time, centres.cpu().numpy() * unit, sigmas.cpu().numpy() * unit, *columns)
        )


def per_variable(cv: CV, value, name: str, *, positive: bool = False) -> Tensor:
    """``value`` as (d,) float64, a number counting for each of the d variables of ``cv``.

    ``name`` is that of the setting; if ``positive``, it must be greater than zero. Raises
    ``ValueError`` for what is not, for what is not finite, and for another shape.
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
    """``min_NAME`` and ``max_NAME`` of the periodic variables of ``cv``, in PLUMED's units."""
    constants: dict[str, str] = {}
    for name, domain, unit in zip(cv.names, cv.domains, cv.plumed_units, strict=True):
        if domain is not None:
            low, high = (plumed_number(unit * limit) for limit in domain)
            constants |= {f"min_{name}": low, f"max_{name}": high}
    return constants
