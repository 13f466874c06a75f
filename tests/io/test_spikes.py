"""A flipped bit of a coordinate is seen where it is large against what atoms do."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from messages import names

from diffmd_ase.io.read_trajectories import read_series
from diffmd_ase.io.spikes import spikes


@pytest.fixture
def walk(rng):
    """(T, 1, 3, 3) of a walk."""
    return 0.05 * rng.normal(size=(200, 1, 3, 3)).cumsum(0)


def test_one_coordinate_of_one_frame(walk):
    assert not len(spikes(walk))
    walk[70, 0, 2, 1] += 4.0
    assert spikes(walk).tolist() == [[70, 0, 2, 1]]


def test_what_is_no_damage(walk, rng):
    assert not len(spikes(rng.normal(size=(500, 2, 5, 3))))  # independent frames
    walk[100:] += 50.0  # once and for all
    assert not len(spikes(walk))
    wrapped = walk.copy()
    wrapped[70, 0, 1, 0] += 10.0  # another image
    assert len(spikes(wrapped)) == 1 and not len(spikes(wrapped, 10.0 * np.eye(3)))
    assert not len(spikes(walk[:2])) and not len(spikes(np.full_like(walk, np.nan)))


@pytest.mark.parametrize("name", ["x.extxyz", "x.traj"])
def test_files_say_so(walk, name, tmp_path):
    path = tmp_path / name

    def write():
        ase.io.write(path, [Atoms("H3", positions=x[0]) for x in walk])

    walk[70, 0, 2, 1] += 4.0
    write()
    with pytest.warns(UserWarning, match=names(name, "atom 2", "frame 70")):
        read_series([path])
    walk[80, 0, 1, 0] = 3e9
    write()
    with pytest.raises(ValueError, match=names(name, "frame 80", "atom 1", "damaged")):
        read_series([path])
