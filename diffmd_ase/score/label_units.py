"""Are the energies and forces that snapshots carry in eV and eV/Å, and of their temperature?

Any smooth field of displacements v(x) tells, without a model, since frames of exp(-U/kT) obey

    ⟨F·v⟩ + kT ⟨∇·v⟩ = 0

(integration by parts; with v = x it is the virial theorem). What pulls bonded atoms towards their
mean distance has little noise,

    v = Σ_p (r_p - ⟨r_p⟩)/var(r_p) r̂_p        factor = -⟨F·v⟩/(kT ⟨∇·v⟩)

over pairs p that stay together, so that a hundred frames give the factor within some percent: 23.06
where labels are in kcal/mol. In fluids all neighbours push each other apart. Atoms that stay in one
place have no v. Energies have, in
harmonic systems of n coordinates, std(U) = kT √(n/2), and in others not much less or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ase import units
from torch import Tensor

from .neighbours import Pairs, edges, find_pairs
from .networks.inputs import Inputs
from .snapshot_checks import ORDERED, blocks, mean_and_std, unwrapped

if TYPE_CHECKING:
    from .snapshots import Snapshots

__all__ = ["Factor", "doubts", "energy_factor", "force_doubt", "force_factor"]

_FEW, _SOME = 10, 1000  # frames: fewer say nothing, more are not needed
_FAR, _SHELL = 6.0, 1.35  # Å; and of the longest distance to a nearest neighbour
_MOST = 0.9  # of the nearest pairs stay together, or it is a fluid
_REACH = 1.5  # of the mean distance to the nearest neighbour, in fluids
_LOOSE, _RIGID = 0.15, 1e-4  # std of a distance over its mean: of no bond, of a constrained one
_OFF = 1.35  # a factor that is told
_LOW, _HIGH = 0.1, 2.0  # beyond these labels cannot be learned from
# frames in order of time are about means of their own, which makes the factor smaller
_MANY = 50
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

    def off(self, low: float, high: float) -> bool:
        """Whether it is beyond doubt that it is not 1, and not between ``low`` and ``high``."""
        sure = abs(self.value - 1) > _SIGNIFICANT * self.error
        return sure and not low < self.value < high


def doubts(snapshots: Snapshots, correlation: float = 1.0) -> list[str]:
    """What is wrong with the labels of ``snapshots``, in words; nothing where nothing is.

    ``correlation``: statistical inefficiency of the frames.
    """
    independent = len(snapshots) >= _MANY and correlation <= ORDERED
    low = 1 / _OFF if independent else _LOW
    found = [_of_forces(snapshots, correlation, low, _OFF), _of_energies(snapshots)]
    return [words for words in found if words is not None]


def force_doubt(snapshots: Snapshots) -> str | None:
    """Why the forces of ``snapshots`` cannot be learned from, if they are far off; else None."""
    return _of_forces(snapshots, snapshots.correlation, _LOW, _HIGH)


def force_factor(snapshots: Snapshots, correlation: float = 1.0) -> Factor | None:
    """``-⟨F·v⟩/(kT ⟨∇·v⟩)`` of the forces, which is 1 if they are those of the distribution.

    None where it cannot be told: no forces, few frames, no neighbours, or rigid bonds.
    ``correlation``: statistical inefficiency of the ``snapshots``.
    """
    known = np.flatnonzero(snapshots.labelled)
    count = len(known)
    if snapshots.forces is None or count < _FEW or len(snapshots.system) < 2:
        return None
    chosen = known[:: max(1, count // _SOME)]
    bonds = _Bonds.of(snapshots, chosen)
    if bonds is None or (bonds.width < _RIGID * bonds.mean).any():
        return None
    field = bonds if len(bonds.mean) else _Fluid.of(snapshots, chosen)
    work, slope = [], []
    for part in blocks(len(chosen), field.numbers):
        forces = np.array(snapshots.forces[chosen[part]], dtype=float)
        forces[:, ~snapshots.moving] = 0.0
        x = np.array(snapshots.positions[chosen[part]], dtype=float)
        done, bent = field.terms(x, torch.as_tensor(forces))
        work.append(done)
        slope.append(bent)
    a, b = -torch.cat(work), snapshots.kT * torch.cat(slope)
    value = float(a.mean() / b.mean())
    worth = len(a) / max(1.0, correlation * len(a) / count)
    return Factor(value, float((a - value * b).std() / b.mean().abs()) / max(1.0, worth) ** 0.5)


def energy_factor(snapshots: Snapshots) -> float | None:
    """``std(U)/(kT √(n/2))`` of the energies with n moving coordinates; None of few frames."""
    if snapshots.energies is None or len(snapshots) < _FEW:
        return None
    rigid = 0 if snapshots.system.periodic and not snapshots.moving.all() else 3
    free = 3 * int(snapshots.moving.sum()) - rigid
    if free < 1:
        return None
    std = float(np.nanstd(np.asarray(snapshots.energies, dtype=float)))
    return std / (snapshots.kT * math.sqrt(free / 2))


@dataclass(frozen=True, eq=False)
class _Bonds:
    """v of pairs that stay together.

    Parameters
    ----------
    pairs : with the images that are meant, about the first frame
    mean, width : (P,) of their distances in Å
    """

    snapshots: Snapshots
    pairs: Pairs
    mean: Tensor
    width: Tensor

    @classmethod
    def of(cls, snapshots: Snapshots, chosen: np.ndarray) -> _Bonds | None:
        """Those among the nearest neighbours; None without any neighbours."""
        _, cell, pbc = Inputs.of(snapshots.system, dtype=torch.float64)
        first = torch.tensor(snapshots.positions[:1])
        pairs = find_pairs(first, _FAR, cell, pbc)
        r = pairs.vectors(first, cell).norm(dim=-1)
        if not len(r):
            return None
        nearest = r.new_full((first.shape[1],), torch.inf)
        nearest = nearest.scatter_reduce(0, pairs.target, r, "amin")
        moving = torch.as_tensor(snapshots.moving)
        near = r < _SHELL * nearest[nearest.isfinite()].amax()
        near &= moving[pairs.source] | moving[pairs.target]
        none = r.new_zeros(0)
        bonds = cls(snapshots, _some(pairs, near & (pairs.source < pairs.target)), none, none)
        mean, width = mean_and_std(
            snapshots.positions[chosen],
            lambda x: bonds.vectors(x).norm(dim=-1).numpy(),
            bonds.numbers,
        )
        kept = torch.as_tensor(width < _LOOSE * mean)
        if kept.double().mean() < _MOST:  # of what wanders the means are those of this run
            kept[:] = False
        tables = (torch.as_tensor(values)[kept] for values in (mean, width))
        return cls(snapshots, _some(bonds.pairs, kept), *tables)

    @property
    def numbers(self) -> int:
        return 12 * len(self.pairs.source)

    def vectors(self, x: np.ndarray) -> Tensor:
        """(M, P, 3) from target to source."""
        frames = self.snapshots
        drift = bool(frames.moving.all())
        whole = torch.as_tensor(unwrapped(frames.system, x, frames.positions[0], drift=drift))
        vectors = whole[:, self.pairs.source] - whole[:, self.pairs.target]
        if self.pairs.shift is not None:
            vectors = vectors + self.pairs.shift @ torch.as_tensor(frames.system.cell)
        return vectors

    def terms(self, x: np.ndarray, forces: Tensor) -> tuple[Tensor, Tensor]:
        """``F·v`` and ``∇·v`` (M,) of frames x (M, N, 3)."""
        vectors, moving = self.vectors(x), torch.as_tensor(self.snapshots.moving).double()
        r = vectors.norm(dim=-1)
        pull = (r - self.mean) / self.width**2
        apart = forces[:, self.pairs.source] - forces[:, self.pairs.target]
        work = ((apart * vectors).sum(-1) * pull / r).sum(-1)
        ends = moving[self.pairs.source] + moving[self.pairs.target]
        return work, (ends * (1 / self.width**2 + 2 * pull / r)).sum(-1)


@dataclass(frozen=True, eq=False)
class _Fluid:
    """v where no two atoms stay together: ``v_i = Σ_j (1 - r_ij/r_c)² r̂_ij`` of all neighbours."""

    snapshots: Snapshots
    cutoff: float

    @classmethod
    def of(cls, snapshots: Snapshots, chosen: np.ndarray) -> _Fluid:
        _, cell, pbc = Inputs.of(snapshots.system, dtype=torch.float64)
        first = torch.tensor(snapshots.positions[:1])
        _, target, vectors = edges(first, _FAR, cell, pbc)
        nearest = vectors.new_full((first.shape[1],), _FAR)
        nearest = nearest.scatter_reduce(0, target, vectors.norm(dim=-1), "amin")
        return cls(snapshots, _REACH * float(nearest.mean()))

    @property
    def numbers(self) -> int:
        return 200 * len(self.snapshots.system)

    def terms(self, x: np.ndarray, forces: Tensor) -> tuple[Tensor, Tensor]:
        """``F·v`` and ``∇·v`` (M,) of frames x (M, N, 3)."""
        _, cell, pbc = Inputs.of(self.snapshots.system, dtype=torch.float64)
        _, target, vectors = edges(torch.as_tensor(x), self.cutoff, cell, pbc)
        r, n = vectors.norm(dim=-1), x.shape[1]
        left = 1 - r / self.cutoff
        moving = torch.as_tensor(self.snapshots.moving).double()[target % n]
        work = -left.square() * (forces.reshape(-1, 3)[target] * vectors).sum(-1) / r
        slope = moving * (2 * left.square() / r - 2 * left / self.cutoff)
        total = torch.zeros(2, len(x), dtype=r.dtype)
        total.index_add_(1, target // n, torch.stack([work, slope]))
        return total[0], total[1]


def _some(pairs: Pairs, index: Tensor) -> Pairs:
    shift = None if pairs.shift is None else pairs.shift[index]
    return Pairs(pairs.source[index], pairs.target[index], shift)


def _of_forces(snapshots: Snapshots, correlation: float, low: float, high: float) -> str | None:
    factor = force_factor(snapshots, correlation)
    if factor is None or not factor.off(low, high):
        return None
    kelvin, value = snapshots.temperature_K, factor.value
    return (
        f"the forces of {snapshots.source} are {value:.3g} ± {factor.error:.1g} times what the "
        f"motion of neighbours at {kelvin:g} K says, expected in eV/Å"
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
    if near and not 1 / _HIGH < size < _HIGH:
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
