"""COLVAR of a bias: what is written, by whom read, restarts, bad input."""

import math

import numpy as np
import pytest
import torch
from ase import units

from diffmd_ase.io.plumed_writer import PlumedFile
from diffmd_ase.potentials.base import Sum
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.recorded import Recorded
from diffmd_ase.system import System

KJ = units.mol / units.kJ
SYSTEM = System([6] * 4, [12.0] * 4)
CVS = [Torsion(SYSTEM, [0, 1, 2, 3], name="t"), Distance(SYSTEM, [0, 3], name="d")]


def positions(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=(*shape, 4, 3)))


def recorded(path, restart=False):
    grid = Grid([40, 80], [0.0, 0.0], [0.0, 12.0])
    bias = Metadynamics(
        CVS, kT=0.0258, sigma=0.3, height=0.02, pace=2, biasfactor=8, grid=grid, walkers="shared"
    )
    return Recorded(bias, path, every=2, timestep_ps=0.002, restart=restart)


def learn(bias, steps, walkers=3, first=1):
    for step in range(first, first + steps):
        bias.update(positions(step, walkers), step)
    return bias


def test_colvar(tmp_path):
    bias = recorded(tmp_path / "COLVAR")
    model = Sum(bias)  # as a term of a sum
    learn(model, 6)
    before = bias.inner.describe(positions(8, 3))
    assert not model.update(positions(7, 3), 7)
    assert model.update(positions(8, 3), 8)
    lines = (tmp_path / "COLVAR").read_text().splitlines()
    assert lines[0] == "#! FIELDS time walker t d bias rbias rct"
    assert lines[1:3] == ["#! SET min_t -pi", "#! SET max_t pi"]
    rows = np.loadtxt(lines)
    assert rows.shape == (12, 7)
    np.testing.assert_allclose(rows[:, 0], np.repeat([0.004, 0.008, 0.012, 0.016], 3))
    np.testing.assert_array_equal(rows[:, 1], [0, 1, 2] * 4)
    units_ = {"t": 1.0, "d": 0.1, "bias": KJ, "rbias": KJ, "rct": KJ}
    for column, (name, unit) in enumerate(units_.items(), 2):
        np.testing.assert_allclose(rows[-3:, column], before[name] * unit, rtol=1e-14)
    x = positions(9, 3)
    assert model.describe(x).keys() == {"t", "d", "bias", "rbias", "rct"}
    assert torch.equal(bias(x).energy, bias.inner(x).energy) and bias.inner.hills[1].numel() == 12


def test_restart_is_uninterrupted(tmp_path):
    whole = learn(recorded(tmp_path / "WHOLE"), 20)
    first = learn(recorded(tmp_path / "PARTS"), 10)
    saved = first.checkpoint()
    learn(first, 4, first=11)
    second = recorded(tmp_path / "PARTS", restart=True)
    second.restore(saved, positions(10, 3), 10)
    learn(second, 10, first=11)
    assert (tmp_path / "WHOLE").read_text() == (tmp_path / "PARTS").read_text()
    assert torch.equal(whole(positions(0)).energy, second(positions(0)).energy)


def test_the_start_has_a_row(tmp_path):
    """Once, also for a run that is killed before its first step, or goes on."""
    whole, parts = (recorded(tmp_path / name) for name in ("WHOLE", "PARTS"))
    saved = parts.checkpoint()
    again = recorded(tmp_path / "PARTS", restart=True)
    again.restore(saved, positions(0, 3), 0)
    for bias in (whole, again):
        for step in range(4):
            bias.begin(positions(step, 3), step)
            bias.update(positions(step + 1, 3), step + 1)
    saved = again.checkpoint()
    again = recorded(tmp_path / "PARTS", restart=True)
    again.restore(saved, positions(4, 3), 4)
    for bias in (whole, again):
        bias.begin(positions(4, 3), 4)
        learn(bias, 2, first=5)
    rows = np.loadtxt(tmp_path / "WHOLE")
    np.testing.assert_allclose(rows[:, 0], np.repeat([0.0, 0.004, 0.008, 0.012], 3))
    exact = CVS[1](positions(0, 3))[..., 0]
    np.testing.assert_allclose(rows[:3, 3], 0.1 * exact, rtol=1e-12)
    assert (tmp_path / "PARTS").read_text() == (tmp_path / "WHOLE").read_text()
    assert len(whole.inner.hills[1][0]) == 9  # none of the start


def test_lost_walkers_keep_the_numbers_of_the_others(tmp_path):
    bias = learn(recorded(tmp_path / "COLVAR"), 2)
    bias.select(torch.tensor([True, False, True]))
    learn(bias, 2, walkers=2, first=3)
    assert np.loadtxt(tmp_path / "COLVAR")[:, 1].tolist() == [0, 1, 2, 0, 2]


def test_bad_input(tmp_path):
    bias = recorded(tmp_path / "COLVAR")
    with pytest.raises(FileExistsError, match="restart=True"):
        recorded(tmp_path / "COLVAR")
    with pytest.raises(ValueError, match="every=0"):
        Recorded(bias.inner, tmp_path / "other", every=0)
    with pytest.raises(ValueError, match="expected \\['time', 'a'\\]"):
        PlumedFile(tmp_path / "COLVAR", ["time", "a"], {}, restart=True)


def test_numbers_survive_the_file(tmp_path):
    file = PlumedFile(tmp_path / "F", ["a", "b"], {"min_a": "-pi"}, restart=False)
    rows = np.array([[math.pi, -1e-300], [1 / 3, 1e22]])
    file.append(rows)
    length = file.length
    file.append(rows)
    file.truncate(length)
    np.testing.assert_array_equal(file.read(), rows)
    with pytest.raises(ValueError, match="fewer than"):
        file.truncate(10_000)
    with (tmp_path / "F").open("a") as cut:  # by a kill in the middle of a line
        cut.write("0.25 0.")
    again = PlumedFile(tmp_path / "F", ["a", "b"], {}, restart=True)
    again.append(rows)
    np.testing.assert_array_equal(again.read(), np.concatenate((rows, rows)))
