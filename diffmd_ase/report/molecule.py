"""Sections of a report on a molecule: torsions, bonds, angles, handedness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..analysis import observables as ob
from ..analysis.divergence import (
    Divergence,
    excess_divergence,
    torsion_bins,
    torsion_rows,
    walker_groups,
)
from ..analysis.modes import atom_names, map_axes
from ..analysis.statistics import Estimate, basin_free_energy, mean_estimate
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
_SHOWN = 6  # coordinates that have a picture


def torsion_sections(
    page: Page,
    system: System,
    topology: Topology,
    sets: dict[str, np.ndarray],
    torsions: Mapping[str, Sequence[int]] | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Distributions and, of two torsions, the free-energy map; the angles by name and set.

    Parameters
    ----------
    sets : label → positions (M, N, 3) or (T, W, N, 3) in Å; ``data`` is the reference
    torsions : name → four atoms; default, one for each rotatable bond between heavy atoms

    Returns angles in rad: name → label → (M,) or (T, W).
    """
    if torsions is None:
        heavy = [q for q in topology.torsions.tolist() if (system.numbers[q] > 1).all()]
        torsions = {atom_names(system, q): q for q in heavy}
    if not torsions:
        return {}
    names = list(torsions)
    values = {label: dihedrals(x, list(torsions.values())) for label, x in sets.items()}
    by_name = {
        name: {label: phi[..., n] for label, phi in values.items()} for n, name in enumerate(names)
    }
    if len(names) >= 2:
        axes = map_axes(names, values["data"])
        pairs = {label: phi[..., axes] for label, phi in values.items()}
        _map_section(page, [names[n] for n in axes], pairs)
    panels = {
        name: {label: np.degrees(phi) for label, phi in of.items()} for name, of in by_name.items()
    }
    page.section("Torsions", image(plots.distributions(panels, "degrees", limits=(-180, 180))))
    return by_name


