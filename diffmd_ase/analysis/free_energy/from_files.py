"""Free energies from files: what `diffmd fes` does, for scripts.

COLVAR, HILLS, KERNELS or a trajectory go in; a surface, its doubts and three files come out.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...io.atomic import replacing
from ...io.plumed_tables import PlumedTable, kind, read_plumed, thermal_energy
from .from_trajectory import measured
from .hills_files import Hills, free_energy_of_components, sum_hills
from .plots import free_energy_figure
from .reweighting import Samples, choose_method, keep_after, log_weights, variable_names
from .surface import Axis, Basin, BlockScan, Convergence, basin_difference_on_grid
from .verdicts import judge_bias, judge_hills, report_samples

__all__ = ["Request", "Result", "analyse"]

_BINS = {1: 100, 2: 40}
_GROWING = ("rbias", "last", "opes")
_HISTORY = 40


@dataclass(frozen=True)
class Request:
    """The words of a user; see the options of ``diffmd fes``."""

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


@dataclass
class Result:
    """A surface with numbers and verdicts; ``write`` makes the files."""

    axes: tuple[Axis, ...]
    free_energy: np.ndarray
    error: np.ndarray | None
    unit: str
    kT: float
    basins: tuple[Basin, Basin] | None = None
    settling: Convergence | None = None
    scan: BlockScan | None = None
    history: tuple[np.ndarray, np.ndarray] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, picture: Path) -> list[Path]:
        """The picture, and the surface beside it as .npz and .csv (one row per bin)."""
        figure = free_energy_figure(
            self.axes,
            self.free_energy,
            self.error,
            unit=self.unit,
            basins=self.basins or (),
            settling=self.settling,
            scan=self.scan,
            history=self.history,
            limit=self._limit(),
        )
        archive, rows = picture.with_suffix(".npz"), picture.with_suffix(".csv")
        error = np.full_like(self.free_energy, np.nan) if self.error is None else self.error
        centres = [axis.centres for axis in self.axes]
        with replacing(picture) as part:
            figure.savefig(part, format="png", dpi=130, facecolor="white")
        with replacing(archive) as part, open(part, "wb") as file:
            arrays: dict[str, Any] = {f"centres_{n}": c for n, c in enumerate(centres)}
            arrays |= {"free_energy": self.free_energy, "error": error, "kT": self.kT}
            arrays |= {"unit": self.unit, "names": [axis.name for axis in self.axes]}
            np.savez(file, **arrays)
        columns = [c.ravel() for c in np.meshgrid(*centres, indexing="ij")]
        with replacing(rows) as part, open(part, "w", newline="") as file:
            writer = csv.writer(file)
            names = [axis.name for axis in self.axes]
            writer.writerow([*names, f"F ({self.unit})", f"error ({self.unit})"])
            writer.writerows(zip(*columns, self.free_energy.ravel(), error.ravel(), strict=True))
        return [picture, archive, rows]

    def _limit(self) -> float | None:
        finite = self.free_energy[np.isfinite(self.free_energy)]
        return float(min(finite.max(), max(np.percentile(finite, 90), 10 * self.kT)))


def _silent(done: float, note: str) -> None:
    pass


def analyse(
    inputs: Sequence[str | Path],
    request: Request,
    *,
    progress: Callable[[float, str], None] = _silent,
) -> Result:
    """The surface that the files and the words ask for.

    Raises ``ValueError`` or ``OSError`` that say what is missing and how to give it.
    """
    files = _sorted(inputs)
    progress(0.05, "reading")
    if files["trajectory"]:
        return _from_trajectory(files["trajectory"], request, progress)
    kT = thermal_energy(request.temperature_K, request.unit)
    hills = Hills.read(files["hills"]) if files["hills"] else None
    if files["colvar"]:
        return _from_colvar(files, request, hills, kT, progress)
    if hills is not None:
        return _from_hills(hills, request, kT)
    return _from_kernels(files["kernels"], request, kT)


# ------------------------------------------------------------------------ inputs


def _sorted(inputs: Sequence[str | Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {k: [] for k in ("colvar", "hills", "kernels", "trajectory")}
    for name in inputs:
        for path in _expanded(Path(name)):
            found[kind(path)].append(path)
    if len(found["trajectory"]) and sum(map(len, found.values())) > len(found["trajectory"]):
        raise ValueError("a trajectory together with files of PLUMED: give one or the other")
    return found


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        names = ("COLVAR", "HILLS", "KERNELS")
        inside = [p for p in sorted(path.iterdir()) if p.name.startswith(names) and p.is_file()]
        if not inside:
            raise FileNotFoundError(f"{path} holds no COLVAR, HILLS or KERNELS: name the files")
        return inside
    if path.exists():
        return [path]
    trajectory = Path(f"{path}.h5")  # the prefix of a run
    if trajectory.exists():
        return [trajectory]
    raise FileNotFoundError(f"{path}: no such file, folder or prefix of a run")


def _from_colvar(files, request, hills, kT, progress) -> Result:
    table = read_plumed(files["colvar"])
    method = choose_method(table, hills) if request.reweight == "auto" else request.reweight
    names = _names(request, table, hills)
    values = table.columns(names)
    progress(0.3, "weights")
    log_w = log_weights(table, method, kT, hills=hills)
    skip = (0.2 if method in _GROWING else 0.0) if request.skip is None else request.skip
    kept = keep_after(table, skip)
    periods = np.array([table.period(name) or 0.0 for name in names])
    if hills is not None:  # older files state the domain in HILLS only
        for n, name in enumerate(names):
            if name in hills.names and not periods[n]:
                periods[n] = hills.periods[hills.names.index(name)]
    samples = Samples(values[kept], log_w[kept], table.walker[kept], names, periods)
    lows = [_low(table, hills, name) for name in names]
    result = _report(samples, lows, request, kT, progress)
    result.numbers["reweight"] = method
    result.numbers["skip"] = skip
    checks = [
        judge_hills(hills, kT, request.unit) if hills is not None else None,
        judge_bias(log_w[kept], request.temperature_K, request.unit)
        if request.unit != "kT"
        else None,
    ]
    result.verdicts[:0] = [c for c in checks if c is not None]
    if method == "last":
        words = "The final bias is taken for exact: the noise of its last hills is in no error bar."
        result.verdicts.append({"good": None, "text": words})
    result.notes += [*table.notes, *(hills.notes if hills is not None else ())]
    if files["kernels"]:
        result.notes.append("KERNELS were not needed: the bias is in the COLVAR")
    return result


def _from_trajectory(paths: list[Path], request: Request, progress) -> Result:
    if request.reweight not in ("auto", "none"):
        raise ValueError(
            f"--reweight {request.reweight} of a trajectory: it holds no bias; give the COLVAR"
        )
    samples, kelvin, notes = measured(paths, request.cvs, progress)
    temperature = request.temperature_K or kelvin
    if abs(temperature / kelvin - 1) > 1e-3:
        raise ValueError(f"--temperature {temperature} K, but {paths[0]} ran at {kelvin:.6g} K")
    kT = thermal_energy(temperature, request.unit)
    skip = request.skip or 0.0
    samples = samples.take(samples.progress() > skip)
    lows = [-np.pi if period else None for period in samples.periods]
    result = _report(samples, lows, request, kT, progress)
    result.numbers.update(reweight="none", skip=skip, temperature_K=temperature)
    result.notes += notes
    return result


def _from_hills(hills: Hills, request: Request, kT: float) -> Result:
    if request.cvs and set(request.cvs) != set(hills.names):
        raise ValueError(
            f"HILLS on {', '.join(hills.names)} give the surface of all of them: of fewer, give "
            "the COLVAR as well, or use plumed sum_hills --idw"
        )
    _at_most_two(hills.names)
    axes = tuple(
        _axis(request, name, hills.grid(2)[n], hills.lows[n], hills.periods[n], len(hills.names))
        for n, name in enumerate(hills.names)
    )
    points = [axis.centres for axis in axes]
    energy = sum_hills(hills, points)
    result = Result(axes, energy - energy.min(), None, request.unit, kT, request.pair())
    result.numbers.update(
        hills=len(hills), biasfactor=hills.biasfactor, kT=kT, unit=request.unit, reweight="sum"
    )
    check = judge_hills(hills, kT, request.unit)
    result.verdicts += [check] if check else []
    if result.basins is not None:
        a, b = result.basins
        stops = np.unique(np.linspace(1, len(hills), _HISTORY + 1).round().astype(int))
        series = np.array(
            [
                basin_difference_on_grid(sum_hills(hills.first(n), points), axes, a, b, kT=kT)
                for n in stops
            ]
        )
        result.history = hills.time[stops - 1], series
        late = series[len(series) // 2 :]
        drift = float(late.max() - late.min())
        result.numbers.update(delta_F=[float(series[-1]), None], late_range=drift)
        result.verdicts.append(
            {
                "good": drift < kT,
                "text": f"ΔF = {series[-1]:.4g} {request.unit}; over the second half of the "
                f"run it ranged over {drift:.2g} {request.unit} ({drift / kT:.2g} kT).",
            }
        )
    result.verdicts.append(
        {"good": None, "text": "A sum of hills has no error bar: give the COLVAR as well."}
    )
    result.notes += hills.notes
    return result


def _from_kernels(files: list[Path], request: Request, kT: float) -> Result:
    table = read_plumed(files)
    first = next(n for n, name in enumerate(table.fields) if name.startswith("sigma_"))
    names = table.fields[1:first]
    _at_most_two(names)
    axes = []
    for name in names:
        values = table.column(name)
        period = table.period(name) or 0.0
        low = table.domains[name][0] if period else 0.0
        axes.append(_axis(request, name, values, low, period, len(names)))
    energy = free_energy_of_components(table, kT, [axis.centres for axis in axes])
    result = Result(tuple(axes), energy, None, request.unit, kT, request.pair())
    result.numbers.update(kernels=len(table), kT=kT, unit=request.unit, reweight="kernels")
    if result.basins is not None:
        value = basin_difference_on_grid(energy, axes, *result.basins, kT=kT)
        result.numbers["delta_F"] = [value, None]
        result.verdicts.append({"good": None, "text": f"ΔF = {value:.4g} {request.unit}."})
    result.verdicts.append(
        {"good": None, "text": "Kernels have no error bar: give the COLVAR as well."}
    )
    result.notes += table.notes
    return result


def _report(samples, lows, request, kT, progress) -> Result:
    axes = tuple(
        _axis(request, name, samples.s[:, n], lows[n], samples.periods[n], len(samples.names))
        for n, name in enumerate(samples.names)
    )
    progress(0.6, "errors")
    found = report_samples(
        samples,
        axes,
        kT=kT,
        unit=request.unit,
        basins=request.pair(),
        bandwidth=request.bandwidth,
        blocks=request.blocks,
    )
    progress(0.9, "writing")
    return Result(
        axes,
        found.surface.free_energy,
        found.surface.error,
        request.unit,
        kT,
        request.pair(),
        found.settling,
        found.scan,
        None,
        found.numbers,
        found.verdicts,
    )


# ------------------------------------------------------------------------ words


def _at_most_two(names: Sequence[str]) -> None:
    if len(names) > 2:
        raise ValueError(
            f"{', '.join(names)}: a surface has one or two variables; give the COLVAR and --cv"
        )


def _names(request: Request, table: PlumedTable, hills: Hills | None) -> tuple[str, ...]:
    if request.cvs:
        for name in request.cvs:
            table.column(name)  # says what there is
        return request.cvs
    if hills is not None and all(name in table for name in hills.names) and len(hills.names) <= 2:
        return hills.names
    known = variable_names(table)
    if len(known) == 1:
        return tuple(known)
    raise ValueError(
        f"which variable? {table.path} has {', '.join(known) or 'none'}: give --cv once or twice"
    )


def _low(table: PlumedTable, hills: Hills | None, name: str) -> float | None:
    if table.period(name):
        return table.domains[name][0]
    if hills is not None and name in hills.names:
        n = hills.names.index(name)
        return hills.lows[n] if hills.periods[n] else None
    return None


def _axis(request: Request, name, values, low, period, dimensions) -> Axis:
    bins = request.bins or _BINS[dimensions]
    wanted = _ranges(request.ranges)
    if name in wanted:
        start, end = wanted[name]
        whole = bool(period) and abs((end - start) / period - 1) < 1e-3
        return Axis(name, start, start + period if whole else end, bins, whole)
    if period:
        return Axis(name, low, low + period, bins, True)
    start, end = float(np.min(values)), float(np.max(values))
    if not end > start:
        raise ValueError(f"{name} is {start} throughout: there is no surface to show")
    return Axis(name, start, end, bins)


def _ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    found = {}
    for text in texts:
        name, *numbers = text.strip().split(":")
        try:
            low, high = (float(n) for n in numbers)
        except ValueError:
            raise ValueError(f"{text!r}: expected name:low:high, such as phi:0:2.2") from None
        found[name] = low, high
    return found
