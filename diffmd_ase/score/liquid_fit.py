"""The energy of molecular liquids (`networks.liquid`), fitted in closed form by score matching.

The energy is linear in its parameters, those of the force fields of the molecules and the values
of the pair energies, so that G and b of `linear_form` find them:

    (W^T G W + diag ρ) u = W^T b        θ = W u

W leaves the parameters of molecules as they are. Each pair energy V is

    V(r) = a₁/r + a₆/r⁶ + a₁₂/r¹² + ΔV(r)        all cut off smoothly

with the third differences of ΔV as parameters: a ridge on them keeps it smooth, and zero where no
data speak (Eilers & Marx, Stat. Sci. 11, 89 (1996)). Each group of terms has a ridge of its own, by
`shrinkage`: those of `couplings`, and ΔV.

All copies of a molecule share their parameters.

Bonds are a hundred times stiffer than what holds molecules together, and would drown it: noise
moves each molecule as a whole further than its atoms, by A = 1 + (a - 1)P of `linear_form`, P the
mean over the atoms of a molecule. Of 400 snapshots of water that halves the error of the forces
on molecules.
"""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .couplings import GROUPS
from .extrapolation import range_tables
from .force_field import MechanicsPrior
from .force_field_tables import coupling_tables, parameter_numbers, term_tables
from .linear_fit import draws, folds, label_weight, mixed
from .linear_form import Frames, gradient_noise
from .molecules import Kind, whole
from .networks.inputs import Inputs
from .networks.liquid import LiquidConfig, LiquidNetwork
from .networks.splines import END, splines
from .shrinkage import choose_ridges, solve
from .snapshots import Snapshots
from .topology import Topology
from .uncertainty import MOST_PARAMETERS, covariance, root

__all__ = ["fit_liquid"]

log = logging.getLogger(__name__)

_INSIDE = 0.95  # of the shortest distance of the data, where V goes on as a straight line
_MOLECULES = 20_000  # of each kind, whose coordinates say what is near and far
_UNSEEN = 1e-12  # of G of a parameter of which no data speak
_EDGES = 200  # frames, of which shortest distances are taken
_FIRST_WEIGHT = 100.0  # of labels, before theirs is known
_PAIRS = 1 + len(GROUPS)  # number of the group of ΔV
_WHOLE = 5.0  # a
_LAWS = 3  # 1/r, 1/r⁶, 1/r¹²


class _Form(NamedTuple):
    """What `moments` asks of an energy that is linear in its parameters, those of θ."""

    network: LiquidNetwork
    group: Tensor  # (size,)
    told: Inputs

    @property
    def size(self) -> int:
        return len(self.group)

    def jacobian(self, planes: Tensor) -> Tensor:
        """∂f/∂x (size, B, 3N) of ``planes`` (B, 3, N)."""
        x = planes.transpose(-1, -2).contiguous()
        return self.network.jacobian(x, self.told.cell, self.told.pbc)

    def along(self, planes: Tensor, arrows: Tensor) -> Tensor:
        """J v (size, B) of ``planes`` (B, 3, N) and vectors v, the ``arrows`` (B, 3, N)."""
        x, v = (p.transpose(-1, -2).contiguous() for p in (planes, arrows))
        return self.network.along(x, v, self.told.cell, self.told.pbc)

    def weigh(self, planes: Tensor) -> Tensor:
        """A times vectors (…, 3, N): what molecules do as a whole counts `_WHOLE` times."""
        molecule = self.network.molecule
        count = torch.bincount(molecule)
        total = planes.new_zeros(*planes.shape[:-1], len(count)).index_add(-1, molecule, planes)
        return planes + (_WHOLE - 1) * (total / count)[..., molecule]


