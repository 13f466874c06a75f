"""A free energy with its doubts: numbers, and verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...io.plumed_tables import ENERGY_UNITS, thermal_energy
from .barrier import barrier
from .grid import Axis, Basin
from .hills_files import Hills, height_law
from .result import Result
from .reweighting import Samples, effective_samples
from .surface import (
    BlockScan,
    Surface,
    basin_difference,
    block_scan,
    convergence,
    free_energy_surface,
)

__all__ = [
    "basin_changes",
    "judge_bias",
    "judge_hills",
    "judge_independent",
    "report_samples",
]

_ENOUGH, _FEW = 100, 20
_CHANGES = 10
_Z = 2.5
_PLAUSIBLE = (1.0, 120.0)  # kT that a useful bias spans
_TOLERANCE = 0.05
_LINE = -0.9  # correlation, from which on the decay is a straight line


def report_samples(
    samples: Samples,
    axes: tuple[Axis, ...],
    *,
    kT: float,
    unit: str,
    basins: tuple[Basin, Basin] | None = None,
    bandwidth: tuple[float, ...] | None = None,
    blocks: int | None = None,
) -> Result:
    """Surface, effective samples and, of two basins, ΔF, barrier and convergence.

    Energies are in ``unit``, that of kT; ``*_kT`` in the numbers are over kT.

    Parameters
    ----------
    samples : with their weights
    axes, bandwidth, blocks : as of `free_energy_surface`, which says what is raised
    unit : name of the unit
    basins : of ΔF = F(second) - F(first)
    """
    surface = free_energy_surface(samples, axes, kT=kT, bandwidth=bandwidth, blocks=blocks)
    result = Result(surface.axes, surface.free_energy, surface.error, unit, kT, basins)
    counted = effective_samples(samples)
    visited = float(np.isfinite(surface.free_energy).mean())
    populated = surface.free_energy < 5 * kT
    result.numbers.update(
        rows=len(samples),
        walkers=len(np.unique(samples.walker)),
        kish_samples=counted.kish,
        statistical_inefficiency=counted.inefficiency,
        independent_samples=counted.independent,
        blocks=len(surface.deviations),
        kT=kT,
        unit=unit,
        visited_bins=visited,
        typical_error_below_5kT=float(np.median(surface.error[populated])),
    )
    _judge_samples(result, samples, counted)
    if basins is not None:
        _two_basins(result, samples, surface)
    else:
        result.judge(
            None,
            "Convergence was not judged: give two basins, for instance --basin 'phi:-3:0' "
            "--basin 'phi:0:2.2'.",
        )
    return result


def _judge_samples(result: Result, samples: Samples, counted) -> None:
    n = len(samples)
    text = (
        f"{n:,} rows are worth {counted.independent:,.0f} independent samples: the weights leave "
        f"{counted.kish:,.0f}, of which one in {counted.inefficiency:,.1f} is new."
    )
    if counted.independent >= _ENOUGH:
        result.judge(True, text)
        return
    spread = counted.kish < 0.02 * n
    remedy = (
        "few rows carry all the weight: leave out more of the start, check the kind of "
        "reweighting and the unit of energy"
        if spread
        else "the run is short against its memory: run longer, or with more walkers"
    )
    few = " Too few for any error bar to hold:" if counted.independent < _FEW else " Few:"
    result.judge(False, f"{text}{few} {remedy}.")


def _two_basins(result: Result, samples: Samples, surface: Surface) -> None:
    (a, b), kT, unit = result.basins, result.kT, result.unit
    result.scan = block_scan(samples, a, b, kT=kT)
    result.settling = convergence(samples, a, b, kT=kT)
    changes = basin_changes(samples, a, b)
    f = basin_difference(samples, a, b, kT=kT)
    # of correlated series the plateau of the blocks may lie above; the larger error holds
    f = f._replace(error=max(f.error, _plateau(result.scan)))
    result.numbers.update(
        delta_F=[f.value, f.error],
        delta_F_kT=[f.value / kT, f.error / kT],
        basin_changes=changes,
        halves=[[e.value, e.error] for e in result.settling.halves],
        halves_z=result.settling.z,
        block_plateau=result.scan.plateau,
    )
    result.judge(None, f"ΔF = F(second) − F(first) = {f} {unit} ({f.value / kT:.3g} kT).")
    result.judge(
        changes >= _CHANGES,
        f"The basins were exchanged {changes} times"
        + ("." if changes >= _CHANGES else f": below {_CHANGES}, ΔF rests on luck; run longer."),
    )
    _judge_halves(result)
    result.judge(
        True if result.scan.plateau else None,
        "The error levels off with the length of blocks."
        if result.scan.plateau
        else "The error does not level off with the length of blocks: it may still be too small.",
    )
    try:
        top = barrier(surface, a, b)
    except ValueError:
        return  # a basin on a variable that the surface lacks
    if top is None:
        result.judge(None, "No path of visited bins joins the basins: wider bins show the pass.")
        return
    result.numbers["barrier"] = {
        "at": list(top.at),
        "from_first": [top.from_a.value, top.from_a.error],
        "from_second": [top.from_b.value, top.from_b.error],
    }
    result.judge(
        None,
        f"Barrier at {', '.join(f'{v:.3g}' for v in top.at)}: {top.from_a} {unit} from the "
        f"first basin, {top.from_b} from the second.",
    )


def _plateau(scan: BlockScan) -> float:
    """The median error of the longest blocks that still make 8 or more of them."""
    fine = scan.uncertainty / np.maximum(scan.errors, 1e-300) <= 1 / np.sqrt(2 * 7)
    errors = scan.errors[fine]
    return float(np.median(errors[-3:])) if len(errors) else 0.0


def _judge_halves(result: Result) -> None:
    (first, second), z, unit = result.settling.halves, result.settling.z, result.unit
    if np.isnan(z):
        result.judge(False, "Not converged: one half of the run saw only one of the basins.")
    elif abs(z) < _Z:
        result.judge(
            True, f"Both halves agree: {first} and {second} {unit}, {abs(z):.1f} errors apart."
        )
    else:
        result.judge(
            False,
            f"Not converged: the halves give {first} and {second} {unit}, {abs(z):.1f} errors "
            "apart; leave out more of the start, or run longer.",
        )


def basin_changes(samples: Samples, a: Basin, b: Basin) -> int:
    """How often a walker of the ``samples`` leaves one of the basins ``a``, ``b`` for the other.

    Frames in neither basin are passed over.
    """
    label = np.where(a.contains(samples), 1, 0) - np.where(b.contains(samples), 1, 0)
    total = 0
    for w in np.unique(samples.walker):
        seen = label[samples.walker == w]
        seen = seen[seen != 0]
        total += int((np.diff(seen) != 0).sum())
    return total


# ------------------------------------------------------------------------ units


def judge_hills(
    hills: Hills, kT: float, unit: str, *, walkers: Sequence[Hills] = ()
) -> dict[str, Any] | None:
    """Whether the heights of ``hills`` decay as this kT says: a wrong unit or temperature shows,
    and hills that are not of one bias.

    Parameters
    ----------
    hills : of one bias
    kT : in ``unit``, the one that was given
    walkers : the hills of each walker, where several built the bias

    The verdict has ``good`` and ``text``; None where the heights cannot tell (see `height_law`).
    """
    law = height_law(hills)
    if law is not None and _decays(hills, kT):
        return {"good": True, "text": f"The hills decay as kT = {law.kT:.4g} {unit} says."}
    if len(walkers) > 1 and all(_decays(own, kT) for own in walkers):
        text = (
            f"The hills of each of the {len(walkers)} walkers decay as kT = {kT:.4g} {unit} says, "
            "all together do not: the walkers are independent, with a bias each; give "
            "--independent."
        )
        return {"good": False, "text": text}
    if law is None or law.correlation > _LINE:
        return None
    cause = "a wrong --temperature or --energy-unit" + _hint(law.kT, kT, unit)
    if len(walkers) > 1:
        cause += ", or the files are of independent walkers (--independent)"
    return {
        "good": False,
        "text": f"The hills decay as for kT = {law.kT:.4g} in the unit of the file, but "
        f"{kT:.4g} {unit} was given: {cause}.",
    }


def judge_independent(biases: Sequence[Hills], kT: float, unit: str) -> dict[str, Any] | None:
    """As `judge_hills`, of several ``biases``: the first that does not decay so is told.

    ``kT`` in ``unit``. None where no heights can tell.
    """
    checks = [check for bias in biases if (check := judge_hills(bias, kT, unit)) is not None]
    bad = [check for check in checks if not check["good"]]
    if bad:
        text = f"{bad[0]['text'][:-1]}, or the walkers share one bias (no --independent)."
        return {"good": False, "text": text}
    return checks[0] if checks else None


def _decays(hills: Hills, kT: float) -> bool:
    law = height_law(hills)
    return law is not None and law.correlation <= _LINE and abs(law.kT / kT - 1) <= _TOLERANCE


def judge_bias(log_weights: np.ndarray, temperature_K: float, unit: str) -> dict[str, Any] | None:
    """A warning where the bias spans so little or so much of kT that its unit is doubtful.

    Parameters
    ----------
    log_weights : (n,) the bias over kT
    temperature_K : of the run
    unit : of energy, that was given

    The verdict has ``good`` and ``text``; None where nothing is doubtful.
    """
    low, high = np.percentile(log_weights, (0.5, 99.5))
    span = float(high - low)
    if span == 0.0 or 0.3 <= span <= 200.0:
        return None
    kT = thermal_energy(temperature_K, unit)
    others = [
        name
        for name in ENERGY_UNITS
        if name != unit
        and _PLAUSIBLE[0] <= span * kT / thermal_energy(temperature_K, name) <= _PLAUSIBLE[1]
    ]
    if not others:
        return None
    return {
        "good": False,
        "text": f"The bias spans {span:.3g} kT if its unit is {unit}: is it {' or '.join(others)} "
        "(--energy-unit)? PLUMED writes kJ/mol unless a line UNITS says otherwise.",
    }


def _hint(seen: float, kT: float, unit: str) -> str:
    fits = [
        name
        for name, size in ENERGY_UNITS.items()
        if name != unit
        and unit in ENERGY_UNITS
        and abs(seen * size / (kT * ENERGY_UNITS[unit]) - 1) <= _TOLERANCE
    ]
    return f" (it fits {' or '.join(fits)})" if fits else ""
