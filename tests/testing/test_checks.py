"""The conformance kit: it passes what is right and names what is wrong."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from messages import names

from diffmd_ase.potentials.analytic import DoubleWell, GaussianMixture, Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import assert_zscore, check_equivariant, check_potential, check_stress

X = torch.tensor([[0.1, 0.4, -0.2], [1.2, 0.1, 0.3], [-0.3, 1.1, 0.9]], dtype=torch.float64)


class Quartic(Potential):
    """``Σ |x|⁴/4``, right in all respects; the wrong ones below differ in one."""

    def __call__(self, x, *, stress=False):
        square = x.square().sum(-1)
        return Evaluation(0.25 * square.square().sum(-1), -square[..., None] * x)


class WrongSign(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy, -forces)


class WrongFactor(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy, 1.0001 * forces)


class OneWrongForce(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        forces[..., -1, 2] *= 1.001
        return Evaluation(energy, forces)


class WritesPositions(Quartic):
    def __call__(self, x, *, stress=False):
        value = super().__call__(x)
        x -= 1e-9
        return value


class ReusesArrays(Quartic):
    known = {}  # noqa: RUF012

    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        kept = self.known.setdefault((x.dtype, x.shape[-2:]), torch.empty(1000, *x.shape[-2:]))
        kept = kept.to(x.dtype)
        self.known[x.dtype, x.shape[-2:]] = kept
        out = kept[: max(1, x.shape[:-2].numel())].view(x.shape)
        return Evaluation(energy, out.copy_(forces))


class Learns(Quartic):
    calls = 0

    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        self.calls += 1
        return Evaluation(energy + 1e-6 * self.calls, forces)


class MixesBatch(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy - 1e-6 * x.mean(), forces)


class KeepsGraph(Quartic):
    def __call__(self, x, *, stress=False):
        return super().__call__(x.detach().requires_grad_())


class Double(Quartic):
    def __call__(self, x, *, stress=False):
        return super().__call__(x.double())


class ExtraAxis(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy[..., None], forces)


class OnlyContiguous(Quartic):
    def __call__(self, x, *, stress=False):
        flat = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
        return super().__call__(flat)


class NoEnergy(Quartic):
    def __call__(self, x, *, stress=False):
        return Evaluation(None, super().__call__(x).forces)


class NotFinite(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy, forces * torch.nan)


class InventsEnergy(Quartic):
    conservative = False


class Bound(Quartic):
    system = System([1], [1.0])


class BadFlag(Quartic):
    has_memory = None


class Biases(Quartic):
    needs_base = True


class LiesAboutMemory(Quartic):
    def update(self, x, step):
        return True


class SaysNothing(Quartic):
    def update(self, x, step):
        return None


class LearnsInSecret(Quartic):
    shift = 0.0
    has_memory = True

    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy + self.shift, forces)

    def update(self, x, step):
        self.shift += 0.1
        return False


class ClaimsToLearn(Quartic):
    has_memory = True

    def update(self, x, step):
        return True


class Memory(LearnsInSecret):
    def update(self, x, step):
        super().update(x, step)
        return True


class OffersStress(Quartic):
    def __call__(self, x, *, stress=False):
        energy, forces, _ = super().__call__(x)
        return Evaluation(energy, forces, x.new_zeros(*x.shape[:-2], 6))


class Alone(Potential):
    """As in a user's script."""

    def __call__(self, x):
        return Evaluation(0.5 * x.square().sum((-2, -1)), -x)


class Swirl(Potential):
    conservative = False

    def __call__(self, x, *, stress=False):
        return Evaluation(None, torch.cross(x, torch.ones_like(x), dim=-1))


