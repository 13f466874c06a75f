"""Variables where they have no derivative: finite forces, zero by symmetry, as PLUMED has them."""

import math

import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from plumed_oracle import Oracle
from scipy.spatial.transform import Rotation

from diffmd_ase.geometry import angle, angles, dihedrals, direction, distances, norm, rotate_about
from diffmd_ase.potentials.biases.cvs import (
    RMSD,
    Angle,
    Coordination,
    Distance,
    Function,
    NativeContacts,
    Torsion,
)
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.potentials.biases.restraints import LowerWall, Restraint, UpperWall
from diffmd_ase.system import System

KT = 300 * units.kB
CELL = np.array([[9.0, 0, 0], [4.0, 9, 0], [-3.0, 4, 9]])
FREE = System([6] * 4, [12.0] * 4)
PERIODIC = System([6] * 4, [12.0] * 4, CELL, True)
SYSTEMS = pytest.mark.parametrize("system", [FREE, PERIODIC], ids=["free", "periodic"])

BENT = torch.tensor([[0.1, 0, 0], [0, 0, 1.5], [0, 1.0, 2.2], [1.0, 1.2, 2.6]]).double()
LINE = torch.tensor([[0.0, 0, 0], [0, 0, 1.5], [0, 0, 3.0], [0, 1.0, 4.0]]).double()
ROD = torch.tensor([[0.0, 0, 0], [0, 0, 1.5], [0, 0, 3.0], [0, 0, 4.5]]).double()
FOLD = torch.tensor([[0.0, 0, 0], [0, 0, 1.5], [0, 0, 0.5], [0, 1.0, 4.0]]).double()
SAME = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 3.0], [0, 1.0, 3.5]]).double()
POINT = torch.zeros(4, 3).double()


def gyration(x):
    return (x - x.mean(-2, keepdim=True)).square().sum((-2, -1)).sqrt()


def arccos_angle(x):
    u, v = x[..., 0, :] - x[..., 1, :], x[..., 2, :] - x[..., 1, :]
    return ((u * v).sum(-1) / (u.square().sum(-1) * v.square().sum(-1)).sqrt()).arccos()


# variable, where it has no derivative, its value there
CASES = {
    "distance": (lambda s: Distance(s, [0, 1]), SAME, 0.0),
    "straight angle": (lambda s: Angle(s, [0, 1, 2]), LINE, math.pi),
    "folded angle": (lambda s: Angle(s, [0, 1, 2]), FOLD, 0.0),
    "angle of two atoms in one place": (lambda s: Angle(s, [0, 1, 2]), SAME, 0.0),
    "torsion, three in a line": (lambda s: Torsion(s, [0, 1, 2, 3]), LINE, 0.0),
    "torsion, four in a line": (lambda s: Torsion(s, [0, 1, 2, 3]), ROD, 0.0),
    "torsion, two in one place": (lambda s: Torsion(s, [3, 0, 1, 2]), SAME, 0.0),
    "coordination": (lambda s: Coordination(s, [0], [1], r_0=2.0), SAME, 1.0),
    "coordination, steep at 0": (lambda s: Coordination(s, [0], [1], r_0=2.0, nn=1), SAME, 1.0),
    "coordination, within d_0": (lambda s: Coordination(s, [0], [1], r_0=1.0, d_0=1.0), SAME, 1.0),
    "contacts": (lambda s: NativeContacts(s, [[0, 1]], [5.0]), SAME, 1.0),
    "no deviation": (lambda s: RMSD(s, BENT), BENT, 0.0),
    "no deviation of a line": (lambda s: RMSD(s, ROD), ROD, 0.0),
    "no deviation of a point": (lambda s: RMSD(s, POINT), POINT, 0.0),
    "function, a root": (lambda s: Function(s, gyration), POINT, 0.0),
    "function, arccos": (lambda s: Function(s, arccos_angle), LINE, math.pi),
    "function of the package": (
        lambda s: Function(s, lambda x: dihedrals(x, [(0, 1, 2, 3)], system=s)[..., 0]),
        LINE,
        0.0,
    ),
}
EACH = pytest.mark.parametrize("case", CASES)


