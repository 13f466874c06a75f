"""Linear constraints of ASE: they hold to round-off, and the law is that of what is left."""

import numpy as np
import pytest
import torch
from ase.constraints import (
    FixAtoms,
    FixBondLength,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    Hookean,
)
from messages import names
from plane_well import KELVIN, KT, SPRING, START, K, Well, atoms, basis, z_scores

from diffmd_ase.adapters.batch import BatchReverseDiffusion, MonteCarlo
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.simulation.constraints import what_moves

OBLIQUE = np.array([1.0, -2.0, 0.5])
WALKERS = 400


def first(*rows):
    """Rows (m, 6): directions of atom 0 alone."""
    return [[*row, 0, 0, 0] for row in rows]


def both(*rows):
    return [[*row, 0, 0, 0] for row in rows] + [[0, 0, 0, *row] for row in rows]


# what is held, and the directions across which that is
CASES = {
    "cartesian": (lambda: FixCartesian(0, (True, False, True)), first([1, 0, 0], [0, 0, 1])),
    "plane": (lambda: FixedPlane(0, OBLIQUE), first(OBLIQUE)),
    "line": (lambda: FixedLine(0, OBLIQUE), first([2, 1, 0], [0, 0.5, 2])),
    "scaled": (lambda: FixScaled(0, (False, True, False)), first([0, 9, -2])),
    "two planes": (
        lambda: [FixedPlane(0, [1, 0, 0]), FixedPlane([0], OBLIQUE)],
        first([1, 0, 0], OBLIQUE),
    ),
    "all in planes": (lambda: FixedPlane([0, 1], OBLIQUE), both(OBLIQUE)),
    "atoms and plane": (
        lambda: [FixAtoms([0]), FixedPlane(1, OBLIQUE)],
        [*first(*np.eye(3)), [0, 0, 0, *OBLIQUE]],
    ),
    "centre and cartesian": (
        lambda: [FixCom(), FixCartesian([0, 1], (False, False, True))],
        [*both([0, 0, 1]), [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]],
    ),
}


def walkers(held, count=WALKERS):
    images = [atoms() for _ in range(count)]
    for image in images:
        image.set_masses([60.0, 60.0])
        image.set_constraint(held())
    images[0].calc = ScoreCalculator(Well())
    return images


def positions(images):
    return np.stack([image.positions for image in images])


@pytest.mark.parametrize("name", CASES)
def test_they_hold_and_the_law_is_that_of_what_is_left(name):
    held, rows = CASES[name]
    images = walkers(held)
    dyn = BatchReverseDiffusion(images, temperature_K=KELVIN, spring=SPRING, target="model", rng=3)
    dyn.run(120)
    x, free = positions(images), basis(rows)
    away = (x - START).reshape(-1, 6) @ np.transpose(rows)
    assert abs(away).max() < 1e-12
    assert abs(z_scores(x, free)).max() < 4
    assert np.array_equal(dyn.state.x.numpy(), x)
    # a negative control: all that moves and more would have another law
    assert abs(z_scores(x, np.eye(6))).max() > 4


@pytest.mark.parametrize("name", ["plane", "line", "centre and cartesian"])
def test_plain_steps_have_the_variance_of_their_step(name):
    """``kT/k / (1 - hk/2kT)`` along each normal mode of the subspace."""
    held, rows = CASES[name]
    images = walkers(held)
    BatchReverseDiffusion(images, temperature_K=KELVIN, spring=SPRING, rng=4).run(120)
    x, free = positions(images), basis(rows)
    assert abs((x - START).reshape(-1, 6) @ np.transpose(rows)).max() < 1e-12
    k, modes = np.linalg.eigh(free.T @ K @ free)
    y = (x - x.mean(0)).reshape(-1, 6) @ free @ modes
    exact = KT / k / (1 - k / (2 * SPRING) / 2 / KT)
    z = (y.var(0, ddof=1) / exact - 1) * np.sqrt(len(y) / 2)
    assert abs(z).max() < 4


def test_axes_are_held_exactly():
    one = atoms()
    one.set_constraint([FixCartesian(0, (True, False, False)), FixedLine(1, [0, 0, 1])])
    one.calc = ScoreCalculator(Well())
    ReverseDiffusion(one, temperature_K=KELVIN, spring=SPRING, rng=1).run(50)
    assert one.positions[0, 0] == START[0, 0]
    assert np.array_equal(one.positions[1, :2], START[1, :2])
    assert (one.positions[[0, 0, 1], [1, 2, 2]] != START[[0, 0, 1], [1, 2, 2]]).all()


