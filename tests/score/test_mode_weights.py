"""Moves between modes: the minimum of their likelihood, and what is left out of it."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch.nn.functional import softplus

from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_tables import parameter_numbers, term_tables
from diffmd_ase.score.linear_form import Form
from diffmd_ase.score.mode_weights import Pairs, weigh_modes
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.topology import Topology
from diffmd_ase.score.torsion_moves import TorsionProposals, free_rotors


def objective(pairs, start, precision, theta):
    away = theta - start
    logit = (pairs.change.double() @ theta + pairs.offset).double()
    return float(0.5 * away @ precision @ away + softplus(logit).sum())


@pytest.fixture
def problem(rng):
    """Moves of random features, where θ begins, and how well that is known."""
    pairs = Pairs(torch.tensor(rng.normal(size=(4000, 5))).float(), torch.zeros(4000).float())
    start = torch.tensor(rng.normal(size=5))
    return pairs, start, 3.0 * torch.eye(5, dtype=torch.float64)


def test_the_minimum(problem):
    """No θ nearby is better, and the curvature is that of the moves."""
    theta, curvature = weigh_modes(*problem)
    best = objective(*problem, theta)
    for n in range(5):
        step = torch.zeros(5).double()
        step[n] = 0.02
        above = [objective(*problem, theta + sign * step) - best for sign in (1, -1)]
        assert min(above) > 0
        own = sum(above) / 0.02**2 - float(problem[2][n, n])
        assert own == pytest.approx(float(curvature[n, n]), rel=0.02)


def test_it_never_gets_worse(problem, rng):
    """Features of any size, which single precision cannot tell apart."""
    pairs, start, precision = problem
    pairs = pairs._replace(
        change=pairs.change * torch.tensor(10.0 ** rng.uniform(0, 9, 4000))[:, None]
    )
    pairs = pairs._replace(change=pairs.change.float())
    theta, _ = weigh_modes(pairs, start, precision)
    assert objective(pairs, start, precision, theta) <= objective(pairs, start, precision, start)


def test_moves_far_beyond_all_snapshots_say_nothing():
    """Atoms on top of each other have features of any size."""
    some = Snapshots.read("alanine-dipeptide").take(slice(0, 600))
    x = torch.as_tensor(some.positions, dtype=torch.float32)
    prior = MechanicsPrior(term_tables(some.topology, x))
    orbits = parameter_numbers(prior, some.topology)
    form = Form(prior, orbits, torch.zeros(int(orbits.max()) + 1, dtype=torch.long))
    unit, generator = torch.ones(form.size).double(), torch.Generator().manual_seed(0)
    pairs = Pairs.drawn(form, unit, x, some.topology, generator, 4)
    assert 1200 < len(pairs.change) < 2400
    assert float(pairs.offset.min()) > -100


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("C2H6", []),
        ("CH3CH2OH", [{"C", "O"}]),  # the methyl is of one mode
        ("H3CNH2", []),
        ("isobutane", []),
        ("H2O2", [{"O"}]),
        ("N2H4", [{"N"}]),  # two hydrogens change places in a mirror, not by a turn
        ("2-propanol", [{"C", "O"}]),  # nor do two methyls
    ],
)
def test_methyls_are_of_one_mode(name, axes):
    if name == "2-propanol":
        atoms = molecule("isobutane")
        last = int(np.flatnonzero(atoms.numbers == 6)[-1])
        own = np.linalg.norm(atoms.positions - atoms.positions[last], axis=1)
        hydrogens = [n for n in np.argsort(own)[1:4] if atoms.numbers[n] == 1]
        assert len(hydrogens) == 3
        atoms.numbers[last] = 8
        del atoms[sorted(int(n) for n in hydrogens[1:])]
    else:
        atoms = molecule(name)
    topology = Topology.from_positions(atoms.numbers, atoms.positions[None])
    found = [set(atoms.symbols[topology.rotors[n]]) for n in free_rotors(topology)]
    assert found == axes


def test_what_has_several_modes_is_turned_most(generator):
    """φ and ψ of alanine dipeptide, in three of four moves and in their part of the others."""
    some = Snapshots.read("alanine-dipeptide").take(slice(0, 3000))
    topology, x = some.topology, torch.as_tensor(some.positions)
    axes = [frozenset(row) for row in topology.rotors.tolist()]
    assert {axes[n] for n in free_rotors(topology)} == {
        frozenset(row) for row in ((4, 6), (6, 8), (8, 14), (14, 16))
    }
    proposals = TorsionProposals(topology, x)
    y, _ = proposals.propose(x, generator)
    turned = (proposals.angles(y) - proposals.angles(x)).abs() > 1e-9
    share = dict(zip(axes, turned.double().mean(0).tolist(), strict=True))
    for row, found in share.items():
        expected = 1 / 14 + 3 / 4 * (row in (frozenset((6, 8)), frozenset((8, 14))))
        assert abs(found - expected) < 4 * (expected * (1 - expected) / len(x)) ** 0.5, row
