"""Restraints and walls on collective variables; in the forms of PLUMED, in eV.

`Restraint` and the walls depend on positions alone. `MovingRestraint` also depends on the step:
its centres change in `update` only, so that evaluation stays a function of positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .base import CVBias, per_variable
from .cv import CV

__all__ = ["LowerWall", "MovingRestraint", "Restraint", "UpperWall"]


class Restraint(CVBias):
    """``V = Σ_i ½ κ_i (s_i - a_i)² + m_i (s_i - a_i)``, differences the short way round.

    Parameters
    ----------
    cvs : one or several `CV`
    at : a, in the units of the variables, one or d
    kappa : κ in eV per square of those units
    slope : m in eV per unit

    Raises
    ------
    ValueError : neither one number nor one for each variable, or not finite
    """

    def __init__(self, cvs: CV | Sequence[CV], *, at, kappa, slope=0.0):
        super().__init__(cvs)
        self.at = per_variable(self.cv, at, "at")
        self.kappa = per_variable(self.cv, kappa, "kappa")
        self.slope = per_variable(self.cv, slope, "slope")

    def bias(self, s):
        return _harmonic(self.cv, s, self.at, self.kappa, self.slope)


class _Wall(CVBias):
    """``V = Σ_i κ_i z_i^p`` for z > 0, with ``z = ±(s - a ± offset)/ε``."""

    def __init__(self, cvs: CV | Sequence[CV], *, at, kappa, exp=2.0, eps=1.0, offset=0.0):
        super().__init__(cvs)
        self.at = per_variable(self.cv, at, "at")
        self.kappa = per_variable(self.cv, kappa, "kappa")
        self.exp = per_variable(self.cv, exp, "exp", positive=True)
        self.eps = per_variable(self.cv, eps, "eps", positive=True)
        self.offset = per_variable(self.cv, offset, "offset")

    @property
    @abstractmethod
    def _side(self) -> float:
        """1: the forbidden side is above; -1: below."""

    def bias(self, s):
        at, kappa, exp, eps, offset = (
            v.to(s.device) for v in (self.at, self.kappa, self.exp, self.eps, self.offset)
        )
        z = (self._side * self.cv.difference(s, at) + offset) / eps
        beyond = z > 0.0
        z = torch.where(z <= 0.0, 1.0, z)  # NaN stays
        value = torch.where(beyond | z.isnan(), kappa * z**exp, 0.0)
        slope = self._side * exp / eps * value / z
        return value.sum(-1), slope


class UpperWall(_Wall):
    """``V = Σ_i κ_i [(s_i - a_i + o_i)/ε_i]^p_i`` above ``a - o``, zero below.

    Parameters
    ----------
    cvs : one or several `CV`
    at : a, where the wall is, one or d
    kappa : κ in eV
    exp : p, without a unit
    eps, offset : ε and o, in the units of the variables

    Raises
    ------
    ValueError : as `Restraint`, and p or ε not positive
    """

    @property
    def _side(self):
        return 1.0


class LowerWall(_Wall):
    """``V = Σ_i κ_i |(s_i - a_i - o_i)/ε_i|^p_i`` below ``a + o``, zero above.

    Parameters and errors as of `UpperWall`.
    """

    @property
    def _side(self):
        return -1.0


class MovingRestraint(CVBias):
    """A harmonic restraint whose centre and stiffness follow a schedule, for steered dynamics.

    Between the steps of the schedule both are interpolated linearly, before and after it they
    stay; centres of periodic variables move the short way. ``work`` (*batch, in eV) is what the
    moves have done on each walker,

        W = Σ_n V(s_n; a(n)) - V(s_n; a(n-1))

    (Jarzynski, PRL 78, 2690 (1997); exact for a chain of steps, each at fixed centre).

    Parameters
    ----------
    cvs : one or several `CV`
    steps : (k,) increasing
    at : (k,) or (k, d) centres
    kappa : number, (k,) or (k, d) in eV per square of the units of the variables

    Raises
    ------
    ValueError : fewer than two steps, or not increasing; shapes that do not fit, not finite
    """

    has_memory = True

    def __init__(self, cvs: CV | Sequence[CV], *, steps: Sequence[int], at, kappa):
        super().__init__(cvs)
        self._steps = np.asarray(steps, dtype=float)
        k, d = len(self._steps), len(self.cv)
        if k < 2 or not (np.diff(self._steps) > 0).all():
            raise ValueError(f"{steps=} must be at least two, and increasing")
        self._at = _rows(at, "at", k, d)
        moves = [self.cv.difference(b, a) for a, b in zip(self._at, self._at[1:], strict=False)]
        self._at = torch.cumsum(torch.stack([self._at[0], *moves]), 0)
        self._kappa = _rows(kappa, "kappa", k, d)
        self._step = 0
        self.work: Tensor | None = None

    def centre(self, step: int) -> tuple[Tensor, ...]:
        """a and κ (d,) at a step."""
        later = np.interp(step, self._steps, np.arange(len(self._steps)))
        low = min(int(later), len(self._steps) - 2)
        share = later - low
        return tuple(rows[low].lerp(rows[low + 1], share) for rows in (self._at, self._kappa))

    def bias(self, s):
        return self._at_step(s, self._step)

    def update(self, x, step) -> bool:
        old, self._step = self._step, step
        if all(torch.equal(a, b) for a, b in zip(self.centre(old), self.centre(step), strict=True)):
            return False
        s = self.cv(x)
        done = self._at_step(s, step)[0] - self._at_step(s, old)[0]
        self.work = done if self.work is None else self.work + done
        return True

    @property
    def columns(self):
        return (*super().columns, "work")

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        said = super().describe(x)
        done = torch.zeros_like(said["bias"]) if self.work is None else self.work
        return said | {"work": done}

    def select(self, keep) -> None:
        if self.work is not None:
            self.work = self.work[keep]

    def checkpoint(self) -> dict:
        return {"step": self._step, "work": None if self.work is None else self.work.tolist()}

    def restore(self, saved, x, step) -> None:
        self._step, work = saved["step"], saved["work"]
        self.work = (
            None if work is None else torch.tensor(work, dtype=torch.float64, device=x.device)
        )

    def _at_step(self, s: Tensor, step: int) -> tuple[Tensor, Tensor]:
        at, kappa = self.centre(step)
        return _harmonic(self.cv, s, at, kappa, torch.zeros_like(at))


def _harmonic(cv: CV, s: Tensor, at, kappa, slope) -> tuple[Tensor, Tensor]:
    at, kappa, slope = (v.to(s.device) for v in (at, kappa, slope))
    away = cv.difference(s, at)
    pull = kappa * away
    return ((0.5 * pull + slope) * away).sum(-1), pull + slope


def _rows(value, name: str, k: int, d: int) -> Tensor:
    """(k, d) from a number, (k,) or (k, d)."""
    given = torch.as_tensor(value, dtype=torch.float64)
    shaped = given[:, None] if given.ndim == 1 else given
    if given.ndim > 2 or (given.ndim and shaped.shape not in ((k, 1), (k, d))):
        raise ValueError(f"{name}={value} must be a number, ({k},) or ({k}, {d})")
    if not torch.isfinite(given).all():
        raise ValueError(f"{name}={value} must be finite")
    return shaped.expand(k, d).clone()
