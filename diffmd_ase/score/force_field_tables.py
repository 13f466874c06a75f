"""Which terms a force field has for the snapshots of a molecule, and which of them are one.

Tables of atoms and ranges for a `force_field.MechanicsPrior`, from a topology and positions.
"""

from __future__ import annotations

from itertools import combinations, permutations

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from ..geometry import signed_volumes
from .couplings import PARTS, product_table, tied
from .force_field import COORDINATES, MEANS, MechanicsPrior
from .snapshot_checks import blocks
from .topology import Topology, orbits

__all__ = [
    "coordinate_orbits",
    "coupling_tables",
    "multiplied",
    "parameter_numbers",
    "term_tables",
]

# walls begin at
_CLOSE = 0.85  # of the shortest distance of a pair, or of one that symmetry exchanges with it,
_REACH = 0.3  # Å: but not further below it than this
_REACHED = 2.0  # in units of the largest deviation in the data, where couplings level off
_SMALL = 12  # atoms, at most, of molecules whose distances are all multiplied


def term_tables(topology: Topology, positions: Tensor) -> dict[str, Tensor]:
    """Which atoms make which coordinates, and their ranges in the data.

    Parameters
    ----------
    topology : gives bonds, centres and symmetries
    positions : (M, N, 3) in Å

    Returns the tables of a `MechanicsPrior` by name, its parameters zero.
    """
    n = positions.shape[1]
    graph = nx.Graph(topology.bonds.tolist())
    graph.add_nodes_from(range(n))
    near = dict(nx.all_pairs_shortest_path_length(graph, cutoff=2))
    rows = {
        "bonds": topology.bonds.tolist(),
        "free": [(i, j) for i, j in combinations(range(n), 2) if j not in near[i]],
        "angles": [(a, c, b) for c in graph for a, b in combinations(sorted(graph[c]), 2)],
        "torsions": [
            (i, j, k, m)
            for j, k in graph.edges
            for i in graph[j]
            for m in graph[k]
            if len({i, j, k, m}) == 4
        ],
        "impropers": [
            (a, b, c, d)
            for c in graph
            if graph.degree(c) == 3
            for a, b, d in permutations(sorted(graph[c]))
            if a < b
        ],
    }
    tables = {
        kind: torch.tensor(rows[kind], dtype=torch.long).reshape(-1, size)
        for kind, size in (
            ("bonds", 2),
            ("angles", 3),
            ("torsions", 4),
            ("impropers", 4),
            ("free", 2),
        )
    }
    # of achiral molecules the mirror image is as likely: no wall between hands
    centres = topology.centres if topology.chiral else topology.centres[:0]
    counts = {kind: len(table) for kind, table in tables.items()}
    n_features = 2 * (counts["bonds"] + counts["angles"]) + counts["impropers"] + 3 * counts["free"]
    n_features += 4 * counts["torsions"]
    tables |= {
        "n_atoms": torch.tensor(n),
        "bond_mean": positions.new_zeros(counts["bonds"]),
        "angle_mean": positions.new_zeros(counts["angles"]),
        "shortest": positions.new_ones(counts["free"]),
        "theta": positions.new_zeros(n_features),
        "unit": positions.new_ones(n_features),
        "centres": torch.as_tensor(centres),
        "least_volume": positions.new_ones(len(centres)),
    }
    means, shortest = _ranges(MechanicsPrior(tables), positions)
    for name, kind, values, reduce in (
        ("bond_mean", "bonds", means["bonds"], "mean"),
        ("angle_mean", "angles", means["angles"], "mean"),
        ("shortest", "free", torch.maximum(_CLOSE * shortest, shortest - _REACH), "amin"),
    ):
        tables[name] = _shared(values, tables[kind], topology, reduce)
    if len(centres):
        tables["least_volume"] = (0.9 * _least_volumes(positions.numpy(), centres)).float()
    return tables


