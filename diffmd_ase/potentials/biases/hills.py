"""Sums of Gaussian hills over collective variables: one by one, or on a grid.

A hill of unit height at c is PLUMED's stretched Gaussian, which ends where it is zero,

    G(s) = A exp(-z) + B  for z = ½ Σ_i (s_i - c_i)²/σ_i² < 6.25, else 0
    A = 1/(1 - e^-6.25),  B = -A e^-6.25

The components of OPES are such hills with another end, those of files may have covariances.

Sums answer in two stages: ``gather`` fetches numbers that are linear in the heights of the
hills, ``blend`` makes the bias and its derivative of them. So what further hills would add is
known before they are put down, and many walkers deposit one after the other in a few batches.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from ase import units
from torch import Tensor

from .cv import CV

__all__ = [
    "CHUNK",
    "CUTOFF",
    "Grid",
    "HillGrid",
    "HillList",
    "HillSum",
    "hill",
    "hill_sum",
    "profile",
]

CUTOFF = 6.25  # z where a hill of PLUMED ends
CHUNK = 2_000_000  # numbers in one temporary


def profile(z: Tensor, cutoff: float = CUTOFF, *, stretched: bool = True) -> Tensor:
    """G of the module at ``z``, of any shape; zero from ``cutoff`` on.

    Not ``stretched``, as in old files, it is exp(-z), which jumps to zero there.
    """
    e = torch.exp(-z)
    if stretched:
        factor, shift = _stretch(cutoff)
        e = factor * e + shift
    return torch.where(z < cutoff, e, 0.0)


def hill(apart: Tensor, sigma: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """Value and derivative (…, 1 + d) of a unit hill at ``apart`` (…, d) = s - c from its centre.

    ``sigma`` (d,) are its widths in the units of the variables, ``cutoff`` is the ``z`` of its end.
    """
    factor, shift = _stretch(cutoff)
    scaled = apart / sigma
    z = 0.5 * scaled.square().sum(-1, keepdim=True)
    e = factor * torch.exp(-z)
    return torch.where(z < cutoff, torch.cat((e + shift, -e * scaled / sigma), -1), 0.0)


def _stretch(cutoff: float) -> tuple[float, float]:
    """A and B."""
    edge = math.exp(-cutoff)
    return 1.0 / (1.0 - edge), -edge / (1.0 - edge)


def hill_sum(
    cv: CV, s: Tensor, centres: Tensor, sigma: Tensor, heights: Tensor, cutoff: float = CUTOFF
) -> Tensor:
    """``Σ_k h_k G(s - c_k)`` and its derivative, (*batch, 1 + d) at s (*batch, d).

    Parameters
    ----------
    cv : gives differences, the short way for periodic variables
    centres, heights : (n, d) and (n,), or (W, n, d) and (W, n) where W is the last axis of the
        batch
    sigma : (d,) or (n, d)
    cutoff : z where a hill ends
    """
    factor, shift = _stretch(cutoff)
    value, slope = 0.0 * s.sum(-1), 0.0 * s  # NaN stays NaN
    size = max(1, CHUNK // max(1, s.numel()))
    widths = sigma.expand(centres.shape[-2:]).split(size, -2)
    parts = zip(centres.split(size, -2), widths, heights.split(size, -1), strict=True)
    for c, w, h in parts:
        scaled = cv.difference(s[..., None, :], c) / w
        z = 0.5 * scaled.square().sum(-1)
        near = z < cutoff
        e = torch.where(near, factor * h * torch.exp(-z), 0.0)
        value = value + (e + shift * h * near).sum(-1)
        slope = slope - torch.einsum("...n,...nd->...d", e, scaled / w)
    return torch.cat((value[..., None], slope), -1)


@dataclass(frozen=True)
class Grid:
    """Where a bias is tabulated: ``bins`` intervals for each variable.

    ``minimum`` and ``maximum`` are in the units of the variables; a periodic variable has
    those of its domain, whatever is given.
    """

    bins: Sequence[int]
    minimum: Sequence[float] | None = None
    maximum: Sequence[float] | None = None


class HillSum(ABC):
    """A sum of hills over ``d`` variables, for one bias (shared) or one for each of W walkers.

    Centres are (W, m, d), heights (W, m) in eV, W = 1 if shared.
    """

    @abstractmethod
    def add(self, centres: Tensor, heights: Tensor) -> None:
        """Put down m hills for each bias."""

    @abstractmethod
    def gather(self, s: Tensor) -> Tensor:
        """What the hills say about s (*batch, d): (*batch, …), linear in their heights; with W
        biases the last axis of the batch is W."""

    @abstractmethod
    def blend(self, s: Tensor, gathered: Tensor) -> tuple[Tensor, Tensor]:
        """Bias (*batch) in eV and derivative (*batch, d) from what was gathered at s."""

    def check(self, s: Tensor) -> None:  # noqa: B027  # a list of hills has no limits
        """Raise ``ValueError`` where s (*batch, d) can have no hill."""

    @abstractmethod
    def influence(self, s: Tensor) -> Tensor:
        """(m, m, …): what a unit hill at s_i adds to what is gathered at s_j, s being (m, d)."""

    @abstractmethod
    def select(self, keep: Tensor) -> None:
        """Forget the biases outside the mask (W,)."""

    @abstractmethod
    def like(self, walkers: int) -> HillSum:
        """No hills yet, for so many biases."""

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Bias (*batch) in eV and its derivative (*batch, d) at s (*batch, d)."""
        return self.blend(s, self.gather(s))


