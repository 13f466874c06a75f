"""``diffmd analyze``: are the chains in these files long enough, and what do they say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .config import Config, save_resolved
from .options import AsJson, check_output
from .output import say, show, show_table, show_verdicts

if TYPE_CHECKING:
    from ..analysis.diagnostics import Diagnosis
    from ..analysis.kinetics.summary import Kinetics
    from ..io.read_trajectories import Series

__all__ = ["analyze"]

_Kinetics = Annotated[
    bool,
    typer.Option(
        "--kinetics",
        help="correlation times, states, passages and a Markov model, with errors; of .h5 with a "
        "clock, block by block",
    ),
]
_States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help="name=variable:low:high, such as beta=phi:-180:-40,psi:100:200 (degrees, Å); repeat; "
        "default: modes of the torsions",
    ),
]
_Clusters = Annotated[int | None, typer.Option(help="states by k-means instead, so many")]
_Lag = Annotated[
    float | None, typer.Option(help="of the Markov model, in the unit of the clock; default: found")
]
_Msd = Annotated[
    list[str] | None,
    typer.Option(
        "--msd",
        help="an element, or all: mean squared displacements about the mean of all atoms, "
        "diffusion, cages; repeat. Without --observe and states, nothing else",
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="of --kinetics: JSON; .csv and .png go beside it"),
]
_Force = Annotated[
    bool,
    typer.Option("--force", help="kinetics of runs that accepted fewer than 95 % of the steps"),
]


def analyze(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help=".h5 of `diffmd run`, or any trajectory of ASE; their walkers side by side"
        ),
    ],
    observe: Annotated[
        list[str] | None,
        typer.Option(
            help="energy, acceptance or another column, torsions, bonds, or phi=torsion:4,6,8,14, "
            "d=distance:0,5, a=angle:0,1,2 (atoms from 0); repeat; default: all but the last three"
        ),
    ] = None,
    skip: Annotated[
        float, typer.Option(min=0, max=0.99, help="fraction of the frames left out at first")
    ] = 0.0,
    kinetics: _Kinetics = False,
    state: _States = None,
    clusters: _Clusters = None,
    lag: _Lag = None,
    msd: _Msd = None,
    output: _Output = None,
    force: _Force = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Convergence of trajectories: R-hat, effective samples, errors, and a verdict in words.

    Lengths are in Å, angles in degrees, energies in eV. With --kinetics, how fast they change
    instead.
    """
    from ..analysis.diagnostics import verdict
    from ..io.read_trajectories import read_series

    if kinetics:
        wanted = (state or [], clusters, lag)
        if msd and (observe or any(wanted)):
            raise typer.BadParameter("--msd: without --observe, --state, --clusters, --lag")
        _kinetics(context, files, observe or [], skip, force, wanted, msd, output, as_json)
        return
    if state or clusters or lag or msd or output or force:
        raise typer.BadParameter(
            "--state, --clusters, --lag, --msd, --output, --force go with --kinetics"
        )
    series = read_series(files, skip=skip)
    rows = _diagnoses(series, observe or [])
    good, words = verdict(rows)
    if as_json:
        facts = {"files": [str(f) for f in files], "left_out": series.left_out}
        show(facts | {"good": good, "verdict": words, "rows": [asdict(r) for r in rows]}, True)
        return
    _show_rows(series, rows)
    show_verdicts([{"good": r.good, "text": f"{r.name}: {r.words}"} for r in rows if not r.good])
    show_verdicts([{"good": good, "text": words}])


def _show_rows(series, rows) -> None:
    if series.left_out:
        say(f"{series.left_out} lost walkers are left out")
    if series.cells is not None:
        say("the cell changes: each frame is measured in its own")
    frames, walkers = series.positions.shape[:2]
    names = ["", "mean", "error", "std", "R-hat", "ESS bulk", "tail", "g"]
    nested = any(row.rhat_nested is not None for row in rows)
    if nested:
        names.insert(5, "nested")
    show_table(f"{frames} frames of {walkers} walkers", names, [_cells(r, nested) for r in rows])


def _kinetics(context, files, observe, skip, force, wanted, msd, output, as_json) -> None:
    if output is not None:
        check_output(output, endings=(".json",), reads=files)
    if msd:
        _moved(context, files, msd, skip, force, output, as_json)
        return
    found = _found(files, observe, skip, force, *wanted)
    written = [] if output is None else found.write(output)
    if output is not None:
        save_resolved(context, output)
    if as_json:
        show(found.to_dict() | {"files": [str(f) for f in written]}, True)
        return
    _show_kinetics(found)
    if written:
        say(f"wrote {', '.join(map(str, written))}")


