"""Free energies from files: what `diffmd fes` does, for scripts.

COLVAR, HILLS, KERNELS, STATE or a trajectory go in; a surface, its doubts and three files come out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...io.plumed_tables import PlumedTable, read_plumed, thermal_energy
from ...io.plumed_text import kind
from .deposited import Deposited, from_components, from_hills, grid_axes
from .from_trajectory import measured
from .hills_files import Hills
from .request import Request
from .result import Result
from .reweighting import Samples, choose_method, keep_after, log_weights, log_weights_of_each
from .verdicts import judge_bias, report_samples

__all__ = ["Request", "Result", "analyse"]

_KINDS = "colvar", "hills", "kernels", "state", "trajectory"
_DIGITS = re.compile(r"(\d+)")
_GROWING = ("rbias", "last", "opes")
_GRID = (
    "{} is a grid, a surface that PLUMED has made already (sum_hills, DUMPGRID, GRID_WFILE): give "
    "the HILLS or COLVAR that it came from"
)


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
    inputs : COLVAR, HILLS, KERNELS or STATE files, plain or compressed (.gz), trajectories, folders
        that hold them, or prefixes of runs; a trajectory goes with no file of PLUMED
    request : what the user asked for
    progress : called with the finished fraction and the stage

    Raises
    ------
    ValueError, OSError : what is missing and how to give it
    """
    files = _sorted(inputs)
    progress(0.05, "reading")
    if files["trajectory"]:
        if request.independent:
            raise ValueError("--independent is of biases, and a trajectory holds none")
        return _from_trajectory(files["trajectory"], request, progress)
    kT = thermal_energy(request.temperature_K, request.unit)
    hills = None
    if files["hills"]:
        hills = Deposited.read(files["hills"], independent=request.independent)
    if files["colvar"]:
        return _from_colvar(files, request, hills, kT, progress)
    if hills is not None:
        return from_hills(hills, request, kT)
    return from_components(files, request, kT)


# ------------------------------------------------------------------------ inputs


def _sorted(inputs: Sequence[str | Path]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {k: [] for k in _KINDS}
    for name in inputs:
        for path in _expanded(Path(name)):
            what = kind(path)
            if what == "grid":
                raise ValueError(_GRID.format(path))
            files[what].append(path)
    for paths in files.values():  # HILLS.2 before HILLS.10, as the walkers are numbered
        paths.sort(key=_by_number)
    if len(files["trajectory"]) and sum(map(len, files.values())) > len(files["trajectory"]):
        raise ValueError("a trajectory together with files of PLUMED: give one or the other")
    return files


def _by_number(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(str(path))]


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        names = ("COLVAR", "HILLS", "KERNELS", "STATE")
        inside = [p for p in path.iterdir() if p.name.startswith(names) and p.is_file()]
        # of a file and its compressed copy, one
        plain = {p.name for p in inside if p.suffix != ".gz"}
        inside = [p for p in inside if p.name in plain or p.name.removesuffix(".gz") not in plain]
        if inside:
            return inside
    elif path.exists():
        return [path]
    trajectory = Path(f"{path}.h5")  # the prefix of a run
    if trajectory.exists():
        return [trajectory]
    if path.is_dir():
        raise FileNotFoundError(f"{path} holds no COLVAR, HILLS or KERNELS, nor STATE: name them")
    raise FileNotFoundError(f"{path}: no such file, folder or prefix of a run")


def _from_colvar(files, request, deposited: Deposited | None, kT: float, progress) -> Result:
    table = read_plumed(files["colvar"])
    hills = None if deposited is None else deposited.first
    method = choose_method(table, hills) if request.reweight == "auto" else request.reweight
    names = request.variables(table, hills)
    progress(0.3, "weights")
    skip = (0.2 if method in _GROWING else 0.0) if request.skip is None else request.skip
    late = table.take(keep_after(table, skip))
    if request.independent:
        biases = None if deposited is None else deposited.biases
        log_w = log_weights_of_each(late, method, kT, biases)
    else:
        log_w = log_weights(late, method, kT, hills=hills)
    periods = np.array([table.period(name) or 0.0 for name in names])
    if hills is not None:  # older files state the domain in HILLS only
        for n, name in enumerate(names):
            if name in hills.names and not periods[n]:
                periods[n] = hills.periods[hills.names.index(name)]
    samples = Samples(late.columns(names), log_w, late.walker, names, periods)
    lows = [_low(table, hills, name) for name in names]
    result = _report(samples, lows, request, kT, progress)
    result.numbers["reweight"] = method
    result.numbers["skip"] = skip
    checks = [
        deposited.judge(kT, request.unit) if deposited is not None else None,
        judge_bias(log_w, request.temperature_K, request.unit) if request.unit != "kT" else None,
    ]
    result.verdicts[:0] = [c for c in checks if c is not None]
    if method == "last":
        text = "The final bias is taken for exact: the noise of its last hills is in no error bar."
        result.judge(None, text)
    result.notes += [*table.notes, *(hills.notes if hills is not None else ())]
    if files["kernels"] or files["state"]:
        result.notes.append("KERNELS and STATE were not needed: the bias is in the COLVAR")
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


def _report(samples: Samples, lows, request: Request, kT: float, progress) -> Result:
    axes = grid_axes(request, samples.names, samples.s.T, lows, samples.periods)
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


def _low(table: PlumedTable, hills: Hills | None, name: str) -> float | None:
    if table.period(name):
        return table.domains[name][0]
    if hills is not None and name in hills.names:
        n = hills.names.index(name)
        return hills.lows[n] if hills.periods[n] else None
    return None