class HillList(HillSum):
    """Every hill is kept and evaluated: exact, no limits of range, a cost that grows.

    Parameters
    ----------
    cv : the d variables
    sigma : (d,) widths in their units
    walkers : W, biases; 1: one that is shared
    """

    def __init__(self, cv: CV, sigma: Tensor, walkers: int = 1):
        self._cv, self._sigma = cv, sigma
        self._centres = torch.zeros(walkers, 0, len(sigma), dtype=torch.float64)
        self._heights = torch.zeros(walkers, 0, dtype=torch.float64)

    def like(self, walkers):
        return HillList(self._cv, self._sigma, walkers)

    def add(self, centres, heights):
        self._centres = torch.cat((self._centres.to(centres.device), centres), 1)
        self._heights = torch.cat((self._heights.to(centres.device), heights), 1)

    def select(self, keep):
        keep = keep.to(self._centres.device)
        self._centres, self._heights = self._centres[keep], self._heights[keep]

    def gather(self, s):
        if self._centres.device != s.device:
            self._centres, self._heights = self._centres.to(s.device), self._heights.to(s.device)
        centres, heights = self._centres, self._heights
        if len(centres) == 1:  # shared: the walkers see the same hills
            centres, heights = centres[0], heights[0]
        return hill_sum(self._cv, s, centres, self._sigma.to(s), heights)

    def blend(self, s, gathered):
        return gathered[..., 0], gathered[..., 1:]

    def influence(self, s):
        return hill(self._cv.difference(s[None], s[:, None]), self._sigma.to(s))


