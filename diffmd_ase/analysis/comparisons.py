"""Entries of the card from arrays: torsions, modes, widths, energies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols

from ..score.topology import Topology
from ..system import System
from . import observables as ob
from .fidelity import cell_rows, excess_divergence, excess_reweighted, torsion_rows
from .modes import Arc, torsion_modes
from .scorecard import Entry, Goals, divergence_entry, entry, many_entry
from .statistics import Estimate, basin_free_energy, std_estimate

__all__ = [
    "Torsions",
    "energy_entries",
    "free_energy_entries",
    "population_entry",
    "torsion_entries",
    "width_entries",
]

_CELLS = 100  # of a histogram in one dimension
_CROSSINGS = 20  # changes of mode below which dynamics has not measured a population


class Torsions(NamedTuple):
    """The torsions (n, 4) that are looked at, by name, their modes in the data, and which
    one or two make the map."""

    names: list[str]
    quadruples: np.ndarray
    modes: list[list[Arc]]
    axes: list[int]

    @classmethod
    def find(
        cls,
        system: System,
        topology: Topology,
        frames: np.ndarray,
        named: dict[str, tuple[int, int, int, int]] | None,
    ) -> Torsions:
        """Those named, and of every other rotatable bond between heavy atoms, or of any.

        The map is of ``phi`` and ``psi``, or the two that spread most.
        """
        named = dict(named or {})
        taken = {frozenset(q[1:3]) for q in named.values()}
        rows = [q for q in topology.torsions.tolist() if frozenset(q[1:3]) not in taken]
        heavy = [q for q in rows if (system.numbers[q] > 1).all()]
        chosen = heavy if heavy or named else rows
        named |= {_name(system, q): (q[0], q[1], q[2], q[3]) for q in chosen}
        names = list(named)
        quadruples = np.array(list(named.values()), int).reshape(-1, 4)
        if not names:
            return cls([], quadruples, [], [])
        phi = ob.dihedrals(frames, quadruples)
        if "phi" in names and "psi" in names:
            axes = [names.index("phi"), names.index("psi")]
        else:
            spread = np.linalg.norm(ob.angular_vectors(phi).mean(0), axis=-1)
            axes = sorted(np.argsort(spread)[:2].tolist())
        return cls(names, quadruples, [torsion_modes(p) for p in phi.T], axes)

    @property
    def parted(self) -> list[tuple[str, int, Arc, Arc]]:
        """(name of the mode, torsion, largest mode, this mode) of all further modes."""
        return [
            (f"{self.names[n]} {arc}", n, arcs[0], arc)
            for n, arcs in enumerate(self.modes)
            for arc in arcs[1:]
        ]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Angles (*batch, n) in rad."""
        return ob.dihedrals(x, self.quadruples)


def torsion_entries(
    torsions: Torsions,
    reference: np.ndarray,
    samples: dict[str, tuple[np.ndarray, np.ndarray | None]],
    log_weights: np.ndarray | None,
    goals: Goals,
    *,
    seed: int,
) -> list[Entry]:
    """Divergences of the map of torsions, 64 bins along each.

    ``reference`` (M, n) angles of independent frames; ``samples``: name → angles (S, n) and,
    of walkers, who they are of (S,); ``log_weights`` (M,) of the reference.
    """
    rows = torsion_rows(reference[:, torsions.axes])
    kind = "JS " + ", ".join(torsions.names[n] for n in torsions.axes)
    found = []
    if log_weights is not None:
        excess = excess_reweighted(rows, log_weights, seed=seed)
        worth = f"weights are worth {excess.n_effective / len(reference):.0%} of the frames"
        found.append(
            divergence_entry("torsions", f"{kind}: reweighted", excess, goals.reweighted, worth)
        )
    for label, (angles, walkers) in samples.items():
        goal = goals.dynamics if walkers is not None else goals.independent
        table = torsion_rows(angles[:, torsions.axes])
        excess = excess_divergence(rows, table, walkers=walkers, seed=seed)
        worth = f"{len(angles)} frames worth {excess.n_effective:.0f}" if goal else ""
        found.append(divergence_entry("torsions", f"{kind}: {label}", excess, goal, worth))
    return found


