"""Bonds, rotors, centres and symmetries, as seen in frames."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.cluster import Icosahedron

from diffmd_ase.geometry import signed_volumes
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.topology import Topology, orbits


def rattled(atoms, rng, count=30, amplitude=0.03):
    return atoms.positions + amplitude * rng.normal(size=(count, len(atoms), 3))


def topology(name, rng):
    atoms = molecule(name)
    return Topology.from_positions(atoms.numbers, rattled(atoms, rng))


@pytest.fixture(scope="module")
def dipeptide():
    return Snapshots.read("alanine-dipeptide").take(slice(0, 2000))


def test_alanine_dipeptide(dipeptide):
    t = dipeptide.topology
    assert t.bonds.shape == (21, 2) and (t.bonds[:, 0] < t.bonds[:, 1]).all()
    assert t.rotors.shape == (7, 2) and t.moved.shape == (7, 22) and t.torsions.shape == (7, 4)
    # three methyl groups that turn: 3³ exchanges keep every hand
    assert t.permutations.shape == (27, 22)
    assert t.chiral
    # one exchange for each methyl group turns its labelled hand; Cα has four different ones
    assert t.exchanges(dipeptide.system.numbers) == [(1, 2), (11, 12), (19, 20)]
    # Cα and three methyl carbons, two volumes each
    numbers = dipeptide.system.numbers
    assert len(t.centres) == 8 and (numbers[t.centres[:, 0]] == 6).all()


def test_rotors_split_the_molecule(dipeptide):
    """What turns is one side of the axis, the smaller one, without the axis itself."""
    t = dipeptide.topology
    graph = nx.Graph(t.bonds.tolist())
    for (a, b), moved, (i, j, k, m) in zip(t.rotors, t.moved, t.torsions, strict=True):
        assert graph.has_edge(a, b) and not moved[a] and not moved[b]
        cut = graph.copy()
        cut.remove_edge(a, b)
        side = nx.node_connected_component(cut, b)
        assert set(np.flatnonzero(moved)) == side - {b} and 0 < moved.sum() <= 10
        assert (j, k) == (a, b) and graph.has_edge(i, a) and graph.has_edge(b, m)
        assert not moved[i] and moved[m]


def test_permutations_are_automorphisms_that_keep_hands(dipeptide):
    t, x = dipeptide.topology, dipeptide.positions
    assert np.array_equal(t.permutations[0], np.arange(22))
    assert len(np.unique(t.permutations, axis=0)) == len(t.permutations)
    bonds = {tuple(b) for b in t.bonds.tolist()}
    sign = np.sign(signed_volumes(x[0], t.centres))
    for order in t.permutations:
        assert np.array_equal(dipeptide.system.numbers[order], dipeptide.system.numbers)
        assert {tuple(sorted(b)) for b in order[t.bonds].tolist()} == bonds
        assert np.array_equal(
            np.sign(signed_volumes(x[:, order], t.centres)), np.tile(sign, (2000, 1))
        )
    # a group: closed under composition
    known = {tuple(p) for p in t.permutations}
    assert all(tuple(p[q]) in known for p in t.permutations for q in t.permutations)


def test_mirror_image(dipeptide):
    mirror = Topology.from_positions(dipeptide.system.numbers, -dipeptide.positions)
    t = dipeptide.topology
    assert mirror.chiral
    assert np.array_equal(mirror.bonds, t.bonds)
    assert np.array_equal(mirror.centres, t.centres)
    assert np.array_equal(mirror.permutations, t.permutations)
    volumes = signed_volumes(dipeptide.positions, t.centres)
    assert np.array_equal(signed_volumes(-dipeptide.positions, t.centres), -volumes)


def test_both_hands_in_the_data_are_not_chiral(dipeptide):
    x = dipeptide.positions
    both = Topology.from_positions(dipeptide.system.numbers, np.concatenate([x, -x]))
    assert not both.chiral and len(both.centres) == 0


@pytest.mark.parametrize(
    "name, bonds, rotors, permutations",
    [
        ("H2O", 2, 0, 2),
        ("CH4", 4, 0, 12),  # the rotations of a tetrahedron, not its reflections
        ("C2H6", 7, 1, 18),  # 3·3 turns of methyl groups, and the exchange of the ends
        ("CH3CH2OH", 8, 2, 3),
        ("NH3", 3, 0, 6),
    ],
)
def test_achiral_molecules(rng, name, bonds, rotors, permutations):
    t = topology(name, rng)
    assert len(t.bonds) == bonds and len(t.rotors) == rotors
    assert len(t.permutations) == permutations
    assert not t.chiral


@pytest.mark.parametrize("flip", [1, -1])
def test_bromochlorofluoromethane_is_chiral(rng, flip):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    lengths = np.array([1.09, 1.35, 1.76, 1.94])
    x = np.concatenate([np.zeros((1, 3)), corners * lengths[:, None]])
    t = Topology.from_positions(
        [6, 1, 9, 17, 35], rattled(Atoms("CHFClBr", flip * x), rng, amplitude=0.02)
    )
    assert t.chiral and len(t.permutations) == 1 and len(t.centres) == 2


def test_hydrogens_that_turn_a_hand_share_parameters(rng):
    """CH₂ of ethanol: no snapshot has them the other way round, the energy knows no difference."""
    t = topology("CH3CH2OH", rng)
    numbers = molecule("CH3CH2OH").numbers
    for order in t.swaps:
        assert np.array_equal(numbers[order], numbers)
    hydrogens = np.array([p for p in t.bonds.tolist() if numbers[p[0]] == 6 and numbers[p[1]] == 1])
    every = np.concatenate([t.permutations, t.swaps])
    kinds = [len(set(orbits(hydrogens, group))) for group in (t.permutations, every)]
    assert kinds == [3, 2]


def test_a_proton_in_a_hydrogen_bond_is_bound_to_none(rng):
    """Malonaldehyde whose proton is at either oxygen: a ring, of which both sides are alike."""
    x = [[-1.2, 0, 0], [0, 0.7, 0], [1.2, 0, 0], [-1.25, -1.3, 0], [1.25, -1.3, 0]]
    x += [[-2.1, 0.6, 0], [0, 1.8, 0], [2.1, 0.6, 0], [0.3, -1.5, 0]]
    frames = rattled(Atoms("C3O2H4", x), rng, count=100)
    frames[::3, 8, 0] *= -1
    numbers = Atoms("C3O2H4").numbers
    t = Topology.from_positions(numbers, frames)
    assert len(t.bonds) == 7 and 8 not in t.bonds
    assert t.loose.tolist() == [[3, 8], [4, 8]] and len(t.rotors) == 0
    assert sorted(t.permutations[:, 8].tolist()) == [8, 8] and len(t.permutations) == 2
    # one frame in a thousand is no reason
    rare = rattled(Atoms("C3O2H4", x), rng, count=1000)
    rare[:, 8, 0] = 0.35 + 0.6
    rare[0, 8, 0] = -0.35
    t = Topology.from_positions(numbers, rare)
    assert [4, 8] in t.bonds.tolist() and len(t.loose) == 0


def test_no_rotor_inside_a_ring(rng):
    t = topology("C6H6", rng)
    assert len(t.bonds) == 12 and len(t.rotors) == 0 and len(t.permutations) == 12
    # isobutane: three rotors, none through a terminal atom
    t = topology("isobutane", rng)
    graph = nx.Graph(t.bonds.tolist())
    assert len(t.rotors) == 3 and all(graph.degree(n) > 1 for n in t.rotors.ravel())


def test_cluster_without_bonds(rng):
    """No snapshot of a solid cluster has its atoms in another order: only parameters are shared."""
    x = 3.8 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.82]])
    t = Topology.from_positions(np.full(4, 18), x + 0.1 * rng.normal(size=(50, 4, 3)))
    assert t.bonds.shape == (0, 2) and t.rotors.shape == (0, 2) and t.moved.shape == (0, 4)
    assert t.torsions.shape == (0, 4) and t.centres.shape == (0, 4)
    assert t.permutations.tolist() == [[0, 1, 2, 3]] and not t.chiral
    assert t.swaps.tolist() == [[1, 0, 2, 3], [2, 1, 0, 3], [3, 1, 2, 0]]
    pairs = np.array(list(combinations(range(4), 2)))
    symmetries = np.concatenate([t.permutations, t.swaps])
    assert len(set(orbits(pairs, symmetries))) == 1
    assert len(set(orbits(pairs, t.permutations))) == 6


def test_two_waters_and_an_ion(rng):
    """Hydrogens change places in their molecule; molecules do where parameters are concerned."""
    water = molecule("H2O")
    other = water.copy()
    other.rotate(70, "x")
    other.translate([3, 0, 0])
    cluster = water + other + Atoms("Na", [[1.5, 3, 0]])
    t = Topology.from_positions(cluster.numbers, rattled(cluster, rng))
    moved = [np.flatnonzero(p != np.arange(7)).tolist() for p in t.permutations]
    assert moved == [[], [4, 5], [1, 2], [1, 2, 4, 5]]
    assert len(t.swaps) == 1
    (swap,) = t.swaps
    assert {swap[0], swap[3]} == {0, 3} and swap[6] == 6
    assert np.array_equal(cluster.numbers[swap], cluster.numbers)
    assert np.array_equal(swap[swap], np.arange(7))
    pairs = np.array(list(combinations(range(7), 2)))
    number = orbits(pairs, np.concatenate([t.permutations, t.swaps]))
    kinds = [{tuple(p) for p in pairs[number == k].tolist()} for k in range(number.max() + 1)]
    assert {(0, 1), (0, 2), (3, 4), (3, 5)} in kinds  # O-H
    assert {(1, 2), (4, 5)} in kinds and {(0, 3)} in kinds and {(0, 6), (3, 6)} in kinds
    assert {(1, 4), (1, 5), (2, 4), (2, 5)} in kinds and len(kinds) == 7


def test_molecules_of_opposite_hand_do_not_change_places(rng):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    lengths = np.array([1.09, 1.35, 1.76, 1.94])
    one = Atoms("CHFClBr", np.concatenate([np.zeros((1, 3)), corners * lengths[:, None]]))

    def swaps(flip):
        pair = one + Atoms(one.numbers, one.positions * flip + [0, 0, 6])
        return Topology.from_positions(pair.numbers, rattled(pair, rng, amplitude=0.02)).swaps

    assert len(swaps([1, 1, 1])) == 1 and len(swaps([1, 1, -1])) == 0


def test_too_many_exchanges_are_drawn_at_random(rng):
    waters = Atoms()
    for n in range(16):
        one = molecule("H2O")
        one.translate([4 * (n % 4), 4 * (n // 4), 0])
        waters += one
    t = Topology.from_positions(waters.numbers, rattled(waters, rng, count=3))
    assert len(t.permutations) == 10_000 and np.array_equal(t.permutations[0], np.arange(48))
    assert np.array_equal(np.sort(t.permutations), np.tile(np.arange(48), (10_000, 1)))
    turned = (t.permutations[:, 1::3] != np.arange(1, 48, 3)).mean(0)
    assert np.abs(turned - 0.5).max() < 0.03  # every molecule, in half of the draws
    assert len(t.swaps) == 15


def test_large_clusters_take_no_time(rng):
    """Their symmetries would be searched for minutes, and nothing asks for them."""
    atoms = Icosahedron("Cu", 4)
    t = Topology.from_positions(atoms.numbers, rattled(atoms, rng, count=3))
    assert len(t.permutations) == 1 and len(t.swaps) == 0 and len(t.bonds) == 696


def test_a_coordinate_is_its_reverse():
    rows = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]])
    assert orbits(rows, np.arange(4)[None]).tolist() == [0, 0, 1]
    assert orbits(rows, np.array([[0, 2, 1, 3]])).tolist() == [0, 0, 0]
    assert orbits(rows[:0], np.arange(4)[None]).tolist() == []


def test_signed_volume_of_a_known_corner():
    x = np.array([[1.0, 1, 1], [3, 1, 1], [1, 4, 1], [1, 1, 5]])
    assert signed_volumes(x, np.array([[0, 1, 2, 3], [0, 2, 1, 3]])).tolist() == [24.0, -24.0]