class HillGrid(HillSum):
    """Values and derivatives of the sum at the points of a grid, splined between them.

    The spline is PLUMED's: with g, g'_i at the 2^d corners around s, X_i the distance to the
    corner in grid spacings Δ_i and ± its direction,

        V(s) = Σ_corners g Π_i [1 - 3X_i² + 2X_i³ ± (g'_i/g) Δ_i (X_i - 2X_i² + X_i³)]

    and the derivative is that of V. A cost that does not grow with the number of hills.

    Parameters
    ----------
    cv, sigma, walkers : as of `HillList`
    grid : limits and bins

    Attributes
    ----------
    bounded : some variable is not periodic, and may leave the grid

    Raises
    ------
    ValueError : bins or limits that do not fit the variables, a spacing too wide for σ, a
        period shorter than a hill

    Outside the grid the sum is NaN, with one warning: a proposal there is rejected, a walker
    there is lost, and the others go on.
    """

    def __init__(self, cv: CV, sigma: Tensor, grid: Grid, walkers: int = 1):
        self._cv, self._sigma, self._grid = cv, sigma, grid
        d = len(cv)
        limits = _limits(cv, grid)
        periodic = torch.tensor([domain is not None for domain in cv.domains])
        self._min, self._max = limits.T.contiguous()
        bins = torch.tensor(list(grid.bins))
        self._dx = (self._max - self._min) / bins
        self._bins, self._points = bins, bins + (~periodic).long()
        self._check(periodic)
        # a period to wrap by, or one that is never reached
        self._wrap = torch.where(periodic, self._points, torch.iinfo(torch.int64).max)
        self._last = torch.where(periodic, bins, bins - 1)
        self._open = ~periodic
        self.bounded = not periodic.all()  # nothing is outside of periods
        strides = [math.prod(self._points[i + 1 :].tolist()) for i in range(d)]
        self._strides = torch.tensor(strides)
        self._corners = torch.tensor(list(product((0, 1), repeat=d)))
        self._reach = (math.sqrt(2.0 * CUTOFF) * sigma / self._dx).ceil().long()
        self._size = math.prod(self._points.tolist())
        self._table = torch.zeros(walkers, self._size, 1 + d, dtype=torch.float64)
        self._warned = False

    def like(self, walkers):
        return HillGrid(self._cv, self._sigma, self._grid, walkers)

    @property
    def values(self) -> Tensor:
        """Bias at the points of the grid, (W, points), the last variable fastest."""
        return self._table[..., 0]

    @property
    def points(self) -> Tensor:
        """(points, d), in the order of `values`."""
        axes = [
            low + dx * torch.arange(int(n), dtype=torch.float64, device=low.device)
            for low, dx, n in zip(self._min, self._dx, self._points, strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def add(self, centres, heights):
        self._to(centres.device)
        box = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in self._reach.tolist()))
        box = box.reshape(-1, len(self._reach)).to(centres.device)
        size = max(1, CHUNK // box.numel() // len(centres))
        offsets = self._size * torch.arange(len(centres), device=centres.device)[:, None, None]
        for c, h in zip(centres.split(size, 1), heights.split(size, 1), strict=True):
            cell = ((c - self._min) / self._dx).floor().long()[..., None, :] + box
            one = hill(self._min + cell * self._dx - c[..., None, :], self._sigma.to(c))
            outside = self._open & ((cell < 0) | (cell >= self._points))
            one = torch.where(outside.any(-1, keepdim=True), 0.0, one * h[..., None, None])
            cell = torch.where(self._open, cell.clamp(min=0).minimum(self._points - 1), cell)
            flat = (cell.remainder(self._wrap) * self._strides).sum(-1) + offsets
            table = self._table.view(-1, self._table.shape[-1])
            table.index_add_(0, flat.reshape(-1), one.reshape(-1, one.shape[-1]))

    def check(self, s):
        self._to(s.device)
        outside = (s < self._min) | (s > self._max)
        if outside.any():
            raise ValueError(self._complaint(s, outside))

    def select(self, keep):
        self._table = self._table[keep.to(self._table.device)]

    def gather(self, s):
        self._to(s.device)
        flat = (self._cells(s)[1] * self._strides).sum(-1)
        if len(self._table) > 1:
            flat = flat + self._size * torch.arange(s.shape[-2], device=s.device)[:, None]
        rows = self._table.view(-1, self._table.shape[-1]).index_select(0, flat.reshape(-1))
        return rows.view(*flat.shape, -1)

    def blend(self, s, gathered):
        g, slopes = gathered[..., :1], gathered[..., 1:]
        flat = g.abs() < _FLAT
        y = torch.where(flat, 0.0, slopes / torch.where(flat, 1.0, g))
        sign = (1 - 2 * self._corners).to(s)
        away = (s - self._min) / self._dx - self._cells(s)[0]
        if self.bounded:
            away = torch.where(self._outside(s), torch.nan, away)
        X = (away[..., None, :] - self._corners).abs()
        X2 = X * X
        bell, pull = 1.0 - 3.0 * X2 + 2.0 * X2 * X, X - 2.0 * X2 + X2 * X
        C = bell + sign * self._dx * y * pull
        D = sign * 6.0 * (X2 - X) / self._dx + y * (1.0 - 4.0 * X + 3.0 * X2)
        for shift in range(1, s.shape[-1]):
            D = D * C.roll(shift, -1)
        return (g[..., 0] * C.prod(-1)).sum(-1), (g * D).sum(-2)

    def influence(self, s):
        corners = self._min + self._cells(s)[1] * self._dx
        apart = self._cv.difference(corners[None], s[:, None, None])
        return hill(apart, self._sigma.to(s))

    def _cells(self, s) -> tuple[Tensor, Tensor]:
        """Lower corner (*batch, d) of the cell of s, and all corners (*batch, 2^d, d)."""
        cell = ((s - self._min) / self._dx).nan_to_num(0.0).floor().long()
        cell = cell.minimum(self._last)
        return cell, (cell[..., None, :] + self._corners).remainder(self._wrap)

    def _to(self, device) -> None:
        if self._table.device != device:
            names = "min max dx points wrap last open strides corners table sigma bins"
            for name in names.split():
                setattr(self, f"_{name}", getattr(self, f"_{name}").to(device))

    def _check(self, periodic) -> None:
        for i, name in enumerate(self._cv.names):
            if self._dx[i] > self._sigma[i]:
                raise ValueError(
                    f"the grid of {name} has a spacing of {self._dx[i]:.3g}, more than its sigma "
                    f"{self._sigma[i]:.3g}: use more bins (a spacing of half a sigma is good)"
                )
            # a hill must not meet itself around the period
            if periodic[i] and 2 * math.sqrt(2 * CUTOFF) * self._sigma[i] + 3 * self._dx[i] > (
                self._max[i] - self._min[i]
            ):
                raise ValueError(
                    f"sigma {self._sigma[i]:.3g} of {name} is too wide for its period: use less "
                    "than an eighth of it"
                )

    def _outside(self, s) -> Tensor:
        outside = (s < self._min) | (s > self._max)
        if not self._warned and outside.any():
            self._warned = True
            warnings.warn(f"{self._complaint(s, outside)}; its bias there is NaN", stacklevel=6)
        return outside

    def _complaint(self, s, outside) -> str:
        where = outside.reshape(-1, s.shape[-1]).nonzero()[0].tolist()
        value = float(s.reshape(-1, s.shape[-1])[where[0], where[1]])
        return (
            f"{self._cv.names[where[1]]} = {value:.6g} of walker {where[0]} is outside the grid, "
            f"from {float(self._min[where[1]]):.6g} to {float(self._max[where[1]]):.6g}: widen the "
            "grid, or hold the variable inside with UpperWall and LowerWall"
        )


# eV: below 1e-7 kJ/mol PLUMED takes the slopes of a point for zero
_FLAT = 1e-7 * units.kJ / units.mol


def _limits(cv: CV, grid: Grid) -> Tensor:
    """(d, 2) of the grid, from the domains where there are any."""
    d = len(cv)
    given = [grid.bins, grid.minimum, grid.maximum]
    if any(part is not None and len(part) != d for part in given):
        raise ValueError(f"{grid} does not have one entry for each of {', '.join(cv.names)}")
    if d > 3:
        raise ValueError(f"a grid over {d} variables is too large: use at most 3, or no grid")
    if min(grid.bins) < 2:
        raise ValueError(f"{grid.bins=} must be at least 2")
    limits = []
    for i, (name, domain) in enumerate(zip(cv.names, cv.domains, strict=True)):
        if domain is None and (grid.minimum is None or grid.maximum is None):
            raise ValueError(f"{name} is not periodic: give minimum= and maximum= of the grid")
        low, high = (grid.minimum[i], grid.maximum[i]) if domain is None else domain
        if not low < high:
            raise ValueError(f"the grid of {name} ends at {high} before it starts at {low}")
        limits.append((low, high))
    return torch.tensor(limits, dtype=torch.float64)
