"""Mean first passage times by the state that was visited last, against exact ones."""

import numpy as np
import pytest
import torch
from messages import names
from plane_grid import PlaneGrid
from three_states import P, chain

from diffmd_ase.analysis.kinetics.passages import ChainTooShort, passages
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import MuellerBrown
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

BOX = ((-2.0, 1.6), (-1.0, 2.6))
A, B = (-0.558, 1.442), (0.623, 0.028)
# kT: mean first passage times A → B and B → A, slowest time (grid-converged, D = 1)
KNOWN = {15: (102.8, 11.20, 9.650), 20: (27.26, 5.99, 4.429), 23: (17.09, 4.85, 3.270)}


@pytest.mark.parametrize("walkers", [1, 40])
def test_a_chain_of_three_states(walkers):
    """From linear equations: (1 - P_kk) m = 1; the state between belongs to neither."""
    states = chain(80_000 // walkers, walkers, 3)
    found = passages(states == 0, states == 2, spacing=0.5)
    to_b, to_a = (np.linalg.solve(np.eye(2) - P[np.ix_(k, k)], [1, 1]) for k in ([0, 1], [2, 1]))
    for told, exact in ((found.to_b, 0.5 * to_b[0]), (found.to_a, 0.5 * to_a[0])):
        assert abs(told.value - exact) < 4 * told.error < 0.5 * exact
        assert abs(told.value - 2 * exact) > 4 * told.error
    assert min(found.counts) > 50
    share = to_b[0] / (to_b[0] + to_a[0])
    assert abs(found.share_a.value - share) < 4 * found.share_a.error


def test_bad_input():
    states = chain(100, 2, 0)
    with pytest.raises(ChainTooShort, match="passages from A to B"):
        passages(states == 0, states == 2, 1.0)
    with pytest.raises(ValueError, match="no frame in both"):
        passages(states == 0, states >= 0, 1.0)
    with pytest.raises(ValueError, match=names("(100, 2)", "(99, 2)")):
        passages(states == 0, states[1:] == 2, 1.0)


@pytest.mark.parametrize("kT", [15, 23])
def test_the_grid_is_an_oracle(kT):
    """The numbers of Müller–Brown, to 0.4 % on a coarse grid."""
    grid = PlaneGrid(MuellerBrown(scale=1.0), kT, BOX, 120)
    a, b = grid.disc(A, 0.1), grid.disc(B, 0.1)
    [to_b], [to_a] = (grid.mfpt(t)[grid.nearest(np.array([s]))] for t, s in ((b, A), (a, B)))
    assert (to_b, to_a, grid.timescales(1)[0]) == pytest.approx(KNOWN[kT], rel=4e-3)


@pytest.mark.slow
def test_mueller_brown_by_simulation():
    """Extrapolated in sqrt(h) at the highest temperature; no step alone would do."""
    kT, span, rows = 23, 3.0, []
    steps = (2e-3, 1e-3, 5e-4)
    for h in steps:
        kernel = EulerMaruyama(MuellerBrown(scale=1.0, k=100.0), kT=float(kT), h=h)
        x = torch.zeros(1500, 1, 3, dtype=torch.float64)
        x[:, 0, :2] = torch.tensor(A)
        x[::2, 0, :2] = torch.tensor(B)
        *_, (state, _) = run(kernel, x, int(1.0 / h), noise=Noise(1))
        seen = np.array([
            [np.linalg.norm(s.x[:, 0, :2].numpy() - c, axis=1) < 0.1 for c in (A, B)]
            for s, _ in run(kernel, state, int(span / h), noise=Noise(1))
        ])  # fmt: skip
        found = passages(seen[:, 0], seen[:, 1], h)
        rows.append([found.to_b, found.to_a])
    roots = np.sqrt(steps)
    design = np.stack((np.ones(3), roots), 1)
    for which, exact in enumerate(KNOWN[kT][:2]):
        values, errors = np.array([row[which][:2] for row in rows]).T
        weighted = design / errors[:, None]
        covariance = np.linalg.inv(weighted.T @ weighted)
        fit = covariance @ weighted.T @ (values / errors)
        assert abs(fit[0] - exact) < 4 * covariance[0, 0] ** 0.5 < exact, (fit, covariance)