def free_energy_entries(
    torsions: Torsions,
    reference: np.ndarray,
    samples: dict[str, np.ndarray],
    log_weights: np.ndarray | None,
    goals: Goals,
) -> list[Entry]:
    """``-ln(p_b/p_a)`` of the modes of each torsion, minus that of the data, in kT.

    Samples are angles (S, n), or (T, W, n) of walkers, whose populations are those of their
    starts if they did not cross 20 times.
    """
    found = []
    for name, n, a, b in torsions.parted:
        phi = reference[:, n]
        data = basin_free_energy(a(phi), b(phi))
        if log_weights is not None:
            value = _reweighted_difference(a(phi), b(phi), log_weights)
            label = f"ΔF {name}: reweighted"
            found.append(_difference(label, value, Estimate(0.0, 0.0, 0.0), goals))
        for label, angles in samples.items():
            values = angles[..., n]
            if values.ndim == 2:
                crossings = int(np.abs(np.diff(b(values), axis=0)).sum())
                if crossings < _CROSSINGS:
                    continue  # said in the notes
            value = basin_free_energy(a(values), b(values))
            found.append(_difference(f"ΔF {name}: {label}", value, data, goals))
    return found


def population_entry(
    name: str, a: Arc, b: Arc, phi: np.ndarray, near: np.ndarray, data: np.ndarray, goals: Goals
) -> Entry:
    """``-ln(p_b/p_a)`` of independent ladders, minus that of the data (M,), in kT.

    ``phi`` and ``near`` (T, L): angles, and whether the structures count.
    """
    in_a, in_b = ((mode(phi) & near).mean(0) for mode in (a, b))
    p_a, p_b, q_a, q_b = in_a.mean(), in_b.mean(), a(data).mean(), b(data).mean()
    words = f"from walkers in {a}: population {p_b:.2%}, the data have {q_b:.2%}"
    if p_b == 0 or p_a == 0:
        value, error = np.inf, np.nan
    else:
        influence = in_b / p_b - in_a / p_a
        error = influence.std(ddof=1) / np.sqrt(len(in_a))
        error = float(np.hypot(error, np.sqrt((1 / q_a + 1 / q_b) / len(data))))
        value = float(-np.log(p_b / p_a) + np.log(q_b / q_a))
        words += f", {value / error:+.1f} standard errors"
    name = f"ΔF {name}: exchange"
    return entry("free energy", name, value, error, goal=goals.free_energy, words=words)


def _difference(name: str, value: Estimate, data: Estimate, goals: Goals) -> Entry:
    return entry(
        "free energy",
        name,
        value.value - data.value,
        float(np.hypot(value.error, data.error)),
        goal=goals.free_energy,
        words="kT, minus that of the data",
    )


def _reweighted_difference(a, b, log_weights) -> Estimate:
    """Change of ``-ln(p_b/p_a)`` by the weights, on the same frames; error by linearisation."""
    w = np.exp(log_weights - log_weights.max())
    w /= w.mean()
    a, b = a.astype(float), b.astype(float)
    pa, pb, qa, qb = a.mean(), b.mean(), (w * a).mean(), (w * b).mean()
    influence = w * (b / qb - a / qa) - (b / pb - a / pa)
    value = -np.log(qb / qa) + np.log(pb / pa)
    return Estimate(float(value), float(influence.std() / np.sqrt(len(w))), float(len(w)))


