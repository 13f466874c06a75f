"""The checks an author runs: conformance, symmetry, one value known by hand, bad input."""

import pytest
import torch
from diffmd_template import Springs

from diffmd_ase import System, load_potential
from diffmd_ase.testing import check_equivariant, check_potential

SYSTEM = System([1, 8, 1], [1.0, 16.0, 1.0])
X = torch.tensor([[0.0, 0.0, 0.0], [1.1, 0.2, -0.1], [1.5, 1.0, 0.3]], dtype=torch.float64)


@pytest.fixture
def springs():
    return load_potential("template", SYSTEM, pairs=[(0, 1), (1, 2)], length=1.0, k=4.0)


def test_conformance(springs):
    assert isinstance(springs, Springs)
    check_potential(springs, X, translation_invariant=True)
    check_equivariant(springs, X, reflections=True)


def test_value(springs):
    x = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.5, 0.0, 0.0]], dtype=torch.float64)
    energy, forces, _ = springs(x)
    assert float(energy) == pytest.approx(0.5)
    assert forces[:, 0].tolist() == pytest.approx([2.0, -2.0, 0.0])


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"pairs": [(0, 3)], "length": 1.0}, r"\[\[0, 3\]\].*0…2"),
        ({"pairs": [(1, 1)], "length": 1.0}, r"\[\[1, 1\]\].*different"),
        ({"pairs": [0, 1], "length": 1.0}, r"\(2,\), expected \(P, 2\)"),
        ({"pairs": [(0, 1)], "length": -1.0}, "length=-1.0"),
    ],
)
def test_bad_input(options, got):
    with pytest.raises(ValueError, match=got):
        Springs(SYSTEM, **options)
