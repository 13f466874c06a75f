"""What no snapshot had is named."""

import numpy as np
import pytest
import torch
from chains import chains

from diffmd_ase.geometry import angles, dihedrals, rotate_about
from diffmd_ase.score.extrapolation import coordinates_outside, extrapolation
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.uncertainty import force_errors
from diffmd_ase.system import System

NUMBERS = np.full(4, 6)
TOLD = Inputs.of(System(NUMBERS, np.ones(4)))


def network_of(tables):
    return MechanicsNetwork(MechanicsConfig(depth=0), {}, tables)


@pytest.fixture(scope="module")
def trans():
    """A network of chains of which none is cis, further ones of these, and the cis ones."""
    x = chains(np.random.default_rng(2), 9000)
    angle = dihedrals(x, np.array([[0, 1, 2, 3]]))[:, 0]
    near, far = x[np.abs(angle) > 2.0], x[np.abs(angle) < 1.0]
    data = Snapshots(System(NUMBERS, np.ones(4)), near[:2000], 300)
    tables = fit_prior(data, sigma=0.002)
    return (
        network_of(tables),
        torch.as_tensor(near[2000:4000]).float(),
        torch.as_tensor(far).float(),
    )


def test_what_was_never_seen_is_named(trans):
    network, held_out, cis = trans
    assert (extrapolation(network, held_out) > 1).float().mean() < 0.01
    assert (extrapolation(network, cis) > 1).all()
    words = [coordinates_outside(network, x, NUMBERS) for x in cis[:50]]
    assert all("torsion C1-C2" in w and "never seen" in w for w in words)
    assert any("is cis" in w for w in words)
    told = [coordinates_outside(network, x, NUMBERS) for x in held_out[:300]]
    assert sum(w is not None for w in told) < 4


def test_bonds_and_angles_have_ranges(trans):
    network, held_out, _ = trans
    x = held_out[0].clone()
    axis = (x[1] - x[0]) / (x[1] - x[0]).norm()
    x[0] -= 0.5 * axis
    assert extrapolation(network, x[None]) > 1
    assert "bond C0-C1 is 2." in coordinates_outside(network, x, NUMBERS)
    x = held_out[0].clone()
    normal = torch.linalg.cross(x[0] - x[1], x[2] - x[1])
    turn = angles(x[None], np.array([[0, 1, 2]]))[0] - 0.7
    x[0] = rotate_about(x[None], x[1][None], (x[1] + normal)[None], turn)[0, 0]
    assert "angle C0-C1-C2 is 40°" in coordinates_outside(network, x, NUMBERS)


def test_combinations_are_seen_by_their_leverage(trans):
    """All coordinates inside of their ranges, all at once at their ends."""
    network, held_out, _ = trans
    prior = network.prior
    stretched = held_out * 1.04
    _, high = prior.low_bonds, prior.high_bonds
    r = (stretched[:, 1:] - stretched[:, :-1]).norm(dim=-1)
    inside = (r < high).all(-1)
    lengths = (held_out[:, 1:] - held_out[:, :-1]).norm(dim=-1)
    longest = stretched[inside & (lengths.mean(-1) > 1.56)]
    assert len(longest) > 5
    usual = extrapolation(network, held_out).mean()
    assert extrapolation(network, longest).mean() > 1.5 * usual


def test_a_network_without_these_tables_says_nothing(trans):
    network, held_out, _ = trans
    names = ("whiten", "centre", "edge", "spread", "parameter", "torsion_gap")
    bare = {k: v for k, v in network.prior.state_dict().items() if k not in names}
    old = network_of(bare)
    assert extrapolation(old, held_out) is None and force_errors(old, held_out, TOLD) is None
    assert coordinates_outside(old, held_out[0], NUMBERS) is None