def run(constraint, dyn, one):
    one.set_constraint(constraint)
    before = one.positions.copy()
    dyn.run(3)
    return one.positions - before


def test_they_are_what_they_are_when_the_run_goes_on():
    """Added, changed, changed in place and removed between two runs of one dynamics."""
    one = atoms()
    one.calc = ScoreCalculator(Well())
    dyn = ReverseDiffusion(one, temperature_K=KELVIN, spring=SPRING, rng=1)
    assert (run(None, dyn, one) != 0).all()
    assert (run(FixAtoms([0]), dyn, one)[0] == 0).all()
    plane = FixedPlane(1, [1.0, 0, 0])
    moved = run(plane, dyn, one)
    assert (moved[0] != 0).all() and moved[1, 0] == 0 and (moved[1, 1:] != 0).all()
    one.constraints[0].dir = np.array([0.0, 1.0, 0])
    before = one.positions.copy()
    dyn.run(3)
    moved = one.positions - before
    assert moved[1, 1] == 0 and moved[1, 0] != 0
    assert (run(None, dyn, one) != 0).all()
    one.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match=names("FixBondLengths", "FixAtoms", "FixedPlane")):
        dyn.run(1)


def test_batches_follow_too():
    images = walkers(lambda: None, 3)
    dyn = BatchReverseDiffusion(images, temperature_K=KELVIN, spring=SPRING, rng=1)
    dyn.run(1)
    images[1].set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="different constraints"):
        dyn.run(1)
    for image in images:
        image.set_constraint(FixAtoms([0]))
    before = positions(images)
    dyn.run(2)
    moved = positions(images) - before
    assert (moved[:, 0] == 0).all() and (moved[:, 1] != 0).all()


def test_refusals():
    one = atoms()
    one.calc = ScoreCalculator(Well())
    for held, facts in (
        (Hookean(0, 1, 1.0, 1.0), ("Hookean", "FixedLine", "restraint")),
        ([FixCom(), FixAtoms([0])], ("FixCom", "FixAtoms", "drop FixCom")),
        ([FixCom(), FixedPlane(1, OBLIQUE)], ("FixCom", "FixedPlane", "drop FixCom")),
        (FixCartesian([0, 1]), ("fixed", "nothing to simulate")),
        ([FixedLine([0, 1], [1, 0, 0]), FixedPlane([0, 1], [1, 0, 0])], ("nothing to simulate",)),
    ):
        one.set_constraint(held)
        with pytest.raises(ValueError, match=names(*facts)):
            ReverseDiffusion(one, temperature_K=KELVIN, spring=SPRING)
    single = one[:1]
    single.set_constraint(FixCom())
    single.calc = ScoreCalculator(Well())
    with pytest.raises(ValueError, match="one atom .* nothing to simulate"):
        ReverseDiffusion(single, temperature_K=KELVIN, spring=SPRING)


def kernels(directions):
    well, h = Well(), 1 / (2 * SPRING)
    leap = {"kT": KT, "timestep": 0.5, "masses": 5.0, "directions": directions}
    return {
        "metropolis": Metropolis(EulerMaruyama(well, KT, h, directions=directions), n_steps=2),
        "hmc": HamiltonianMonteCarlo(well, n_leapfrog=4, **leap),
        "ghmc": GeneralizedHMC(well, friction=0.5, n_leapfrog=2, **leap),
        "malt": MALT(well, friction=0.5, n_leapfrog=4, **leap),
    }


@pytest.mark.parametrize("kind", ["metropolis", "hmc", "ghmc", "malt"])
def test_a_kernel_with_directions(kind):
    held, rows = CASES["all in planes"]
    images = walkers(held)
    images[0].calc = None
    moving, _ = what_moves(images[0])
    dyn = MonteCarlo(images, kernels(torch.as_tensor(moving))[kind], rng=2)
    dyn.run(120)
    x = positions(images)
    assert abs((x - START).reshape(-1, 6) @ np.transpose(rows)).max() < 1e-12
    assert 0.3 < dyn.acceptance < 1
    assert abs(z_scores(x, basis(rows))).max() < 4
    with pytest.raises(ValueError, match=names("h = 0", "directions")):
        MonteCarlo(images, kernels(None)[kind], rng=2).run(1)
