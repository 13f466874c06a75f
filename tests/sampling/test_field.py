"""Drift and target together: nothing twice, and after a bias has learned only what changed."""

import pytest
import torch

from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.field import Field
from diffmd_ase.state import Evaluation

X = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0)).double()


class Counted(Harmonic):
    def __init__(self, k):
        super().__init__(k)
        self.calls = 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        return super().__call__(x)


class Bias(Counted):
    has_memory = True


class Tilt(Potential):
    """A tenth of what is behind it."""

    needs_base = True

    def __init__(self):
        self.calls = 0

    def __call__(self, x, *, stress=False, base=None):
        self.calls += 1
        return Evaluation(0.1 * base.energy, 0.1 * base.forces)


def same(a, b):
    torch.testing.assert_close(a.energy, b.energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.forces, b.forces, rtol=1e-12, atol=1e-12)


def test_the_drift_itself_is_evaluated_once():
    drift = Counted(1.0)
    field = Field(drift)
    value = field(X)
    assert drift.calls == 1 and field.evaluations == 1 and value.target is value.drift
    assert not field.learns and value.fixed == {}
    same(value.drift, drift(X))


def test_a_shared_bias_is_evaluated_once():
    learned, reference, bias = Counted(1.0), Counted(2.0), Bias(0.5)
    field = Field(learned + bias, reference + bias)
    value = field(X)
    assert (learned.calls, reference.calls, bias.calls) == (1, 1, 1)
    assert field.evaluations == 2 and field.learns
    same(value.drift, Harmonic(1.5)(X))
    same(value.target, Harmonic(2.5)(X))


def test_after_learning_only_the_bias_is_evaluated_again():
    learned, reference, bias = Counted(1.0), Counted(2.0), Bias(0.5)
    field = Field(learned + bias, reference + bias)
    fixed = field(X).fixed
    bias.k = 3.0 * bias.k
    value = field(X, fixed=fixed)
    assert (learned.calls, reference.calls, bias.calls) == (1, 1, 2)
    same(value.drift, Harmonic(2.5)(X))
    same(value.target, Harmonic(3.5)(X))


def test_a_term_behind_a_bias_is_no_longer_fixed():
    """It depends on what it is behind: before the bias it stays, after the bias it does not."""
    before, after = Tilt(), Tilt()
    learned, bias = Counted(1.0), Bias(0.5)
    field = Field(learned + before + bias + after)
    fixed = field(X).fixed
    field(X, fixed=fixed)
    assert (learned.calls, before.calls, bias.calls, after.calls) == (1, 1, 2, 2)


def test_one_term_behind_different_ones_has_two_values():
    tilt, first, second = Tilt(), Counted(1.0), Counted(2.0)
    value = Field(first + tilt, second + tilt)(X)
    assert tilt.calls == 2
    same(value.drift, Harmonic(1.1)(X))
    same(value.target, Harmonic(2.2)(X))


def test_memory_in_the_drift_alone_is_refused():
    with pytest.raises(ValueError, match="a term with memory that the target lacks"):
        Field(Counted(1.0) + Bias(0.5), Counted(2.0))
    assert Field(Counted(1.0), Counted(2.0) + Bias(0.5)).learns  # a bias of the target alone
