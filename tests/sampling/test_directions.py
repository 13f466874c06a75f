"""Steps along the directions in which atoms move: their law, their ratio, what is refused."""

import numpy as np
import pytest
import torch
from messages import names
from plane_well import KT, START, Well, basis

from diffmd_ase.noise import Noise
from diffmd_ase.sampling.directions import along, check_directions, split
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo

NORMAL = np.array([2.0, -1.0, 2.0]) / 3.0
PLANE, LINE = np.eye(3) - np.outer(NORMAL, NORMAL), np.outer(NORMAL, NORMAL)
DIRECTIONS = torch.as_tensor(np.stack([PLANE, LINE]))
# across both: the normal of the plane, two normals of the line
FREE = basis([[*NORMAL, 0, 0, 0], [0, 0, 0, 1, 2, 0], [0, 0, 0, 0, 2, 1]])
H = torch.tensor([0.01, 0.03], dtype=torch.float64)


def kernel(**changes):
    options = {"kT": KT, "h": H, "directions": DIRECTIONS}
    return EulerMaruyama(Well(), **(options | changes))


def test_a_step_is_gaussian_in_the_subspace(generator):
    count = 20_000
    x = torch.as_tensor(START).expand(count, 2, 3)
    forces = torch.randn(2, 3, generator=generator, dtype=torch.float64).expand_as(x)
    moved = (kernel().propose(x, forces, 0, None, Noise(3)) - x).flatten(-2).numpy()
    h = np.repeat(H.numpy(), 3)
    across = moved - moved @ FREE @ FREE.T
    assert abs(across).max() < 1e-15
    drift = FREE.T @ (h * forces[0].flatten().numpy() / KT)
    covariance = FREE.T @ np.diag(2 * h) @ FREE
    y = moved @ FREE - drift
    width = np.sqrt(np.diag(covariance))
    assert abs(y.mean(0) / width * np.sqrt(count)).max() < 4
    spread = np.sqrt((np.outer(width, width) ** 2 + covariance**2) / count)
    assert abs((y.T @ y / count - covariance) / spread).max() < 4


def test_the_ratio_is_that_of_the_densities_there(generator):
    """``log q(x|y) - log q(y|x)`` written out in three coordinates."""
    x = torch.as_tensor(START).expand(5, 2, 3)
    fx, fy = torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.float64)
    own = kernel()
    y = own.propose(x, fx, 0, None, Noise(1))
    covariance = FREE.T @ np.diag(2 * np.repeat(H.numpy(), 3)) @ FREE

    def log_q(end, start, forces):
        away = (end - start - H[:, None] * forces / KT).flatten(-2).numpy() @ FREE
        return -0.5 * np.einsum("mi,mi->m", away, away @ np.linalg.inv(covariance))

    expected = log_q(x, y, fy) - log_q(y, x, fx)
    np.testing.assert_allclose(own.log_proposal_ratio(x, fx, y, fy), expected, rtol=1e-9)
    without = kernel(directions=None).log_proposal_ratio(x, fx, y, fy)
    assert not np.allclose(without, expected, rtol=1e-2)


def test_what_moves_is_split():
    some, directions = split(np.array([True, False]))
    assert some.tolist() == [True, False] and directions is None
    some, directions = split(np.stack([np.zeros((3, 3)), np.eye(3)]))
    assert some.tolist() == [False, True] and directions is None
    some, directions = split(DIRECTIONS.numpy())
    assert some.all() and torch.equal(directions, DIRECTIONS)
    v = torch.as_tensor(START)
    np.testing.assert_allclose(along(DIRECTIONS, v)[0].numpy() @ NORMAL, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("directions", "facts"),
    [
        (torch.eye(3), ("(3, 3)", "(N, 3, 3)")),
        (torch.ones(2, 3, 3), ("no projectors", "n nᵀ")),
        (2 * DIRECTIONS, ("no projectors",)),
    ],
)
@pytest.mark.parametrize(
    "make",
    [kernel, lambda **o: HamiltonianMonteCarlo(Well(), kT=KT, timestep=1.0, masses=1.0, **o)],
)
def test_no_projectors(directions, facts, make):
    with pytest.raises(ValueError, match=names(*facts)):
        make(directions=directions)


def test_others_that_do_not_fit():
    with pytest.raises(ValueError, match=names("mean_free=True", "different directions")):
        check_directions(DIRECTIONS, mean_free=True)
    check_directions(DIRECTIONS[[0, 0]], mean_free=True)
    x = torch.zeros(3, 3, dtype=torch.float64)
    for make in (
        kernel(h=0.1),
        HamiltonianMonteCarlo(Well(), kT=KT, timestep=1.0, masses=1.0, directions=DIRECTIONS),
    ):
        with pytest.raises(ValueError, match=names("directions", "2", "(3, 3)")):
            make._coefficients(x) if isinstance(make, EulerMaruyama) else make._constants(x)
