"""Which molecules snapshots hold: bonds, copies of one kind, and molecules made whole.

Atoms that bonds connect, images included, are one molecule. Molecules with the same bonds are of
one kind, whatever the order of their atoms in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice

import networkx as nx
import numpy as np
from ase.symbols import Symbols
from networkx.algorithms.isomorphism import GraphMatcher, categorical_node_match

from ..geometry import minimum_image, signed_volumes
from ..system import System
from .topology import bond_graph

__all__ = ["Kind", "arrange", "find_molecules", "tree", "whole"]

_MATCHES = 500  # orders of the atoms of a molecule that are tried


@dataclass(frozen=True, eq=False)
class Kind:
    """All molecules of one kind.

    Parameters
    ----------
    numbers : (n,) atomic numbers
    bonds : (b, 2) of its atoms, i < j
    atoms : (M, n) where the atoms of each of the M molecules are in the system
    """

    numbers: np.ndarray
    bonds: np.ndarray
    atoms: np.ndarray


def find_molecules(system: System, positions: np.ndarray) -> list[Kind] | None:
    """The kinds of molecules of some snapshots; None where bonds go on without end.

    Parameters
    ----------
    system : of the atoms
    positions : (M, N, 3) in Å
    """
    graph = bond_graph(system.numbers, positions, system)
    parts = [sorted(part) for part in nx.connected_components(graph)]
    if any(_endless(system, positions[0], graph.subgraph(part)) for part in parts):
        return None
    kinds: list[tuple[nx.Graph, list[np.ndarray]]] = []
    for part in parts:
        here = _numbered(graph, part)
        for known, copies in kinds:
            order = _order(system, positions[0], known, copies[0], here, np.array(part))
            if order is not None:
                copies.append(np.array(part)[order])
                break
        else:
            kinds.append((here, [np.array(part)]))
    return [
        Kind(
            system.numbers[copies[0]],
            np.array(sorted(tuple(sorted(b)) for b in known.edges), int).reshape(-1, 2),
            np.array(copies),
        )
        for known, copies in kinds
    ]


def whole(system: System, positions: np.ndarray, kind: Kind) -> np.ndarray:
    """The M molecules of a ``kind`` in F frames, each in one piece (F·M, n, 3), in Å.

    ``positions`` (F, N, 3) are of a ``system``. The first atom of each molecule is at the origin.
    """
    x = positions[:, kind.atoms]  # (F, M, n, 3)
    made = np.zeros_like(x)
    for atom, parent in tree(len(kind.numbers), kind.bonds):
        arm = x[:, :, atom] - x[:, :, parent]
        if system.periodic:
            arm = minimum_image(arm, system)
        made[:, :, atom] = made[:, :, parent] + arm
    return made.reshape(-1, len(kind.numbers), 3)


def tree(count: int, bonds: np.ndarray) -> list[tuple[int, int]]:
    """Atoms of a molecule of ``count`` with the atom that each hangs on, from the first outwards.

    Raises ``ValueError`` where the ``bonds`` (b, 2) leave an atom out.
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(np.asarray(bonds).tolist())
    found = [(child, parent) for parent, child in nx.bfs_edges(graph, 0)]
    if len(found) != count - 1 or len(graph) != count:
        raise ValueError(f"bonds reach {len(found) + 1} of {count} atoms of a molecule")
    return found


def arrange(kinds: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
    """The atoms (M, n) of the molecules of each kind in a system that lists them one by one.

    Parameters
    ----------
    kinds : atomic numbers (n,) of each
    numbers : (N,) of the system: molecules one after the other, each in the order of its kind

    Raises
    ------
    ValueError : atoms that are no row of such molecules
    """
    wanted, row = [kind.tolist() for kind in kinds], np.asarray(numbers).tolist()
    # longer ones first: a molecule is no row of smaller ones
    order = sorted(range(len(wanted)), key=lambda k: -len(wanted[k]))
    begins: dict[int, int] = {}  # the kind of the molecule at each place from which all goes well
    for place in reversed(range(len(row))):
        for k in order:
            after = place + len(wanted[k])
            if row[place:after] == wanted[k] and (after == len(row) or after in begins):
                begins[place] = k
                break
    if 0 not in begins:
        names = ", ".join(str(Symbols(kind)) for kind in kinds)
        raise ValueError(
            f"{Symbols(row).get_chemical_formula()} is no row of the molecules of this model "
            f"({names}): list the atoms molecule by molecule, each in the order of its snapshots"
        )
    atoms: list[list[np.ndarray]] = [[] for _ in wanted]
    place = 0
    while place < len(row):
        k = begins[place]
        atoms[k].append(place + np.arange(len(wanted[k])))
        place += len(wanted[k])
    return [np.array(a, int).reshape(-1, len(w)) for a, w in zip(atoms, wanted, strict=True)]


def _numbered(graph: nx.Graph, part: list[int]) -> nx.Graph:
    """The molecule ``part`` of a graph, its atoms numbered from zero."""
    return nx.relabel_nodes(graph.subgraph(part), {atom: n for n, atom in enumerate(part)})


def _order(system, x, known, first, here, part) -> np.ndarray | None:
    """The order of the atoms ``part`` in which they are the molecule ``known``, with its hand."""
    if sorted(system.numbers[first]) != sorted(system.numbers[part]):
        return None
    as_they_are = []
    if np.array_equal(system.numbers[first], system.numbers[part]):
        if {frozenset(b) for b in known.edges} == {frozenset(b) for b in here.edges}:
            as_they_are.append(np.arange(len(part)))
    matcher = GraphMatcher(known, here, node_match=categorical_node_match("Z", 0))
    hands = _hands(system, x, known, first)
    found = None
    for order in chain(as_they_are, islice(_mappings(matcher), _MATCHES)):
        if found is None:
            found = order
        if np.array_equal(_hands(system, x, known, part[order]), hands):
            return order
    return found


def _mappings(matcher: GraphMatcher):
    for mapping in matcher.isomorphisms_iter():
        yield np.array([mapping[n] for n in range(len(mapping))])


def _hands(system: System, x: np.ndarray, graph: nx.Graph, atoms: np.ndarray) -> np.ndarray:
    """Signs of the volumes about atoms with four neighbours, of one molecule at x (N, 3)."""
    centres = np.array(
        [(c, *sorted(graph[c])[:3]) for c in sorted(graph) if graph.degree(c) == 4], int
    ).reshape(-1, 4)
    bonds = np.array(sorted(graph.edges), int).reshape(-1, 2)
    kind = Kind(system.numbers[atoms], bonds, atoms[None])
    return np.sign(signed_volumes(whole(system, x[None], kind), centres))[0]


def _endless(system: System, x: np.ndarray, part: nx.Graph) -> bool:
    """Whether the atoms ``part`` of a periodic system meet images of their own."""
    if not system.periodic or len(part) < 2:
        return False
    atoms = np.array(sorted(part))
    numbered = _numbered(part, atoms.tolist())
    bonds = np.array(sorted(tuple(sorted(b)) for b in numbered.edges), int)
    made = whole(system, x[None], Kind(system.numbers[atoms], bonds, atoms[None]))[0]
    arms = made[bonds[:, 1]] - made[bonds[:, 0]]
    return bool((np.abs(minimum_image(arms, system) - arms) > 1e-3).any())
