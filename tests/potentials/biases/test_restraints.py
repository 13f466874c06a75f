"""Restraints and walls: PLUMED's numbers, derivatives, work, restarts, bad input."""

import math

import numpy as np
import pytest
import torch
from ase import units
from plumed_oracle import Oracle

from diffmd_ase.potentials.biases.cvs import Function, Position, join
from diffmd_ase.potentials.biases.restraints import LowerWall, MovingRestraint, Restraint, UpperWall
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

KJ = units.mol / units.kJ
SYSTEM = System([6] * 2, [12.0] * 2)
PHI = Function(
    SYSTEM,
    lambda x: torch.atan2(x[..., 0, 0].sin(), x[..., 0, 0].cos()),
    names="phi",
    domains=[(-math.pi, math.pi)],
)
CV = join([PHI, Function(SYSTEM, lambda x: x[..., 1, 0], names="b")])
DECLARED = ["phi: PUT PERIODIC=-pi,pi UNIT=number", "b: PUT PERIODIC=NO UNIT=number"]
CASES = {
    "RESTRAINT AT=2.8,-0.4 KAPPA=50,20 SLOPE=3,-1": Restraint(
        CV, at=[2.8, -0.4], kappa=[50 / KJ, 20 / KJ], slope=[3 / KJ, -1 / KJ]
    ),
    "UPPER_WALLS AT=1.5,0.2 KAPPA=50,20 EXP=2,3 EPS=1,0.5 OFFSET=0.1,0": UpperWall(
        CV, at=[1.5, 0.2], kappa=[50 / KJ, 20 / KJ], exp=[2, 3], eps=[1, 0.5], offset=[0.1, 0]
    ),
    "LOWER_WALLS AT=-1.5,0.2 KAPPA=50,20 EXP=2,4 EPS=1,0.5 OFFSET=0.1,0": LowerWall(
        CV, at=[-1.5, 0.2], kappa=[50 / KJ, 20 / KJ], exp=[2, 4], eps=[1, 0.5], offset=[0.1, 0]
    ),
}


def positions(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=(*shape, 2, 3)) * 1.2)


def moving(**options):
    settings = {"steps": [2, 10, 20], "at": [[3.0, 0.0], [-3.0, 1.0], [-2.0, 1.0]]}
    settings["kappa"] = [[0.5, 0.2], [0.7, 0.2], [0.7, 0.1]]
    return MovingRestraint(CV, **settings | options)


@pytest.mark.parametrize("line", CASES)
def test_equal_to_plumed(line, tmp_path):
    action, _, rest = line.partition(" ")
    oracle = Oracle([*DECLARED, f"{action} ARG=phi,b {rest}"], folder=tmp_path)
    s = CV(positions(0, 40))
    value, slope = CASES[line].bias(s)
    for n, (phi, b) in enumerate(s.tolist()):
        theirs = oracle.at({"phi": phi, "b": b}, n)
        assert float(value[n]) == pytest.approx(theirs[0], abs=1e-11)
        np.testing.assert_allclose(-slope[n], theirs[1], rtol=0, atol=1e-11)
    assert (value > 0).sum() > 5


