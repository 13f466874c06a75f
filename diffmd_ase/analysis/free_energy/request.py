"""What a user asks of a free energy: variables, ranges, basins and bins, from words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...io.plumed_tables import PlumedTable
from .grid import Axis, Basin
from .hills_files import Hills
from .reweighting import variable_names

__all__ = ["Request"]

_BINS = {1: 100, 2: 40}


@dataclass(frozen=True)
class Request:
    """The words of a user; see the options of ``diffmd fes``.

    Parameters
    ----------
    cvs : one or two columns or, of a trajectory, definitions such as ``phi=torsion:4,6,8,14``
    temperature_K : of the run; a trajectory states its own
    unit : of the energies of the files, by its PLUMED name, or kT
    reweight : ``rbias``, ``last``, ``opes``, ``static``, ``none``, or ``auto``: as the columns say
    basins : two of ``variable:low:high``, or several such joined by commas
    bins : of each variable; default 100 of one, 40 of two
    ranges : ``variable:low:high`` of the axes; default, all data
    bandwidth : standard deviations of the kernels, one per variable; default, bins alone
    skip : fraction of each walker left out at its start; default 0.2 of a growing bias, else 0
    blocks : for the errors; default, by the correlation time
    independent : each walker has a bias of its own, with a file of what it deposited

    Raises
    ------
    ValueError : more than two variables, one basin or three; later, what cannot be read or shown
    """

    cvs: tuple[str, ...] = ()
    temperature_K: float | None = None
    unit: str = "kJ/mol"
    reweight: str = "auto"
    basins: tuple[str, ...] = ()
    bins: int | None = None
    ranges: tuple[str, ...] = ()
    bandwidth: tuple[float, ...] | None = None
    skip: float | None = None
    blocks: int | None = None
    independent: bool = False

    def __post_init__(self):
        if len(self.cvs) > 2:
            raise ValueError(f"{len(self.cvs)} variables: a surface has one or two")
        if len(self.basins) not in (0, 2):
            raise ValueError(f"{len(self.basins)} basins: give two, ΔF = F(second) - F(first)")

    def pair(self) -> tuple[Basin, Basin] | None:
        """The two basins, if there are any."""
        if not self.basins:
            return None
        first, second = (Basin(_ranges(text.split(","))) for text in self.basins)
        return first, second

    def variables(self, table: PlumedTable, hills: Hills | None) -> tuple[str, ...]:
        """Those that are named, else those of the hills, else the only one of the table.

        Raises ``ValueError`` where that leaves it open, or a column is not there.
        """
        if self.cvs:
            table.columns(self.cvs)  # says what there is
            return self.cvs
        if hills is not None and len(hills.names) <= 2 and set(hills.names) <= set(table.fields):
            return hills.names
        columns = variable_names(table)
        if len(columns) == 1:
            return tuple(columns)
        raise ValueError(
            f"which variable? {table.path} has {', '.join(columns) or 'none'}: give --cv once or "
            "twice"
        )

    def check_ranges(self, names: Sequence[str]) -> None:
        """``ValueError`` for a range of what is none of the variables ``names``."""
        for name, (low, high) in _ranges(self.ranges).items():
            if name not in names:
                raise ValueError(
                    f"range {name}:{low:g}:{high:g}: {name} is no variable of this surface, only "
                    f"{', '.join(names)}"
                )

    def axis(self, name: str, values, low: float | None, period: float, dimensions: int) -> Axis:
        """Bins of a variable over its range, its period from ``low``, or all values (n,).

        Raises ``ValueError`` for values that are all one.
        """
        bins = self.bins or _BINS[dimensions]
        ranges = _ranges(self.ranges)
        if name in ranges:
            start, end = ranges[name]
            whole = bool(period) and abs((end - start) / period - 1) < 1e-3
            return Axis(name, start, start + period if whole else end, bins, whole)
        if period:
            return Axis(name, low, low + period, bins, True)
        start, end = float(np.min(values)), float(np.max(values))
        if not end > start:
            raise ValueError(f"{name} is {start} throughout: there is no surface to show")
        return Axis(name, start, end, bins)


def _ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    ranges = {}
    for text in texts:
        name, *numbers = text.strip().split(":")
        try:
            low, high = (float(n) for n in numbers)
        except ValueError:
            raise ValueError(
                f"{text!r}: expected name:low:high with the name of a variable, such as phi:0:2.2"
            ) from None
        ranges[name] = low, high
    return ranges