@pytest.mark.parametrize(
    "potential",
    [
        Quartic(),
        Alone(),
        Swirl(),
        Memory(),
        Harmonic(1.7),
        DoubleWell(barrier=0.7, a=0.8, k=1.3),
        GaussianMixture(torch.stack((X, X + 0.5)), [0.5, 0.2], [1.0, 2.0], kT=0.3),
        Harmonic(0.5) + Quartic(),
    ],
    ids=lambda potential: type(potential).__name__,
)
def test_passes_what_is_right(potential):
    check_potential(potential, X)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (WrongSign, "dE/dx by coordinate"),
        (WrongFactor, "dE/dx by coordinate"),
        (OneWrongForce, "dE/dx by coordinate"),
        (WritesPositions, "writes to the positions"),
        (ReusesArrays, "a later call changes"),
        (Learns, "the same call twice"),
        (MixesBatch, "single and batch"),
        (KeepsGraph, "carries a graph"),
        (Double, "float64, expected that of the positions"),
        (ExtraAxis, r"shape \(1,\), expected \(\)"),
        (OnlyContiguous, "strided"),
        (NoEnergy, "conservative, but the energy is None"),
        (NotFinite, "not finite"),
        (InventsEnergy, "not conservative, but gives an energy"),
        (Bound, "bound to 1 atoms, x has 3"),
        (BadFlag, "has_memory is None"),
        (Biases, "needs a base"),
        (LiesAboutMemory, "has_memory is False"),
        (SaysNothing, "update returned None"),
        (LearnsInSecret, "update returned False: results before and after"),
        (ClaimsToLearn, "update returned True, but energy and forces"),
        (OffersStress, "give factory="),
    ],
)
def test_names_what_is_wrong(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_potential(wrong(), X)


def test_directions_see_what_is_not_among_the_checked_coordinates(generator):
    """With 40 atoms only some coordinates are checked one by one; directions see all."""
    x = torch.randn(40, 3, generator=generator)
    some = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:96]
    missed = next(i for i in range(120) if i not in some.tolist())

    class OneWrong(Quartic):
        def __call__(self, x, *, stress=False):
            energy, forces, _ = super().__call__(x)
            forces[..., missed // 3, missed % 3] *= 1.1
            return Evaluation(energy, forces)

    check_potential(Quartic(), x)
    with pytest.raises(AssertionError, match="random direction"):
        check_potential(OneWrong(), x)


def test_translation():
    class Pair(Potential):
        def __call__(self, x, *, stress=False):
            bond = x[..., 1, :] - x[..., 0, :]
            forces = torch.zeros_like(x)
            forces[..., 0, :], forces[..., 1, :] = bond, -bond
            return Evaluation(0.5 * bond.square().sum(-1), forces)

    check_potential(Pair(), X, translation_invariant=True)
    check_equivariant(Pair(), X, reflections=True)
    with pytest.raises(AssertionError, match="after a shift"):
        check_potential(Quartic(), X, translation_invariant=True)


def test_equivariance_sees_axes_and_hands():
    """A field along z is not invariant; a triple product is, but not under reflections."""

    class Handed(Potential):
        def __call__(self, x, *, stress=False):
            a, b, c = ((x[..., i, :] - x[..., 3, :]) for i in range(3))
            forces = torch.zeros_like(x)
            sides = torch.cross(b, c, dim=-1), torch.cross(c, a, dim=-1), torch.cross(a, b, dim=-1)
            for i, side in enumerate(sides):
                forces[..., i, :] = -side
            forces[..., 3, :] = sum(sides)
            return Evaluation((a * sides[0]).sum(-1), forces)

    class Axis(Potential):
        def __call__(self, x, *, stress=False):
            bond = x[..., 1, :] - x[..., 0, :]
            bond = bond * torch.tensor([1.0, 1.0, 1.01])
            forces = torch.zeros_like(x)
            forces[..., 0, :], forces[..., 1, :] = bond, -bond
            return Evaluation(None, forces)

    four = torch.cat((X, torch.tensor([[0.5, -0.7, 0.2]])))
    check_potential(Handed(), four)
    check_equivariant(Handed(), four)
    with pytest.raises(AssertionError, match="reflection"):
        check_equivariant(Handed(), four, reflections=True)
    with pytest.raises(AssertionError, match="rotation"):
        check_equivariant(Axis(), X)


def test_stress_by_finite_strain():
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True)
    # a triclinic cell, so that every component counts
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.arange(9).reshape(3, 3) / 8), True)
    atoms.rattle(0.05, seed=1)
    system, x = System.from_atoms(atoms), torch.tensor(atoms.positions)

    def emt(system):
        return AsePotential(EMT(), system)

    check_potential(emt(system), x, factory=emt, dtypes=(torch.float64,))

    class Swapped(AsePotential):
        def __call__(self, x, *, stress=False):
            energy, forces, tension = super().__call__(x, stress=stress)
            return Evaluation(
                energy, forces, tension[..., [0, 1, 2, 5, 4, 3]] if stress else tension
            )

    with pytest.raises(AssertionError, match="dE/dε"):
        check_stress(lambda system: Swapped(EMT(), system), system, x)


def test_stress_needs_a_cell():
    with pytest.raises(AssertionError, match="needs a system with a cell"):
        check_stress(lambda system: Quartic(), System([1] * 3, [1.0] * 3), X)


def test_one_structure_is_needed():
    with pytest.raises(ValueError, match=names("(2, 3, 3)", "(N, 3)")):
        check_potential(Quartic(), X.expand(2, 3, 3))


class TestZScore:
    def test_samples(self, rng):
        samples = rng.normal(1.0, 2.0, (4000, 3))
        assert_zscore(samples, 1.0)
        with pytest.raises(AssertionError, match=r"z = .*expected 1\.3"):
            assert_zscore(samples, 1.3)

    def test_given_error_and_place(self):
        assert_zscore(1.0, 1.3, 0.1)
        with pytest.raises(
            AssertionError, match=names("z = -5.00", "(1,)", "1 ± 0.1", "expected 1.5")
        ):
            assert_zscore([1.0, 1.0], [1.0, 1.5], 0.1)
        assert_zscore(1.0, 1.5, 0.1, limit=5.1)

    def test_nan_fails(self):
        with pytest.raises(AssertionError, match=names("z = nan", "(1,)")):
            assert_zscore([1.0, np.nan], 1.0, 0.1)

    def test_error_must_be_positive(self):
        with pytest.raises(ValueError, match=names("stderr", "positive")):
            assert_zscore(1.0, 1.0, 0.0)

    def test_false_alarms_are_as_rare_as_stated(self, rng):
        """|z| < 2 fails for 4.55 % of right means."""
        means = rng.normal(size=(2000, 200)).mean(1)

        def fails(mean):
            try:
                assert_zscore(mean, 0.0, 1 / np.sqrt(200), limit=2.0)
            except AssertionError:
                return 1
            return 0

        rate = 0.0455
        count = sum(map(fails, means))
        assert_zscore(count / 2000, rate, np.sqrt(rate * (1 - rate) / 2000))
