"""Analytic potentials and the algebra of potentials: F = −∇E, exact values, sums."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.cluster import Icosahedron
from messages import names

from diffmd_ase.potentials.analytic import (
    DoubleWell,
    GaussianMixture,
    Harmonic,
    HarmonicCrystal,
    LennardJones,
    MuellerBrown,
    PeriodicWell,
)
from diffmd_ase.potentials.base import Potential, Sum
from diffmd_ase.potentials.curvature import hessian
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System


def mixture(kT=0.3):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, [0.5, 0.2, 0.9], [1.0, 2.0, 3.0], kT=kT)


def cluster():
    atoms = Icosahedron("Ar", 2, latticeconstant=5.3)
    atoms.rattle(0.2, seed=1)
    return atoms


FIELDS = {
    "harmonic": Harmonic(1.7),
    "harmonic per atom": Harmonic([0.5, 1.0, 2.0, 0.0], centre=[0.1, -0.4, 0.2]),
    "harmonic crystal": HarmonicCrystal(np.arange(144.0).reshape(12, 12), centre=np.eye(4, 3)),
    "double well": DoubleWell(barrier=0.7, a=0.8, k=1.3),
    "mueller-brown": MuellerBrown(scale=0.01, k=2.0),
    "periodic well": PeriodicWell(barrier=0.6, period=1.1),
    "mixture": mixture(),
    "smoothed mixture": mixture().at(0.4),
    "lennard-jones": LennardJones(
        System(np.full(4, 18), np.ones(4)), epsilon=0.3, sigma=1.2, rc=6.0
    ),
}


def numerical_forces(potential, x, step=1e-5):
    """Central differences of the energy, all coordinates in one batch."""
    moves = step * torch.eye(x.numel()).reshape(-1, *x.shape)
    return (potential(x - moves).energy - potential(x + moves).energy).reshape(x.shape) / (2 * step)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.usefixtures("float64")
def test_forces_are_minus_the_gradient(name, generator):
    x = torch.randn(4, 3, generator=generator)
    forces = FIELDS[name](x).forces
    assert forces.abs().max() > 0.1
    torch.testing.assert_close(numerical_forces(FIELDS[name], x), forces, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FIELDS)
def test_leading_axes_and_dtype(name, generator):
    x = torch.randn(2, 5, 4, 3, generator=generator)
    whole = FIELDS[name](x)
    assert whole.energy.shape == (2, 5) and whole.forces.shape == x.shape
    one = FIELDS[name](x[1, 2])
    close = 1e-12 if x.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(whole.energy[1, 2], one.energy, rtol=close, atol=close)
    torch.testing.assert_close(whole.forces[1, 2], one.forces, rtol=close, atol=close)
    single = FIELDS[name](x[0].float())
    assert single.energy.dtype == single.forces.dtype == torch.float32


@pytest.mark.usefixtures("float64")
def test_the_hessian_by_differences(generator):
    crystal, x = FIELDS["harmonic crystal"], torch.randn(4, 3, generator=generator)
    torch.testing.assert_close(hessian(crystal, x, batch=7), crystal.hessian)
    well = FIELDS["lennard-jones"]
    exact = torch.autograd.functional.jacobian(lambda y: -well(y).forces, x).reshape(12, 12)
    torch.testing.assert_close(hessian(well, x, step=1e-4), exact, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=names("hessian (12, 12)", "(3N, 3N)")):
        HarmonicCrystal(crystal.hessian, centre=np.zeros((3, 3)))


@pytest.mark.usefixtures("float64")
def test_known_values():
    assert Harmonic(2.0, centre=[1.0, 0, 0])(torch.zeros(3, 3)).energy == 3.0
    well = DoubleWell(barrier=0.25, a=0.5, k=1.0)
    assert well(torch.zeros(1, 3)).energy == 0.25
    assert well(torch.tensor([[-0.5, 0.0, 2.0]])).energy == 2.0
    periodic = PeriodicWell(barrier=0.3, period=2.0)
    assert periodic(torch.tensor([[1.0, 2.0, 0.0]])).energy == pytest.approx(0.3)
    dimer = System([18, 18], [40.0, 40.0])
    lj = LennardJones(dimer, epsilon=0.1, sigma=3.0, rc=100.0)
    bottom = lj(torch.tensor([[0.0, 0.0, 0.0], [3.0 * 2 ** (1 / 6), 0.0, 0.0]]))
    assert bottom.energy == pytest.approx(-0.1, abs=1e-8)
    assert bottom.forces.abs().max() < 1e-12


def test_mueller_brown_stationary_points():
    """Minima and saddles of the published surface."""
    points = torch.tensor(
        [
            [-0.558, 1.442, 0.0],
            [0.623, 0.028, 0.0],
            [-0.050, 0.467, 0.0],
            [-0.822, 0.624, 0.0],
            [0.212, 0.293, 0.0],
        ]
    )
    value = MuellerBrown()(points[:, None, :])
    expected = torch.tensor([-146.70, -108.17, -80.77, -40.66, -72.25])
    torch.testing.assert_close(value.energy, expected, rtol=0, atol=0.01)
    assert value.forces.abs().max() < 2.0  # three digits of the points, curvatures of ~1000


@pytest.mark.usefixtures("float64")
class TestGaussianMixture:
    def test_energy_is_minus_kT_log_p(self):
        """Against the sum of densities, written out for one point."""
        p, x = mixture(kT=0.3), torch.full((4, 3), 0.3)
        density = sum(
            w * math.exp(-0.5 * float((x - m).square().sum()) / v) / (2 * math.pi * v) ** 6
            for w, m, v in zip([1 / 6, 2 / 6, 3 / 6], p.means, [0.5, 0.2, 0.9], strict=True)
        )
        assert p(x).energy == pytest.approx(-0.3 * math.log(density), rel=1e-12)

    def test_smoothing_is_convolution(self):
        """p_σ(x) = ∫ p(x − σε) N(ε): quadrature in one coordinate, the others analytic."""
        kT, sigma = 0.2, 0.7
        p = GaussianMixture([[[0.0, 0.0, 0.0]], [[1.5, 0.0, 0.0]]], [0.1, 0.3], [1.0, 2.0], kT=kT)
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        eps = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 1, 3)
        weight = np.prod(np.stack(np.meshgrid(*[weights] * 3, indexing="ij")), axis=0).ravel()
        weight = torch.from_numpy(weight / weight.sum())
        x = torch.tensor([[0.4, 0.2, -0.3]])
        density = torch.exp(-p(x - sigma * torch.from_numpy(eps)).energy / kT)
        smooth = torch.exp(-p.at(sigma)(x).energy / kT)
        torch.testing.assert_close((weight * density).sum(), smooth, rtol=1e-6, atol=0)

    def test_samples_have_the_exact_moments(self):
        p, n = mixture(), 20000
        x = p.sample(n, seed=5)
        z = (x.mean(0) - p.mean) / (p.variance / n).sqrt()
        assert z.abs().max() < 4
        error = (x - p.mean).square().std(0) / math.sqrt(n)
        z = ((x - p.mean).square().mean(0) - p.variance) / error
        assert z.abs().max() < 4
        # negative control: another mixture is told apart
        z = (x.mean(0) - p.means[0]) / (p.variance / n).sqrt()
        assert z.abs().max() > 10

    def test_far_away_is_finite(self):
        value = mixture()(torch.full((4, 3), 1e4))
        assert torch.isfinite(value.energy) and torch.isfinite(value.forces).all()

    @pytest.mark.parametrize(
        "arguments", [([1.0, -1.0], None), ([1.0], None), ([1.0, 1.0], [0.0, 1.0])]
    )
    def test_bad_arguments(self, arguments):
        variances, weights = arguments
        with pytest.raises(ValueError, match="2 positive numbers"):
            GaussianMixture(torch.zeros(2, 1, 3), variances, weights, kT=1.0)


def crystals():
    cubic = bulk("Ar", cubic=True, a=5.3) * (2, 2, 2)
    cubic.rattle(0.1, seed=2)
    small = bulk("Ar", a=5.0)  # one atom: interacts with its own images only
    skew = bulk("Ar", a=5.0) * (2, 1, 1)
    skew.rattle(0.15, seed=3)
    skew.positions += [7.0, -20.0, 31.0]  # far outside the cell
    slab = bulk("Ar", cubic=True, a=5.3) * (1, 2, 1)
    slab.pbc = (True, True, False)
    slab.rattle(0.1, seed=4)
    # a cell whose heights are shorter than its vectors
    tilted = Atoms("Ar2", [[0, 0, 0], [2.5, 2.0, 2.2]], cell=[[5, 0, 0], [0, 5, 0], [9, 4, 5]])
    tilted.pbc = True
    return {
        "tilted": tilted,
        "cluster": cluster(),
        "cubic": cubic,
        "small": small,
        "skew": skew,
        "slab": slab,
    }


@pytest.mark.parametrize("name", ["cluster", "cubic", "small", "skew", "slab", "tilted"])
@pytest.mark.parametrize("rc", [None, 7.3])
def test_lennard_jones_is_that_of_ase(name, rc):
    atoms = crystals()[name]
    atoms.calc = AseLennardJones(epsilon=0.0104, sigma=3.4, rc=rc)
    ours = LennardJones(System.from_atoms(atoms), epsilon=0.0104, sigma=3.4, rc=rc)
    value = ours(torch.tensor(atoms.positions), stress=True)
    assert value.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(value.forces, atoms.get_forces(), rtol=0, atol=1e-10)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(value.stress, atoms.get_stress(), rtol=0, atol=1e-10)
    else:
        assert value.stress is None


def test_lennard_jones_forces_in_a_crystal():
    atoms = crystals()["skew"]
    lj = LennardJones(System.from_atoms(atoms), epsilon=0.01, sigma=3.4, rc=7.3)
    x = torch.tensor(atoms.positions)
    torch.testing.assert_close(numerical_forces(lj, x), lj(x).forces, rtol=1e-6, atol=1e-9)


class Constant(Potential):
    """What a user writes: `__call__(self, x)` and nothing else."""

    def __call__(self, x):
        return Evaluation(x.new_ones(x.shape[:-2]), torch.ones_like(x))


class NoEnergy(Potential):
    conservative = False

    def __call__(self, x, *, stress=False):
        return Evaluation(None, x.flip(-1))


class Boost(Potential):
    """U_b = ½ E_base: sees the terms before it."""

    needs_base = True

    def __call__(self, x, *, base, stress=False):
        return Evaluation(0.5 * base.energy, 0.5 * base.forces)


class TestSum:
    def test_values_and_order(self, generator):
        x = torch.randn(2, 4, 3, generator=generator)
        a, b = Harmonic(1.0), PeriodicWell(barrier=0.3, period=2.0)
        total = (a + b + Constant())(x)
        torch.testing.assert_close(total.energy, a(x).energy + b(x).energy + 1)
        torch.testing.assert_close(total.forces, a(x).forces + b(x).forces + 1)
        boosted = (a + Boost() + b)(x)
        torch.testing.assert_close(boosted.energy, 1.5 * a(x).energy + b(x).energy)

    def test_flat_and_associative(self):
        a, b, c = Harmonic(1.0), Harmonic(2.0), Harmonic(3.0)
        assert ((a + b) + c).terms == (a + (b + c)).terms == (a, b, c)

    def test_traits(self):
        total = Harmonic(1.0) + NoEnergy()
        assert not total.conservative and not total.has_memory
        assert total(torch.ones(4, 3)).energy is None
        assert (Harmonic(1.0) + Constant()).conservative

    def test_stress_of_one_term_missing(self):
        atoms = crystals()["skew"]
        lj = LennardJones(System.from_atoms(atoms), epsilon=0.01, sigma=3.4)
        x = torch.tensor(atoms.positions)
        assert (lj + lj)(x, stress=True).stress.shape == (6,)
        assert (lj + Harmonic(1.0))(x, stress=True).stress is None

    def test_refusals(self):
        with pytest.raises(ValueError, match="add it after"):
            Sum(Boost(), Harmonic(1.0))
        argon, helium = System([18], [40.0]), System([2], [4.0])
        with pytest.raises(ValueError, match="Ar and He"):
            Harmonic(1.0, system=argon) + Harmonic(1.0, system=helium)
        with pytest.raises(TypeError, match=names("Harmonic", "float")):
            Harmonic(1.0) + 1.0


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: Harmonic(-1.0), ["k=-1.0", "not negative"]),
        (lambda: Harmonic(torch.ones(2, 3)), ["k", "(2, 3)", "(N,)"]),
        (lambda: DoubleWell(barrier=1.0, a=0.0, k=1.0), ["a=0.0", "positive"]),
        (lambda: MuellerBrown(scale=0.0), ["scale=0.0", "positive"]),
        (lambda: PeriodicWell(barrier=1.0, period=-1.0), ["period=-1.0", "positive"]),
        (
            lambda: LennardJones(System([18], [40.0]), epsilon=1.0, sigma=0.0),
            ["sigma=0.0", "positive"],
        ),
        (lambda: GaussianMixture(torch.zeros(1, 1, 3), [1.0], kT=0.0), ["kT=0.0", "positive"]),
        (lambda: GaussianMixture(torch.zeros(1, 3), [1.0], kT=1.0), ["(1, 3)", "(K, N, 3)"]),
    ],
)
def test_bad_parameters(make, facts):
    with pytest.raises(ValueError, match=names(*facts)):
        make()