def fit_liquid(
    snapshots: Snapshots,
    config: LiquidConfig,
    *,
    sigma: float,
    frames: int = 20_000,
    seed: int = 0,
    force_weight: float | Literal["auto"] = 0.0,
) -> LiquidNetwork:
    """The `LiquidNetwork` of some snapshots.

    Parameters
    ----------
    snapshots : of molecules, periodic or not
    config : cutoff and number of splines
    sigma : noise in Å
    frames : at most
    seed : of the noise
    force_weight : w of forces that snapshots carry, all or some; "auto": as their residuals say

    Raises ``ValueError`` where bonds go on without end.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = snapshots.molecules
    if kinds is None:
        raise ValueError(
            f"{snapshots.source}: bonds go on without end, there are no molecules; use "
            "network='equivariant'"
        )
    weight = _FIRST_WEIGHT if force_weight == "auto" else force_weight
    order = mixed(snapshots, frames, generator)
    every, many = Frames.of(snapshots, weight).take(order), draws(len(order))
    form = _empty(snapshots, kinds, config)
    if force_weight == "auto" and bool(every.labelled.any()):
        every = every._replace(weight=label_weight(form, every, sigma, generator, many))
    basis = _Basis.of(form)
    grams, drives = folds(form, every, sigma, generator, many)
    grams, drives = basis.matrix.T @ grams @ basis.matrix, drives @ basis.matrix
    unit = basis.units(grams.mean(0).diagonal())
    grams, drives = unit[:, None] * grams * unit, unit * drives
    seen = torch.nonzero(grams.mean(0).diagonal() > _UNSEEN)[:, 0]  # of pairs within reach
    grams, drives, group = grams[:, seen][:, :, seen], drives[:, seen], basis.group[seen]
    ridges, _ = choose_ridges(grams, drives, group)
    said = zip((*GROUPS, "pairs"), ridges[1:].tolist(), strict=False)
    log.info("ridges %s", ", ".join(f"{name} {ridge:.0e}" for name, ridge in said))
    unit, matrix = unit[seen], basis.matrix[:, seen]
    theta = matrix @ (unit * solve(grams.mean(0), drives.mean(0), ridges[group]))
    network = _with(form, theta)
    if len(theta) <= MOST_PARAMETERS:
        own = torch.ones_like(theta)
        noise = gradient_noise(form, own, theta, every, sigma, generator, many)
        noise = unit[:, None] * (matrix.T @ noise @ matrix) * unit
        known = covariance(grams.mean(0), torch.diag(ridges[group]), noise) / len(order)
        wide = unit * matrix
        network.energy.register_buffer("spread", root(own, wide @ known @ wide.T))
    if force_weight == "auto":
        network.energy.register_buffer("label_weight", torch.tensor(float(every.weight)))
    return network


def _empty(snapshots: Snapshots, kinds: list[Kind], config: LiquidConfig) -> _Form:
    """The form, with all that the snapshots say of it but its parameters."""
    priors, groups, tables, types = [], [], {}, 0
    for n, kind in enumerate(kinds):
        every = max(1, len(snapshots) * len(kind.atoms) // _MOLECULES)
        x = whole(snapshots.system, snapshots.positions[::every], kind)
        topology = Topology.from_positions(kind.numbers, x)
        prior, group = _molecule(topology, torch.as_tensor(x, dtype=torch.float32))
        priors.append(prior)
        groups.append(group)
        own = _types(kind.numbers, topology)
        tables[f"numbers_{n}"] = torch.as_tensor(kind.numbers)
        tables[f"types_{n}"] = torch.as_tensor(types + own)
        tables[f"atoms_{n}"] = torch.as_tensor(kind.atoms)
        types += int(own.max()) + 1
    count = types * (types + 1) // 2
    tables["inner"] = torch.full((count,), 0.5 * config.cutoff)
    tables["pair"] = torch.zeros(count, config.functions + END)
    told = Inputs.of(snapshots.system)
    network = LiquidNetwork(config, priors, tables).float()
    network.energy.inner = _INSIDE * _shortest(network, snapshots, told)
    groups.append(torch.full((count * config.functions,), _PAIRS))
    return _Form(network, torch.cat(groups), told)


def _molecule(topology: Topology, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Tables of one kind of molecules, and the groups of the parameters of its features."""
    tables = term_tables(topology, x)
    tables |= range_tables(MechanicsPrior(tables), x, topology)
    plain = parameter_numbers(MechanicsPrior(tables), topology).long()  # of ions there are none
    count = int(plain.max()) + 1 if len(plain) else 0
    tables["parameter"] = plain
    if not len(tables["angles"]):
        return tables, torch.zeros(count, dtype=torch.long)
    tables, group_of, tie = coupling_tables(tables, topology, x)
    group = torch.zeros(count + int(tie.max()) + 1, dtype=torch.long)
    group[count + tie] = 1 + group_of
    tables["parameter"] = torch.cat([plain, count + tie])
    return tables, group