def _ranges(prior: MechanicsPrior, positions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Means of bonds and angles, and the shortest distance of each free pair."""
    means = {kind: positions.new_zeros(len(getattr(prior, kind))) for kind in ("bonds", "angles")}
    shortest = positions.new_full((len(prior.free),), torch.inf)
    for part in blocks(len(positions), 3 * prior.arms.shape[1]):
        planes = positions[part].transpose(-1, -2)
        q = {k: COORDINATES[k](*prior.vectors(k, planes)) for k in ("bonds", "angles", "free")}
        for kind, mean in means.items():
            mean += q[kind].sum(0) / len(positions)
        shortest = torch.minimum(shortest, q["free"].amin(0))
    return means, shortest


def _least_volumes(positions: np.ndarray, centres: np.ndarray) -> Tensor:
    """The smallest signed volume of each of the ``centres``, by size."""
    smallest = np.full(len(centres), np.inf)
    for part in blocks(len(positions), 12 * len(centres)):
        smallest = np.minimum(smallest, np.abs(signed_volumes(positions[part], centres)).min(0))
    return torch.as_tensor(smallest * np.sign(signed_volumes(positions[0], centres)))


def multiplied(n_atoms: int) -> bool:
    """Whether all distances of ``n_atoms`` are multiplied with each other."""
    return n_atoms <= _SMALL


def coupling_tables(
    tables: dict[str, Tensor], topology: Topology, positions: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The tables of a `MechanicsPrior` with couplings of strength zero.

    Parameters
    ----------
    tables : of `term_tables`, for the same topology and positions
    positions : (M, N, 3) in Å

    Returns these, (P,) numbers of `couplings.GROUPS`, and (P,) numbers of parameters.
    """
    n = positions.shape[1]
    pairs = list(combinations(range(n), 2)) if multiplied(n) else []
    near = [pair for pair in topology.loose.tolist() if pairs]
    for kind, own in (("pairs", pairs), ("loose", near)):
        tables = tables | {kind: torch.tensor(own, dtype=torch.long).reshape(-1, 2)}
    rows = {kind: tables[kind].numpy() for kind in PARTS}
    table, group = product_table(rows)
    bare = MechanicsPrior(tables)
    coupled = {"products": torch.as_tensor(table), "strengths": positions.new_zeros(len(table))}
    for kind, mean in MEANS.items():
        q = _values(bare, kind, positions)
        if kind in ("pairs", "loose"):
            middle = _shared(q.reciprocal().mean(0), tables[kind], topology, "mean").reciprocal()
            coupled[mean], away = middle, middle / q - 1
        else:
            away = q - tables[mean]
        reach = _REACHED * away.abs().amax(0)
        coupled[f"width_{kind}"] = _shared(reach, tables[kind], topology, "amax")
    return tables | coupled, torch.as_tensor(group), torch.as_tensor(tied(table, rows, topology))


def _values(prior: MechanicsPrior, kind: str, positions: Tensor) -> Tensor:
    """(M, K) coordinates of one kind."""
    found = [
        COORDINATES[kind](*prior.vectors(kind, positions[part].transpose(-1, -2)))
        for part in blocks(len(positions), 3 * prior.arms.shape[1])
    ]
    return torch.cat(found)


def _shared(values: Tensor, rows: Tensor, topology: Topology, reduce: str) -> Tensor:
    """Values (K,) of coordinates, made one where symmetry exchanges the coordinates."""
    index = coordinate_orbits(rows, topology)
    one = values.new_zeros(len(index)).scatter_reduce(0, index, values, reduce, include_self=False)
    return one[index]


def parameter_numbers(prior: MechanicsPrior, topology: Topology) -> Tensor:
    """(F,) number of the parameter of each feature of ``prior``.

    The symmetry of the ``topology`` makes features share one.
    """
    labels: list = []
    for kind in COORDINATES:
        table = getattr(prior, kind)
        orbit = coordinate_orbits(table, topology).tolist()
        repeats = len(prior.features(kind, prior.unit.new_ones(1, len(table))))
        labels += [(kind, n, o) for n in range(repeats) for o in orbit]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


def coordinate_orbits(rows: Tensor, topology: Topology) -> Tensor:
    """(K,) number of each coordinate, its atoms ``rows`` (K, n), one for those exchanged.

    By the symmetries of the ``topology``.
    """
    symmetries = np.concatenate([topology.permutations, topology.swaps])
    return torch.as_tensor(orbits(rows.numpy(), symmetries), dtype=torch.long)