def _moved(context, files, msd, skip, force, output, as_json) -> None:
    from ..analysis.kinetics.motion import read_motion, write_motion

    found = [read_motion(files, symbol, skip=skip, force=force) for symbol in msd]
    written = [] if output is None else write_motion(found, output)
    if output is not None:
        save_resolved(context, output)
    if as_json:
        told = [one.to_dict() for one in found]
        show({"motion": told, "files": [str(f) for f in written]}, True)
        return
    for one in found:
        lags, msd_of = one.displacements.lags, one.displacements
        shown = sorted({0, len(lags) // 3, 2 * len(lags) // 3, len(lags) - 1})
        rows = [
            [
                f"MSD at {lags[n]:.3g} {one.unit}",
                f"{msd_of.values[n]:.4g} ± {msd_of.errors[n]:.2g} Å²",
            ]
            for n in shown
        ]
        per = "of the free D" if one.unit == "Å²" else f"Å²/{one.unit}"
        if one.diffusion is not None:
            rows.append(["diffusion coefficient", f"{one.diffusion.coefficient} {per}"])
        if one.plateau is not None:
            rows.append(["plateau of cages", f"{one.plateau} Å²"])
            rows.append(["relaxation in them", f"{one.relaxation} {one.unit}"])
        show_table(one.name, ["", ""], rows)
        for note in one.notes:
            say(note)
    if written:
        say(f"wrote {', '.join(map(str, written))}")


def _found(files, observe, skip, force, named, count, lag) -> Kinetics:
    from ..analysis.kinetics.states import Box, boxes, clusters, torsion_states
    from ..analysis.kinetics.summary import kinetics
    from ..analysis.kinetics.variables import read_variables

    variables = read_variables(files, observe, skip=skip, force=force).in_parts()
    if named and count:
        raise ValueError("--state and --clusters: give one of them")
    if named:
        return kinetics(variables, boxes(variables, [Box.parse(text) for text in named]), lag=lag)
    if count:
        return kinetics(variables, clusters(variables, count), lag=lag)
    try:
        states = torsion_states(variables)
    except ValueError as error:  # one state: correlations are left
        return kinetics(variables, None, notes=[f"no states: {error}"])
    return kinetics(variables, states, lag=lag)


def _show_kinetics(found: Kinetics) -> None:
    unit = found.unit
    size = f"{found.frames} frames of {found.walkers} walkers, one every {found.spacing:.4g} {unit}"
    rows = [
        [name, _pair(c.time), f"{c.time.n_effective:.0f}"] for name, c in found.correlations.items()
    ]
    show_table(
        size, ["", f"integrated time ({unit})", "independent values"], rows or [["none"] * 3]
    )
    model = found.model
    if found.states:
        told = [None] * len(found.states) if model is None else model.populations
        pairs = zip(found.states, found.populations, told, strict=True)
        rows = [[name, _pair(p), _pair(m)] for name, p, m in pairs]
        show_table("states", ["", "population", "of the Markov model"], rows)
    if found.passages:
        rows = [[f"{p.start} → {p.end}", _pair(p.counted), _pair(p.markov)] for p in found.passages]
        show_table(f"mean first passage times ({unit})", ["", "counted", "Markov model"], rows)
    if model is not None:
        shown = range(min(3, len(model.timescales)))
        rows = [[f"{m.lag:.4g}", *(_pair(m.timescales[n]) for n in shown)] for m in found.models]
        names = ["lag", *(f"timescale {n + 1}" for n in shown)]
        show_table(f"implied timescales ({unit}); the lag used: {model.lag:.4g}", names, rows)
        rows = [
            [f"{row.lag:.4g}", f"{row.difference:.4f} ± {row.error:.4f}", f"{row.z:.1f}"]
            for row in found.consistency
        ]
        show_table("Chapman–Kolmogorov", ["at", "largest difference", "largest z"], rows)
    for note in found.notes:
        say(note)


def _pair(estimate) -> str:
    return "too rare" if estimate is None else str(estimate)


def _diagnoses(series: Series, observe: list[str]) -> list[Diagnosis]:
    """The diagnoses of these observables (see `analyze`), default all that are known.

    Raises ``ValueError`` for a name that is not known, and where there is nothing to observe.
    """
    from ..analysis.diagnostics import diagnose

    rows: list[Diagnosis] = []
    for name in observe or [*series.columns, "torsions", "bonds"]:
        if name in series.columns:
            values = series.columns[name]
            if name == "acceptance":  # none before the first step
                values = values[1:] if not _finite(values[:1]) else values
            if not _finite(values):
                if observe:
                    raise ValueError(f"{name} was not written for all frames of these files")
                continue
            rows.append(diagnose(name, values, groups=series.groups))
        elif name in ("torsions", "bonds"):
            rows += _of_graph(name, series)
        else:
            rows.append(_geometric(name, series))
    if not rows:
        raise ValueError("nothing to observe in these files: give --observe d=distance:0,1")
    return rows


def _of_graph(kind: str, series: Series) -> list[Diagnosis]:
    """All rotatable torsions or bonds of an isolated molecule."""
    from ..score.topology import Topology

    if series.system.periodic or len(series.system) < 2:
        return []
    x = series.positions.reshape(-1, len(series.system), 3)
    graph = Topology.from_positions(series.system.numbers, x[:: max(1, len(x) // 1000)])
    rows = graph.torsions if kind == "torsions" else graph.bonds
    form = "torsion" if kind == "torsions" else "distance"
    return [_geometric(f"{form}:{','.join(map(str, row))}", series) for row in rows.tolist()]


def _geometric(text: str, series: Series) -> Diagnosis:
    import numpy as np

    from ..analysis.diagnostics import diagnose, diagnose_angle
    from ..analysis.observables import Coordinate

    others = (*series.columns, "torsions", "bonds")
    coordinate = Coordinate.parse(text, len(series.system), others=others)
    values = coordinate(series.positions, series.system, cells=series.cells)
    if coordinate.kind == "torsion":
        return diagnose_angle(coordinate.name, values, groups=series.groups)
    values = np.degrees(values) if coordinate.kind == "angle" else values
    return diagnose(coordinate.name, values, groups=series.groups)


def _cells(row: Diagnosis, nested: bool) -> list[str]:
    numbers = [f"{row.mean:.6g}", f"{row.error:.2g}", f"{row.std:.3g}", f"{row.rhat:.3f}"]
    if nested:
        numbers.append("" if row.rhat_nested is None else f"{row.rhat_nested:.3f}")
    numbers += [f"{row.ess_bulk:.0f}", f"{row.ess_tail:.0f}", f"{row.inefficiency:.3g}"]
    return [row.name, *numbers]


def _finite(values) -> bool:
    import numpy as np

    return bool(np.isfinite(values).all())
