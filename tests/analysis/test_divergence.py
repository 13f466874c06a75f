"""Divergences: exact draws lie at the floor, others above it, and correlation is seen."""

import numpy as np
import pytest

from diffmd_ase.analysis.divergence import (
    cell_rows,
    excess_divergence,
    excess_reweighted,
    jensen_shannon,
    torsion_rows,
    walker_groups,
)


def test_jensen_shannon_limits():
    assert jensen_shannon([1, 0], [0, 3]) == pytest.approx(np.log(2))
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == pytest.approx(0)
    p, q = np.array([0.5, 0.5]), np.array([0.75, 0.25])
    m = (p + q) / 2
    exact = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))
    assert jensen_shannon(p, q) == pytest.approx(exact)


def test_torsions_are_periodic():
    rows = torsion_rows([[0.1, -0.1], [0.1 + 2 * np.pi, -0.1], [np.pi, -np.pi]])
    h = rows.sum(0).reshape(64, 64)
    assert rows.shape == (3, 64 * 64) and h.sum() == 3 and h.max() == 2 and h[0, 0] == 1
    assert torsion_rows([[0.1], [-0.1]], bins=4).toarray().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_cells_outside_are_left_out():
    owner, cells = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 5, 2, 2, -1, 3])
    rows = cell_rows(owner, cells, (3, 4)).toarray()
    assert rows.tolist() == [[1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]


def torsions(n, rng, share=0.1):
    centre = np.where(rng.random(n) < share, 1.0, -1.5)
    phi = np.stack([centre + 0.4 * rng.normal(size=n), 0.9 * rng.normal(size=n)], -1)
    return torsion_rows((phi + np.pi) % (2 * np.pi) - np.pi)


@pytest.mark.parametrize("n", [200, 2000, 10_000])
def test_exact_draws_have_no_excess(n):
    values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        values.append(excess_divergence(torsions(8000, rng), torsions(n, rng), seed=seed))
    excess, error = np.array([(v.excess, v.error) for v in values]).T
    assert abs(excess.mean()) < 4 * excess.std(ddof=1) / 12**0.5
    assert np.mean((excess / error) ** 2) < 2  # errors are no smaller than the scatter
    assert np.mean([v.floor for v in values]) > 10 * abs(excess.mean())


def test_draws_of_another_law_have_an_excess(rng):
    found = excess_divergence(torsions(8000, rng), torsions(2000, rng, share=0.3))
    assert found.excess > 4 * found.error


def test_correlated_walkers_are_worth_less_than_their_frames():
    """Every frame five times: the floor is that of a fifth of the frames."""
    worth, excess = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = torsions(1000, rng)[np.repeat(np.arange(1000), 5)]
        found = excess_divergence(
            torsions(20_000, rng), rows, groups=np.repeat(np.arange(100), 50), seed=seed
        )
        worth.append(found.n_effective)
        excess.append(found.excess / found.error)
    assert np.mean(worth) == pytest.approx(1000, rel=0.15)
    assert abs(np.mean(excess)) < 4 / 8**0.5
    naive = excess_divergence(torsions(20_000, rng), rows)
    assert naive.excess > 4 * naive.error


def test_weights_that_change_the_law(rng):
    rows = torsions(8000, rng)
    same = excess_reweighted(rows, 0.3 * rng.normal(size=8000))
    assert abs(same.excess) < 4 * same.error + 5e-4
    assert same.n_effective == pytest.approx(8000 * np.exp(-0.09), rel=0.02)
    right = np.asarray(rows @ (np.arange(64 * 64) // 64 > 32).astype(float))
    other = excess_reweighted(rows, np.log(2.0) * right)
    assert other.excess > 4 * other.error


def test_groups_of_walkers():
    """Walkers where there are 8, pieces of time where there are fewer."""
    assert walker_groups(3, 8).tolist() == list(range(8)) * 3
    groups = walker_groups(40, 3).reshape(40, 3)
    assert len(np.unique(groups)) == 21  # the fewest of 20 or more, the same for each
    for w in range(3):
        assert (np.diff(groups[:, w]) >= 0).all() and len(np.unique(groups[:, w])) == 7
        assert np.intersect1d(groups[:, w], groups[:, w - 1]).size == 0


@pytest.mark.parametrize("walkers", [1, 10])
def test_few_walkers_and_many_have_no_excess(walkers):
    """A chain that moves to a new place every 20 frames is worth a twentieth of them."""
    worth, excess = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        frames = 10_000 // walkers
        rows = torsions(10_000, rng)[np.arange(10_000) // (20 * walkers) * walkers
                                     + np.arange(10_000) % walkers]  # fmt: skip
        found = excess_divergence(
            torsions(20_000, rng), rows, groups=walker_groups(frames, walkers), seed=seed
        )
        worth.append(found.n_effective)
        excess.append(found.excess / found.error)
    assert np.mean(worth) == pytest.approx(500, rel=0.25)
    assert abs(np.mean(excess)) < 4 / 8**0.5
