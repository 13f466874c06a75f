"""Free energies from files: what `diffmd fes` does, for scripts.

COLVAR, HILLS, KERNELS or a trajectory go in; a surface, its doubts and three files come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...io.plumed_tables import PlumedTable, read_plumed, thermal_energy
from ...io.plumed_text import kind
from .from_trajectory import measured
from .hills_files import Hills, free_energy_of_components, sum_hills
from .request import Request
from .result import Result
from .reweighting import Samples, choose_method, keep_after, log_weights
from .surface import Axis, basin_difference_on_grid
from .verdicts import judge_bias, judge_hills, report_samples

__all__ = ["Request", "Result", "analyse"]

_GROWING = ("rbias", "last", "opes")
_HISTORY = 40


def _silent(done: float, note: str) -> None:
    pass


def analyse(
    inputs: Sequence[str | Path],
    request: Request,
    *,
    progress: Callable[[float, str], None] = _silent,
) -> Result:
    """The surface that the files and the words ask for.

    Parameters
    ----------
    inputs : COLVAR, HILLS or KERNELS files, trajectories, folders that hold them, or prefixes of
        runs; a trajectory goes with no file of PLUMED
    request : what the user asked for
    progress : called with the finished fraction and the stage

    Raises
    ------
    ValueError, OSError : what is missing and how to give it
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
    files: dict[str, list[Path]] = {k: [] for k in ("colvar", "hills", "kernels", "trajectory")}
    for name in inputs:
        for path in _expanded(Path(name)):
            files[kind(path)].append(path)
    if len(files["trajectory"]) and sum(map(len, files.values())) > len(files["trajectory"]):
        raise ValueError("a trajectory together with files of PLUMED: give one or the other")
    return files


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
    names = request.variables(table, hills)
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
        text = "The final bias is taken for exact: the noise of its last hills is in no error bar."
        result.judge(None, text)
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
    axes = _axes(request, hills.names, hills.grid(2), hills.lows, hills.periods)
    points = [axis.centres for axis in axes]
    result = _without_errors(axes, sum_hills(hills, points), request, kT, hills.notes)
    result.numbers.update(hills=len(hills), biasfactor=hills.biasfactor, reweight="sum")
    check = judge_hills(hills, kT, request.unit)
    result.verdicts += [check] if check else []
    if result.basins is not None:
        stops = np.unique(np.linspace(1, len(hills), _HISTORY + 1).round().astype(int))
        sums = (sum_hills(hills.first(n), points) for n in stops)
        series = np.array(
            [basin_difference_on_grid(energy, axes, *result.basins, kT=kT) for energy in sums]
        )
        result.history = hills.time[stops - 1], series
        late = series[len(series) // 2 :]
        drift = float(late.max() - late.min())
        result.numbers.update(delta_F=[float(series[-1]), None], late_range=drift)
        result.judge(
            drift < kT,
            f"ΔF = {series[-1]:.4g} {request.unit}; over the second half of the "
            f"run it ranged over {drift:.2g} {request.unit} ({drift / kT:.2g} kT).",
        )
    result.judge(None, "A sum of hills has no error bar: give the COLVAR as well.")
    return result


def _from_kernels(files: list[Path], request: Request, kT: float) -> Result:
    table = read_plumed(files)
    first = next(n for n, name in enumerate(table.fields) if name.startswith("sigma_"))
    names = table.fields[1:first]
    _at_most_two(names)
    lows = [_low(table, None, name) for name in names]
    periods = [table.period(name) or 0.0 for name in names]
    axes = _axes(request, names, table.columns(names).T, lows, periods)
    energy = free_energy_of_components(table, kT, [axis.centres for axis in axes])
    result = _without_errors(axes, energy, request, kT, table.notes)
    result.numbers.update(kernels=len(table), reweight="kernels")
    if result.basins is not None:
        value = basin_difference_on_grid(energy, axes, *result.basins, kT=kT)
        result.numbers["delta_F"] = [value, None]
        result.judge(None, f"ΔF = {value:.4g} {request.unit}.")
    result.judge(None, "Kernels have no error bar: give the COLVAR as well.")
    return result


def _without_errors(axes, energy: np.ndarray, request: Request, kT: float, notes) -> Result:
    result = Result(axes, energy - energy.min(), None, request.unit, kT, request.pair())
    result.numbers.update(kT=kT, unit=request.unit)
    result.notes += notes
    return result


def _report(samples: Samples, lows, request: Request, kT: float, progress) -> Result:
    axes = _axes(request, samples.names, samples.s.T, lows, samples.periods)
    progress(0.6, "errors")
    result = report_samples(
        samples,
        axes,
        kT=kT,
        unit=request.unit,
        basins=request.pair(),
        bandwidth=request.bandwidth,
        blocks=request.blocks,
    )
    progress(0.9, "writing")
    return result


def _axes(request: Request, names: Sequence[str], values, lows, periods) -> tuple[Axis, ...]:
    columns = zip(names, values, lows, periods, strict=True)
    return tuple(request.axis(*column, len(names)) for column in columns)


def _at_most_two(names: Sequence[str]) -> None:
    if len(names) > 2:
        raise ValueError(
            f"{', '.join(names)}: a surface has one or two variables; give the COLVAR and --cv"
        )


def _low(table: PlumedTable, hills: Hills | None, name: str) -> float | None:
    if table.period(name):
        return table.domains[name][0]
    if hills is not None and name in hills.names:
        n = hills.names.index(name)
        return hills.lows[n] if hills.periods[n] else None
    return None
