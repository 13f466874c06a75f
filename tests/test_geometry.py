"""Distances, angles, images and rotations against ASE, scipy and brute force, both kinds alike."""

from itertools import combinations

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.cell import Cell
from scipy.spatial.transform import Rotation

from diffmd_ase.geometry import (
    Lattice,
    angles,
    by_cell,
    dihedral,
    dihedrals,
    distances,
    minimum_image,
    rotate_about,
    shortest,
    signed_volumes,
    triple_product,
)
from diffmd_ase.system import System

ETHANOL = molecule("CH3CH2OH")
QUADRUPLES = [(2, 0, 1, 7), (3, 1, 0, 4), (5, 0, 1, 8)]
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
# the angle of the last is beyond what a search of the next cells alone would find
CELLS = {
    "upright": np.diag([4.0, 5.0, 6.0]),
    "tilted": np.array([[4.0, 0, 0], [1.8, 5, 0], [-1, 2, 4]]),
    "far from reduced": np.array([[4.0, 0, 0], [13.0, 5, 0], [-21.0, 8, 4]]),
}


@pytest.fixture
def walkers(rng):
    return ETHANOL.positions + 0.1 * rng.standard_normal((5, 3, 9, 3))


@KINDS
def test_internal_coordinates_are_those_of_ase(walkers, kind):
    pairs, triples = [(0, 1), (0, 2), (1, 3)], [(1, 0, 2), (0, 1, 3), (4, 0, 5)]
    x = kind(walkers)
    r, theta, phi = distances(x, pairs), angles(x, triples), dihedrals(x, QUADRUPLES)
    assert type(phi) is type(x) and phi.shape == (5, 3, 3)
    for t, w in np.ndindex(5, 3):
        atoms = ETHANOL.copy()
        atoms.positions = walkers[t, w]
        np.testing.assert_allclose(r[t, w], [atoms.get_distance(*p) for p in pairs])
        expected = np.radians([atoms.get_angle(*p) for p in triples])
        np.testing.assert_allclose(theta[t, w], expected, atol=1e-9)
        expected = np.radians([atoms.get_dihedral(*q) for q in QUADRUPLES])
        np.testing.assert_allclose(np.exp(1j * np.asarray(phi[t, w])), np.exp(1j * expected))


