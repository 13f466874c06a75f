"""Observables against ASE, closed forms and brute force."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from messages import names

from diffmd_ase.analysis import observables as ob
from diffmd_ase.geometry import distances
from diffmd_ase.system import System

ETHANOL = molecule("CH3CH2OH")
BONDS = np.array([[0, 1], [0, 2], [1, 3], [0, 4], [0, 5], [1, 6], [1, 7], [1, 8]])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("phi=torsion:4,6,8,2", ("phi", "torsion", (4, 6, 8, 2))),
        ("phi=4,6,8,2", ("phi", "torsion", (4, 6, 8, 2))),
        ("angle:0,1,2", ("angle:0,1,2", "angle", (0, 1, 2))),
        ("0,8", ("0,8", "distance", (0, 8))),
    ],
)
def test_coordinates_by_name(text, expected):
    coordinate = ob.Coordinate.parse(text, 9)
    assert coordinate == expected
    assert coordinate.period == (2 * np.pi if expected[1] == "torsion" else 0)
    system = System.from_atoms(ETHANOL)
    (a, *_, b) = expected[2]
    known = {
        "torsion": lambda: np.radians((ETHANOL.get_dihedral(*expected[2]) + 180) % 360 - 180),
        "angle": lambda: np.radians(ETHANOL.get_angle(*expected[2])),
        "distance": lambda: ETHANOL.get_distance(a, b),
    }
    assert coordinate(ETHANOL.positions, system) == pytest.approx(known[expected[1]]())


@pytest.mark.parametrize(
    "text, kinds, said",
    [
        ("x", None, "'x'.*or name=torsion:i,j,k,l.*such as phi=torsion:4,6,8,14"),
        ("d=distance:0", None, "expected energy or"),
        ("d=torsion:0,1", None, "name=distance:i,j"),
        ("d=distance:0,x", None, "counted from 0"),
        ("d=0,1", ("torsion",), "expected energy or name=torsion:i,j,k,l, such"),
        ("d=distance:0,9", None, "'d=distance:0,9': atoms 0, 9 must differ and lie in 0…8"),
        ("d=distance:1,1", None, "must differ"),
        ("d=distance:-1,1", None, "lie in 0…8, counted from 0"),
    ],
)
def test_coordinates_that_cannot_be(text, kinds, said):
    options = {} if kinds is None else {"kinds": kinds}
    with pytest.raises(ValueError, match=said):
        ob.Coordinate.parse(text, 9, others=("energy",), **options)


def test_angle_triples_of_methane():
    triples = ob.angle_triples([(0, 1), (0, 2), (0, 3), (0, 4)])
    assert len(triples) == 6 and (triples[:, 1] == 0).all()


def test_rdf_of_an_ideal_gas_is_one(rng):
    cell = np.array([[8.0, 0, 0], [2.0, 8, 0], [0, 1, 9]])
    system = System([18] * 30, [40.0] * 30, cell, True)
    x = rng.random((400, 30, 3)) @ cell
    _, g, error = ob.radial_distribution(x, system, bins=30)
    z = ((g - 1) / error)[5:]
    # the error of 10 blocks has 9 degrees of freedom: wider tails than a normal
    assert abs(g[5:].mean() - 1) < 0.01 and np.sqrt(np.mean(z**2)) < 1.6
    with pytest.raises(ValueError, match=names("r_max=6.0", "3.879", "Å")):
        ob.radial_distribution(x, system, r_max=6.0)


def test_rdf_peaks_of_fcc_count_neighbours():
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    system = System.from_atoms(atoms)
    r, g, _ = ob.radial_distribution(atoms.positions[None], system, bins=200)
    shell = 4 * np.pi / 3 * np.diff(np.linspace(0, 1.5 * 3.61, 201) ** 3)
    first = r < 3.0
    neighbours = np.sum(g[first] * shell[first]) * (len(atoms) - 1) / atoms.get_volume()
    assert neighbours == pytest.approx(12, rel=1e-6)


def test_msd_of_free_particles(rng):
    h = 0.02
    x = np.cumsum(np.sqrt(2 * h) * rng.standard_normal((400, 20, 4, 3)), axis=0)
    msd, error = ob.mean_square_displacement(x)
    lags = np.arange(400)
    assert msd[0] == pytest.approx(0, abs=1e-9)
    z = ((msd - 6 * h * lags) / error)[[1, 3, 10, 30]]
    assert np.abs(z).max() < 4
    brute = np.mean(np.sum((x[7:] - x[:-7]) ** 2, axis=-1))
    assert msd[7] == pytest.approx(brute, rel=1e-10)
    assert np.isnan(ob.mean_square_displacement(x[:, 0])[1]).all()


def test_width_table_finds_the_wrong_bond(rng):
    reference = ETHANOL.positions + 0.03 * rng.standard_normal((4000, 9, 3))
    same = ETHANOL.positions + 0.03 * rng.standard_normal((500, 8, 9, 3))
    expected = distances(reference, BONDS)
    rows = ob.width_table(distances(same, BONDS), expected)
    z = [(row.ratio.value - 1) / row.ratio.error for row in rows]
    assert np.abs(z).max() < 4
    worse = same.copy()
    worse[..., 2, :] += 0.03 * rng.standard_normal((500, 8, 3))
    top = ob.width_table(distances(worse, BONDS), expected)[0]
    assert BONDS[top.number].tolist() == [0, 2]
    assert (top.ratio.value - 1) / top.ratio.error > 4
    assert top.shift.value == pytest.approx(0, abs=0.02)
    longer = ob.width_table(expected[:500] + 0.1, expected)
    assert all(row.shift.value == pytest.approx(0.1, abs=4 * row.shift.error) for row in longer)


def test_rigid_bonds_have_a_ratio():
    x = np.broadcast_to(ETHANOL.positions, (20, 9, 3))
    lengths = distances(x, BONDS)
    assert all(row.ratio.value == 1.0 for row in ob.width_table(lengths, lengths))


def test_broken_bonds_and_mirror_images(rng):
    reference = ETHANOL.positions + 0.02 * rng.standard_normal((300, 9, 3))
    x = reference[:4].copy()
    x[1, 2] += 2.0
    x[3, :, 0] *= -1  # the other hand
    assert ob.bonds_intact(x, reference, BONDS).tolist() == [True, False, True, True]
    centres = [(0, 1, 2, 4), (0, 2, 1, 4)]  # one volume positive, one negative
    hands = ob.correct_hand(x, reference, centres)
    assert hands[0] and hands[2] and not hands[3]