def biases(cv, value):
    """Some without a slope at the value, some with one."""
    hills = Metadynamics(cv, kT=KT, sigma=0.2, height=0.1, pace=1)
    opes = OPES(cv, kT=KT, sigma=0.2, barrier=0.5, pace=1)
    for learning in (hills, opes):
        for step in (1, 2):
            learning.update(BENT + 0.02 * step, step)
    return {
        "upper wall far away": UpperWall(cv, at=50.0, kappa=1.0),
        "lower wall here": LowerWall(cv, at=value, kappa=1.0, exp=1.0),
        "restraint here": Restraint(cv, at=value, kappa=1.0),
        "restraint elsewhere": Restraint(cv, at=value + 0.4, kappa=1.0, slope=0.3),
        "no hills": Metadynamics(cv, kT=KT, sigma=0.2, height=0.1, pace=1),
        "hills": hills,
        "OPES": opes,
    }


@SYSTEMS
@EACH
def test_forces_are_zero_and_those_of_other_walkers_as_they_were(case, system):
    make, x, value = CASES[case]
    cv = make(system)
    three = torch.stack((BENT + 0.1, x, BENT.roll(1, 0)))
    others = torch.stack((three[0], BENT - 0.3, three[2]))
    assert float(cv(x)) == pytest.approx(value, abs=1e-12)
    for name, bias in biases(cv, value).items():
        for precision in (torch.float64, torch.float32):
            result, expected = bias(three.to(precision)), bias(others.to(precision))
            assert torch.isfinite(result.energy).all(), name
            assert result.forces[1].abs().max() < 1e-5, name
            assert torch.isfinite(expected.forces).all(), name
            for walker in (0, 2):
                assert torch.equal(result.forces[walker], expected.forces[walker]), name
                assert torch.equal(result.energy[walker], expected.energy[walker]), name
        alone = bias(x).forces
        assert torch.isfinite(alone).all() and alone.shape == (4, 3), name


@pytest.mark.parametrize(
    "case, line",
    [
        ("straight angle", "ANGLE ATOMS=1,2,3"),
        ("folded angle", "ANGLE ATOMS=1,2,3"),
        ("coordination", "COORDINATION GROUPA=1 GROUPB=2 SWITCH={RATIONAL R_0=0.2 NOSTRETCH}"),
        (
            "coordination, steep at 0",
            "COORDINATION GROUPA=1 GROUPB=2 "
            "SWITCH={RATIONAL R_0=0.2 NN=1 MM=2 NOSTRETCH D_MAX=100}",
        ),
        (
            "coordination, within d_0",
            "COORDINATION GROUPA=1 GROUPB=2 SWITCH={RATIONAL R_0=0.1 D_0=0.1}",
        ),
        (
            "contacts",
            "CONTACTMAP ATOMS1=1,2 SWITCH1={Q R_0=0.01 BETA=50 LAMBDA=1.8 REF=0.5} SUM",
        ),
    ],
)
def test_plumed_has_the_same_there(case, line, tmp_path):
    """Where PLUMED has forces; DISTANCE, TORSION, RMSD and GYRATION have NaN."""
    make, x, _ = CASES[case]
    lines = [f"c: {line}", "RESTRAINT ARG=c AT=0 KAPPA=0 SLOPE=100"]
    plumed = Oracle(lines, natoms=4, folder=tmp_path)
    plumed.watch("c")
    assert float(make(FREE)(x)) == pytest.approx(plumed.values(x.numpy(), ["c"])[0], abs=1e-12)
    assert np.array_equal(plumed.driver.forces, np.zeros((4, 3)))


