"""Paths of least action: over the saddle, of known action; shooting against the exact committor."""

import numpy as np
import pytest
import torch
from messages import names
from plane_grid import PlaneGrid

from diffmd_ase import Snapshots
from diffmd_ase.analysis.kinetics.path_guess import nearest
from diffmd_ase.analysis.kinetics.transition_paths import shoot, spread_evenly, transition_path
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic, MuellerBrown
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.biases.cvs import RMSD
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.state import Evaluation

A, B = (-0.558224, 1.441726), (0.623499, 0.028038)
SADDLE, SECOND, BETWEEN = -40.6648, -72.2489, -80.7678  # energies on the way
SURFACE = MuellerBrown(scale=1.0, k=100.0)


def line(a, b, count: int) -> torch.Tensor:
    ends = torch.zeros(2, 1, 3, dtype=torch.float64)
    ends[0, 0, :2], ends[1, 0, :2] = torch.tensor(a), torch.tensor(b)
    return ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, count).double()[:, None, None]


@pytest.fixture(scope="module")
def found():
    return transition_path(SURFACE, line(A, B, 41), kT=15.0)


def test_mueller_brown(found):
    """Over the saddle (±0.1 kT), with the action of the two climbs; from a straight line."""
    assert found.converged and found.residual < 1.0
    top = found.energy[found.highest]
    assert abs(top - SADDLE / 15) < 0.1
    climbs = (SADDLE - (-146.6995) + SECOND - BETWEEN) / 15
    assert found.action == pytest.approx(climbs, abs=0.05)
    gaps = np.diff(found.length)
    assert gaps.max() < 1.2 * gaps.min()
    assert (np.diff(found.times) > 0).all()
    np.testing.assert_allclose(found.images[[0, -1], 0, :2], [A, B])
    straight = SURFACE(line(A, B, 41)).energy.max() / 15
    assert straight > top + 3  # the guess was no path


def test_there_and_back(found):
    """The same way; the action differs by the energies of the ends."""
    back = transition_path(SURFACE, found.images.flip(0), kT=15.0)
    ends = found.energy[-1] - found.energy[0]
    assert found.action - back.action == pytest.approx(ends, abs=0.02)


def test_downhill_is_free():
    """Into a well from its wall: no action; out of it, the energy."""
    well, x = Harmonic(2.0), line((1.0, 0.5), (0.01, 0.005), 31)
    down = transition_path(well, x, kT=0.5)
    assert abs(down.action) < 0.02
    up = transition_path(well, x.flip(0), kT=0.5)
    assert up.action == pytest.approx(1.25 / 0.5, abs=0.02)


class Ring(Potential):
    """A stiff valley around a circle, over hills of 4 kT; kT = 1."""

    def __call__(self, x):
        x = x.detach().requires_grad_()
        a, b, c = x[..., 0, :].unbind(-1)
        r = (a.square() + b.square()).sqrt()
        energy = 2e4 * (r - 1).square() + 2e4 * (c - 0.3 * a * b).square() + 4 * (b / r).square()
        return Evaluation(energy.detach(), -torch.autograd.grad(energy.sum(), x)[0])


def test_along_a_stiff_valley():
    """The action alone sticks in it: the string goes ahead."""
    x = line((-1.0, 0.0), (1.0, 0.0), 31)
    x[1:-1, 0, 1] += 0.1
    told = transition_path(Ring(), x, kT=1.0)
    assert told.converged and told.action == pytest.approx(4.0, abs=0.1)
    alone = transition_path(Ring(), x, kT=1.0, relaxation=0)
    assert not alone.converged or alone.action > 4.2


def test_committor_by_shooting():
    """One half on the barrier of a symmetric well, 0 and 1 in the states; the time runs out."""
    kernel = EulerMaruyama(DoubleWell(barrier=1.0, a=1.0, k=2.0), kT=0.5, h=0.01)
    images = line((-1.0, 0.0), (1.0, 0.0), 5)
    states = {"in_a": lambda x: x[:, 0, 0] < -0.8, "in_b": lambda x: x[:, 0, 0] > 0.8}
    told = shoot(kernel, images, **states, shots=300, noise=Noise(0))
    assert [told[0].value, told[-1].value] == [0.0, 1.0]
    assert abs(told[2].value - 0.5) < 4 * told[2].error < 0.2
    assert told[1].value < told[2].value < told[3].value
    short = shoot(kernel, images, **states, shots=20, noise=Noise(0), most=1)
    assert short[2].error >= 0.5  # nobody arrived: nothing is known


@pytest.mark.slow
def test_committor_of_the_grid(found):
    """Along the path, ±0.03 or the errors of shooting; at the saddle it is 0.26, not one half."""
    kT = 20.0
    grid = PlaneGrid(MuellerBrown(scale=1.0), kT, ((-2.0, 1.6), (-1.0, 2.6)), 270)
    q = grid.committor(grid.disc(A, 0.1), grid.disc(B, 0.1))
    kernel = EulerMaruyama(SURFACE, kT=kT, h=1e-4)
    images = found.images[found.highest - 4 : found.highest + 5]

    def within(centre):
        return lambda x: (x[:, 0, :2] - torch.tensor(centre).to(x)).norm(dim=1) < 0.1

    told = shoot(kernel, images, within(A), within(B), shots=400, noise=Noise(5))
    near = [grid.nearest(images[n, 0, :2].numpy()[None])[0] for n in range(len(images))]
    for estimate, exact in zip(told, q[near], strict=True):
        assert abs(estimate.value - exact) < 0.03 + 4 * estimate.error
    assert told[4].value < 0.4 < max(e.value for e in told)


class Swirl(Potential):
    conservative = False

    def __call__(self, x):
        return Evaluation(None, x.flip(-1))


def test_spread_evenly():
    x = line((0, 0), (1, 0), 6)
    assert torch.allclose(spread_evenly(x**2), x, atol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="no energy"):
        transition_path(Swirl(), line(A, B, 9), kT=1.0)
    with pytest.raises(ValueError, match=names("(4, 1, 3)")):
        transition_path(SURFACE, line(A, B, 4), kT=1.0)
    with pytest.raises(ValueError, match=names("kT=0.0")):
        transition_path(SURFACE, line(A, B, 9), kT=0.0)


def test_like_atoms_of_the_end_are_those_nearest_to_the_start():
    """A path between two basins is not to turn methyl groups as well."""
    data = Snapshots.read("alanine-dipeptide")
    a, b = (torch.as_tensor(data.positions[n]) for n in (0, 500))
    orders = torch.as_tensor(data.topology.permutations)
    found = [nearest(data.system, a, b[order]) for order in orders[::5]]
    assert all(torch.equal(one, found[0]) for one in found)
    away = RMSD(data.system, a)(b[orders])[:, 0]
    assert float(RMSD(data.system, a)(found[0])) == pytest.approx(float(away.min()))
    assert away.max() > away.min() + 0.1
