"""One self-contained HTML page that says how data, i.i.d. samples and dynamics compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..score.topology import Topology
from ..system import System
from ..units import kT_from_temperature
from . import observables as ob
from . import plots
from .page import Page, flat, image, pair, plain, render, save, table
from .statistics import (
    Estimate,
    basin_free_energy,
    correlation,
    mean_estimate,
    statistical_inefficiency,
    std_estimate,
    torsion_divergence,
)

__all__ = ["write_report"]

_MAX_STRUCTURES = 200_000  # of a trajectory, for distributions
_JS_TOLERANCE = 0.05
_STD_TOLERANCE = 0.05


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
    torsions: dict[str, tuple[int, int, int, int]] | None = None,
    card: dict[str, Any] | None = None,
    training: list[dict[str, float]] | None = None,
    summary: dict[str, Any] | None = None,
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
    summary : further numbers, kept as they are; ``evaluations_per_s`` is quoted on top

    Every estimate in the numbers is ``[value, standard error]``.
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
    if system.periodic:
        _periodic_sections(page, system, reference, iid, md, Dt)
    else:
        topology = Topology.from_positions(system.numbers, reference)
        angles = _torsion_sections(page, system, topology, reference, iid, md, torsions)
        if md is not None:
            _memory_section(page, angles, md, Dt, energies)
        _geometry_sections(page, system, topology, reference, iid, md)
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
    numbers = json.loads(json.dumps(page.numbers, default=plain))
    save(Path(path), render(page, title, system, temperature_K))
    return numbers


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


def _torsion_sections(page, system, topology, reference, iid, md, torsions) -> dict:
    if torsions is None:
        heavy = [q for q in topology.torsions.tolist() if (system.numbers[q] > 1).all()]
        torsions = {_name(system, q): tuple(q) for q in heavy}
    if not torsions:
        return {}
    sets = {"data": reference, "i.i.d.": iid, "MD": md}
    quadruples = list(torsions.values())
    values = {k: ob.dihedrals(x, quadruples) for k, x in sets.items() if x is not None}
    names = list(torsions)
    panels = {
        name: {k: np.degrees(v[..., n]) for k, v in values.items()} for n, name in enumerate(names)
    }
    angles = {name: {k: v[..., n] for k, v in values.items()} for n, name in enumerate(names)}
    if len(names) >= 2:
        _map_section(page, _map_axes(names, values["data"]), angles)
    page.section("Torsions", image(plots.distributions(panels, "degrees", limits=(-180, 180))))
    return angles


def _map_axes(names, data) -> tuple[str, str]:
    if "phi" in names and "psi" in names:
        return "phi", "psi"
    spread = 1 - np.linalg.norm(ob.angular_vectors(data).mean(0), axis=-1)
    first, second = sorted(np.argsort(-spread)[:2])
    return names[first], names[second]


def _map_section(page: Page, axes: tuple[str, str], angles: dict) -> None:
    sets = {k: np.stack((angles[axes[0]][k], angles[axes[1]][k]), axis=-1) for k in angles[axes[0]]}
    figure = plots.free_energy_maps({k: v.reshape(-1, 2) for k, v in sets.items()}, axes)
    found = {k: mean_estimate(v[..., 0] > 0) for k, v in sets.items()}
    offset = {k: basin_free_energy(v[..., 0] <= 0, v[..., 0] > 0) for k, v in sets.items()}
    page.numbers["torsion_pair"] = list(axes)
    page.numbers["first_torsion_positive"] = {k: pair(e) for k, e in found.items()}
    page.numbers["basin_free_energy_kT"] = {k: pair(e) for k, e in offset.items()}
    page.numbers["jensen_shannon"], rows = {}, []
    for label, v in sets.items():
        if label == "data":
            rows.append((label, len(v), "", "", "", str(found[label]), str(offset[label])))
            continue
        d = torsion_divergence(sets["data"], v)
        record = d._asdict()
        note = ""
        if label == "MD":
            g = max(statistical_inefficiency(ob.angular_vectors(v[..., n])) for n in (0, 1))
            n_effective = v.size / 2 / g
            slow = torsion_divergence(sets["data"], v, n_effective=n_effective)
            record.update(n_effective=n_effective, floor_correlated=slow.floor)
            note = (
                f"; the frames are worth about {n_effective:,.0f} independent ones, for which "
                f"counting alone would give up to {slow.floor:.4f}"
            )
            if n_effective < 100:
                page.judge(
                    False,
                    f"The slower of {axes[0]} and {axes[1]} has seen only about {n_effective:.0f} "
                    "independent values in all walkers: run longer before trusting populations.",
                )
        page.numbers["jensen_shannon"][label] = record
        good = d.excess <= _JS_TOLERANCE
        page.judge(
            good,
            f"{label}: the free-energy map of {axes[0]} and {axes[1]} "
            f"{'agrees with' if good else 'differs from'} the data: Jensen–Shannon divergence "
            f"{d.js:.4f}, of which {d.floor:.4f} is counting noise; excess {d.excess:.4f} ± "
            f"{d.error:.4f} (tolerance {_JS_TOLERANCE}){note}.",
        )
        _judge_population(page, label, axes[0], found[label], found["data"], offset, label)
        excess = f"{d.excess:.4f} ± {d.error:.4f}"
        numbers = (f"{d.js:.4f}", f"{d.floor:.4f}", excess)
        rows.append((label, v.size // 2, *numbers, str(found[label]), str(offset[label])))
    head = ("", "frames", "JS (nats)", "floor", "excess", f"p({axes[0]} > 0)", "ΔF (kT)")
    caption = (
        "<p>ΔF = F(right) − F(left) of the first torsion. The floor is the divergence of two "
        "draws of these sizes from the data.</p>"
    )
    page.section(
        f"Free energy of {axes[0]} and {axes[1]}", image(figure), table(head, rows), caption
    )


def _judge_population(page, label, name, found: Estimate, data: Estimate, offset, key) -> None:
    error = float(np.hypot(found.error, data.error))
    z = (found.value - data.value) / error if error > 0 else np.inf
    difference = offset[key].value - offset["data"].value
    spread = float(np.hypot(offset[key].error, offset["data"].error))
    if found.value == 0 and data.value > 0:
        page.judge(False, f"{label}: no frame has {name} > 0; the data have {data}.")
        return
    good = abs(z) < 3
    page.judge(
        good,
        f"{label}: population of {name} > 0 is {found}, the data have {data} ({z:+.1f} standard "
        f"errors; in free energy {difference:+.2f} ± {spread:.2f} kT).",
    )


def _memory_section(page: Page, angles, md, Dt, energies) -> None:
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


def _geometry_sections(page: Page, system, topology, reference, iid, md) -> None:
    bonds = topology.bonds
    if not len(bonds):
        return
    triples = ob.angle_triples(bonds)
    for label, x in (("i.i.d.", iid), ("MD", md)):
        if x is None:
            continue
        stride = max(1, x.size // (3 * len(system)) // _MAX_STRUCTURES)
        x = x[::stride]
        _judge_geometry(page, label, system, topology, reference, x)
    sets = {"data": reference, "i.i.d.": iid, "MD": md}
    rows = page.numbers.get("bonds", {}).get("MD") or page.numbers.get("bonds", {}).get("i.i.d.")
    worst = [tuple(r["bond"]) for r in rows["rows"][:6]] if rows else bonds[:6].tolist()
    thinned = {
        k: x[:: max(1, x.size // (3 * len(system)) // _MAX_STRUCTURES)]
        for k, x in sets.items()
        if x is not None
    }
    panels = {
        _name(system, b): {k: ob.distances(x, [b])[..., 0] for k, x in thinned.items()}
        for b in worst
    }
    figure = plots.distributions(panels, "Å")
    head = ("bond", "std ratio to data", "mean − data (Å)")
    tables = "".join(
        f"<h3>{label}, worst first</h3>"
        + table(head, [_bond_cells(system, row) for row in found["rows"]])
        for label, found in page.numbers.get("bonds", {}).items()
    )
    page.section("Bonds, the six that differ most", image(figure), tables)
    if len(triples):
        _angle_section(page, system, triples, thinned)


def _bond_cells(system, row) -> tuple[str, str, str]:
    ratio, shift = row["ratio"], row["shift"]
    return (
        _name(system, row["bond"]),
        f"{ratio[0]:.3f} ± {ratio[1]:.3f}",
        f"{shift[0]:+.4f} ± {shift[1]:.4f}",
    )


def _judge_geometry(page, label, system, topology, reference, x) -> None:
    found = ob.bond_table(x, reference, topology.bonds)
    rows = []
    for row in found:
        shift = row.mean.value - row.reference_mean.value
        error = float(np.hypot(row.mean.error, row.reference_mean.error))
        rows.append({"bond": list(row.bond), "ratio": pair(row.ratio), "shift": [shift, error]})
    low = min(found, key=lambda r: r.ratio.value)
    high = max(found, key=lambda r: r.ratio.value)
    page.numbers.setdefault("bonds", {})[label] = {
        "std_ratio_min": pair(low.ratio),
        "std_ratio_max": pair(high.ratio),
        "rows": rows,
    }
    good = all(abs(r.ratio.value - 1) <= _STD_TOLERANCE for r in (low, high))
    page.judge(
        good,
        f"{label}: bond-length standard deviations are {low.ratio.value:.3f} ± "
        f"{low.ratio.error:.3f} ({_name(system, low.bond)}) to {high.ratio.value:.3f} ± "
        f"{high.ratio.error:.3f} ({_name(system, high.bond)}) times those of the data "
        f"(tolerance {_STD_TOLERANCE:.0%}).",
    )
    intact = mean_estimate(ob.bonds_intact(x, reference, topology.bonds))
    both = (
        f"{label}: {intact.value:.2%} ± {intact.error:.2%} of frames have every bond within 6 std"
    )
    page.numbers.setdefault("bonds_intact", {})[label] = pair(intact)
    good = intact.value >= 0.95
    if len(topology.centres):
        hand = mean_estimate(ob.correct_hand(x, reference, topology.centres))
        page.numbers.setdefault("correct_hand", {})[label] = pair(hand)
        both += f", {_percent(hand)} the hand of the data at every centre"
        good = good and hand.value >= 0.95
    page.judge(good, both + ".")


def _angle_section(page, system, triples, sets) -> None:
    data = ob.angles(sets["data"], triples)
    other = {k: ob.angles(x, triples) for k, x in sets.items() if k != "data"}
    shown = other.get("MD", other.get("i.i.d."))
    order, rows = range(min(6, len(triples))), []
    if shown is not None:
        base = [std_estimate(data[:, n]) for n in range(len(triples))]
        std = [std_estimate(shown[..., n]) for n in range(len(triples))]
        ratio = [s.value / b.value for s, b in zip(std, base, strict=True)]
        relative = [
            np.hypot(s.error / s.value, b.error / b.value) for s, b in zip(std, base, strict=True)
        ]
        ranked = np.argsort(-np.abs(np.log(ratio)))
        order = ranked[:6]
        rows = [
            (_name(system, triples[n]), f"{ratio[n]:.3f} ± {ratio[n] * relative[n]:.3f}")
            for n in ranked
        ]
        page.numbers["angle_std_ratio"] = [float(min(ratio)), float(max(ratio))]
    panels = {
        _name(system, triples[n]): {
            k: np.degrees(v[..., n]) for k, v in {"data": data, **other}.items()
        }
        for n in order
    }
    page.section(
        "Angles, the six that differ most",
        image(plots.distributions(panels, "degrees")),
        table(("angle", f"std ratio of {'MD' if 'MD' in other else 'i.i.d.'} to data"), rows)
        if rows
        else "",
    )


def _periodic_sections(page: Page, system, reference, iid, md, Dt) -> None:
    sets = {"data": reference, "i.i.d.": iid, "MD": md}
    if system.pbc.all():
        lines, g = {}, {}
        for label, x in sets.items():
            if x is not None:
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
    if md is not None:
        msd, error = ob.mean_square_displacement(md)
        half = len(msd) // 2
        lines = {"MD": (Dt[:half] - Dt[0], msd[:half], error[:half])}
        figure = plots.curves(lines, "D·t (Å²)", "mean-square displacement (Å²)")
        page.section("Displacement", image(figure))
        end = Estimate(float(msd[half - 1]), float(error[half - 1]), np.nan)
        page.numbers["msd_A2"] = pair(end)


def _energy_section(page: Page, energies, kT: float) -> None:
    labels = {"data": "data", "iid": "i.i.d.", "md": "MD"}
    unknown = set(energies) - set(labels)
    if unknown:
        raise ValueError(f"energies of {sorted(unknown)}: expected the names {list(labels)}")
    sets, rows, zero = {}, [], None
    for key, label in labels.items():
        values = energies.get(key)
        if values is None:
            continue
        values = np.asarray(values, float)
        if values.ndim == 2:
            values = values[:, np.isfinite(values).all(0)]
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


def _percent(fraction: Estimate) -> str:
    if fraction.value in (0.0, 1.0):  # no spread, hence no error bar
        return "all" if fraction.value else "none"
    return f"{fraction.value:.2%} ± {fraction.error:.2%}"


def _name(system: System, atoms) -> str:
    from ase.data import chemical_symbols

    return "–".join(f"{chemical_symbols[system.numbers[a]]}{a}" for a in atoms)
