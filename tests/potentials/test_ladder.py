"""Potentials of a ladder: each row has its own state, alone or in a batch."""

import pytest
import torch
from ase import Atoms
from messages import names

from diffmd_ase.potentials.analytic import Harmonic, LennardJones
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.ladder import Blend, Ladder
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

SOFT, STIFF = Harmonic(1.0), Harmonic(3.0)


def positions(*batch):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, 2, 3, generator=generator, dtype=torch.float64)


class Learning(Potential):
    """A constant that counts what it has seen."""

    has_memory = True

    def __init__(self):
        self.seen = 0

    def __call__(self, x, *, stress=False):
        return Evaluation(x.new_full(x.shape[:-2], float(self.seen)), torch.zeros_like(x))

    def update(self, x, step):
        self.seen += len(x)
        return True

    def checkpoint(self):
        return {"seen": self.seen} if self.seen else {}

    def restore(self, saved, x, step):
        self.seen = saved.get("seen", 0)


def test_each_row_has_the_potential_of_its_state():
    ladder, x = Ladder([SOFT, STIFF, Harmonic(5.0)]), positions(6)
    value = ladder(x)
    for row, k in enumerate([1.0, 3.0, 5.0] * 2):
        alone = Harmonic(k)(x[row])
        torch.testing.assert_close(value.energy[row], alone.energy)
        torch.testing.assert_close(value.forces[row], alone.forces)


@pytest.mark.parametrize(
    "potential",
    [
        Ladder([SOFT, STIFF]),
        Blend([SOFT, STIFF], [[1, 0], [0.3, 0.7]]),
        Blend([SOFT, STIFF], [1, 2]),
    ],
)
def test_batches_in_time_are_batches(potential):
    x = positions(3, 4)
    value = potential(x)
    for t in range(3):
        torch.testing.assert_close(value.energy[t], potential(x[t]).energy)
        torch.testing.assert_close(value.forces[t], potential(x[t]).forces)


def test_blend_is_the_weighted_sum_and_its_forces_the_gradient():
    weights = [[1.0, 0.0], [0.25, 0.5]]
    blend, x = Blend([SOFT, STIFF], weights), positions(4)
    for row in range(4):
        a, b = weights[row % 2]
        expected = a * SOFT(x[row]).energy + b * STIFF(x[row]).energy
        torch.testing.assert_close(blend(x).energy[row], expected)
    check_potential(Blend([SOFT, STIFF], [0.25, 0.5]), x[0])
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(blend(x).energy.sum(), x)
    torch.testing.assert_close(blend(x).forces, -gradient)


def test_what_states_share_is_evaluated_once_for_all():
    calls = []

    class Counted(Potential):
        def __call__(self, x, *, stress=False):
            calls.append(x.shape)
            return SOFT(x)

    total = Counted() + Ladder([SOFT, STIFF])
    x = positions(4)
    torch.testing.assert_close(total(x).energy, SOFT(x).energy + Ladder([SOFT, STIFF])(x).energy)
    assert calls == [(4, 2, 3)] and total.per_walker
    Blend([Counted(), STIFF], [[1, 0], [0, 1]])(x)
    assert calls[1:] == [(4, 2, 3)]


def test_every_state_learns_by_itself_and_is_restored():
    parts = [Learning(), Learning()]
    ladder, x = Ladder(parts), positions(6)
    assert ladder.has_memory and ladder.update(x, 1)
    assert [p.seen for p in parts] == [3, 3]
    parts[1].seen = 7
    again = Ladder([Learning(), Learning()])
    again.restore(ladder.checkpoint(), x, 1)
    torch.testing.assert_close(again(x).energy, ladder(x).energy)


def test_a_field_without_energy_has_none_in_the_ladder():
    class Field(Potential):
        conservative = False

        def __call__(self, x, *, stress=False):
            return Evaluation(None, x)

    for mixed in (Ladder([SOFT, Field()]), Blend([SOFT, Field()], [1, 1])):
        assert not mixed.conservative and mixed(positions(2)).energy is None


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        Ladder([SOFT])
    with pytest.raises(ValueError, match="whole ladders"):
        Ladder([SOFT, STIFF])(positions(3))
    with pytest.raises(ValueError, match="whole ladders"):
        Ladder([SOFT, STIFF])(positions())
    with pytest.raises(ValueError, match=names("(3,)", "2 potentials", "(A,)", "(K, A)")):
        Blend([SOFT, STIFF], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        Blend([SOFT, STIFF], [1.0, float("nan")])
    with pytest.raises(ValueError, match="cannot be blended"):
        Blend([SOFT, Learning()], [1.0, 1.0])
    argon, copper = (
        LennardJones(System.from_atoms(Atoms([z, z])), epsilon=0.01, sigma=3.0) for z in (18, 29)
    )
    with pytest.raises(ValueError, match="different systems"):
        Ladder([argon, copper])
