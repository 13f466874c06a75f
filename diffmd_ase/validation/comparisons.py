"""Lines of the card from arrays: torsions, populations of their modes, widths, energies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..analysis.divergence import (
    Divergence,
    cell_rows,
    excess_divergence,
    excess_reweighted,
    torsion_bins,
    torsion_rows,
    walker_groups,
)
from ..analysis.modes import Arc, atom_names, map_axes, torsion_basins, torsion_modes
from ..analysis.observables import angle_triples
from ..analysis.statistics import basin_free_energy, mean_estimate, std_estimate
from ..geometry import dihedrals, distances, shortest
from ..score.topology import Topology
from ..score.torsion_moves import free_rotors
from ..system import System
from .scorecard import Goals, Line, line, worst_line

__all__ = [
    "Torsions",
    "divergence_line",
    "energy_lines",
    "free_energy_lines",
    "population_line",
    "torsion_lines",
    "width_lines",
]

_CROSSINGS = 20  # changes of mode below which dynamics has not measured a population
_RIGID = 1e-6  # Å, eV or rad: no width
_SATURATED = 0.1  # nats, of ln 2: bins are then too empty to tell laws apart


class Torsions(NamedTuple):
    """The torsions that are looked at."""

    system: System  # with cell and pbc
    names: list[str]  # of each
    quadruples: np.ndarray  # (n, 4) atoms of each
    modes: list[list[Arc]]  # of each in the data, the largest first
    axes: list[int]  # numbers of the one or two that make the map

    @classmethod
    def find(cls, system: System, topology: Topology | None, frames, named=None) -> Torsions:
        """Those named, and of every other rotatable bond between heavy atoms, or of any.

        Of any but methyls where there are others: the modes of those are one by symmetry.

        The map is of ``phi`` and ``psi``, or the two that spread most.
        """
        named = dict(named or {})
        taken = {frozenset(q[1:3]) for q in named.values()}
        rows = [] if topology is None else topology.torsions.tolist()
        free = [] if topology is None else topology.rotors[free_rotors(topology)].tolist()
        rows = [q for q in rows if frozenset(q[1:3]) not in taken]
        rows = [q for q in rows if q[1:3] in free or q[2:0:-1] in free] or rows
        heavy = [q for q in rows if (system.numbers[q] > 1).all()]
        named |= {atom_names(system, q): q for q in (heavy if heavy or named else rows)}
        names, quadruples = list(named), np.array(list(named.values()), int).reshape(-1, 4)
        phi = dihedrals(frames, quadruples, system=system)
        modes = [torsion_basins(angle) for angle in phi.T]
        return cls(system, names, quadruples, modes, map_axes(names, phi))

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
        return dihedrals(x, self.quadruples, system=self.system)


def divergence_line(group: str, name: str, d: Divergence, goal: float, words: str) -> Line:
    """A divergence, expected at its sampling floor; nothing can be told from empty bins.

    Parameters
    ----------
    group, name, words : of the `Line`
    d : the divergence
    goal : for its excess, in nats
    """
    error = d.error
    if d.floor > _SATURATED:
        error, words = np.inf, f"too few frames: counting alone gives {d.floor:.2f}; {words}"
    details = {"n_effective": round(d.n_effective, 1)}
    return line(group, name, d.js, error, expected=d.floor, goal=goal, words=words, details=details)


def torsion_lines(
    torsions: Torsions,
    reference: np.ndarray,
    samples: dict[str, tuple[np.ndarray, np.ndarray | None]],
    log_weights: np.ndarray | None,
    goals: Goals,
    *,
    seed: int,
) -> list[Line]:
    """Divergences of the map of torsions, in `torsion_bins` along each.

    Parameters
    ----------
    torsions : those of the map are compared
    reference : (M, n) angles in rad of independent frames
    samples : name → angles (S, n) and, of walkers, their groups (S,)
    log_weights : (M,) of the reference towards the model, where there are energies
    goals : ``reweighted``, ``independent`` or ``dynamics`` holds
    """
    axes = torsions.axes
    bins = torsion_bins(reference[:, axes])
    rows = torsion_rows(reference[:, axes], bins=bins)
    of = f"map of {', '.join(torsions.names[n] for n in axes)}, {bins} bins along each"
    lines = []
    if log_weights is not None:
        excess = excess_reweighted(rows, log_weights, seed=seed)
        worth = f"{of}; weights are worth {excess.n_effective / len(reference):.0%} of the frames"
        name = "JS torsions: reweighted"
        lines.append(divergence_line("torsions", name, excess, goals.reweighted, worth))
    for label, (angles, groups) in samples.items():
        own = torsion_rows(angles[:, axes], bins=bins)
        excess = excess_divergence(rows, own, groups=groups, seed=seed)
        goal = goals.independent if groups is None else goals.dynamics
        worth = f"{of}; {len(angles)} frames worth {excess.n_effective:.0f}"
        lines.append(divergence_line("torsions", f"JS torsions: {label}", excess, goal, worth))
    return lines


def free_energy_lines(
    torsions: Torsions,
    reference: np.ndarray,
    samples: dict[str, np.ndarray],
    log_weights: np.ndarray | None,
    goals: Goals,
) -> list[Line]:
    """``-ln(p_b/p_a)`` of the modes of each torsion, minus that of the data, in kT.

    Parameters
    ----------
    torsions : a is the largest mode of each, b any other
    reference : (M, n) angles in rad of the data
    samples : name → angles (S, n), or (T, W, n) of walkers, whose populations are those of their
        starts if they did not cross 20 times: these are left out
    log_weights : (M,) of the reference towards the model, where there are energies
    goals : ``free_energy`` holds
    """
    lines = []
    for name, n, a, b in torsions.parted:
        phi = reference[:, n]
        data, share = basin_free_energy(a(phi), b(phi)), b(phi).mean()
        if log_weights is not None:
            change = _reweighted_difference(a(phi), b(phi), log_weights)
            words = f"the data have {share:.2%} there"
            lines.append(_free_energy_line(f"{name}: reweighted", *change, words, goals))
        for label, angles in samples.items():
            values = angles[..., n]
            if values.ndim == 2 and np.abs(np.diff(b(values), axis=0)).sum() < _CROSSINGS:
                continue  # said in a note
            ours = basin_free_energy(a(values), b(values))
            error = np.hypot(ours.error, data.error)
            words = f"{b(values).mean():.2%} there, the data have {share:.2%}"
            change = ours.value - data.value, error
            lines.append(_free_energy_line(f"{name}: {label}", *change, words, goals))
    return lines


def population_line(
    name: str, a: Arc, b: Arc, phi: np.ndarray, near: np.ndarray, data: np.ndarray, goals: Goals
) -> Line:
    """``-ln(p_b/p_a)`` of independent ladders, minus that of the data, in kT.

    Parameters
    ----------
    name : of the mode b
    a, b : modes of one torsion
    phi : (T, L) its angles in rad, of L ladders
    near : (T, L) bool, whether the structures count
    data : (M,) its angles in the data
    goals : ``free_energy`` holds
    """
    in_a, in_b = ((mode(phi) & near).mean(0) for mode in (a, b))
    p_a, p_b, of_data = in_a.mean(), in_b.mean(), basin_free_energy(a(data), b(data))
    words = (
        f"from walkers in {a}: {p_b / near.mean():.2%} there, the data have {b(data).mean():.2%}"
    )
    value, error = np.inf, np.nan
    if p_a > 0 and p_b > 0:
        influence = in_b / p_b - in_a / p_a
        error = np.hypot(influence.std(ddof=1) / np.sqrt(len(in_a)), of_data.error)
        value = -np.log(p_b / p_a) - of_data.value
        words += f", {value / error:+.1f} standard errors"
    return _free_energy_line(f"{name}: exchange", value, error, words, goals)


def _free_energy_line(name: str, value: float, error: float, words: str, goals: Goals) -> Line:
    return line("free energy", f"ΔF {name}", value, error, goal=goals.free_energy, words=words)


def _reweighted_difference(a, b, log_weights) -> tuple[float, float]:
    """Change of ``-ln(p_b/p_a)`` by the weights, on the same frames; error by linearisation."""
    w = np.exp(log_weights - log_weights.max())
    w /= w.mean()
    a, b = a.astype(float), b.astype(float)
    pa, pb, qa, qb = a.mean(), b.mean(), (w * a).mean(), (w * b).mean()
    influence = w * (b / qb - a / qa) - (b / pb - a / pa)
    return float(np.log(qa * pb / (qb * pa))), float(influence.std() / np.sqrt(len(w)))


def width_lines(
    system: System,
    topology: Topology,
    frames,
    walkers,
    sigma: float,
    goals: Goals,
    log_weights: np.ndarray | None = None,
) -> list[Line]:
    """Ratios of standard deviations, model over data, of bonds, 1-3 distances and torsions.

    ``var - σ₀² ⟨|∇q|²⟩`` of corrected walkers, and of the frames with the weights towards the
    model, where there are any: the model is of p smoothed by σ₀, which widens a coordinate q by
    that; |∇q|² = 2 of a distance. One torsion for each rotatable bond, within its largest mode in
    the frames.

    Parameters
    ----------
    frames : (M, N, 3) in Å of the data
    walkers : (T, W, N, 3) in Å
    sigma : σ₀ in Å
    goals : ``width`` holds
    log_weights : (M,) of the frames
    """
    pairs = topology.bonds, angle_triples(topology.bonds)[:, [0, 2]]
    kinds: list[tuple[str, np.ndarray, list[_Coordinate]]] = []
    for kind, atoms in zip(("bonds", "1-3 distances"), pairs, strict=True):
        ours, data = distances(walkers, atoms), distances(frames, atoms)
        each = [_Coordinate(ours[..., n], data[:, n], 2 * sigma**2) for n in range(len(atoms))]
        kinds.append((kind, atoms, each))
    each = []
    for quadruple in topology.torsions:
        ours, data = (dihedrals(x, [quadruple])[..., 0] for x in (walkers, frames))
        mode = torsion_modes(data)[0]
        centre = np.angle(np.exp(1j * data[mode(data)]).mean())
        added = sigma**2 * _square_gradient(frames[:500], quadruple)
        ours, data = (
            np.where(mode(phi), shortest(phi - centre, 2 * np.pi), np.nan) for phi in (ours, data)
        )
        each.append(_Coordinate(ours, data, added))
    kinds.append(("torsions", topology.torsions, each))
    lines = []
    for kind, atoms, each in kinds:
        sets = {"": [_ratio(*one) for one in each]}
        if log_weights is not None:
            sets[": reweighted"] = [_reweighted_ratio(*one[1:], log_weights) for one in each]
        names = [atom_names(system, a) for a in atoms]
        lines += [
            worst_line("widths", f"std of {kind}{by}", names, *np.transpose(rows), goal=goals.width)
            for by, rows in sets.items()
            if len(rows)
        ]
    return lines


class _Coordinate(NamedTuple):
    """Of walkers (T, W) and of frames (M,), NaN where it does not count; what σ₀ adds to its
    variance."""

    ours: np.ndarray
    data: np.ndarray
    added: float


def _ratio(ours, data, added: float) -> tuple[float, float]:
    """Of standard deviations, of (T, W) without ``added`` over (M,); NaN does not count."""
    inside = np.isfinite(ours)
    if inside.sum() < 2:
        return np.nan, np.nan
    square = np.square(ours - ours[inside].mean(), where=inside, out=np.zeros_like(ours))
    variance = square.sum() / inside.sum()
    error = mean_estimate((square - variance * inside) / inside.mean()).error
    reference = std_estimate(data[np.isfinite(data)])
    clean = variance - added
    if not (clean > 0 and reference.value > _RIGID):
        return np.nan, np.nan
    ratio = np.sqrt(clean) / reference.value
    return ratio, ratio * np.hypot(error / (2 * clean), reference.error / reference.value)


def _reweighted_ratio(data, added: float, log_weights) -> tuple[float, float]:
    """Of standard deviations of the same (M,), with the weights and without ``added`` over
    without weights; error by linearisation; NaN does not count."""
    inside = np.isfinite(data)
    x, w = data[inside], np.exp(log_weights[inside] - log_weights[inside].max())
    w /= w.mean()
    square, weighted = (x - x.mean()) ** 2, (x - (w * x).mean()) ** 2
    plain, variance = square.mean(), (w * weighted).mean()
    clean = variance - added
    if not (clean > 0 and np.sqrt(plain) > _RIGID):
        return np.nan, np.nan
    ratio = np.sqrt(clean / plain)
    influence = w * (weighted - variance) / clean - square / plain
    return ratio, 0.5 * ratio * influence.std() / np.sqrt(len(x))


def _square_gradient(frames, quadruple) -> float:
    x = torch.as_tensor(frames, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(dihedrals(x, [quadruple]).sum(), x)
    return float(gradient.square().sum((1, 2)).mean())


def energy_lines(
    reference: np.ndarray, walkers: np.ndarray, kT: float, goals: Goals, *, seed: int
) -> list[Line]:
    """The model's own energy on frames of the data and on its corrected walkers.

    A model whose law is that of the data has one distribution of energies on both.

    Parameters
    ----------
    reference : (M,) in eV on the frames
    walkers : (T, W) in eV
    goals : ``dynamics`` and ``energy_width`` hold
    """
    low, high = np.percentile(reference, [0.5, 99.5])
    bins = np.linspace(low, high, 31)
    flat = walkers.ravel()
    rows, table = (
        cell_rows(np.arange(len(e)), np.searchsorted(bins, e), (len(e), len(bins) + 1))
        for e in (reference, flat)
    )
    groups = walker_groups(*walkers.shape)
    excess = excess_divergence(rows, table, groups=groups, seed=seed)
    words = f"mean {(flat.mean() - reference.mean()) / kT:+.2f} kT from that of the data"
    ratio, error = _ratio(walkers, reference, 0.0)
    return [
        divergence_line("energies", "JS energy: corrected MD", excess, goals.dynamics, words),
        line("energies", "std of energy", ratio, error, expected=1.0, goal=goals.energy_width),
    ]
