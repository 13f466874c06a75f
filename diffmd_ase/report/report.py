"""One self-contained HTML page that says how data, i.i.d. samples and dynamics compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import observables as ob
from ..analysis.statistics import (
    Estimate,
    correlation,
    mean_estimate,
    statistical_inefficiency,
    std_estimate,
)
from ..io.atomic import replacing
from ..io.json_text import plain
from ..score.topology import Topology
from ..system import System
from ..units import kT_from_temperature
from . import plots
from .html import Page, flat, image, pair, render, table
from .interactive import viewer
from .kinetics import kinetics_section
from .molecule import geometry_sections, torsion_sections

__all__ = ["write_report"]

_LABELS = {"data": "data", "iid": "i.i.d.", "md": "MD"}
_OUTSIDE = 0.01  # of the structures of a set


def write_report(
    path,
    *,
    system: System,
    reference: np.ndarray,
    temperature_K: float,
    iid: np.ndarray | None = None,
    trajectory: np.ndarray | None = None,
    Dt: np.ndarray | None = None,
    energies: dict[str, np.ndarray] | None = None,
    torsions: Mapping[str, Sequence[int]] | None = None,
    card: dict[str, Any] | None = None,
    training: list[dict[str, float]] | None = None,
    summary: dict[str, Any] | None = None,
    outside: Mapping[str, tuple[np.ndarray, str]] | None = None,
    kinetics_valid: bool = True,
    title: str = "Score dynamics",
) -> dict[str, Any]:
    """Write the page to ``path`` and return its numbers, ready for JSON.

    Parameters
    ----------
    reference : (M, N, 3) snapshots in Å, in the order of their time if they have one
    iid : (S, N, 3) independent samples of the model
    trajectory : (T, B, N, 3); walkers with missing (NaN) frames count as lost
    Dt : (T,) clock D·t of the frames in Å²; default their number
    energies : eV of the model: ``data`` (M',), ``iid`` (S',), ``md`` (T, B), any of them
    torsions : names to four atoms; ``phi`` and ``psi``, or the two most flexible ones, make
        the free-energy map. Default: one for each rotatable bond between heavy atoms
    card : of the model, shown as a table
    training : rows with ``step`` and figures such as ``loss`` and ``validation``
    outside : of the sets as in ``energies``, which structures (S',) or (T, B) the model takes for
        outside of its snapshots, and in words what most of them have
    kinetics_valid : False leaves out what needs a clock (see ``RunInfo.kinetics_valid``)
    summary : further numbers, kept as they are; ``evaluations_per_s`` is quoted on top
    title : of the page

    Every estimate in the numbers is ``[value, standard error]``.

    Raises
    ------
    ValueError : shapes that do not go together, positions that are not finite, energies of
        other names
    """
    kT = kT_from_temperature(temperature_K)
    reference = _positions("reference", reference, 3, system)
    page = Page(dict(summary or {}))
    page.numbers.update(temperature_K=temperature_K, n_reference=len(reference))
    md = None
    if trajectory is not None:
        trajectory = _positions("trajectory", trajectory, 4, system)
        Dt = np.arange(len(trajectory), dtype=float) if Dt is None else np.asarray(Dt, float)
        if Dt.shape != (len(trajectory),):
            raise ValueError(f"Dt {Dt.shape} for {len(trajectory)} frames: give one per frame")
        md = _kept_walkers(page, trajectory, Dt)
    if iid is not None:
        iid = _positions("iid", iid, 3, system)
        page.numbers["n_iid"] = len(iid)
    given = {"data": reference, "i.i.d.": iid, "MD": md}
    sets = {label: x for label, x in given.items() if x is not None}
    topology = None if system.periodic else Topology.from_positions(system.numbers, reference)
    _view_section(page, system, topology, sets, Dt)
    if topology is None:
        _periodic_sections(page, system, sets, Dt, kinetics_valid)
    else:
        angles = torsion_sections(page, system, topology, sets, torsions)
        if md is not None and not kinetics_valid:
            page.judge(None, "MD: biased or adjusted dynamics has no clock: no time correlations.")
        elif md is not None:
            _memory_section(page, angles, Dt, energies)
            if angles:
                kinetics_section(page, {n: v["MD"] for n, v in angles.items()}, Dt)
        geometry_sections(page, system, topology, sets)
    for key, (beyond, words) in (outside or {}).items():
        _judge_outside(page, key, np.asarray(beyond), words)
    if energies:
        _energy_section(page, energies, kT)
    if training:
        _training_section(page, training)
    if card:
        page.section("Model", table(("", ""), [(k, flat(v)) for k, v in card.items()]))
    speed = page.numbers.get("evaluations_per_s")
    if speed is not None:
        page.judge(None, f"Speed: {speed:,.0f} evaluations of one structure per second.")
    page.numbers["verdicts"] = [{"good": good, "text": text} for good, text in page.verdicts]
    numbers = plain(page.numbers)
    with replacing(path) as part:
        part.write_text(render(page, title, system, temperature_K), encoding="utf-8")
    return numbers


def _view_section(page: Page, system, topology: Topology | None, sets, Dt) -> None:
    """The molecule or crystal in motion: of dynamics, or of the samples or snapshots."""
    label = next(name for name in ("MD", "i.i.d.", "data") if name in sets)
    x = sets[label] if label == "MD" else sets[label][:, None]
    bonds = np.zeros((0, 2), int) if topology is None else topology.bonds
    view = viewer(system, x, bonds=bonds, times=Dt if label == "MD" else None)
    page.section(f"In motion: {label}", f'<div class="viewer">{view}</div>')


def _kept_walkers(page: Page, trajectory: np.ndarray, Dt: np.ndarray) -> np.ndarray | None:
    fine = np.isfinite(trajectory).all(axis=(0, 2, 3))
    lost = np.flatnonzero(~fine).tolist()
    span = float(Dt[-1] - Dt[0]) if len(Dt) else 0.0
    page.numbers["trajectory"] = {
        "frames": len(trajectory),
        "walkers": len(fine),
        "lost": lost,
        "Dt_per_walker_A2": span,
    }
    page.judge(
        not lost,
        f"{len(lost)} of {len(fine)} walkers were lost over D·t = {span:.3g} Å² each"
        + (f" (numbers {lost}); they are left out below." if lost else "."),
    )
    if len(trajectory) < 4 or not fine.any():
        page.judge(False, "No trajectory is left to compare: too few frames, or all lost.")
        return None
    return trajectory[:, fine]


def _memory_section(page: Page, angles, Dt, energies) -> None:
    series = {name: ob.angular_vectors(v["MD"]) for name, v in angles.items()}
    energy = (energies or {}).get("md")
    if energy is not None and np.shape(energy)[:1] == Dt.shape and np.ndim(energy) == 2:
        energy = np.asarray(energy)
        series["energy"] = energy[:, np.isfinite(energy).all(0)]
    lines, rows = {}, []
    lag = Dt - Dt[0]
    half = max(2, len(lag) // 2)  # fewer pairs than that: noise
    for name, values in series.items():
        c = correlation(values)
        if np.isnan(c[0]):
            continue
        parts = np.array_split(np.arange(values.shape[1]), 8) if values.shape[1] >= 8 else []
        error = (
            np.std([correlation(values[:, p]) for p in parts], axis=0, ddof=1) / np.sqrt(8)
            if parts
            else None
        )
        lines[name] = (lag[1:half], c[1:half], None if error is None else error[1:half])
        tau = statistical_inefficiency(values) * float(np.median(np.diff(lag))) / 2
        count = values.shape[0] * values.shape[1] / statistical_inefficiency(values)
        page.numbers.setdefault("correlation_time_A2", {})[name] = tau
        rows.append((name, f"{tau:.3g}", f"{count:,.0f}"))
    if not lines:
        return
    figure = plots.curves(lines, "D·t (Å²)", "autocorrelation", logx=True, zero=0.0)
    head = ("", "correlation D·t (Å²)", "independent samples in all walkers")
    page.section("Memory of the dynamics", image(figure), table(head, rows))


def _periodic_sections(page: Page, system, sets, Dt, kinetics_valid) -> None:
    if system.pbc.all():
        lines, g = {}, {}
        for label, x in sets.items():
            x = x[:: max(1, x.size // (3 * len(system)) // 4000)]
            r, g[label], error = ob.radial_distribution(x, system)
            lines[label] = (r, g[label], error)
        page.section("Radial distribution", image(plots.curves(lines, "r (Å)", "g(r)", zero=1.0)))
        for label in g:
            if label == "data":
                continue
            error = np.hypot(lines[label][2], lines["data"][2])
            largest = int(np.argmax(np.abs(g[label] - g["data"])))
            gap = Estimate(g[label][largest] - g["data"][largest], error[largest], np.nan)
            page.numbers.setdefault("rdf_largest_difference", {})[label] = pair(gap)
            page.judge(
                bool(abs(gap.value) < max(4 * gap.error, 0.05 * g["data"].max())),
                f"{label}: g(r) differs from the data by at most {gap} (at r = "
                f"{lines[label][0][largest]:.2f} Å, where the data have "
                f"{g['data'][largest]:.2f}).",
            )
    if "MD" in sets and kinetics_valid:
        msd, error = ob.mean_square_displacement(sets["MD"])
        half = len(msd) // 2
        lines = {"MD": (Dt[:half] - Dt[0], msd[:half], error[:half])}
        figure = plots.curves(lines, "D·t (Å²)", "mean-square displacement (Å²)")
        page.section("Displacement", image(figure))
        end = Estimate(float(msd[half - 1]), float(error[half - 1]), np.nan)
        page.numbers["msd_A2"] = pair(end)


def _judge_outside(page: Page, key: str, beyond: np.ndarray, words: str) -> None:
    fraction = mean_estimate(beyond)
    page.numbers.setdefault("outside", {})[_LABELS[key]] = pair(fraction)
    page.judge(
        fraction.value < _OUTSIDE,
        f"{_LABELS[key]}: {fraction.value:.2%} of the structures are outside of the snapshots, "
        f"where the model guesses{f' ({words})' if words else ''}; below {_OUTSIDE:.0%} is good.",
    )


def _energy_section(page: Page, energies, kT: float) -> None:
    unknown = set(energies) - set(_LABELS)
    if unknown:
        raise ValueError(f"energies of {sorted(unknown)}: expected the names {list(_LABELS)}")
    sets, rows, zero = {}, [], None
    for key, label in _LABELS.items():
        values = energies.get(key)
        if values is None:
            continue
        values = np.asarray(values, float)
        if values.ndim == 2:
            values = values[:, np.isfinite(values).all(0)]
        if not values.size:  # a field without energy, or all walkers lost
            continue
        mean, std = mean_estimate(values), std_estimate(values)
        zero = mean.value if zero is None else zero  # energies of a score have no zero
        sets[label] = (values - zero) / kT
        shift = Estimate((mean.value - zero) / kT, mean.error / kT, mean.n_effective)
        width = Estimate(std.value / kT, std.error / kT, std.n_effective)
        page.numbers.setdefault("energy_kT", {})[label] = {
            "mean": pair(shift),
            "std": pair(width),
        }
        rows.append((label, str(shift), str(width)))
    if not sets:
        return
    first = next(iter(sets))
    figure = plots.distributions({f"model energy − mean of {first}": sets}, "kT", columns=1)
    page.section("Energy of the model", image(figure), table(("", "mean (kT)", "std (kT)"), rows))


def _training_section(page: Page, training) -> None:
    keys = [k for k in training[0] if k not in ("step", "seconds", "time")]
    lines = {}
    for key in {k: None for row in training for k in row if k in keys or k == "validation"}:
        points = [(r["step"], r[key]) for r in training if isinstance(r.get(key), (int, float))]
        if len(points) > 1:
            x, y = np.array(points, float).T
            lines[key] = (x, y, None)
    images = [image(plots.curves({k: v}, "step", k)) for k, v in lines.items()]
    page.section("Training", *images)


def _positions(name: str, x, ndim: int, system: System) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != ndim or x.shape[-2:] != (len(system), 3) or not x.size:
        lead = ("frames",) if ndim == 3 else ("frames", "walkers")
        raise ValueError(
            f"{name} has shape {x.shape}, expected ({', '.join(lead)}, {len(system)}, 3) with at "
            f"least one frame for {system.formula}"
        )
    if ndim == 3 and not np.isfinite(x).all():
        raise ValueError(f"{name} holds positions that are not finite: leave them out")
    return x