@pytest.mark.filterwarnings("ignore:Optimal rotation is not uniquely")
@pytest.mark.parametrize(
    "reference, x",
    [(ROD, BENT), (BENT, ROD), (LINE, LINE[:, [1, 2, 0]]), (BENT, -BENT), (POINT, BENT)],
    ids=["to a rod", "of a rod", "planar", "mirror image", "to a point"],
)
def test_rmsd_where_several_rotations_are_best(reference, x):
    """The value is that of any of them, and the derivative that of one, without drift."""
    cv = RMSD(FREE, reference)
    s, back = cv.vjp(torch.stack((x, BENT + 1.0)))
    ours, theirs = (v.numpy() - v.numpy().mean(0) for v in (x, reference))
    distance = np.linalg.norm(ours)
    if theirs.any():
        _, distance = Rotation.align_vectors(ours, theirs)
    assert float(s[0]) == pytest.approx(distance / 2, abs=1e-7)  # of four atoms
    slope = back(torch.ones(2, 1).double())
    assert torch.isfinite(slope).all()
    assert slope.sum(1).abs().max() < 1e-12
    if s[0] > 1e-6:  # |ds/dx| is 1/√N
        assert float(slope[0].square().sum()) == pytest.approx(1 / 4, abs=1e-9)


@pytest.mark.parametrize("shift", CELL)
def test_atoms_in_one_place_through_the_boundary(shift):
    """What is left of the distance is rounding: a force no larger than the slope of the bias."""
    x = SAME.clone()
    x[1] += torch.tensor(shift)
    for cv in (Distance(PERIODIC, [0, 1]), Coordination(PERIODIC, [0], [1], r_0=2.0, nn=1)):
        forces = Restraint(cv, at=2.0, kappa=0.0, slope=1.0)(x).forces
        assert torch.isfinite(forces).all() and forces.abs().max() <= 1.0


@pytest.mark.parametrize("turn", range(20))
def test_lines_that_are_straight_within_rounding(turn):
    """A molecule turned and shifted: forces of the size of any other, not of 1/rounding."""
    acetylene = molecule("C2H2")
    system = System.from_atoms(acetylene)
    rotation = Rotation.random(rng=np.random.default_rng(turn))
    x = torch.tensor(rotation.apply(acetylene.positions) + 10.0 * rotation.as_matrix()[0])
    for cv, at in ((Torsion(system, [3, 0, 1, 2]), 1.0), (Angle(system, [3, 0, 1]), 3.0)):
        assert Restraint(cv, at=at, kappa=1.0)(x).forces.abs().max() < 3.0
    assert float(Angle(system, [3, 0, 1])(x)) == pytest.approx(math.pi, abs=1e-7)
    leaf = x.requires_grad_()
    (slope,) = torch.autograd.grad(dihedrals(leaf, [(3, 0, 1, 2)])[0], leaf)
    assert slope.abs().max() == 0.0


@pytest.mark.parametrize("bend", [1e-3, 1e-6, 1e-9])
def test_close_to_a_line_the_derivative_is_whole(bend):
    """The angle has a cusp there: its slope is 1/|u| on either side, and zero on the tip only."""
    x = LINE.clone()
    x[2, 0] = bend
    s, back = Angle(FREE, [0, 1, 2]).vjp(x)
    assert math.pi - float(s) == pytest.approx(math.atan(bend / 1.5), rel=1e-6)
    slope = back(torch.ones(1).double())
    assert slope[2, 0] == pytest.approx(-1 / 1.5, rel=1e-5)
    assert slope.sum(0).abs().max() < 1e-12


