"""PLUMED below steps that are made together: the positions and files of one step at a time."""

import warnings

import numpy as np
import pytest
import torch
from four_atoms import CV, EXACT, PRINT, X, bias, kernel_of

from diffmd_ase.noise import Noise
from diffmd_ase.sampling.parallel import iterate_parallel
from diffmd_ase.sampling.rounds import Count
from diffmd_ase.sampling.run import run

STEPS = 64


def followed(way, lines, folder, x, **options):
    folder.mkdir()
    potential = bias([*CV, *lines], folder)
    states = [state for state, _ in way(kernel_of(potential), x, STEPS, noise=Noise(3), **options)]
    potential.finalize()
    return torch.stack([s.x for s in states])


def check(lines, tmp_path, x, **options):
    one = followed(run, lines, tmp_path / "one", x)
    many = followed(iterate_parallel, lines, tmp_path / "many", x, **options)
    assert float((one - many).abs().max()) < 1e-9 * 2e-3**0.5
    for file in ("HILLS", "KERNELS", "COLVAR"):
        names = [tmp_path / folder / file for folder in ("one", "many")]
        assert names[0].exists() == names[1].exists()
        if names[0].exists():
            a, b = (np.loadtxt(name) for name in names)
            assert a.shape == b.shape and len(a) > 2
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("walkers", [1, 3])
@pytest.mark.parametrize("name", ["METAD", "OPES_METAD"])
def test_windows_end_where_it_deposits(name, walkers, tmp_path):
    line = EXACT[name].replace("PACE=5", "PACE=20")
    x = X if walkers == 1 else X.expand(walkers, 4, 3).clone()
    count = Count()
    check([line, PRINT], tmp_path, x, count=count)
    assert count.sequential == 0 and count.rounds < STEPS / 2


@pytest.mark.parametrize("name", ["METAD of ENERGY", "MOVINGRESTRAINT"])
def test_what_counts_evaluations_goes_step_by_step(name, tmp_path):
    count, lines = Count(), [EXACT[name]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(lines, tmp_path, X, count=count)
    assert any("one by one" in str(w.message) for w in caught)
    assert count.sequential == STEPS
