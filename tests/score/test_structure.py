"""A model of one molecule says when atoms are not that molecule, and in which order they are."""

import copy
import warnings

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase import ReverseDiffusion, ScoreCalculator, ScoreModel, Snapshots
from diffmd_ase.independent.draws import sample
from diffmd_ase.noise import Noise
from diffmd_ase.score.structure import Structure

KNOWN, SNAPSHOTS = "alanine-dipeptide", Snapshots.read("alanine-dipeptide")
MODEL = ScoreModel.load(KNOWN)
STRUCTURE = Structure.of(MODEL.expert(MODEL.card.sigma_min), SNAPSHOTS.system)


def exchanged(*pairs):
    order = np.arange(len(SNAPSHOTS.system))
    for i, j in pairs:
        order[[i, j]] = order[[j, i]]
    return order


def order_of(words):
    return np.array([int(n) for n in words.split("atoms[[")[1].split("]")[0].split(",")])


def test_snapshots_are_no_cause_for_doubt():
    for first in range(0, len(SNAPSHOTS), 5000):
        assert STRUCTURE.doubt(SNAPSHOTS.positions[first : first + 1]) is None
    assert STRUCTURE.doubt(SNAPSHOTS.positions[:100]) is None


@pytest.mark.parametrize(
    ("pairs", "facts"),
    [
        ([(1, 7)], ["C0-H1", "N6-H7"]),  # hydrogens of two groups
        ([(4, 8)], ["C4-O5"]),  # heavy atoms
        ([(5, 15)], ["C4-O5", "C14-O15"]),
        ([(6, 16), (9, 11)], ["N6-H7"]),
        ([(1, 2)], ["C0", "hand"]),  # of one group: its hand is another
        ([(11, 12)], ["C10", "hand"]),
    ],
)
def test_like_atoms_in_another_order(pairs, facts):
    order = exchanged(*pairs)
    words = STRUCTURE.doubt(SNAPSHOTS.positions[:1, order])
    assert all(fact in words for fact in facts)
    back = SNAPSHOTS.positions[:1, order][:, order_of(words)]
    assert STRUCTURE.doubt(back) is None
    # nothing is moved that need not be
    assert (order_of(words) == np.arange(22)).sum() >= 22 - 2 * len(pairs)


def test_any_order():
    order = np.arange(22)
    rng = np.random.default_rng(3)
    for z in (1, 6, 7, 8):
        rows = np.flatnonzero(SNAPSHOTS.system.numbers == z)
        order[rows] = rng.permutation(rows)
    mixed = SNAPSHOTS.positions[:1, order]
    words = STRUCTURE.doubt(mixed)
    assert STRUCTURE.doubt(mixed[:, order_of(words)]) is None


def test_the_mirror_image():
    words = STRUCTURE.doubt(-SNAPSHOTS.positions[:1])
    assert "mirror image" in words and "C8" in words and "atoms[" not in words


def test_other_bonds():
    x = SNAPSHOTS.positions[:1].copy()
    x[:, :10] += 5.0
    words = STRUCTURE.doubt(x)
    assert "C8-C14" in words and "atoms[" not in words


def test_a_batch_is_doubted_where_all_of_it_is():
    x = SNAPSHOTS.positions[:8].copy()
    x[:3] = x[:3, exchanged((1, 7))]
    assert STRUCTURE.doubt(x) is None
    assert STRUCTURE.doubt(x[:3]) is not None


def test_a_calculator_says_it_once(recwarn):
    right = SNAPSHOTS.system.to_atoms(SNAPSHOTS.positions[0])
    wrong = right[exchanged((1, 7))]
    wrong.calc = ScoreCalculator(MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong.get_forces()
        ReverseDiffusion(wrong, temperature_K=300, rng=1).run(2)
    assert len(recwarn) == 1
    assert "C0-H1" in str(recwarn.pop().message)
    # other atoms with the same calculator are looked at too
    calc = ScoreCalculator(MODEL)
    right.calc = calc
    assert not len(recwarn)
    right[exchanged((1, 7))].calc = calc
    assert len(recwarn) == 1


@pytest.mark.parametrize("committee", [False, True])
def test_it_says_so_without_being_attached(committee):
    wrong = SNAPSHOTS.system.to_atoms(SNAPSHOTS.positions[0])[exchanged((1, 7))]
    calc = ScoreCalculator([MODEL, MODEL] if committee else MODEL)
    with pytest.warns(UserWarning, match=names("C0-H1", "another order")):
        calc.get_potential_energy(wrong)


def test_a_target_in_another_order():
    right = SNAPSHOTS.system.to_atoms(SNAPSHOTS.positions[0])
    right.calc = ScoreCalculator(MODEL)
    network = copy.deepcopy(MODEL.networks[0])
    other = ScoreModel(MODEL.card, [network, *MODEL.networks[1:]])
    prior = network.prior
    prior.bonds[prior.bonds == 1] = -1
    prior.bonds[prior.bonds == 7] = 1
    prior.bonds[prior.bonds == -1] = 7
    dynamics = ReverseDiffusion(right, temperature_K=300, rng=1, target=other)
    with pytest.warns(UserWarning, match=names("C0-H7", "N6-H1")):
        dynamics.run(1)


def test_networks_without_bonds_have_no_structure():
    copper = ScoreModel.load("copper-vacancy")
    assert Structure.of(copper.networks[0], copper.system) is None


def test_single_draws_are_no_cause_for_doubt():
    """Whose hand is chosen at the end only."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            drawn = sample(MODEL, 1, noise=Noise(seed), device="cpu", levels=30, relax_steps=20)
            assert torch.isfinite(drawn).all()
