"""Surfaces, differences and barriers of densities that are known, and whether errors cover."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.signal import lfilter

from diffmd_ase.analysis.free_energy.barrier import barrier
from diffmd_ase.analysis.free_energy.grid import Axis, Basin
from diffmd_ase.analysis.free_energy.reweighting import Samples
from diffmd_ase.analysis.free_energy.surface import (
    Surface,
    basin_difference,
    basin_difference_on_grid,
    block_scan,
    convergence,
    free_energy_surface,
)

KT = 2.5
REPEATS = 80
LEFT, RIGHT = Basin({"x": (-3.0, 0.0)}), Basin({"x": (0.0, 3.0)})


def profile(x):
    """F/kT of the double-welled density that the runs below are reweighted to."""
    return 0.4 * x**2 + 1.2 * np.cos(2.2 * x + 0.4)


def biased_run(rng, *, length=4000, walkers=1, rho=0.85):
    """AR(1) with the stationary law N(0,1), that is U + V = x²/2 kT; weights exp(V/kT)."""
    noise = rng.standard_normal((length, walkers)) * np.sqrt(1 - rho**2)
    noise[0] /= np.sqrt(1 - rho**2)
    x = lfilter([1.0], [1.0, -rho], noise, axis=0).ravel()
    walker = np.tile(np.arange(walkers), length)
    return Samples.of(x, 0.5 * x**2 - profile(x), walker=walker, names=["x"])


def probability(low, high):
    x = np.linspace(-8, 8, 160_001)
    p = np.exp(-profile(x))
    return p[(x >= low) & (x < high)].sum() / p.sum()


def normalised(surface):
    """-kT ln p of the bins."""
    p = np.exp(-surface.free_energy / surface.kT)
    return surface.free_energy + surface.kT * np.log(p.sum())


def torus_run(rng, length=6000):
    """Two angles that diffuse freely; weights of exp(-cos a - cos(b - a)/2)."""
    steps = rng.standard_normal((length, 2)) * 0.8
    s = (rng.uniform(-np.pi, np.pi, 2) + np.cumsum(steps, 0) + np.pi) % (2 * np.pi) - np.pi
    log_w = -np.cos(s[:, 0]) - 0.5 * np.cos(s[:, 1] - s[:, 0])
    return Samples.of(s, log_w, names=["a", "b"], periods=[2 * np.pi] * 2)


# ------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("walkers", [1, 10])
def test_surface_and_its_errors(rng, walkers):
    axis = Axis("x", -2.0, 2.0, 16)
    edges = np.linspace(-2, 2, 17)
    inside = probability(-2, 2)
    exact = [-KT * np.log(probability(a, b) / inside) for a, b in pairwise(edges)]
    z, naive = [], []
    for _ in range(REPEATS):
        samples = biased_run(rng, length=8000 // walkers, walkers=walkers)
        within = samples.take(np.abs(samples.s[:, 0]) < 2)
        surface = free_energy_surface(within, [axis], kT=KT)
        z.append((normalised(surface) - exact) / surface.error)
        count = np.histogram(within.s[:, 0], edges)[0]
        naive.append((normalised(surface) - exact) / (KT / np.sqrt(count)))
    z = np.array(z)
    assert (np.abs(z.mean(0)) < 4.0 / np.sqrt(REPEATS) + 0.15).all()
    # the larger of two errors covers a little more
    assert 0.8 < np.sqrt((z**2).mean()) < 1.25
    assert 0.9 < np.mean(np.abs(z) < 2) < 0.99
    assert np.sqrt((np.array(naive) ** 2).mean()) > 1.35  # correlation left out


@pytest.mark.parametrize("walkers", [1, 10])
def test_basin_difference_and_its_error(rng, walkers):
    exact = -KT * np.log(probability(0, 3) / probability(-3, 0))
    assert abs(exact) > 0.5
    z, between = [], []
    for _ in range(REPEATS):
        samples = biased_run(rng, length=6000 // walkers, walkers=walkers)
        found = basin_difference(samples, LEFT, RIGHT, kT=KT)
        z.append((found.value - exact) / found.error)
        assert 20 < found.n_effective < 6000
        unweighted = Samples.of(samples.s, names=["x"])
        between.append(basin_difference(unweighted, LEFT, RIGHT, kT=KT).value)
    assert abs(np.mean(z)) < 4 / np.sqrt(REPEATS)
    assert 0.8 < np.std(z) < 1.25
    assert abs(np.mean(between) - exact) > 0.4  # the negative control: no weights


def test_blocks_are_long_enough(rng):
    """Of a slow run, whose correlation time is a hundredth of it."""
    axis = Axis("x", -1.5, 1.5, 4)
    edges = np.linspace(-1.5, 1.5, 5)
    p = np.array([probability(low, high) for low, high in pairwise(edges)])
    z = []
    for _ in range(REPEATS):
        samples = biased_run(rng, length=16_000, rho=0.985)
        within = samples.take(np.abs(samples.s[:, 0]) < 1.5)
        surface = free_energy_surface(within, [axis], kT=KT)
        assert 8 <= len(surface.deviations) < 40
        z.append((normalised(surface) + KT * np.log(p / p.sum())) / surface.error)
    assert 0.8 < np.sqrt((np.array(z) ** 2).mean()) < 1.35


def test_two_angles(rng):
    """Of the marginal in the sum over b, and of the whole surface by quadrature."""
    axes = [Axis(n, -np.pi, np.pi, 12, periodic=True) for n in "ab"]
    fine = -np.pi + 2 * np.pi * (np.arange(240) + 0.5) / 240
    a, b = np.meshgrid(fine, fine, indexing="ij")
    p = np.exp(-np.cos(a) - 0.5 * np.cos(b - a))
    p /= p.sum()
    exact = -KT * np.log(p.reshape(12, 20, 12, 20).sum((1, 3)))
    # through the boundary: a from 2 to -2
    first = Basin({"a": (2.0, -2.0)})
    second = Basin({"a": (-1.0, 1.0), "b": (0.0, 2.0)})
    p_first = p[np.abs(a) > 2].sum()
    p_second = p[(np.abs(a) < 1) & (b > 0) & (b < 2)].sum()
    delta = -KT * np.log(p_second / p_first)
    z, gaps = [], []
    for _ in range(40):
        samples = torus_run(rng)
        surface = free_energy_surface(samples, axes, kT=KT)
        z.append((normalised(surface) - exact) / surface.error)
        found = basin_difference(samples, first, second, kT=KT)
        gaps.append((found.value - delta) / found.error)
    z = np.array(z)
    assert z.shape == (40, 12, 12)
    # rare bins, of about ten samples, have skew errors
    assert 0.8 < np.sqrt((z**2).mean()) < 1.35
    assert abs(np.mean(gaps)) < 4 / np.sqrt(40) and 0.7 < np.std(gaps) < 1.35


# ------------------------------------------------------------------------ surfaces


def test_few_samples_by_hand():
    samples = Samples.of([0.1, 0.2, 0.6, 0.7], np.log([1, 1, 3, 3]), names=["x"])
    surface = free_energy_surface(samples, [Axis("x", 0, 1.5, 3)], kT=2.0, blocks=2)
    np.testing.assert_allclose(surface.free_energy[:2], [2 * np.log(3), 0])
    assert surface.free_energy[2] == np.inf and np.isnan(surface.error[2])
    # block 0 has all of bin 0 and 1/4 of the weight: δ = ±3/4; of bin 1 ±1/4
    np.testing.assert_allclose(surface.error[:2], 2 * np.sqrt(2 * 2 * np.array([9, 1]) / 16))
    gap = surface.difference((0,), (1,))
    assert gap.value == pytest.approx(2 * np.log(3)) and gap.error == pytest.approx(4.0)
    assert np.isnan(surface.difference((2,), (1,)).error)


def test_axis_of_a_circle():
    axis = Axis("a", -np.pi, np.pi, 8, periodic=True)
    np.testing.assert_array_equal(axis.index(np.array([-np.pi, np.pi, 3 * np.pi])), [0, 0, 0])
    plain = Axis("a", 0, 1, 4)
    np.testing.assert_array_equal(
        plain.index(np.array([-0.1, 0, 0.99, 1.0, 1.1])), [-1, 0, 3, 3, -1]
    )
    np.testing.assert_allclose(plain.centres, [0.125, 0.375, 0.625, 0.875])


def test_kernels_widen_and_wrap(rng):
    s = (np.pi - 0.4 + 0.3 * rng.standard_normal(40_000) + np.pi) % (2 * np.pi) - np.pi
    samples = Samples.of(s, names=["a"], periods=[2 * np.pi])
    axis = Axis("a", -np.pi, np.pi, 200, periodic=True)
    surface = free_energy_surface(samples, [axis], kT=1.0, bandwidth=[0.4])
    angle = (axis.centres + 0.4 + 2 * np.pi) % (2 * np.pi) - np.pi
    expected = 0.5 * angle**2 / (0.3**2 + 0.4**2)
    near = np.abs(angle) < 1
    np.testing.assert_allclose(surface.free_energy[near], expected[near], atol=0.06)
    # reflected at the ends where there is no circle: all the weight stays
    flat = Samples.of(rng.uniform(0, 1, 100_000), names=["x"])
    edge = free_energy_surface(flat, [Axis("x", 0, 1, 50)], kT=1.0, bandwidth=[0.1])
    assert edge.free_energy.max() < 0.06


def test_basins_on_grids():
    axis = Axis("a", -np.pi, np.pi, 100, periodic=True)
    inside = Basin({"a": (2.0, -2.0)}).on_grid([axis])
    np.testing.assert_array_equal(inside, np.abs(axis.centres) >= 2)
    f = 0.5 * axis.centres**2
    found = basin_difference_on_grid(
        f, [axis], Basin({"a": (-1, 1)}), Basin({"a": (2, -2)}), kT=1.0
    )
    p = np.exp(-f)
    expected = -np.log(p[np.abs(axis.centres) > 2].sum() / p[np.abs(axis.centres) < 1].sum())
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s, x: free_energy_surface(s, [Axis("y", 0, 1, 5)], kT=1), "for the variables"),
        (lambda s, x: free_energy_surface(s, [Axis("x", 50, 60, 5)], kT=1), "no sample is inside"),
        (lambda s, x: free_energy_surface(s, x, kT=1, bandwidth=[1e-3]), "below half a bin"),
        (lambda s, x: free_energy_surface(s, x, kT=1, bandwidth=[1, 1]), "2 bandwidths"),
        (lambda s, x: free_energy_surface(s, x, kT=1, blocks=1), "two at least"),
        (lambda s, x: free_energy_surface(s, x, kT=1, blocks=400), "cannot make 400 blocks"),
        (lambda s, x: basin_difference(s, LEFT, Basin({"x": (9, 10)}), kT=1), "the run saw x in"),
        (lambda s, x: basin_difference(s, LEFT, Basin({"y": (0, 1)}), kT=1), "there is only x"),
        (lambda s, x: basin_difference(s, LEFT, Basin({"x": (1, 0)}), kT=1), "low < high"),
        (lambda s, x: Basin({"y": (0, 1)}).on_grid(x), "there is only x"),
        (lambda s, x: Axis("x", 1, 0, 5), "positive length"),
    ],
)
def test_mistakes(rng, call, words):
    with pytest.raises(ValueError, match=words):
        call(biased_run(rng, length=500), [Axis("x", -2, 2, 10)])


# ------------------------------------------------------------------------ time


def test_blocks_reach_the_error(rng):
    samples = biased_run(rng, length=60_000, rho=0.9)
    scan = block_scan(samples, LEFT, RIGHT, kT=KT)
    assert scan.plateau
    whole = basin_difference(samples, LEFT, RIGHT, kT=KT).error
    level = scan.errors[scan.lengths == 1024][0]
    assert level == pytest.approx(whole, rel=0.3) and scan.errors[0] < 0.5 * whole
    # a run that is short against its memory has no plateau
    slow = biased_run(rng, length=3000, rho=0.9995)
    assert not block_scan(slow, LEFT, RIGHT, kT=KT).plateau


def test_halves(rng):
    z = []
    for _ in range(60):
        found = convergence(biased_run(rng, length=3000), LEFT, RIGHT, kT=KT, points=2)
        z.append(found.z)
    assert abs(np.mean(z)) < 4 / np.sqrt(60) and 0.75 < np.std(z) < 1.3
    assert found.forward[-1] == found.backward[-1] and found.forward[0] == found.halves[0]
    # the negative control: a run that drifts
    samples = biased_run(rng, length=6000)
    moved = Samples.of(samples.s + 1.5 * (samples.progress() > 0.5)[:, None], names=["x"])
    assert abs(convergence(moved, LEFT, RIGHT, kT=KT).z) > 5
    # one half never saw the second basin
    stuck = Samples.of(np.r_[-np.ones(50), np.ones(50)], names=["x"])
    assert np.isnan(convergence(stuck, LEFT, RIGHT, kT=KT).z)


# ------------------------------------------------------------------------ passes


def surface_of(f, *axes):
    return Surface(axes, 1.0, f, np.zeros((4, *f.shape)))


def test_barrier_of_a_line():
    axis = Axis("x", -1.5, 1.5, 300)
    f = 8 * (axis.centres**2 - 1) ** 2 + 0.5 * axis.centres
    found = barrier(surface_of(f, axis), Basin({"x": (-2, 0)}), Basin({"x": (0, 2)}))
    grid = np.linspace(-1.5, 1.5, 30_001)
    exact = 8 * (grid**2 - 1) ** 2 + 0.5 * grid
    top = exact[np.abs(grid) < 0.5].max()
    assert found.from_a.value == pytest.approx(top - exact[grid < 0].min(), abs=0.01)
    assert found.from_b.value == pytest.approx(top - exact[grid > 0].min(), abs=0.01)
    assert abs(found.at[0]) < 0.03


def test_barrier_goes_round():
    """On a torus the lower pass leads through the boundary, in two variables round a hill."""
    a, b = (Axis(n, -np.pi, np.pi, 40, periodic=True) for n in "ab")
    f = -3 * np.cos(2 * a.centres)[:, None] + np.cos(a.centres - np.pi / 2 + 2)[:, None]
    f = f + 2 * np.cos(b.centres)[None]
    basins = Basin({"a": (-1, 1)}), Basin({"a": (2, -2)})
    found = barrier(surface_of(f, a, b), *basins)
    assert abs(found.at[1]) > 2.9  # round the hill in b
    line = f.min(1)
    passes = line[a.centres > 0].max(), line[a.centres < 0].max()
    start = line[np.abs(a.centres) < 1].min()
    assert found.from_a.value == pytest.approx(min(passes) - start)
    # without the circle there is only the higher one, on the other side
    side = (2, 3.2) if passes[0] > passes[1] else (-3.2, -2)
    beyond = barrier(surface_of(f, a, b), basins[0], Basin({"a": side}))
    assert beyond.from_a.value == pytest.approx(min(passes) - start)
    walled = [Axis(n, -np.pi, np.pi, 40) for n in "ab"]
    high = barrier(surface_of(f, *walled), basins[0], Basin({"a": side}))
    assert high.from_a.value == pytest.approx(max(passes) - start) and max(passes) > min(passes)
    f[10] = f[30] = np.inf
    assert barrier(surface_of(f, a, b), *basins) is None
