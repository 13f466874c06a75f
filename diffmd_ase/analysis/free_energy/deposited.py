"""Free energies of what biases deposited: HILLS of metadynamics, KERNELS and STATE of OPES.

Hills of several files are one bias, which walkers built together, or, of independent walkers,
one bias each. Then each gives a free energy of its own, whose mean and spread are what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ...io.plumed_tables import PlumedTable, read_plumed, read_state
from .grid import Axis
from .hills_files import Hills, free_energy_of_components, sum_hills
from .request import Request
from .result import Result
from .surface import basin_difference_on_grid
from .verdicts import judge_hills, judge_independent

__all__ = ["Deposited", "from_components", "from_hills", "grid_axes"]

_HISTORY = 40


@dataclass(frozen=True)
class Deposited:
    """The hills of one or several files.

    Attributes
    ----------
    biases : one, or one for each of several independent walkers
    walkers : the hills of each walker
    """

    biases: list[Hills]
    walkers: list[Hills]

    @classmethod
    def read(cls, paths: Sequence[Path], *, independent: bool) -> Deposited:
        """From HILLS files; ``independent`` walkers have a bias each. Raises as `Hills.read`."""
        walkers = Hills.read_each(paths)
        return cls(walkers if independent else [Hills.read(paths)], walkers)

    @property
    def first(self) -> Hills:
        """One of the biases, which are of the same variables."""
        return self.biases[0]

    def judge(self, kT: float, unit: str) -> dict[str, Any] | None:
        """Whether the heights decay as this kT, in ``unit``, says; see `judge_hills`."""
        if len(self.biases) > 1:
            return judge_independent(self.biases, kT, unit)
        return judge_hills(self.first, kT, unit, walkers=self.walkers)


def from_hills(hills: Deposited, request: Request, kT: float) -> Result:
    """The sum of all hills and how ΔF has settled, or what the sums of each bias say together.

    Parameters
    ----------
    hills : of one or two variables
    request : what is asked for
    kT : in the unit of the files

    Raises
    ------
    ValueError : other variables than were asked for, or more than two
    """
    first = hills.first
    if request.cvs and set(request.cvs) != set(first.names):
        raise ValueError(
            f"HILLS on {', '.join(first.names)} give the surface of all of them: of fewer, give "
            "the COLVAR as well, or use plumed sum_hills --idw"
        )
    _at_most_two(first.names)
    reach = [np.concatenate(axis) for axis in zip(*(b.grid(2) for b in hills.biases), strict=True)]
    axes = grid_axes(request, first.names, reach, first.lows, first.periods)
    points = [axis.centres for axis in axes]
    whole = [sum_hills(bias, points) for bias in hills.biases]
    result = _result(axes, whole, request, kT, "A sum of hills has", first.notes)
    result.numbers.update(
        hills=sum(map(len, hills.biases)), biasfactor=first.biasfactor, reweight="sum"
    )
    check = hills.judge(kT, request.unit)
    result.verdicts[:0] = [check] if check else []
    if result.basins is not None:
        parts = np.arange(1, _HISTORY + 1) / _HISTORY
        stops = [np.maximum(1, (parts * len(bias)).round().astype(int)) for bias in hills.biases]
        series = np.array(
            [
                [_difference(axes, sum_hills(bias.first(n), points), result, kT) for n in of]
                for bias, of in zip(hills.biases, stops, strict=True)
            ]
        ).mean(0)
        result.history = first.time[stops[0] - 1], series
        _judge_drift(result, series)
    return result


def from_components(files: dict[str, list[Path]], request: Request, kT: float) -> Result:
    """The free energy of the kernels of OPES, all of a KERNELS file or those of a STATE.

    Parameters
    ----------
    files : ``kernels`` or, where there are none, ``state``: one, or one for each of several
        independent walkers
    request, kT : as of `from_hills`

    Raises
    ------
    ValueError : more than two variables; several files of one bias
    """
    names = "kernels" if files["kernels"] else "state"
    tables = _components(files, request.independent)
    first = tables[0]
    variables = first.fields[1 : next(n for n, f in enumerate(first.fields) if f[:6] == "sigma_")]
    _at_most_two(variables)
    values = np.concatenate([table.columns(variables) for table in tables]).T
    lows = [first.domains[name][0] if first.period(name) else None for name in variables]
    periods = [first.period(name) or 0.0 for name in variables]
    axes = grid_axes(request, variables, values, lows, periods)
    points = [axis.centres for axis in axes]
    each = [free_energy_of_components(table, kT, points) for table in tables]
    notes = [note for table in tables for note in table.notes]
    result = _result(axes, each, request, kT, "Kernels have", notes)
    result.numbers.update(kernels=sum(map(len, tables)), reweight=names)
    return result


def _components(files: dict[str, list[Path]], independent: bool) -> list[PlumedTable]:
    """The components of each bias."""
    kernels, states = files["kernels"], files["state"]
    if kernels:
        return [read_plumed(path) for path in kernels] if independent else [read_plumed(kernels)]
    if len(states) > 1 and not independent:
        raise ValueError(
            f"{states[0]} and {states[1]}: a bias has one STATE; give one, or --independent for "
            "those of independent walkers"
        )
    return [read_state(path) for path in states]


def grid_axes(request: Request, names: Sequence[str], values, lows, periods) -> tuple[Axis, ...]:
    """The axes that are asked for, or those of all the values.

    Parameters
    ----------
    request : has bins and ranges
    names : of d variables
    values : d arrays
    lows, periods : where the domain of each begins, and its length (0: not periodic)

    Raises ``ValueError`` for a range of something else, and for values that are all one.
    """
    request.check_ranges(names)
    columns = zip(names, values, lows, periods, strict=True)
    return tuple(request.axis(*column, len(names)) for column in columns)


def _result(axes, each: list[np.ndarray], request: Request, kT: float, what, notes) -> Result:
    """Mean of the free energies of independent biases, of one law each, and its error."""
    # each is known up to a constant: that of exp(-F/kT) normalised
    whole = [energy + kT * logsumexp(-energy / kT) for energy in each]
    mean, error = np.mean(whole, axis=0), None
    if len(each) > 1:
        with np.errstate(invalid="ignore"):  # infinite where a bias has nothing
            error = np.std(whole, axis=0, ddof=1) / np.sqrt(len(each))
    result = Result(axes, mean - mean.min(), error, request.unit, kT, request.pair())
    result.numbers.update(kT=kT, unit=request.unit)
    result.notes += notes
    if result.basins is not None:
        _judge_difference(result, [_difference(axes, energy, result, kT) for energy in each])
    if len(each) > 1:
        result.numbers["independent"] = len(each)
        text = f"The error is the spread of {len(each)} independent walkers."
    else:
        text = f"{what} no error bar: give the COLVAR as well."
    result.judge(None, text)
    return result


def _difference(axes, energy: np.ndarray, result: Result, kT: float) -> float:
    return basin_difference_on_grid(energy, axes, *result.basins, kT=kT)


def _judge_difference(result: Result, each: list[float]) -> None:
    value, error = float(np.mean(each)), None
    if len(each) > 1:
        error = float(np.std(each, ddof=1) / np.sqrt(len(each)))
    result.numbers["delta_F"] = [value, error]
    if np.isfinite(value):
        doubt = "" if error is None else f" ± {error:.2g}"
        result.judge(None, f"ΔF = {value:.4g}{doubt} {result.unit}.")
        return
    reach = ", ".join(f"{a.name} in [{a.low:.4g}, {a.high:.4g}]" for a in result.axes)
    first, second = result.basins
    result.judge(
        False,
        f"ΔF is unknown: nothing was deposited in the basin {first} or in {second}; the surface "
        f"has {reach}.",
    )


def _judge_drift(result: Result, series: np.ndarray) -> None:
    late, kT, unit = series[len(series) // 2 :], result.kT, result.unit
    drift = float(late.max() - late.min()) if np.isfinite(late).all() else np.nan
    result.numbers["late_range"] = drift
    if np.isfinite(drift):
        result.judge(
            drift < kT,
            f"ΔF over the second half of the run ranged over {drift:.2g} {unit} "
            f"({drift / kT:.2g} kT).",
        )


def _at_most_two(names: Sequence[str]) -> None:
    if len(names) > 2:
        raise ValueError(
            f"{', '.join(names)}: a surface has one or two variables; give the COLVAR and --cv"
        )