def _map_section(page: Page, axes: Sequence[str], pairs: dict[str, np.ndarray]) -> None:
    figure = plots.free_energy_maps({k: v.reshape(-1, 2) for k, v in pairs.items()}, axes)
    positive = {k: mean_estimate(v[..., 0] > 0) for k, v in pairs.items()}
    offset = {k: basin_free_energy(v[..., 0] <= 0, v[..., 0] > 0) for k, v in pairs.items()}
    page.numbers["torsion_pair"] = list(axes)
    page.numbers["first_torsion_positive"] = {k: pair(e) for k, e in positive.items()}
    page.numbers["basin_free_energy_kT"] = {k: pair(e) for k, e in offset.items()}
    page.numbers["jensen_shannon"], rows = {}, []
    bins = torsion_bins(pairs["data"])
    data = torsion_rows(pairs["data"], bins=bins)
    for label, v in pairs.items():
        numbers = ("", "", "")
        if label != "data":
            groups = walker_groups(*v.shape[:2]) if v.ndim == 3 else None
            own = torsion_rows(v.reshape(-1, 2), bins=bins)
            d = excess_divergence(data, own, groups=groups)
            page.numbers["jensen_shannon"][label] = d._asdict()
            _judge_map(page, label, axes, d, correlated=groups is not None)
            _judge_population(page, label, axes[0], v[..., 0] > 0, positive, offset)
            numbers = (f"{d.js:.4f}", f"{d.floor:.4f}", f"{d.excess:.4f} ± {d.error:.4f}")
        rows.append((label, v.size // 2, *numbers, str(positive[label]), str(offset[label])))
    head = ("", "frames", "JS (nats)", "floor", "excess", f"p({axes[0]} > 0)", "ΔF (kT)")
    caption = (
        "<p>ΔF = F(right) − F(left) of the first torsion. The floor is what as many "
        "independent frames of the data have from the rest of them.</p>"
    )
    title = f"Free energy of {axes[0]} and {axes[1]}"
    page.section(title, image(figure), table(head, rows), caption)


def _judge_map(page: Page, label: str, axes, d: Divergence, *, correlated: bool) -> None:
    worth = f"; the frames are worth about {d.n_effective:,.0f} independent ones" * correlated
    good = d.excess <= _JS_TOLERANCE
    page.judge(
        good,
        f"{label}: the free-energy map of {axes[0]} and {axes[1]} "
        f"{'agrees with' if good else 'differs from'} the data: Jensen–Shannon divergence "
        f"{d.js:.4f}, of which {d.floor:.4f} is counting noise; excess {d.excess:.4f} ± "
        f"{d.error:.4f} (tolerance {_JS_TOLERANCE}){worth}.",
    )
    if correlated and d.n_effective < _FEW:
        page.judge(
            False,
            f"{label}: {axes[0]} and {axes[1]} have seen only about {d.n_effective:.0f} "
            "independent values in all walkers: run longer before trusting populations.",
        )


def _judge_population(page: Page, label: str, name: str, above, positive, offset) -> None:
    ours, data = positive[label], positive["data"]
    crossings = np.abs(np.diff(above, axis=0)).sum()
    if above.ndim == 2 and crossings < _CROSSINGS:
        page.judge(
            None,
            f"{label}: {name} changed sign {crossings} times in all walkers together: their "
            f"population of {name} > 0, {ours.value:.2g}, is that of their starting points and "
            "says nothing of the model; the i.i.d. samples do.",
        )
        return
    if ours.value == 0 and data.value > 0:
        page.judge(False, f"{label}: no frame has {name} > 0; the data have {data}.")
        return
    error = float(np.hypot(ours.error, data.error))
    z = (ours.value - data.value) / error if error > 0 else np.inf
    difference = offset[label].value - offset["data"].value
    spread = float(np.hypot(offset[label].error, offset["data"].error))
    page.judge(
        abs(z) < 3,
        f"{label}: population of {name} > 0 is {ours}, the data have {data} ({z:+.1f} standard "
        f"errors; in free energy {difference:+.2f} ± {spread:.2f} kT).",
    )


def geometry_sections(
    page: Page, system: System, topology: Topology, sets: dict[str, np.ndarray]
) -> None:
    """Bonds and angles against the data, broken bonds, handedness.

    Parameters
    ----------
    sets : label → positions (M, N, 3) or (T, W, N, 3) in Å; ``data`` is the reference
    """
    bonds, triples = topology.bonds, ob.angle_triples(topology.bonds)
    if not len(bonds):
        return
    few = {
        label: x[:: max(1, x.size // (3 * len(system)) // _MAX_STRUCTURES)]
        for label, x in sets.items()
    }
    lengths = {label: distances(x, bonds) for label, x in few.items()}
    names = [atom_names(system, bond) for bond in bonds]
    for label, rows in _width_section(page, "Bonds", "Å", names, lengths).items():
        _judge_bonds(page, label, names, bonds, rows)
        _judge_structures(page, label, topology, few[label], few["data"])
    if len(triples):
        names = [atom_names(system, triple) for triple in triples]
        degrees = {label: np.degrees(angles(x, triples)) for label, x in few.items()}
        for rows in _width_section(page, "Angles", "degrees", names, degrees).values():
            ratios = [row.ratio.value for row in rows]
            page.numbers["angle_std_ratio"] = [min(ratios), max(ratios)]


def _width_section(
    page: Page, title: str, unit: str, names: list[str], values: dict[str, np.ndarray]
) -> dict[str, list[ob.WidthRow]]:
    """Histograms of the coordinates that differ most, and a table of all for each set."""
    data = values["data"]
    rows = {label: ob.width_table(v, data) for label, v in values.items() if label != "data"}
    last = next(reversed(rows.values()), None)  # dynamics, where there is any
    shown = range(len(names)) if last is None else [row.number for row in last]
    panels = {names[n]: {label: v[..., n] for label, v in values.items()} for n in shown[:_SHOWN]}
    head = ("", "std ratio to data", f"mean − data ({unit})")
    tables = [
        f"<h3>{label}, worst first</h3>"
        + table(
            head,
            [
                (
                    names[row.number],
                    f"{row.ratio.value:.3f} ± {row.ratio.error:.3f}",
                    f"{row.shift.value:+.4f} ± {row.shift.error:.4f}",
                )
                for row in of
            ],
        )
        for label, of in rows.items()
    ]
    heading = f"{title}, the {_SHOWN} that differ most"
    page.section(heading, image(plots.distributions(panels, unit)), *tables)
    return rows


def _judge_bonds(page: Page, label: str, names, bonds, rows: list[ob.WidthRow]) -> None:
    low, high = (f(rows, key=lambda row: row.ratio.value) for f in (min, max))
    page.numbers.setdefault("bonds", {})[label] = {
        "std_ratio_min": pair(low.ratio),
        "std_ratio_max": pair(high.ratio),
        "rows": [
            {
                "bond": bonds[row.number].tolist(),
                "ratio": pair(row.ratio),
                "shift": pair(row.shift),
            }
            for row in rows
        ],
    }
    lowest, highest = (
        f"{row.ratio.value:.3f} ± {row.ratio.error:.3f} ({names[row.number]})"
        for row in (low, high)
    )
    page.judge(
        _within(_STD_TOLERANCE, low.ratio, high.ratio),
        f"{label}: bond-length standard deviations are {lowest} to {highest} times those of the "
        f"data (tolerance {_STD_TOLERANCE:.0%}).",
    )


def _within(tolerance: float, *ratios: Estimate) -> bool | None:
    """Whether ``ratios`` are one; False where two errors do not explain it, else None."""
    off = [(abs(ratio.value - 1), 2 * ratio.error) for ratio in ratios]
    if any(d - error > tolerance for d, error in off):
        return False
    return True if all(d <= tolerance for d, _ in off) else None


def _judge_structures(page: Page, label: str, topology: Topology, x, reference) -> None:
    intact = mean_estimate(ob.bonds_intact(x, reference, topology.bonds))
    page.numbers.setdefault("bonds_intact", {})[label] = pair(intact)
    text = f"{label}: {_percent(intact)} of the frames have every bond within 6 std"
    fractions = [intact]
    if len(topology.centres):
        hand = mean_estimate(ob.correct_hand(x, reference, topology.centres))
        page.numbers.setdefault("correct_hand", {})[label] = pair(hand)
        text += f", {_percent(hand)} have the hand of the data at every centre"
        fractions.append(hand)
    page.judge(all(fraction.value >= 0.95 for fraction in fractions), text + ".")


def _percent(fraction: Estimate) -> str:
    if fraction.value in (0.0, 1.0):  # no spread, hence no error bar
        return "all" if fraction.value else "none"
    return f"{fraction.value:.2%} ± {fraction.error:.2%}"