def test_precision_and_derivatives_of_tensors(walkers):
    x = torch.tensor(walkers, dtype=torch.float32)
    assert dihedrals(x, QUADRUPLES).dtype == torch.float32
    x = torch.tensor(walkers[0, 0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: dihedrals(y, QUADRUPLES), x)
    assert torch.autograd.gradcheck(lambda y: angles(y, [(0, 1, 3)]), x)


def test_angles_of_straight_and_folded_atoms():
    x = np.array([[-1.0, 0, 0], [0, 0, 0], [1.0, 1e-9, 0], [-2.0, 0, 0]])
    theta = angles(x, [(0, 1, 2), (0, 1, 3)])
    np.testing.assert_allclose(theta, [np.pi - 1e-9, 0.0], atol=1e-12)


def test_every_pair_of_a_batch_shape(walkers):
    pairs = list(combinations(range(9), 2))
    assert distances(walkers, pairs).shape == (5, 3, 36)
    assert distances(walkers[0, 0], []).shape == (0,)


@KINDS
def test_volumes_change_sign_in_a_mirror(walkers, kind):
    x = kind(walkers)
    volumes = signed_volumes(x, [(0, 1, 2, 4), (0, 2, 1, 4)])
    np.testing.assert_allclose(volumes[..., 0], -volumes[..., 1])
    np.testing.assert_allclose(signed_volumes(-x, [(0, 1, 2, 4)])[..., 0], -volumes[..., 0])
    edges = [walkers[0, 0, a] - walkers[0, 0, 0] for a in (1, 2, 4)]
    assert float(volumes[0, 0, 0]) == pytest.approx(np.linalg.det(edges), rel=1e-12)
    planes = [kind(np.stack([edge, -edge], axis=-1)) for edge in edges]
    product = triple_product(*planes, axis=-2)
    np.testing.assert_allclose(product, np.linalg.det(edges) * np.array([1, -1]), rtol=1e-12)


@KINDS
def test_rotation_about_a_bond(walkers, kind, rng):
    angle = rng.uniform(-np.pi, np.pi, (5, 3))
    x = kind(walkers)
    turned = rotate_about(x, x[..., 0, :], x[..., 1, :], kind(angle))
    for t, w in np.ndindex(5, 3):
        a, b = walkers[t, w, :2]
        turn = Rotation.from_rotvec(angle[t, w] * (b - a) / np.linalg.norm(b - a))
        np.testing.assert_allclose(turned[t, w], turn.apply(walkers[t, w] - a) + a, atol=1e-12)


def test_a_dihedral_grows_with_the_turn_of_its_bond():
    b1, b2, b3 = np.array([[1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    x = np.cumsum([[0.0, 0, 0], b1, b2, b3], axis=0)
    far = rotate_about(x, x[1], x[2], np.array(0.3))
    assert dihedral(b1, b2, far[3] - far[2]) == pytest.approx(0.3 - np.pi)


@KINDS
def test_differences_the_short_way_round(kind):
    periods = kind(np.array([2 * np.pi, np.inf, 3.0]))
    difference = kind(np.array([[6.0, 50.0, -1.6], [-4.0, -7.0, 10.0]]))
    expected = [[6 - 2 * np.pi, 50.0, 1.4], [2 * np.pi - 4, -7.0, 1.0]]
    np.testing.assert_allclose(shortest(difference, periods), expected)
    np.testing.assert_allclose(shortest(difference[:, 0], 2 * np.pi), np.array(expected)[:, 0])


# ------------------------------------------------------------------------ images


@KINDS
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 0)])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_images_are_the_shortest(cell, pbc, kind, rng):
    """Far along open directions too, which are tilted against the others."""
    system = System([29], [63.5], cell, pbc)
    d = 10 * rng.standard_normal((100, 3))
    nearest = np.asarray(minimum_image(kind(d), system))
    reach = [range(-9, 10) if p else (0,) for p in pbc]
    shifts = np.stack(np.meshgrid(*reach), axis=-1).reshape(-1, 3) @ cell
    # the middle one first: all are searched from an image that is near already
    rough = d - np.round(d @ np.linalg.pinv(cell[np.array(pbc, bool)])) @ cell[np.array(pbc, bool)]
    brute = np.linalg.norm(rough[:, None] + shifts, axis=-1).min(1)
    np.testing.assert_allclose(np.linalg.norm(nearest, axis=-1), brute, rtol=1e-12)
    whole = (d - nearest) @ np.linalg.inv(cell)
    np.testing.assert_allclose(whole, whole.round() * pbc, atol=1e-9)


def test_wrapping_is_enough_below_half_the_width(rng):
    lattice = Lattice(System([29], [63.5], CELLS["far from reduced"], True))
    d = rng.standard_normal((500, 3))
    d *= 0.49 * lattice.widths.min() / np.linalg.norm(d, axis=-1, keepdims=True)
    far = d + rng.integers(-5, 6, (500, 3)) @ CELLS["far from reduced"]
    np.testing.assert_allclose(lattice.wrap(far), d, atol=1e-12)
    assert lattice.widths.prod() <= abs(np.linalg.det(lattice.vectors)) * (1 + 1e-12)
    assert Cell(lattice.vectors).volume == pytest.approx(np.linalg.det(CELLS["upright"]) * 2 / 3)


def test_coordinates_through_the_boundary(rng):
    """A molecule that is cut by the boundary, its atoms scattered over images."""
    cell = np.array([[9.0, 0, 0], [4.0, 9, 0], [-3.0, 4, 9]])
    system = System(ETHANOL.numbers, ETHANOL.get_masses(), cell, True)
    scattered = ETHANOL.positions + rng.integers(-2, 3, (9, 3)) @ cell
    for measure, rows in ((distances, [(0, 8)]), (angles, [(0, 1, 3)]), (dihedrals, QUADRUPLES)):
        exact = measure(ETHANOL.positions, rows)
        np.testing.assert_allclose(measure(scattered, rows, system=system), exact, atol=1e-12)
        assert not np.allclose(measure(scattered, rows), exact)


def test_frames_with_cells_of_their_own(rng):
    """A molecule that is cut by the boundary of cells that change from frame to frame."""
    cells = np.array([[9.0, 0, 0], [4.0, 9, 0], [-3.0, 4, 9]]) * rng.uniform(0.9, 1.2, (6, 2, 1, 1))
    cells[3:, 1] = cells[0, 0]  # the same one again
    whole = ETHANOL.positions + 0.1 * rng.normal(size=(6, 2, 9, 3))
    scattered = whole + rng.integers(-2, 3, (6, 2, 9, 3)) @ cells
    system = System(ETHANOL.numbers, ETHANOL.get_masses(), cells[0, 0], True)

    def measure(x, system):
        return dihedrals(x, QUADRUPLES, system=system)

    found = by_cell(measure, scattered, cells, system=system)
    np.testing.assert_allclose(found, dihedrals(whole, QUADRUPLES), atol=1e-9)
    assert not np.allclose(measure(scattered, system), found)


def test_without_periodic_directions():
    free = System([29], [63.5])
    d = np.array([[30.0, 0, 0]])
    assert minimum_image(d, free) is d
    with pytest.raises(ValueError, match="pbc=.*expected a direction"):
        Lattice(free)