def test_moving_equal_to_plumed(tmp_path):
    """Over the period, before, within and after the schedule."""
    parts = ((2, "3,0", (0.5, 0.2)), (10, "-3,1", (0.7, 0.2)), (20, "-2,1", (0.7, 0.1)))
    schedule = " ".join(
        f"STEP{i}={step} AT{i}={at} KAPPA{i}={a * KJ},{b * KJ}"
        for i, (step, at, (a, b)) in enumerate(parts)
    )
    oracle = Oracle([*DECLARED, f"m: MOVINGRESTRAINT ARG=phi,b {schedule}"], folder=tmp_path)
    bias = moving()
    s = CV(positions(3))
    for step in range(25):
        if step:
            bias.update(positions(3), step)
        value, slope = bias.bias(s)
        theirs = oracle.at(dict(zip(("phi", "b"), s.tolist(), strict=True)), step)
        assert float(value) == pytest.approx(theirs[0], abs=1e-11)
        np.testing.assert_allclose(-slope, theirs[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("line", CASES)
def test_derivatives(line):
    check_potential(CASES[line], positions(2), rtol=1e-6)


def test_moving_derivatives():
    bias = moving()
    bias.update(positions(0), 7)
    check_potential(bias, positions(2), rtol=1e-6)


def test_work_of_positions_that_stay_is_the_change_of_the_bias():
    bias, x = moving(), positions(1, 3)
    before = bias(x).energy
    for step in range(1, 30):
        bias.update(x, step)
    torch.testing.assert_close(bias.work, bias(x).energy - before)
    assert bias.describe(x)["work"] is not None and bias.columns[-1] == "work"
    bias.select(torch.tensor([True, False, True]))
    assert bias.work.shape == (2,)


def test_work_obeys_jarzynski():
    """A harmonic trap that is dragged and stiffened: <exp(-W/kT)> = sqrt(k_0/k_1).

    Exact for any chain that leaves the Boltzmann law of each centre invariant; here the exact
    Ornstein-Uhlenbeck step of half a relaxation.
    """
    cv, kT, walkers = Position(SYSTEM, 0, 0), 0.5, 20_000
    bias = MovingRestraint(cv, steps=[0, 10], at=[0.0, 1.0], kappa=[1.0, 2.0])
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(walkers, 2, 3)
    x[:, 0, 0] = math.sqrt(kT) * torch.randn(walkers, generator=generator)
    for step in range(1, 11):
        bias.update(x, step)
        at, kappa = (float(v) for v in bias.centre(step))
        noise = math.sqrt(0.75 * kT / kappa) * torch.randn(walkers, generator=generator)
        x[:, 0, 0] = at + 0.5 * (x[:, 0, 0] - at) + noise
    weights = torch.exp(-bias.work / kT)
    z = (weights.mean() - math.sqrt(0.5)) / (weights.std() / math.sqrt(walkers))
    assert abs(float(z)) < 4
    # the control: work is not free energy
    assert bias.work.mean() - 0.5 * kT * math.log(2.0) > 10 * bias.work.std() / walkers**0.5


def test_moving_restart_is_uninterrupted():
    whole, first, second = moving(), moving(), moving()
    for step in range(1, 16):
        whole.update(positions(step, 3), step)
        if step <= 8:
            first.update(positions(step, 3), step)
    second.restore(first.checkpoint(), positions(8, 3), 8)
    for step in range(9, 16):
        second.update(positions(step, 3), step)
    x = positions(0, 3)
    assert torch.equal(whole(x).forces, second(x).forces) and torch.equal(whole.work, second.work)
    keep = torch.tensor([False, True, True])
    second.select(keep)  # a walker was lost
    assert torch.equal(second.work, whole.work[1:]) and whole.work.unique().numel() == 3


def test_moving_says_when_it_has_not_changed():
    bias, x = moving(), positions(0, 3)
    assert [step for step in range(1, 30) if bias.update(x, step)] == list(range(3, 21))


def test_nan_is_not_hidden_by_a_wall():
    x = positions(0, 2)
    x[1] = math.nan
    for bias in CASES.values():
        assert bias(x).energy.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Restraint(CV, at=[1.0, 2.0, 3.0], kappa=1.0), "at=.* one for each of phi, b"),
        (lambda: Restraint(CV, at=math.nan, kappa=1.0), "at=nan .*finite"),
        (lambda: UpperWall(CV, at=0.0, kappa=1.0, eps=0.0), "eps=0.0 must be positive"),
        (lambda: moving(steps=[2, 10, 10]), r"steps=\[2, 10, 10\] .*increasing"),
        (lambda: moving(steps=[2]), r"steps=\[2\] .*at least two"),
        (lambda: moving(at=[1.0, 2.0]), r"at=.* \(3,\) or \(3, 2\)"),
        (lambda: moving(kappa=math.inf), "kappa=inf .*finite"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
