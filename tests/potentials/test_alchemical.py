"""The coupling of two potentials: its ends, its derivatives, and what it refuses."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from messages import names

from diffmd_ase.potentials.alchemical import (
    Alchemical,
    Transmuted,
    coupled_energy,
    coupled_slope,
)
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic, LennardJones
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.restraints import Restraint
from diffmd_ase.potentials.ladder import Blend
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

A, B = DoubleWell(barrier=0.4, a=1.0, k=2.0), Harmonic(1.5, centre=[0.3, 0.1, 0.0])
FORMS = [None, 0.3]


class Field(Potential):
    """A score: forces without an energy."""

    conservative = False

    def __call__(self, x, *, stress=False):
        return Evaluation(None, -x)


def positions(*batch, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, n, 3, generator=generator, dtype=torch.float64)


def copper(numbers=(29, 29, 29, 29)):
    atoms = bulk("Cu", cubic=True)
    atoms.numbers[:] = numbers
    return atoms


@pytest.mark.parametrize("soft", FORMS)
def test_the_ends_are_the_end_states(soft):
    x = positions(6)
    for lam, end in ((0.0, A), (1.0, B)):
        value, expected = Alchemical(A, B, lam, soft=soft)(x), end(x)
        torch.testing.assert_close(value.energy, expected.energy, rtol=0, atol=1e-12)
        torch.testing.assert_close(value.forces, expected.forces, rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft", FORMS)
@pytest.mark.parametrize("lam", [0.0, 0.03, 0.5, 0.9, 1.0])
def test_dudl_is_the_derivative(soft, lam):
    x, step = 1.5 * positions(20), 1e-4
    # at its ends the coupling is defined on one side only: three points there
    if 0 < lam < 1:
        places, weights = (-1, 1), (-0.5, 0.5)
    else:
        inwards = 1 if lam == 0 else -1
        places = (0, inwards, 2 * inwards)
        weights = (-1.5 * inwards, 2.0 * inwards, -0.5 * inwards)
    slope = sum(
        w * Alchemical(A, B, lam + n * step, soft=soft)(x).energy
        for n, w in zip(places, weights, strict=True)
    )
    exact = Alchemical(A, B, lam, soft=soft).dudl(x)
    steepness = 1.0 if soft is None else (exact.abs().max() / soft) ** 2
    torch.testing.assert_close(slope / step, exact, rtol=1e-6 * float(steepness), atol=1e-6)


@pytest.mark.parametrize("soft", FORMS)
def test_forces_are_the_gradient(soft):
    check_potential(Alchemical(A, B, 0.35, soft=soft), positions())


@pytest.mark.parametrize("soft", FORMS)
def test_every_row_has_its_lambda_and_time_is_a_batch(soft):
    lams = [0.0, 0.25, 1.0]
    coupling, x = Alchemical(A, B, lams, soft=soft), positions(5, 6)
    value, slope = coupling(x), coupling.dudl(x)
    for t in range(5):
        for row in range(6):
            alone = Alchemical(A, B, lams[row % 3], soft=soft)
            torch.testing.assert_close(value.energy[t, row], alone(x[t, row]).energy)
            torch.testing.assert_close(value.forces[t, row], alone(x[t, row]).forces)
            torch.testing.assert_close(slope[t, row], alone.dudl(x[t, row]))
    said = coupling.describe(x[0])
    torch.testing.assert_close(said["lambda"], torch.tensor(lams * 2, dtype=torch.float64))
    torch.testing.assert_close(said["dudl"], slope[0])


def test_the_linear_form_is_the_blend():
    x = positions(4)
    blend = Blend([A, B], [[0.8, 0.2], [0.3, 0.7]])
    torch.testing.assert_close(Alchemical(A, B, [0.2, 0.7])(x).energy, blend(x).energy)
    assert isinstance(Alchemical(A, B, 0.2).inner, Blend)


def test_at_another_lambda_nothing_else_changes():
    x, first = positions(4), Alchemical(A, B, 0.2, soft=0.5)
    other = first.at([0.6, 0.1])
    expected = Alchemical(A, B, [0.6, 0.1], soft=0.5)
    torch.testing.assert_close(other(x).energy, expected(x).energy)
    torch.testing.assert_close(other.dudl(x), expected.dudl(x))
    torch.testing.assert_close(first(x).energy, Alchemical(A, B, 0.2, soft=0.5)(x).energy)
    assert other.per_walker and not first.per_walker and other.target is other


def test_walkers_that_are_left_keep_their_lambda():
    x = positions(6)
    coupling = Alchemical(A, B, [0.1, 0.6, 0.9])
    keep = torch.tensor([True, False, True, True, True, False])
    before = coupling(x).energy[keep]
    coupling.select(keep)
    torch.testing.assert_close(coupling(x[keep]).energy, before)
    assert coupling.lam.tolist() == pytest.approx([0.1, 0.9, 0.1, 0.6])


def test_the_soft_core_is_finite_where_atoms_overlap():
    """A tells atoms apart, B is an ideal gas in a well: overlapping atoms cost B nothing."""
    atoms = System(np.array([18, 18]), np.ones(2))
    hard = LennardJones(atoms, epsilon=0.01, sigma=3.0)
    ideal = Harmonic(0.1, system=atoms)
    x = positions(1)
    x[0, 1] = x[0, 0] + torch.tensor([1e-3, 0.0, 0.0], dtype=torch.float64)
    assert hard(x).energy > 1e30
    for lam in (0.2, 0.5, 0.8):
        for ends, own in (((ideal, hard), 1.0 - lam), ((hard, ideal), lam)):
            soft = Alchemical(*ends, lam, soft=0.5)
            bound = ideal(x).energy - 0.5 * np.log(own)
            value = soft(x)
            assert torch.isfinite(value.forces).all() and torch.isfinite(soft.dudl(x)).all()
            torch.testing.assert_close(value.energy, bound)  # the bound is reached here
            torch.testing.assert_close(value.forces, ideal(x).forces)
    assert Alchemical(ideal, hard, 0.2)(x).energy > 1e29  # what the linear form does
    x[0, 1] = x[0, 0]  # infinite, or not a number: of no weight at the other end
    assert torch.equal(Alchemical(ideal, hard, 0.0)(x).energy, ideal(x).energy)
    assert torch.equal(Alchemical(ideal, hard, 0.0)(x).forces, ideal(x).forces)


def test_the_soft_core_is_monotone_and_bounded_and_linear_for_small_gaps():
    a = torch.zeros(2001, dtype=torch.float64)
    b = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    for lam in (0.05, 0.5, 0.95):
        energy = coupled_energy(a, b, lam, 0.5)
        assert (energy.diff() >= 0).all() and (energy[b > 0].diff() >= 0).all()
        assert (energy <= -0.5 * np.log(1 - lam) + 1e-12).all()
        assert (energy <= b - 0.5 * np.log(lam) + 1e-12).all()
        near = b.abs() < 0.06
        curvature = 0.5 * lam * (1 - lam) * b[near] ** 2 / 0.5
        torch.testing.assert_close(energy[near], lam * b[near] - curvature, atol=1e-3, rtol=0)
    for lam, end in ((0.0, a), (1.0, b)):  # softening vanishes at the ends
        assert torch.equal(coupled_energy(a, b, lam, 0.5), end)
    assert torch.equal(coupled_slope(a, b, 0.3), b)


def test_what_learns_enters_frozen():
    learns = Metadynamics(
        Distance(System(np.array([1, 1]), np.ones(2)), [[0, 1]]),
        kT=0.025,
        sigma=0.2,
        height=0.05,
        pace=1,
        biasfactor=5.0,
    )
    coupling, x = Alchemical(A, A + learns, 0.5), positions(2)
    assert not coupling.has_memory and not coupling.update(x, 1)
    before = coupling(x).energy
    learns.update(x, 1)
    changed = coupling(x).energy - before  # a bias that grows elsewhere is seen, at λ of its height
    torch.testing.assert_close(changed, 0.5 * learns(x).energy)
    assert (Alchemical(A, B, 0.5) + learns).has_memory


def test_scores_without_energies_have_no_dudl_unless_a_target_is_given():
    x = positions(4)
    bare = Alchemical(Field(), B, [0.2, 0.7])
    assert not bare.conservative and bare(x).energy is None and bare.target is None
    with pytest.raises(ValueError, match=names("Field", "no energy", "target=(U_A, U_B)")):
        bare.dudl(x)
    assert list(bare.describe(x)) == ["lambda"]
    driven = Alchemical(Field(), B, [0.2, 0.7], target=(A, B))
    torch.testing.assert_close(driven.dudl(x), B(x).energy - A(x).energy)
    torch.testing.assert_close(driven.at(0.4).target(x).energy, Alchemical(A, B, 0.4)(x).energy)
    with pytest.raises(ValueError, match=names("soft=0.5", "Field", "soft=None")):
        Alchemical(Field(), B, 0.2, soft=0.5)
    with pytest.raises(ValueError, match=names("target", "Field", "has no energy either")):
        Alchemical(Field(), B, 0.2, target=(A, Field()))


@pytest.mark.parametrize("lam", [-0.1, 1.2, float("nan"), [0.0, 1.1], [], [[0.5]]])
def test_lambda_outside_its_range_is_refused(lam):
    with pytest.raises(ValueError, match=names("lam=", "[0, 1]")):
        Alchemical(A, B, lam)
    with pytest.raises(ValueError, match=names("lam=", "[0, 1]")):
        Alchemical(A, B, 0.5).at(lam)


@pytest.mark.parametrize("soft", [0.0, -1.0, float("inf"), float("nan")])
def test_a_soft_core_without_a_scale_is_refused(soft):
    with pytest.raises(ValueError, match=names("soft=", "positive")):
        Alchemical(A, B, 0.5, soft=soft)


def test_end_states_of_different_atoms_are_refused_and_transmuted():
    cu, au = copper(), copper((79, 29, 29, 29))
    ends = [AsePotential(EMT(), System.from_atoms(atoms)) for atoms in (cu, au)]
    with pytest.raises(
        ValueError, match=names("end states differ", "AuCu3", "Transmuted(B, A.system)")
    ):
        Alchemical(*ends, 0.5)
    end = Transmuted(ends[1], ends[0].system)
    assert end.end_system is ends[1].system
    cu.calc, au.calc = EMT(), EMT()
    x = torch.tensor(cu.positions)[None] + 0.1 * positions(3, n=4)
    coupling, slope = Alchemical(ends[0], end, 0.5), []
    for p in x:
        for atoms in (cu, au):
            atoms.positions = p.numpy()
        slope.append(au.get_potential_energy() - cu.get_potential_energy())
    torch.testing.assert_close(coupling.dudl(x), torch.tensor(slope, dtype=torch.float64))
    for other, said in ((cu * (2, 1, 1), "8 atoms"), (cu.copy(), "the cell")):
        if len(other) == 4:
            other.set_cell(1.1 * other.cell)
        with pytest.raises(ValueError, match=names("end states differ", said)):
            Transmuted(AsePotential(EMT(), System.from_atoms(other)), ends[0].system)
    with pytest.raises(ValueError, match="bound to no atoms"):
        Transmuted(A, ends[0].system)


def test_learned_biased_and_classical_end_states_mix():
    snapshots = Snapshots.read("alanine-dipeptide")
    learned = ScoreModel.load("alanine-dipeptide").potential(snapshots.system, device="cpu")
    wall = Restraint(Distance(snapshots.system, [[0, 5]]), kappa=1.0, at=6.0)
    classical = LennardJones(snapshots.system, epsilon=0.004, sigma=2.0)
    x = torch.tensor(snapshots.positions[:4], dtype=torch.float64)
    ends = learned + wall, learned + classical
    value = Alchemical(*ends, [0.0, 1.0])(x)
    # float32 inside the network: the same numbers in, the same numbers out
    for row, end in enumerate((*ends, *ends)):
        assert torch.equal(value.energy[row], (ends[row % 2])(x).energy[row]), end
    gap = classical(x).energy - wall(x).energy
    torch.testing.assert_close(Alchemical(*ends, 0.4).dudl(x), gap, atol=1e-6, rtol=1e-6)
