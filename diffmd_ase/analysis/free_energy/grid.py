"""Where a free energy is: the axes of its grid, and basins on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .reweighting import Samples

__all__ = ["Axis", "Basin"]


@dataclass(frozen=True)
class Axis:
    """Equal bins of one variable.

    Parameters
    ----------
    name : of the variable
    low, high, bins : where the first bin begins and the last one ends, and how many there are
    periodic : the axis is a circle of length ``high - low``

    Raises
    ------
    ValueError : no positive length, fewer than two bins
    """

    name: str
    low: float
    high: float
    bins: int
    periodic: bool = False

    def __post_init__(self):
        if not (self.high > self.low and self.bins >= 2):
            raise ValueError(
                f"axis {self.name}: [{self.low}, {self.high}] in {self.bins} bins; expected "
                "a positive length and two bins at least"
            )

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.bins

    @property
    def centres(self) -> np.ndarray:
        return self.low + self.width * (np.arange(self.bins) + 0.5)

    def index(self, s: np.ndarray) -> np.ndarray:
        """Bin of each value, -1 outside."""
        n = np.floor((s - self.low) / self.width).astype(int)
        if self.periodic:
            return n % self.bins
        n = np.where(s == self.high, self.bins - 1, n)
        return np.where((n >= 0) & (n < self.bins), n, -1)


@dataclass(frozen=True)
class Basin:
    """A region: a range of each of some variables.

    ``ranges``: name → (low, high), with ``low > high`` through a periodic boundary. Its methods
    raise ``ValueError`` for a variable that is not there, or a range turned about.
    """

    ranges: dict[str, tuple[float, float]]

    def contains(self, samples: Samples) -> np.ndarray:
        """(n,) bool. Raises ``ValueError`` for a variable that the samples lack."""
        inside = np.ones(len(samples), bool)
        for name in self.ranges:
            n = self._place(name, samples.names)
            inside &= self.along(name, samples.s[:, n], samples.periods[n])
        return inside

    def along(self, name: str, s: np.ndarray, period: float = 0.0) -> np.ndarray:
        """Whether values of one variable are inside its range."""
        low, high = self.ranges[name]
        if period:
            return (s - low) % period <= (high - low) % period
        if low >= high:
            raise ValueError(f"basin {name}: {low} to {high}: expected low < high")
        return (s >= low) & (s <= high)

    def on_grid(self, axes: Sequence[Axis]) -> np.ndarray:
        """Bool on the grid: bins whose centre is inside."""
        inside = np.ones([a.bins for a in axes], bool)
        names = [a.name for a in axes]
        for name in self.ranges:
            n = self._place(name, names)
            axis = axes[n]
            period = axis.high - axis.low if axis.periodic else 0.0
            shape = [1] * len(axes)
            shape[n] = axis.bins
            inside &= self.along(name, axis.centres, period).reshape(shape)
        return inside

    def __str__(self) -> str:
        return ", ".join(
            f"{name} in [{low:g}, {high:g}]" for name, (low, high) in self.ranges.items()
        )

    def _place(self, name: str, names: Sequence[str]) -> int:
        if name in names:
            return list(names).index(name)
        low, high = self.ranges[name]
        raise ValueError(
            f"basin {name}:{low:g}:{high:g}: {name} is no variable, there is only "
            f"{', '.join(names)}: the name of a basin is that of the variable whose range follows, "
            f"as in {names[0]}:{low:g}:{high:g}"
        )
