"""Sections of a report on a molecule: torsions, bonds, angles, handedness."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols

from ..analysis import observables as ob
from ..analysis.divergence import excess_divergence, torsion_rows, walker_groups
from ..analysis.statistics import (
    Estimate,
    basin_free_energy,
    mean_estimate,
    std_estimate,
)
from ..geometry import angles, dihedrals, distances
from ..score.topology import Topology
from ..system import System
from . import plots
from .html import Page, image, pair, table

__all__ = ["geometry_sections", "torsion_sections"]

_MAX_STRUCTURES = 200_000  # of a trajectory, for distributions
_CROSSINGS = 20  # below which plain dynamics has not measured a population
_FEW = 100  # independent frames
_JS_TOLERANCE = 0.05
_STD_TOLERANCE = 0.05


def torsion_sections(
    page: Page,
    system: System,
    topology: Topology,
    reference: np.ndarray,
    iid: np.ndarray | None,
    md: np.ndarray | None,
    torsions: dict[str, tuple[int, int, int, int]] | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Distributions and, of two torsions, the free-energy map; the angles by name and set."""
    if torsions is None:
        heavy = [q for q in topology.torsions.tolist() if (system.numbers[q] > 1).all()]
        torsions = {_name(system, q): tuple(q) for q in heavy}
    if not torsions:
        return {}
    sets = {"data": reference, "i.i.d.": iid, "MD": md}
    quadruples = list(torsions.values())
    values = {k: dihedrals(x, quadruples) for k, x in sets.items() if x is not None}
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
    data = torsion_rows(sets["data"])
    for label, v in sets.items():
        if label == "data":
            rows.append((label, len(v), "", "", "", str(found[label]), str(offset[label])))
            continue
        groups = walker_groups(*v.shape[:2]) if v.ndim == 3 else None
        d = excess_divergence(data, torsion_rows(v.reshape(-1, 2)), groups=groups)
        note = ""
        if groups is not None:
            note = f"; the frames are worth about {d.n_effective:,.0f} independent ones"
            if d.n_effective < _FEW:
                page.judge(
                    False,
                    f"{label}: {axes[0]} and {axes[1]} have seen only about {d.n_effective:.0f} "
                    "independent values in all walkers: run longer before trusting populations.",
                )
        page.numbers["jensen_shannon"][label] = d._asdict()
        good = d.excess <= _JS_TOLERANCE
        page.judge(
            good,
            f"{label}: the free-energy map of {axes[0]} and {axes[1]} "
            f"{'agrees with' if good else 'differs from'} the data: Jensen–Shannon divergence "
            f"{d.js:.4f}, of which {d.floor:.4f} is counting noise; excess {d.excess:.4f} ± "
            f"{d.error:.4f} (tolerance {_JS_TOLERANCE}){note}.",
        )
        crossings = np.abs(np.diff(v[..., 0] > 0, axis=0)).sum() if label == "MD" else None
        if crossings is not None and crossings < _CROSSINGS:
            page.judge(
                None,
                f"MD: {axes[0]} changed sign {crossings} times in all walkers together: their "
                f"population of {axes[0]} > 0, {found[label].value:.2g}, is that of their starting "
                "points and says nothing of the model; the i.i.d. samples do.",
            )
        else:
            _judge_population(page, label, axes[0], found[label], found["data"], offset)
        excess = f"{d.excess:.4f} ± {d.error:.4f}"
        numbers = (f"{d.js:.4f}", f"{d.floor:.4f}", excess)
        rows.append((label, v.size // 2, *numbers, str(found[label]), str(offset[label])))
    head = ("", "frames", "JS (nats)", "floor", "excess", f"p({axes[0]} > 0)", "ΔF (kT)")
    caption = (
        "<p>ΔF = F(right) − F(left) of the first torsion. The floor is what as many "
        "independent frames of the data have from the rest of them.</p>"
    )
    page.section(
        f"Free energy of {axes[0]} and {axes[1]}", image(figure), table(head, rows), caption
    )


def _judge_population(page, label, name, found: Estimate, data: Estimate, offset) -> None:
    error = float(np.hypot(found.error, data.error))
    z = (found.value - data.value) / error if error > 0 else np.inf
    difference = offset[label].value - offset["data"].value
    spread = float(np.hypot(offset[label].error, offset["data"].error))
    if found.value == 0 and data.value > 0:
        page.judge(False, f"{label}: no frame has {name} > 0; the data have {data}.")
        return
    good = abs(z) < 3
    page.judge(
        good,
        f"{label}: population of {name} > 0 is {found}, the data have {data} ({z:+.1f} standard "
        f"errors; in free energy {difference:+.2f} ± {spread:.2f} kT).",
    )


def geometry_sections(
    page: Page,
    system: System,
    topology: Topology,
    reference: np.ndarray,
    iid: np.ndarray | None,
    md: np.ndarray | None,
) -> None:
    """Bonds and angles against the data, broken bonds, handedness."""
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
        _name(system, b): {k: distances(x, [b])[..., 0] for k, x in thinned.items()} for b in worst
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
    both = f"{label}: {_percent(intact)} of the frames have every bond within 6 std"
    page.numbers.setdefault("bonds_intact", {})[label] = pair(intact)
    good = intact.value >= 0.95
    if len(topology.centres):
        hand = mean_estimate(ob.correct_hand(x, reference, topology.centres))
        page.numbers.setdefault("correct_hand", {})[label] = pair(hand)
        both += f", {_percent(hand)} have the hand of the data at every centre"
        good = good and hand.value >= 0.95
    page.judge(good, both + ".")


def _angle_section(page, system, triples, sets) -> None:
    data = angles(sets["data"], triples)
    other = {k: angles(x, triples) for k, x in sets.items() if k != "data"}
    shown = other.get("MD", other.get("i.i.d."))
    order, rows = np.arange(min(6, len(triples))), []
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


def _percent(fraction: Estimate) -> str:
    if fraction.value in (0.0, 1.0):  # no spread, hence no error bar
        return "all" if fraction.value else "none"
    return f"{fraction.value:.2%} ± {fraction.error:.2%}"


def _name(system: System, atoms) -> str:
    return "–".join(f"{chemical_symbols[system.numbers[a]]}{a}" for a in atoms)
