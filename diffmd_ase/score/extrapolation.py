"""Is a structure one that the snapshots tell of, and how well are the forces on it known?

A force field that was fitted to snapshots says something of every structure, also where no snapshot
was. Two measures tell, at the cost of its features:

    h(x) = (f(x) - ⟨f⟩)ᵀ (C + Λ)⁻¹ (f(x) - ⟨f⟩)        leverage: features f in combinations not seen
    q(x) outside of its seen range                      bonds, angles, torsions (in steps of 10°)

Both are scaled to 1 at the edge of the snapshots: ``√(h/h_edge)`` with the largest h of any of
them; bonds and angles one standard deviation beyond their extremes; torsions 20° from any that was
seen. The extrapolation of a structure is the largest.

In a liquid the coordinates of each molecule tell, and pairs of atoms of two molecules that are
nearer than any was: ``q(x) = r₀/r``, with r₀ five hundredths below the shortest distance.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from .force_field import COORDINATES, MechanicsPrior
from .force_field_tables import coordinate_orbits
from .linear_form import Form
from .networks.inputs import Inputs
from .networks.liquid import LiquidNetwork
from .networks.molecule import MechanicsNetwork
from .snapshot_checks import blocks
from .topology import Topology

__all__ = [
    "coordinates_outside",
    "extrapolation",
    "range_tables",
    "seen_tables",
]

_BINS, _NEAR = 36, 2  # of a torsion; how many bins from one that was seen is the edge
_RIDGE = 1e-4  # of features in units of their standard deviations
_SOME = 20_000  # frames, for the covariance of features
_NAMES = {"bonds": "bond", "angles": "angle", "torsions": "torsion"}
_PLANAR = 30.0  # degrees from 0 or 180: cis or trans


def seen_tables(form: Form, positions: Tensor, topology: Topology) -> dict[str, Tensor]:
    """What a `MechanicsPrior` keeps of its snapshots besides its parameters.

    ``parameter`` (F,) of each feature; ``centre`` (p,) and ``whiten`` (p, p) of the leverage, and
    its ``edge``; ``low_…`` and ``high_…`` of bonds and angles; ``torsion_gap`` (K, 36), in units of
    the edge.

    Parameters
    ----------
    form : whose features they are
    positions : (M, N, 3) in Å of the snapshots
    topology : symmetries that make coordinates share their range
    """
    tables = {"parameter": form.orbits}
    some = positions[:: max(1, len(positions) // _SOME)]
    parts = [form.features(some[p].transpose(-1, -2))[0].double() for p in blocks(len(some), 4096)]
    features = torch.cat(parts)
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-6 * features.abs().mean(0))
    scale = scale.clamp_min(1e-12)
    z = (features - centre) / scale
    # half of them say what is usual, all of them where the edge is
    half = z[::2]
    covariance = half.T @ half / len(half) + _RIDGE * torch.eye(form.size, dtype=z.dtype)
    lower = torch.linalg.cholesky(covariance)
    whiten = torch.linalg.solve_triangular(lower, torch.diag(1 / scale), upper=False)
    leverage = ((features - centre) @ whiten.T).square().sum(-1)
    tables |= {"centre": centre.float(), "whiten": whiten.float(), "edge": leverage.max().float()}
    return tables | range_tables(form.prior, positions, topology)


def range_tables(prior: MechanicsPrior, positions: Tensor, topology: Topology) -> dict[str, Tensor]:
    """``low_…`` and ``high_…`` of bonds and angles, and ``torsion_gap``, as of `seen_tables`.

    Parameters
    ----------
    prior : of the molecule
    positions : (M, N, 3) in Å
    topology : symmetries that make coordinates share their range
    """
    values = _Values(prior)
    q = [values(positions[p].transpose(-1, -2)) for p in blocks(len(positions), 4096)]
    tables = {}
    for kind in ("bonds", "angles"):
        every = torch.cat([part[kind] for part in q])
        spread = (every - every.mean(0)).square().mean(0).sqrt()
        orbit = coordinate_orbits(getattr(prior, kind), topology)
        for name, bound, reduce in (
            ("low", every.amin(0) - spread, "amin"),
            ("high", every.amax(0) + spread, "amax"),
        ):
            one = bound.new_zeros(len(orbit))
            one = one.scatter_reduce(0, orbit, bound, reduce, include_self=False)
            tables[f"{name}_{kind}"] = one[orbit]
    angles = torch.cat([part["torsions"] for part in q])
    orbit = coordinate_orbits(prior.torsions, topology)
    seen = torch.zeros(len(orbit), _BINS, dtype=torch.bool)
    place = _bin(angles)
    for k, own in enumerate(orbit.tolist()):
        seen[own, place[:, k].unique()] = True
        if not topology.chiral:
            seen[own, _bin(-angles[:, k]).unique()] = True
    tables["torsion_gap"] = _gap(seen)[orbit] / _NEAR
    return tables


def _gap(seen: Tensor) -> Tensor:
    """How many bins (K, 36) lie between each and one that was ``seen`` (K, 36)."""
    gap = torch.full(seen.shape, float(_BINS))
    for shift in range(_BINS):
        away = float(min(shift, _BINS - shift))
        near = torch.where(seen.roll(shift, dims=1), away, float(_BINS))
        gap = torch.minimum(gap, near)
    return gap


def _bin(angles: Tensor) -> Tensor:
    index = ((angles + math.pi) * (_BINS / (2 * math.pi))).long()
    return index.clamp(0, _BINS - 1)


class _Values:
    """Bonds (Å), angles and torsions (rad, with their signs) of ``planes`` (B, 3, N)."""

    def __init__(self, prior: MechanicsPrior):
        self.prior = prior

    def __call__(self, planes: Tensor) -> dict[str, Tensor]:
        found = {}
        for kind in ("bonds", "angles"):
            found[kind] = COORDINATES[kind](*self.prior.vectors(kind, planes))
        b1, b2, b3 = self.prior.vectors("torsions", planes)
        n1, n2 = torch.linalg.cross(b1, b2, dim=-2), torch.linalg.cross(b2, b3, dim=-2)
        sine = (b1 * n2).sum(-2) * b2.square().sum(-2).sqrt()
        found["torsions"] = torch.atan2(sine, (n1 * n2).sum(-2))
        return found


def extrapolation(network: nn.Module, x: Tensor, told: Inputs | None = None) -> Tensor | None:
    """How far structures ``x`` (B, N, 3) are from the snapshots of a ``network`` (B,).

    1 at their edge; None of a network that does not know. ``told``: of the system, for liquids.
    """
    if isinstance(network, LiquidNetwork) and told is not None:
        with torch.no_grad():
            return torch.stack([w.amax(-1) for w, *_ in _of_liquid(network, x, told)]).amax(0)
    prior = _knowing(network)
    if prior is None:
        return None
    with torch.no_grad():
        planes = x.transpose(-1, -2)
        worst = _excess(prior, planes)
        parts = [w.amax(-1) for w in worst.values() if w.shape[-1]]
        features, _ = prior.terms(planes)
        size = len(prior.centre)
        tied = planes.new_zeros(len(x), size).index_add(1, prior.parameter, features)
        leverage = ((tied - prior.centre) @ prior.whiten.T).square().sum(-1)
        parts.append((leverage / prior.edge).sqrt())
        return torch.stack(parts).amax(0)


def coordinates_outside(
    network: nn.Module, x: Tensor, numbers: np.ndarray, told: Inputs | None = None
) -> str | None:
    """What one structure ``x`` (N, 3) of atoms ``numbers`` (N,) has that no snapshot had, in words.

    By what the ``network`` keeps of its snapshots.
    The coordinate that is farthest beyond its edge; None if all are inside. ``told``: of the
    system, for liquids.
    """
    if isinstance(network, LiquidNetwork) and told is not None:
        return _outside_of_liquid(network, x, numbers, told)
    prior = _knowing(network)
    if prior is None:
        return None
    planes = x.T[None]
    kinds = {kind: w[0] for kind, w in _excess(prior, planes).items() if w.shape[-1]}
    if not kinds:
        return None
    kind = max(kinds, key=lambda k: float(kinds[k].max()))
    if float(kinds[kind].max()) <= 1:
        return None
    k = int(kinds[kind].argmax())
    value = float(_Values(prior)(planes)[kind][0, k])
    atoms = getattr(prior, kind)[k].tolist()
    if kind == "torsions":
        # all torsions about a bond turn together: that of the main chain is what one speaks of
        atoms, value = _main_chain(prior, planes, kinds[kind], k)
    named = "-".join(f"{chemical_symbols[numbers[a]]}{a}" for a in _shown(kind, atoms))
    return f"{_NAMES[kind]} {named} {_said(prior, kind, k, value)}"


def _of_liquid(network: LiquidNetwork, x: Tensor, told: Inputs):
    """Measures (B, K), 1 at the edge, of each kind of molecules and coordinates, and of pairs.

    With the number of the kind of molecules and the name of the coordinate, which pairs have not.
    """
    for n, prior in enumerate(network.priors):
        if prior.ranged and len(prior.bonds) and len(network.table("atoms", n)):
            planes = network.planes(network.whole(n, x, told.cell, told.pbc))
            for kind, worst in _excess(prior, planes).items():
                if worst.shape[-1]:
                    yield worst.reshape(len(x), -1), n, kind
    r, kinds, target, _ = network.pairs(x, told.cell, told.pbc)
    near = network.energy.inner[kinds] / r
    worst = x.new_zeros(len(x)).scatter_reduce(0, target // x.shape[1], near, "amax")
    yield worst[:, None], None, None


def _outside_of_liquid(network: LiquidNetwork, x: Tensor, numbers, told: Inputs) -> str | None:
    found = max(_of_liquid(network, x[None], told), key=lambda part: float(part[0].max()))
    worst, n, kind = found
    if float(worst.max()) <= 1:
        return None
    if kind is None:
        r, kinds, target, source = network.pairs(x[None], told.cell, told.pbc)
        k = int((network.energy.inner[kinds] / r).argmax())
        i, j = int(target[k]), int(source[k])
        return (
            f"{chemical_symbols[numbers[i]]}{i} and {chemical_symbols[numbers[j]]}{j} of two "
            f"molecules are {float(r[k]):.2f} Å apart, nearer than any in the snapshots"
        )
    prior = network.priors[n]
    one, k = divmod(int(worst.argmax()), len(getattr(prior, kind)))
    made = network.whole(n, x[None], told.cell, told.pbc)[:, one : one + 1]
    value = float(_Values(prior)(network.planes(made))[kind][0, k])
    atoms = network.table("atoms", n)[one, getattr(prior, kind)[k]].tolist()
    named = "-".join(f"{chemical_symbols[numbers[a]]}{a}" for a in _shown(kind, atoms))
    return f"{_NAMES[kind]} {named} {_said(prior, kind, k, value)}"


def _shown(kind: str, atoms: list[int]) -> list[int]:
    return atoms[1:3] if kind == "torsions" else atoms


def _main_chain(prior, planes, excess: Tensor, k: int) -> tuple[list[int], float]:
    """The torsion about the bond of number k whose ends have most neighbours, and its value."""
    axis = set(prior.torsions[k, 1:3].tolist())
    about = [
        n
        for n, row in enumerate(prior.torsions.tolist())
        if set(row[1:3]) == axis and float(excess[n]) > 1
    ]
    neighbours = torch.bincount(prior.bonds.flatten())
    k = max(about, key=lambda n: int(neighbours[prior.torsions[n, [0, 3]]].sum()))
    return prior.torsions[k].tolist(), float(_Values(prior)(planes)["torsions"][0, k])


def _said(prior, kind: str, k: int, value: float) -> str:
    if kind == "torsions":
        degrees = math.degrees(value)
        if abs(degrees) < _PLANAR:
            return "is cis, never seen"
        if abs(degrees) > 180 - _PLANAR:
            return "is trans, never seen"
        return f"is {degrees:.0f}°, never seen"
    low, high = (float(getattr(prior, f"{end}_{kind}")[k]) for end in ("low", "high"))
    if kind == "angles":
        low, high, value = (math.degrees(v) for v in (low, high, value))
        return f"is {value:.0f}°, seen from {low:.0f} to {high:.0f}°"
    return f"is {value:.2f} Å, seen from {low:.2f} to {high:.2f} Å"


def _excess(prior: MechanicsPrior, planes: Tensor) -> dict[str, Tensor]:
    """How far each coordinate (B, K) is from the middle of its range, 1 at its edge."""
    q = _Values(prior)(planes)
    found = {}
    for kind in ("bonds", "angles"):
        low, high = getattr(prior, f"low_{kind}"), getattr(prior, f"high_{kind}")
        found[kind] = (q[kind] - 0.5 * (low + high)).abs() / (0.5 * (high - low)).clamp_min(1e-6)
    gap = prior.torsion_gap
    found["torsions"] = gap.expand(len(planes), -1, -1).gather(2, _bin(q["torsions"])[..., None])
    found["torsions"] = found["torsions"][..., 0]
    return found


def _knowing(network: nn.Module) -> MechanicsPrior | None:
    """The force field of a ``network``, if it keeps what it saw."""
    if isinstance(network, MechanicsNetwork) and network.prior.remembers:
        return network.prior
    return None