def test_a_coordination_is_plumeds_with_its_cut(tmp_path):
    """PLUMED's default: cut where the switch is 1e-5, and stretched."""
    lines = [
        "a: COORDINATION GROUPA=1,2 GROUPB=3,4 R_0=0.15",
        "b: COORDINATION GROUPA=1-4 SWITCH={RATIONAL R_0=0.1 D_0=0.05 NN=4 MM=9 D_MAX=0.31}",
        "RESTRAINT ARG=a,b AT=0,0 KAPPA=0,0 SLOPE=10,30",
    ]
    plumed = Oracle(lines, natoms=4, folder=tmp_path)
    plumed.watch("a", "b")
    cvs = (
        Coordination(FREE, [0, 1], [2, 3], r_0=1.5, d_max=1.5 * 1e-5 ** (1 / (6 - 12)), name="a"),
        Coordination(FREE, range(4), r_0=1.0, d_0=0.5, nn=4, mm=9, d_max=3.1, name="b"),
    )
    kJ = units.kJ / units.mol
    bias = Restraint(cvs, at=0.0, kappa=0.0, slope=[10 * kJ, 30 * kJ])
    for size in (0.5, 1.0, 2.0, 4.0):
        x = size * BENT
        theirs = plumed.values(x.numpy(), ["a", "b"])
        np.testing.assert_allclose(bias.cv(x), theirs, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(bias(x).forces, plumed.driver.forces, rtol=1e-7, atol=1e-9)
    whole = Coordination(FREE, [0, 1], [2, 3], r_0=1.5)
    assert abs(float(whole(BENT) - cvs[0](BENT))) > 1e-6
    with pytest.raises(ValueError, match="d_max=0.4 must be greater than d_0=0.5"):
        Coordination(FREE, [0], [1], r_0=1.0, d_0=0.5, d_max=0.4)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "measure, rows, x",
    [
        (distances, [(0, 1), (0, 2)], SAME),
        (angles, [(0, 1, 2), (1, 2, 3)], LINE),
        (angles, [(0, 1, 2)], FOLD),
        (angles, [(0, 1, 2)], SAME),
        (dihedrals, [(0, 1, 2, 3)], LINE),
        (dihedrals, [(0, 1, 2, 3)], ROD),
        (dihedrals, [(3, 0, 1, 2)], SAME),
        (dihedrals, [(0, 1, 2, 3)], POINT),
    ],
)
def test_first_and_second_derivatives_of_geometry(measure, rows, x, precision):
    leaf = x.to(precision, copy=True).requires_grad_()
    value = measure(leaf, rows)
    (slope,) = torch.autograd.grad(value[0], leaf, create_graph=True)
    assert slope.abs().max() == 0.0
    (second,) = torch.autograd.grad(slope.square().sum() + slope.sum(), leaf)
    assert torch.isfinite(second).all()
    np.testing.assert_allclose(measure(x.numpy(), rows), value.detach().numpy(), atol=1e-6)


def test_directions_and_turns_without_a_length():
    v = torch.tensor([[0.0, 0, 0], [0, 3, 4]]).double()
    assert norm(v).tolist() == [0.0, 5.0]
    assert direction(v).tolist() == direction(v.numpy()).tolist() == [[0, 0, 0], [0, 0.6, 0.8]]
    assert angle(v[0], -v[1].abs()) == 0.0  # u·v is -0.0
    assert norm(torch.tensor([math.nan, 0, 0])).isnan()  # what is no number stays none
    assert angle(torch.tensor([math.nan, 0, 0]), torch.ones(3)).isnan()
    turned = rotate_about(BENT, BENT[0], BENT[0], torch.tensor(1.0).double())
    torch.testing.assert_close(turned, BENT, rtol=0, atol=1e-14)


def test_a_function_whose_branch_not_taken_is_nan():
    """Autograd says NaN although the function is smooth: differences say what is right."""
    cv = Function(FREE, lambda x: torch.where(x > 0, x.sqrt(), 2 * x.square()).sum((-2, -1)))
    x = -BENT - 0.2
    s, back = cv.vjp(x.expand(2, 4, 3))
    slope = back(torch.tensor([[0.5], [0.0]]).double())
    torch.testing.assert_close(slope[0], 2 * x, rtol=1e-6, atol=1e-6)
    assert slope[1].abs().max() == 0.0 and torch.isfinite(s).all()


def test_a_function_that_is_not_finite_says_so():
    cv = Function(FREE, lambda x: x.sum((-2, -1)).log())
    assert cv(-BENT).isnan()
    assert cv.vjp(torch.full_like(BENT, math.nan))[1](torch.ones(1).double()).isnan().all()


def test_a_jump_has_no_slope():
    """Differences over it grow as their width shrinks."""
    cv = Function(FREE, lambda x: (x[..., 0, 0] >= 0).double() + 0.0 * x.abs().sqrt().sum((-2, -1)))
    _, back = cv.vjp(POINT)
    assert torch.equal(back(torch.ones(1).double()), torch.zeros(4, 3).double())