def width_entries(
    system: System,
    topology: Topology,
    reference: np.ndarray,
    walkers: np.ndarray,
    sigma: float,
    goals: Goals,
) -> list[Entry]:
    """Ratios of standard deviations, model over data, of bonds, 1-3 distances and torsions.

    ``σ² = var - σ₀² ⟨|∇q|²⟩`` of corrected walkers (T, W, N, 3): the model is of p smoothed by
    σ₀, which widens a coordinate q by that; |∇q|² = 2 of a distance. One torsion for each
    rotatable bond, within its largest mode.
    """
    kinds = [("bonds", topology.bonds)]
    triples = ob.angle_triples(topology.bonds)
    kinds.append(("1-3 distances", triples[:, [0, 2]]))
    found = []
    for kind, pairs in kinds:
        if not len(pairs):
            continue
        ours, data = ob.distances(walkers, pairs), ob.distances(reference, pairs)
        rows = [_ratio(ours[..., n], data[:, n], 2 * sigma**2) for n in range(len(pairs))]
        names = [_name(system, p) for p in pairs]
        values, errors = np.array(rows).T
        found.append(
            many_entry("widths", f"std of {kind}", names, values, errors, goal=goals.width)
        )
    rows, names = [], []
    for quadruple in topology.torsions:
        ours, data = (ob.dihedrals(x, [quadruple])[..., 0] for x in (walkers, reference))
        mode = torsion_modes(data)[0]
        inside = mode(ours).all(0)  # walkers that never left it
        if inside.sum() < 4:
            continue
        centre = np.angle(np.exp(1j * data[mode(data)]).mean())
        ours, data = (_wrapped(v - centre) for v in (ours[:, inside], data[mode(data)]))
        added = sigma**2 * _square_gradient(reference[:500], quadruple)
        rows.append(_ratio(ours, data, added))
        names.append(_name(system, quadruple))
    if rows:
        values, errors = np.array(rows).T
        found.append(
            many_entry("widths", "std of torsions", names, values, errors, goal=goals.width)
        )
    return found


def _ratio(ours, data, added: float) -> tuple[float, float]:
    a, b = std_estimate(ours), std_estimate(data)
    if not b.value > 1e-6 or not a.value**2 > added:
        return float("nan"), float("nan")
    clean = np.sqrt(a.value**2 - added)
    relative = np.hypot(a.error * a.value / clean**2, b.error / b.value)
    return clean / b.value, clean / b.value * relative


def _wrapped(phi):
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _square_gradient(frames, quadruple) -> float:
    x = torch.as_tensor(frames, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(ob.dihedrals(x, [quadruple]).sum(), x)
    return float(gradient.square().sum((1, 2)).mean())


def energy_entries(
    reference: np.ndarray,
    walkers: np.ndarray,
    kT: float,
    goals: Goals,
    *,
    seed: int,
) -> list[Entry]:
    """The model's own energy on frames (M,) and on its corrected walkers (T, W), in eV.

    A model whose law is that of the data has one distribution of energies on both.
    """
    low, high = np.percentile(reference, [0.5, 99.5])
    bins = np.concatenate(([-np.inf], np.linspace(low, high, 31), [np.inf]))
    flat = walkers.ravel()
    who = np.broadcast_to(np.arange(walkers.shape[1]), walkers.shape).ravel()
    rows, table = (
        cell_rows(np.searchsorted(bins, e) - 1, len(bins) - 1) for e in (reference, flat)
    )
    excess = excess_divergence(rows, table, walkers=who, seed=seed)
    a, b = std_estimate(walkers), std_estimate(reference)
    ratio = a.value / b.value
    error = ratio * np.hypot(a.error / a.value, b.error / b.value)
    shift = (walkers.mean() - reference.mean()) / kT
    return [
        divergence_entry(
            "energies",
            "JS energy: corrected MD",
            excess,
            goals.dynamics,
            f"mean {shift:+.2f} kT from that of the data",
        ),
        entry(
            "energies",
            "std of energy",
            ratio,
            error,
            expected=1.0,
            goal=goals.energy_width,
        ),
    ]


def _name(system: System, atoms) -> str:
    return "–".join(f"{chemical_symbols[system.numbers[a]]}{a}" for a in atoms)