def _types(numbers: np.ndarray, topology: Topology) -> np.ndarray:
    """(n,) the type of each atom of a molecule: one for those that its symmetry exchanges."""
    least = topology.permutations.min(axis=0)
    for _ in range(len(numbers)):  # of all that may be reached
        least = np.minimum(least, least[least])
    # hands of centres keep some like atoms apart, which pairs do not see
    return np.unique(least, return_inverse=True)[1]


def _shortest(network: LiquidNetwork, snapshots: Snapshots, told: Inputs) -> Tensor:
    """(K,) the shortest distance in Å of each kind of pairs, as far as there is one."""
    found = network.energy.inner.clone()
    x = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    for part in x[:: max(1, len(x) // _EDGES)].split(16):
        r, kind, *_ = network.pairs(part, told.cell, told.pbc)
        found = found.scatter_reduce(0, kind, r, "amin", include_self=True)
    return found


class _Basis(NamedTuple):
    """W (size, columns) of this module's equation, in float64, and the group of each column."""

    matrix: Tensor
    group: Tensor
    smooth: Tensor  # (K, F) the columns of third differences

    @classmethod
    def of(cls, form: _Form) -> _Basis:
        network, functions = form.network, form.network.config.functions
        thrice = torch.eye(functions + END, dtype=torch.float64)
        for _ in range(3):
            thrice = thrice.diff(dim=0)
        rough = torch.linalg.inv(thrice[:functions, :functions])  # the last values are zero
        physical = [_physical(network, kind) for kind in range(len(network.energy.pair))]
        blocks = [torch.cat([laws, rough], dim=1) for laws in physical]
        molecules = form.group[form.group != _PAIRS]
        matrix = torch.block_diag(torch.eye(len(molecules), dtype=torch.float64), *blocks)
        each = torch.tensor([0] * _LAWS + [_PAIRS] * functions)
        group = torch.cat([molecules, each.repeat(len(blocks))])
        smooth = torch.nonzero(group == _PAIRS)[:, 0].reshape(len(blocks), functions)
        return cls(matrix, group, smooth)

    def units(self, diagonal: Tensor) -> Tensor:
        """Units in which G is of order one: of each column, of all third differences of each V."""
        unit = diagonal.clamp_min(1e-20).rsqrt()
        of_kinds = diagonal[self.smooth].mean(1)
        # what was hardly seen has no unit of its own
        of_kinds = of_kinds.clamp_min(1e-3 * float(of_kinds.max())).rsqrt()
        unit[self.smooth] = of_kinds[:, None].expand_as(self.smooth)
        return unit


def _physical(network: LiquidNetwork, kind: int) -> Tensor:
    """Values (F, 3) of the V nearest to each law that pairs of atoms obey, cut off smoothly."""
    cutoff, functions = network.config.cutoff, network.config.functions
    begin = float(network.energy.inner[kind])
    r = torch.linspace(begin, cutoff, 20 * functions, dtype=torch.float64)
    t = begin / r
    end = begin / cutoff
    laws = [t**n - end**n + n * end**n * (r / cutoff - 1) for n in (1, 6, 12)]
    first, weights = splines(r, torch.full_like(r, begin), cutoff, functions)
    matrix = r.new_zeros(len(r), functions + END)
    matrix.scatter_(1, first[:, None] + torch.arange(4), weights)
    return torch.linalg.lstsq(matrix[:, :functions], torch.stack(laws, dim=1)).solution


def _with(form: _Form, theta: Tensor) -> LiquidNetwork:
    """The network with the parameters θ (size,)."""
    network, first = form.network, 0
    for n, prior in enumerate(network.priors):
        tie, count = prior.parameter, len(prior.theta)
        size = int(tie.max()) + 1 if len(tie) else 0
        own, first = theta[first : first + size].float(), first + size
        tables = {k: v for k, v in prior.state_dict().items()}
        tables["theta"] = own[tie[:count]]
        if prior.coupled:
            tables["strengths"] = own[tie[count:]]
        network.species[n] = MechanicsPrior(tables)
    network.energy.pair = torch.nn.functional.pad(
        theta[first:].float().reshape(len(network.energy.pair), -1), (0, END)
    )
    return network
