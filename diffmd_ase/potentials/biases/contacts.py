"""Contacts between atoms, counted by switches that fall off with the distance.

Where two atoms of a pair are in one place the pair pulls in no direction; its derivative is zero
(see `cvs`, where these variables are found as well).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...geometry import quotient
from ...system import System
from .cv import CV, Vectors, check_atoms, rows_of

__all__ = ["Coordination", "NativeContacts"]


class Coordination(CV):
    """Number of contacts between two groups, or within one, with a rational switch.

        s = Σ_pairs f(r),   f(r) = (1 - y^nn)/(1 - y^mm),  y = (r - d_0)/r_0,  f = 1 for r ≤ d_0

    That is PLUMED's COORDINATION with NOSTRETCH and without a cut. PLUMED's default cuts f at
    ``d_max = d_0 + r_0 (1e-5)^(1/(nn - mm))``, where f is 1e-5, and stretches it; given this
    ``d_max``, or that of PLUMED's D_MAX, it is the same here:

        (f(r) - f(d_max))/(1 - f(d_max)) for r < d_max, 0 beyond

    Parameters
    ----------
    group_a, group_b : atoms; without ``group_b`` the pairs within ``group_a``
    r_0, d_0 : in Å
    nn, mm : powers, ``mm`` defaults to 2 nn
    d_max : in Å; None: f reaches to infinity
    name : of the variable

    Raises ``ValueError`` for numbers out of range, atoms not in the system, and no pair.
    """

    def __init__(
        self,
        system: System,
        group_a: Sequence[int],
        group_b: Sequence[int] | None = None,
        *,
        r_0: float,
        d_0: float = 0.0,
        nn: int = 6,
        mm: int | None = None,
        d_max: float | None = None,
        name: str = "coordination",
    ):
        mm = 2 * nn if mm is None else mm
        if not (r_0 > 0 and d_0 >= 0 and 0 < nn < mm):
            raise ValueError(f"{r_0=} must be positive, {d_0=} not negative, and 0 < {nn=} < {mm=}")
        if d_max is not None and not d_max > d_0:
            raise ValueError(f"{d_max=} must be greater than {d_0=} (Å), or None for no cut")
        self.system, self.names, self.domains, self.plumed_units = system, (name,), (None,), (1.0,)
        self.r_0, self.d_0, self.nn, self.mm, self.d_max = r_0, d_0, nn, mm, d_max
        a, b = check_atoms(system, group_a), check_atoms(system, group_b or group_a)
        pairs = [(i, j) for k, i in enumerate(a) for j in (b if group_b else a[k + 1 :]) if i != j]
        if not pairs:
            raise ValueError(f"no pair of different atoms between {group_a} and {group_b}")
        self._pairs = Vectors(system, *np.array(pairs).T)

    def vjp(self, x):
        x = self.checked(x)
        r = self._pairs(x)
        distance = r.norm(dim=-1)
        f, slope = self._switch(distance)
        if self.d_max is not None:
            end, _ = self._switch(distance.new_tensor(self.d_max))
            beyond = distance >= self.d_max
            f, slope = (torch.where(beyond, 0.0, v / (1.0 - end)) for v in (f - end, slope))

        def back(g):
            per_length = quotient(slope, self.r_0 * distance)
            return self._pairs.back(r * (g * per_length)[..., None], x)

        return f.sum(-1, keepdim=True), back

    def _switch(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """f and df/dy at distances of any shape."""
        y = ((distance - self.d_0) / self.r_0).clamp(min=0.0)
        n, m = self.nn, self.mm
        near = (y - 1.0).abs() < 1e-4  # 0/0 at y = 1: the series about it
        safe = torch.where(near, 2.0, y)
        top, bottom = 1.0 - safe**n, 1.0 - safe**m
        first = n * (n - m) / (2.0 * m)
        second = n * (n - m) * (2.0 * n - m - 3.0) / (6.0 * m)
        f = torch.where(near, n / m + (y - 1.0) * (first + 0.5 * second * (y - 1.0)), top / bottom)
        slope = (m * safe ** (m - 1) * top - n * safe ** (n - 1) * bottom) / bottom**2
        slope = torch.where(near, first + second * (y - 1.0), slope)
        return f, torch.where(y > 0.0, slope, 0.0)


class NativeContacts(CV):
    """Fraction of native contacts (Best, Hummer & Eaton, PNAS 110, 17874 (2013), eq. 1).

        s = (1/n) Σ_pairs 1/(1 + exp[β (r - λ r⁰)])

    Parameters
    ----------
    pairs : (n, 2) atoms in contact
    reference : (n,) distances r⁰ in Å, or positions (N, 3) to take them from
    beta : β in 1/Å
    lam : λ
    name : of the variable

    Raises ``ValueError`` for other shapes, atoms not in the system, numbers not positive.
    """

    def __init__(
        self,
        system: System,
        pairs,
        reference,
        *,
        beta: float = 5.0,
        lam: float = 1.8,
        name: str = "q",
    ):
        rows = rows_of(system, pairs, 2)
        self.system, self.names, self.domains, self.plumed_units = system, (name,), (None,), (1.0,)
        self._pairs = Vectors(system, rows[:, 0], rows[:, 1])
        reference = torch.as_tensor(reference, dtype=torch.float64)
        if reference.shape == (len(system), 3):
            reference = self._pairs(reference).norm(dim=-1)
        if reference.shape != (len(rows),) or not (reference > 0).all():
            raise ValueError(
                f"reference {tuple(reference.shape)} must be {len(rows)} positive distances (Å) "
                f"or positions ({len(system)}, 3)"
            )
        if not (beta > 0 and lam > 0):
            raise ValueError(f"{beta=} (1/Å) and {lam=} must be positive")
        self.beta, self.lam, self._reference = beta, lam, reference

    def vjp(self, x):
        x = self.checked(x)
        r = self._pairs(x)
        distance = r.norm(dim=-1)
        f = torch.sigmoid(-self.beta * (distance - self.lam * self._reference.to(x)))

        def back(g):
            slope = quotient(-self.beta / f.shape[-1] * g * f * (1.0 - f), distance)
            return self._pairs.back(r * slope[..., None], x)

        return f.mean(-1, keepdim=True), back
