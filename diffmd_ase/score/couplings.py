"""Couplings of internal coordinates, as force fields of class II have them.

    E = Σ_p c_p g_i(p) g_j(p)        g = t, t² of bonds and angles; cos nφ, n = 1, 2, 3

with ``t = tanh((q - q̄)/w)``: inside the data nearly linear, and bounded outside, where a
polynomial of third or fourth order would fall without end (Maple et al., J. Comput. Chem. 15,
162 (1994); Sun, J. Phys. Chem. B 102, 7338 (1998)). Small molecules have the products of all
inverse distances too, ``t = tanh((r̄/r - 1)/w)``: these are complete to second order, whatever is
bound to what (Braams & Bowman, Int. Rev. Phys. Chem. 28, 577 (2009), of degree two). Of pairs that
are bound in some snapshots only, t³ is a further function. Which products there are, and which of
them share a parameter, is told by the topology; `force_field_fit` finds the c_p, and how much
each group of them is worth.
"""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .topology import Topology

__all__ = ["GROUPS", "PARTS", "parts", "product_table", "tied"]

GROUPS = (
    "anharmonic",
    "bond-bond",
    "bond-angle",
    "angle-angle",
    "bond-torsion",
    "angle-torsion",
    "distance-distance",
)
PARTS = {"bonds": 2, "angles": 2, "torsions": 3, "pairs": 1, "loose": 1}
"""How many functions g there are of each kind of coordinate."""


def parts(kind: str, q: Tensor, mean: Tensor, width: Tensor) -> list[Tensor]:
    """The functions g (B, K) of coordinates q (B, K) of one ``kind``; torsions come as cos φ.

    ``mean`` (K,) is q̄, or r̄ of pairs, and ``width`` (K,) is w, both not used for torsions.
    """
    if kind == "torsions":
        double = 2 * q * q - 1
        return [q, double, q * (2 * double - 1)]
    if kind in ("pairs", "loose"):
        t = torch.tanh((mean / q - 1) / width)
        return [t if kind == "pairs" else t**3]
    t = torch.tanh((q - mean) / width)
    return [t, t * t]


def product_table(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which functions are multiplied: (P, 2) numbers of g, and (P,) numbers of `GROUPS`.

    ``rows`` : atoms of bonds (K, 2), angles (K, 3) with their centres in the middle, and torsions
    (K, 4), in the order of their functions g.
    """
    bonds, angles, torsions, *_ = (rows[kind].tolist() for kind in PARTS)
    first = _first({kind: len(rows[kind]) for kind in PARTS})
    bond = {frozenset(b): n for n, b in enumerate(bonds)}
    angle = {(c, frozenset((a, b))): n for n, (a, c, b) in enumerate(angles)}
    found: dict[str, list[tuple[int, int]]] = {group: [] for group in GROUPS}

    for kind in ("bonds", "angles"):
        t, square = first[kind]
        for n in range(len(rows[kind])):
            found["anharmonic"] += [(t + n, square + n), (square + n, square + n)]
    pairs = {(m, n) for m, n in combinations(range(len(bonds)), 2) if {*bonds[m]} & {*bonds[n]}}
    for i, j, k, m in torsions:
        one, other = sorted((bond[frozenset((i, j))], bond[frozenset((k, m))]))
        pairs.add((one, other))
    t_bond, t_angle = first["bonds"][0], first["angles"][0]
    found["bond-bond"] = [(t_bond + m, t_bond + n) for m, n in sorted(pairs) if m != n]
    found["bond-angle"] = [
        (t_bond + m, t_angle + n)
        for m, b in enumerate(bonds)
        for n, (_, c, _) in enumerate(angles)
        if c in b
    ]
    found["angle-angle"] = [
        (t_angle + m, t_angle + n)
        for (m, (a, c, b)), (n, (d, e, f)) in combinations(enumerate(angles), 2)
        if c == e or (c in (d, f) and e in (a, b))
    ]
    for n, (i, j, k, m) in enumerate(torsions):
        own_bonds = [bond[frozenset(ends)] for ends in ((i, j), (j, k), (k, m))]
        own_angles = [angle[c, frozenset(ends)] for c, ends in ((j, (i, k)), (k, (j, m)))]
        for cosine in first["torsions"]:
            found["bond-torsion"] += [(t_bond + own, cosine + n) for own in own_bonds]
            found["angle-torsion"] += [(t_angle + own, cosine + n) for own in own_angles]
    every = range(first["pairs"][0], first["loose"][0] + len(rows["loose"]))
    found["distance-distance"] = list(combinations_with_replacement(every, 2))
    table = [pair for group in GROUPS for pair in found[group]]
    group = [number for number, name in enumerate(GROUPS) for _ in found[name]]
    return np.array(table, int).reshape(-1, 2), np.array(group, int)


def _first(counts: dict[str, int]) -> dict[str, list[int]]:
    """Number of the first g of each function of each kind."""
    found, number = {}, 0
    for kind, repeats in PARTS.items():
        found[kind] = [number + n * counts[kind] for n in range(repeats)]
        number += repeats * counts[kind]
    return found


def tied(table: np.ndarray, rows: dict[str, np.ndarray], topology: Topology) -> np.ndarray:
    """(P,) numbers, equal for products that the symmetry of the ``topology`` exchanges.

    Parameters
    ----------
    table, rows : of `product_table`
    """
    if not len(table):
        return np.zeros(0, int)
    generators = np.concatenate([topology.permutations, topology.swaps])
    images = _images(rows, generators)
    moved = np.sort(np.concatenate([table[None], images[:, table]]), axis=-1)
    size = images.shape[1]
    keys, node = np.unique(moved @ [size, 1], return_inverse=True)
    node = node.reshape(moved.shape[:2])
    ends = np.broadcast_to(node[0], node.shape).ravel(), node.ravel()
    links = coo_matrix((np.ones(node.size), ends), shape=(len(keys), len(keys)))
    return connected_components(links, directed=False)[1][node[0]]


def _images(rows: dict[str, np.ndarray], generators: np.ndarray) -> np.ndarray:
    """(S, G): which function each g becomes when atoms are permuted."""
    first = _first({kind: len(rows[kind]) for kind in PARTS})
    columns = []
    for kind, starts in first.items():
        place = {_key(row): n for n, row in enumerate(rows[kind].tolist())}
        image = np.array(
            [[place[_key(row)] for row in order[rows[kind]].tolist()] for order in generators], int
        ).reshape(len(generators), -1)
        columns += [start + image for start in starts]
    return np.concatenate(columns, axis=1)


def _key(row: list[int]) -> tuple[int, ...]:
    return min(tuple(row), tuple(row[::-1]))
