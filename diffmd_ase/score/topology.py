"""What the snapshots of a molecule say about its structure.

Bonds come from mean distances and covalent radii; from the bond graph follow the
rotatable bonds (the soft modes), the tetrahedral centres (handedness), the automorphisms
(exchanges of like atoms that leave the molecule as it is), and the like fragments of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, islice

import networkx as nx
import numpy as np
import torch
from ase.data import covalent_radii
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..geometry import distances, signed_volumes
from ..system import System
from .neighbours import find_pairs
from .snapshot_checks import blocks

__all__ = ["Topology", "bond_graph", "orbits"]

_BOND_TOLERANCE = 1.25  # times the sum of covalent radii
_BROKEN, _RARELY = 1.25, 0.002  # times that; of more snapshots a bond is none
_SWING = 1.0  # Å: no bond is longer by more than this in any one frame
_MAX_AUTOMORPHISMS = 10_000
_LARGE = 60  # atoms: networks of more do not know one like atom from another in any case


@dataclass(frozen=True, eq=False)
class Topology:
    """Structure of one molecule.

    Parameters
    ----------
    bonds : (n, 2) pairs i < j
    rotors : (K, 2) axes a→b of the rotatable bonds; the smaller side turns
    moved : (K, N) bool, the atoms that turn with rotor k
    torsions : (K, 4) one dihedral i-a-b-l for each rotor
    centres : (C, 4) a centre atom and three of its neighbours, with a signed volume
        ``(i-c)·((j-c)×(l-c))`` that keeps its sign in the snapshots
    permutations : (S, N) exchanges of like atoms that keep the graph and the signs of
        all centres, each atom in its fragment (what bonds connect), in fragments of 60 atoms at
        most; the first is the identity. Snapshots hold all of them: methyl groups turn
    swaps : (F, N) exchanges of like fragments, as of two molecules of a cluster, and of two like
        atoms that nothing else is bound to at a centre, which turn its hand: symmetries of the
        energy as well, but snapshots have each of them one way only
    chiral : one hand only: some centre has four different neighbours and one sign
    loose : (L, 2) pairs i < j that are bound in some snapshots and no bonds
    """

    bonds: np.ndarray
    rotors: np.ndarray
    moved: np.ndarray
    torsions: np.ndarray
    centres: np.ndarray
    permutations: np.ndarray
    swaps: np.ndarray
    chiral: bool
    loose: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))

    @classmethod
    def from_positions(cls, numbers: np.ndarray, positions: np.ndarray) -> Topology:
        """From atomic numbers (N,) and snapshots (M, N, 3) in Å."""
        numbers = np.asarray(numbers)
        graph = bond_graph(numbers, positions)
        bonds = np.array(sorted(tuple(sorted(b)) for b in graph.edges), int).reshape(-1, 2)
        closed = graph.copy()  # nothing turns about a bond of a ring that such a pair closes
        closed.add_edges_from(graph.graph["loose"])
        rotors, moved, torsions = _rotors(closed, len(numbers))
        centres, stereo = _centres(graph, positions)
        permutations, swaps = _automorphisms(graph, positions[0], centres)
        swaps = np.concatenate([swaps, _turns(graph, centres)])
        loose = np.array(sorted(graph.graph["loose"]), int).reshape(-1, 2)
        return cls(bonds, rotors, moved, torsions, centres, permutations, swaps, stereo, loose)

    def exchanges(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """Two like atoms at the end of bonds to one centre, for each centre that has them.

        Their exchange is a symmetry of nature that turns the labelled hand of the centre:
        each set of snapshots has it one way only (methyl groups do not invert).
        """
        near: dict[int, list[int]] = {}
        for a, b in self.bonds.tolist():
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        pairs = []
        for centre in dict.fromkeys(self.centres[:, 0].tolist()):
            ends = [n for n in near[centre] if len(near[n]) == 1]
            like = [(a, b) for a, b in combinations(ends, 2) if numbers[a] == numbers[b]]
            pairs += like[:1]
        return pairs


def bond_graph(
    numbers: np.ndarray, positions: np.ndarray, system: System | None = None
) -> nx.Graph:
    """Atoms ``Z`` and the bonds of snapshots: mean distances below 1.25 times the covalent radii.

    A bond of a molecule that breaks, being another quarter longer in more than 2 of 1000 snapshots,
    is none: what a proton that changes its oxygen is bound to is not a matter of structure.

    Parameters
    ----------
    numbers : (N,)
    positions : (M, N, 3) in Å, of which 5000 at most are looked at, 500 of a periodic system
    system : whose images count, if it is periodic
    """
    graph = nx.Graph()
    graph.add_nodes_from((n, {"Z": int(z)}) for n, z in enumerate(numbers))
    radius = covalent_radii[numbers]
    periodic = system is not None and system.periodic
    some = positions[:: max(1, len(positions) // (500 if periodic else 5000))]
    reach = 2 * _BOND_TOLERANCE * radius.max(initial=0.0) + _SWING
    pairs = _close(some[0], reach, system)
    reach = _BOND_TOLERANCE * radius[pairs].sum(-1)
    total, broken, bound = np.zeros(len(pairs)), np.zeros(len(pairs)), np.zeros(len(pairs))
    for part in blocks(len(some), 9 * len(pairs)):
        r = distances(some[part], pairs, system=system)
        total += r.sum(0) / len(some)
        broken += (r > _BROKEN * reach).sum(0) / len(some)
        bound += (r < reach).sum(0) / len(some)
    bonded = (total < reach) & (periodic | (broken <= _RARELY))
    graph.add_edges_from(pairs[bonded].tolist())
    graph.graph["loose"] = pairs[~bonded & (bound > _RARELY)].tolist()
    return graph


def _close(x: np.ndarray, reach: float, system: System | None) -> np.ndarray:
    """Pairs (P, 2) of atoms i < j that are closer than ``reach`` in x (N, 3), in order."""
    if system is None or not system.periodic:
        pairs = cKDTree(x).query_pairs(reach, output_type="ndarray")
        return pairs[np.lexsort(pairs.T[::-1])]
    cell = torch.as_tensor(system.cell)
    near = find_pairs(torch.as_tensor(x)[None], reach, cell, tuple(system.pbc.tolist()))
    pairs = torch.stack([near.source, near.target], dim=1).numpy()
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _rotors(graph: nx.Graph, n_atoms: int):
    rotors, moved, torsions = [], [], []
    for a, b in nx.bridges(graph):
        if graph.degree(a) < 2 or graph.degree(b) < 2:
            continue
        cut = graph.copy()
        cut.remove_edge(a, b)
        side, rest = (nx.node_connected_component(cut, end) for end in (b, a))
        if len(side) > len(rest):
            a, b, side = b, a, rest
        mask = np.zeros(n_atoms, bool)
        mask[list(side - {b})] = True
        rotors.append((a, b))
        moved.append(mask)
        torsions.append((_heaviest(graph, a, b), a, b, _heaviest(graph, b, a)))
    return (
        np.array(rotors, int).reshape(-1, 2),
        np.array(moved, bool).reshape(-1, n_atoms),
        np.array(torsions, int).reshape(-1, 4),
    )


def _heaviest(graph, atom, other) -> int:
    neighbours = (n for n in graph[atom] if n != other)
    return min(neighbours, key=lambda n: (-graph.nodes[n]["Z"], n))


def _centres(graph, positions):
    """Centres with a signed volume of constant sign; is one of them a stereocentre?"""
    colour = nx.weisfeiler_lehman_subgraph_hashes(graph, node_attr="Z", iterations=6)
    centres, stereo = [], False
    for atom in graph:
        near = sorted(graph[atom])
        if len(near) != 4:
            continue
        candidate = np.array([[atom, *near[:3]], [atom, *near[1:]]])
        if _one_sign(positions, candidate):
            centres += candidate.tolist()
            different = len({colour[n][-1] for n in near}) == 4
            stereo = stereo or different
    return np.array(centres, int).reshape(-1, 4), stereo


def _one_sign(positions, centres) -> bool:
    """Whether each signed volume has one sign in all frames."""
    sign = np.sign(signed_volumes(positions[0], centres))
    return all(
        (signed_volumes(positions[part], centres) * sign > 0).all()
        for part in blocks(len(positions), 12 * len(centres))
    )


def _automorphisms(graph, x, centres) -> tuple[np.ndarray, np.ndarray]:
    """`Topology.permutations` and `Topology.swaps`, by one snapshot (N, 3)."""
    identity = np.arange(len(graph))
    sign = np.sign(signed_volumes(x, centres))
    like = nx.algorithms.isomorphism.categorical_node_match("Z", 0)

    def exchanges(one, other):
        """Orders of all atoms, those of a fragment where their likes are in the other."""
        matcher = nx.algorithms.isomorphism.GraphMatcher(one, other, node_match=like)
        for mapping in islice(matcher.isomorphisms_iter(), _MAX_AUTOMORPHISMS):
            order = identity.copy()
            order[list(mapping.values())] = list(mapping)
            order[list(mapping)] = list(mapping.values())
            if np.array_equal(np.sign(signed_volumes(x[order], centres)), sign):
                yield order

    permutations, swaps = identity[None], []
    kinds: list[nx.Graph] = []
    for part in nx.connected_components(graph):
        if len(part) > _LARGE:
            continue
        fragment = graph.subgraph(part)
        own = [o for o in exchanges(fragment, fragment) if not np.array_equal(o, identity)]
        permutations = _products(permutations, np.array([identity, *own]))
        swap = next((o for kind in kinds for o in exchanges(kind, fragment)), None)
        if swap is None:
            kinds.append(fragment)
        else:
            swaps.append(swap)
    return permutations, np.array(swaps, int).reshape(-1, len(graph))


def _turns(graph, centres) -> np.ndarray:
    """(T, N) exchanges of two like ends of bonds to one of the ``centres``."""
    turns = []
    for centre in dict.fromkeys(centres[:, 0].tolist()):
        ends = [n for n in sorted(graph[centre]) if graph.degree(n) == 1]
        for a, b in combinations(ends, 2):
            if graph.nodes[a]["Z"] == graph.nodes[b]["Z"]:
                order = np.arange(len(graph))
                order[[a, b]] = b, a
                turns.append(order)
                break
    return np.array(turns, int).reshape(-1, len(graph))


def _products(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """All ``some[s][others[t]]``; the first and random ones where they are too many."""
    s, t = np.divmod(np.arange(n := len(some) * len(others)), len(others))
    if n > _MAX_AUTOMORPHISMS:
        few = np.random.default_rng(0).integers(n, size=_MAX_AUTOMORPHISMS)
        few[0] = 0
        s, t = s[few], t[few]
    return np.take_along_axis(some[s], others[t], axis=1)


def orbits(rows: np.ndarray, generators: np.ndarray) -> np.ndarray:
    """Numbers (K,), equal for rows (K, n) of atoms that the group of ``generators`` exchanges.

    A row and its reverse are one coordinate. ``generators`` (S, N) need not be the whole group.
    """
    images = np.concatenate([rows[None], generators[:, rows]])
    places = generators.shape[1] ** np.arange(rows.shape[1])
    # one integer for each coordinate
    _, node = np.unique(
        np.minimum(images @ places, images[..., ::-1] @ places), return_inverse=True
    )
    node = node.reshape(images.shape[:2])
    size = node.max(initial=-1) + 1
    ends = np.broadcast_to(node[0], node.shape).ravel(), node.ravel()
    links = coo_matrix((np.ones(node.size), ends), shape=(size, size))
    return connected_components(links, directed=False)[1][node[0]] if size else node[0]
