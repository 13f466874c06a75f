"""Are the energies and forces that snapshots carry in eV and eV/Å, and of their temperature?

Any smooth field of displacements v(x) tells, without a model, since frames of exp(-U/kT) obey

    ⟨F·v⟩ + kT ⟨∇·v⟩ = 0

(integration by parts; with v = x it is the virial theorem). What pulls bonded atoms towards their
mean distance has little noise,

    v = Σ_p (r_p - ⟨r_p⟩)/var(r_p) r̂_p        factor = -⟨F·v⟩/(kT ⟨∇·v⟩)

over pairs p that stay together, so that a hundred frames give the factor within some percent: 23.06
where labels are in kcal/mol. Atoms that stay in one place have no v. Energies have, in
harmonic systems of n coordinates, std(U) = kT √(n/2), and in others not much less or more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ase import units

from .neighbours import Pairs, find_pairs
from .snapshot_checks import blocks, unwrapped

if TYPE_CHECKING:
    from .snapshots import Snapshots

__all__ = ["Factor", "doubts", "energy_factor", "force_doubt", "force_factor"]

_FEW, _SOME = 10, 1000  # frames: fewer say nothing, more are not needed
_FAR, _SHELL = 6.0, 1.35  # Å; and of the longest distance to a nearest neighbour
_LOOSE, _RIGID = 0.15, 1e-4  # std of a distance over its mean: of no bond, of a constrained one
_OFF, _WRONG = 1.35, 2.0  # factors that are told, and that cannot be learned from
_SIGNIFICANT = 5.0  # standard errors
_SPREAD = 2.5  # of energies: more or less than that times the harmonic one is told

_ENERGIES = {  # in eV
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "hartree": units.Hartree,
    "rydberg": units.Rydberg,
    "meV": 1e-3,
}
_FORCES = {  # in eV/Å
    "kcal/mol/Å": units.kcal / units.mol,
    "kJ/mol/Å": units.kJ / units.mol,
    "kJ/mol/nm": units.kJ / units.mol / units.nm,
    "hartree/bohr": units.Hartree / units.Bohr,
    "hartree/Å": units.Hartree,
    "rydberg/bohr": units.Rydberg / units.Bohr,
    "meV/Å": 1e-3,
}


class Factor(NamedTuple):
    """How many times as large as they should be labels are.

    Attributes
    ----------
    value : the factor
    error : its standard error
    """

    value: float
    error: float

    def off(self, ratio: float) -> bool:
        """Whether it is beyond doubt that it is not 1, and off by more than ``ratio``."""
        sure = abs(self.value - 1) > _SIGNIFICANT * self.error
        return sure and not 1 / ratio < self.value < ratio


def doubts(snapshots: Snapshots, correlation: float = 1.0) -> list[str]:
    """What is wrong with the labels of ``snapshots``, in words; nothing where nothing is.

    ``correlation``: statistical inefficiency of the frames.
    """
    found = [_of_forces(snapshots, correlation, _OFF), _of_energies(snapshots)]
    return [words for words in found if words is not None]


def force_doubt(snapshots: Snapshots) -> str | None:
    """Why the forces of ``snapshots`` cannot be learned from, if they are far off; else None."""
    return _of_forces(snapshots, snapshots.correlation, _WRONG)


def force_factor(snapshots: Snapshots, correlation: float = 1.0) -> Factor | None:
    """``-⟨F·v⟩/(kT ⟨∇·v⟩)`` of the forces, which is 1 if they are those of the distribution.

    None where it cannot be told: no forces, few frames, no pairs that stay together, or some that
    are rigid. ``correlation``: statistical inefficiency of the ``snapshots``.
    """
    count = len(snapshots)
    if snapshots.forces is None or count < _FEW or len(snapshots.system) < 2:
        return None
    chosen = np.arange(0, count, max(1, count // _SOME))
    x, mean, width, pairs = _bonds(snapshots, chosen)
    if not len(mean) or (width < _RIGID * mean).any():
        return None
    moving = torch.as_tensor(snapshots.moving)
    ends = [moving[index].double() for index in (pairs.source, pairs.target)]
    work, slope = [], []
    for part in blocks(len(x), 12 * len(mean)):
        unit, r = _directions(snapshots, x[part], pairs)
        f = torch.as_tensor(np.asarray(snapshots.forces[chosen[part]], dtype=float))
        along = [((f[:, i] * unit).sum(-1)) * m for i, m in zip(_ends(pairs), ends, strict=True)]
        pull = (r - mean) / width**2
        work.append(-((along[0] - along[1]) * pull).sum(-1))
        slope.append((sum(ends) * (1 / width**2 + 2 * pull / r)).sum(-1))
    a, b = torch.cat(work), snapshots.kT * torch.cat(slope)
    value = float(a.mean() / b.mean())
    worth = max(1.0, len(a) / max(1.0, correlation * len(a) / count))
    return Factor(value, float((a - value * b).std() / b.mean()) / worth**0.5)


def energy_factor(snapshots: Snapshots) -> float | None:
    """``std(U)/(kT √(n/2))`` of the energies with n moving coordinates; None of few frames."""
    if snapshots.energies is None or len(snapshots) < _FEW:
        return None
    rigid = 0 if snapshots.system.periodic and not snapshots.moving.all() else 3
    free = 3 * int(snapshots.moving.sum()) - rigid
    if free < 1:
        return None
    std = float(np.std(np.asarray(snapshots.energies, dtype=float)))
    return std / (snapshots.kT * math.sqrt(free / 2))


def _ends(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    return pairs.source, pairs.target


def _bonds(snapshots: Snapshots, chosen: np.ndarray):
    """Frames (M, N, 3); mean and std of the distances of pairs that stay together; the pairs."""
    system, first = snapshots.system, snapshots.positions[0]
    x = snapshots.positions[chosen]
    start = torch.as_tensor(first[None])
    cell = None if system.cell is None else torch.as_tensor(system.cell)
    pairs = find_pairs(start, _FAR, cell, tuple(system.pbc.tolist()))
    r = pairs.vectors(start, cell).norm(dim=-1)
    nearest = r.new_full((len(system),), torch.inf).scatter_reduce(0, pairs.target, r, "amin")
    reach = _SHELL * nearest[nearest.isfinite()].amax() if len(r) else 0.0
    once = pairs.source < pairs.target
    pairs = _some(pairs, once & (r < reach))
    total = square = torch.zeros(len(pairs.source), dtype=torch.float64)
    for part in blocks(len(x), 12 * len(total)):
        r = _directions(snapshots, x[part], pairs)[1]
        total, square = total + r.sum(0), square + r.square().sum(0)
    mean = total / len(x)
    width = (square / len(x) - mean**2).clamp_min(0).sqrt()
    together = width < _LOOSE * mean
    return x, mean[together], width[together], _some(pairs, together)


def _some(pairs: Pairs, index: torch.Tensor) -> Pairs:
    shift = None if pairs.shift is None else pairs.shift[index]
    return Pairs(pairs.source[index], pairs.target[index], shift)


def _directions(snapshots: Snapshots, x: np.ndarray, pairs: Pairs):
    """Unit vectors (M, P, 3) from target to source of the pairs, and distances (M, P)."""
    system = snapshots.system
    drift = bool(snapshots.moving.all())
    whole = torch.as_tensor(unwrapped(system, x, snapshots.positions[0], drift=drift))
    vectors = whole[:, pairs.source] - whole[:, pairs.target]
    if pairs.shift is not None:
        vectors = vectors + pairs.shift @ torch.as_tensor(system.cell)
    r = vectors.norm(dim=-1)
    return vectors / r[..., None], r


def _of_forces(snapshots: Snapshots, correlation: float, ratio: float) -> str | None:
    factor = force_factor(snapshots, correlation)
    if factor is None or not factor.off(ratio):
        return None
    kelvin, value = snapshots.temperature_K, factor.value
    return (
        f"the forces of {snapshots.source} are {value:.3g} ± {factor.error:.1g} times what the "
        f"vibrations of its bonds at {kelvin:g} K say, expected in eV/Å"
        f"{_remedy(value, _FORCES, snapshots)}"
    )


def _of_energies(snapshots: Snapshots) -> str | None:
    factor = energy_factor(snapshots)
    if factor is None or 1 / _SPREAD < factor < _SPREAD:
        return None
    if factor < 1e-4:
        return (
            f"the energies of {snapshots.source} hardly vary: expected the potential energy of "
            "each frame, in eV; those of a simulation at constant total energy are none"
        )
    return (
        f"the energies of {snapshots.source} spread {factor:.3g} times as much as potential "
        f"energies in eV do at {snapshots.temperature_K:g} K"
        f"{_remedy(factor, {**_ENERGIES, 'eV per atom': len(snapshots.system)}, snapshots)}"
    )


def _remedy(factor: float, known: dict[str, float], snapshots: Snapshots) -> str:
    """Which unit of the ``known`` ones would give the ``factor``, and what to do."""
    kind = "kT" if "kcal/mol" in known else "kT/Å"
    values = {**known, kind: snapshots.kT}
    size = max(abs(factor), 1e-12)
    name = min(values, key=lambda unit: abs(math.log(size * values[unit])))
    near = abs(math.log(size * values[name])) < math.log(_OFF if "Å" in kind else _SPREAD)
    if near and not 1 / _WRONG < size < _WRONG:
        sign = " and of the sign of a gradient" if factor < 0 else ""
        by = math.copysign(values[name], factor)
        return f": they look as if in {name}{sign}; multiply them by {by:.6g}"
    if abs(factor + 1) < 1 - 1 / _OFF:
        return ": their sign is that of a gradient; multiply them by -1"
    if "Å" in kind and 0.2 < factor < 5:
        return (
            f": right for {factor * snapshots.temperature_K:.0f} K; look at the label of the "
            "temperature, at the unit, and whether frames and forces are of one equilibrium run"
        )
    return "; look at their unit, and whether they belong to these frames"
