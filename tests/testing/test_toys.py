"""Two modes far apart: plain score matching has their weights wrong, ranking has them right.

The benchmark of losses in small, and its pieces against exact values.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmd_ase.testing import assert_zscore

N = 20_000
LOW = 0.1
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return pytest.importorskip("toys", reason="an installed package has no benchmarks")


@pytest.fixture
def target(toys):
    means, rest = torch.tensor([[-4.0, 0.0], [4.0, 1.0]]), torch.tensor([[0.16, 0.25], [0.8, 0.2]])
    return toys.Mixture(means, *rest)


def error(toys, target, terms, seed):
    """Relative error of the smaller weight, by exact integration."""
    x = target.sample(N, torch.Generator().manual_seed(seed))
    config = toys.Config(width=32, depth=2, steps=600, batch_size=256)
    network = toys.fit(x, toys.contenders(x, LOW, seed)[terms], config, seed=seed)
    grid = toys.Grid.box((-9.0, 9.0), (-9.0, 9.0), 300)
    p = grid.probabilities(network, LOW)
    return float(p[grid.points[:, 0, 0] > 0].sum()) / 0.2 - 1


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_plain_score_matching_has_the_weights_wrong_and_ranking_right(toys, target, seed):
    assert abs(error(toys, target, "plain, all noise", seed)) > 0.6
    assert abs(error(toys, target, "ranking", seed)) < 0.03


@pytest.mark.slow
def test_noise_levels_told_apart_have_the_weights_right(toys, target):
    assert abs(error(toys, target, "antithetic + levels told apart", seed=1)) < 0.10


@pytest.mark.usefixtures("float64")
def test_mixture_is_the_density_of_its_draws(toys, target, generator):
    """Integral one; E[p'/p] over draws is one for any other normalised p'."""
    grid = toys.Grid.box((-9.0, 9.0), (-9.0, 9.0), 300)
    cell = (18.0 / 300) ** 2
    assert cell * float(target.log_density(grid.points).exp().sum()) == pytest.approx(1, abs=1e-9)
    x = target.sample(N, generator)
    assert_zscore((x[:, 0, 0] > 0).double().numpy(), 0.2)
    assert_zscore((x[:, 0, 0] - 4)[x[:, 0, 0] > 0].square().numpy(), 0.25)
    noisy = x + 0.7 * torch.randn(x.shape, generator=generator)
    ratio = torch.exp(target.log_density(noisy) - target.smoothed(0.7).log_density(noisy))
    assert_zscore(ratio.numpy(), 1.0)
    with pytest.raises(AssertionError, match="z = "):  # of draws without the noise it is not
        ratio = torch.exp(target.log_density(x) - target.smoothed(0.7).log_density(x))
        assert_zscore(ratio.numpy(), 1.0)


def slopes(toys, target, name, factor, batches=150):
    """Derivative of a contender's loss in c at ``E = -c log p_σ``, of independent batches."""
    seed = torch.Generator().manual_seed(5)
    terms = toys.contenders(target.sample(1000, seed), 4 * LOW, 0)[name]
    found = []
    for _ in range(batches):
        c = torch.tensor(factor, requires_grad=True)

        def energy(x, sigma, c=c):
            v = target.variances + sigma.square()[:, None]
            squares = (x - target.means).square().sum(-1)
            logs = target.weights.log() - torch.log(2 * math.pi * v) - 0.5 * squares / v
            return -c * torch.logsumexp(logs, 1)

        x = target.sample(64, seed)
        loss = sum(weight * term(energy, x, seed) for weight, term in terms)
        found.append(torch.autograd.grad(loss, c)[0].item())
    return np.array(found)


CONTENDERS = (
    "plain, all noise",
    "antithetic, all noise",
    "antithetic + levels told apart",
    "antithetic + Fokker-Planck",
    "antithetic, smallest noise",
    "antithetic + pairs",
    "antithetic + ranking",
    "pairs",
    "ranking",
)


def test_names_of_the_contenders(toys, target, generator):
    assert tuple(toys.contenders(target.sample(300, generator), LOW, 0)) == CONTENDERS


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_is_least_at_the_true_energy(toys, target, name):
    """All are consistent: what differs is how much they say about the weights of modes."""
    assert_zscore(slopes(toys, target, name, 1.0), 0.0)
    with pytest.raises(AssertionError, match="z = "):
        assert_zscore(slopes(toys, target, name, 1.15), 0.0)


@pytest.mark.usefixtures("float64")
def test_learned_potential_is_the_network_in_kT(toys, target, generator):
    x = target.sample(500, generator)
    network = toys.fit(x, toys.contenders(x, LOW, 0)["ranking"], toys.Config(steps=3), seed=0)
    potential, y = toys.Learned(network, LOW), x[:5]
    energy, forces, _ = potential(y)
    assert energy.dtype == forces.dtype == torch.float64
    network.double()
    sigma = torch.tensor([LOW])
    assert torch.allclose(energy, network(y, sigma), atol=1e-5)
    step = torch.zeros(1, 2)
    for axis in (0, 1):
        step[0, axis] = 1e-4
        slope = (network(y + step, sigma) - network(y - step, sigma)) / 2e-4
        assert torch.allclose(forces[:, 0, axis], -slope, atol=1e-4)
        step[0, axis] = 0


def test_snapshots_that_cannot_be_learned_from(toys, target, generator):
    x = target.sample(100, generator)
    for bad, words in (
        (x[:, 0], "shape"),
        (x[:2], "shape"),
        (x.where(x > 0, torch.nan), "finite"),
        (x * torch.tensor([1.0, 0.0]), "line"),
    ):
        with pytest.raises(ValueError, match=words):
            toys.fit(bad, [], toys.Config(steps=1), seed=0)

    def broken(energy, x, generator):
        return energy(x, torch.ones(1, dtype=x.dtype)).sum() * math.inf

    with pytest.raises(RuntimeError, match="step 0: use a smaller learning_rate"):
        toys.fit(x, [(1.0, broken)], toys.Config(steps=1), seed=0)


def test_metrics_of_mueller_brown(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = pytest.importorskip("mueller_brown", reason="an installed package has no benchmarks")
    here, there, outside = [0.0, 0.0], [0.5, 0.5], [-9.0, 0.0]
    a, b = np.array([here] * 3 + [there]), np.array([here] * 3 + [outside])
    # both have 3/4 in one bin; 1/4 is in a bin that is empty for the other
    p, q = np.array([0.75, 0.25, 1e-6]), np.array([0.75, 1e-6, 0.25])
    expected = (0.5 * (p + q) * np.log(p / q) ** 2).sum() / (0.5 * (p + q)).sum()
    assert bench.pmf_error(a, b) == pytest.approx(expected)
    assert bench.pmf_error(a, a) == 0
    edges = bench.js_edges(a, b)
    assert [len(e) for e in edges] == [101, 101] and edges[0][0] == -9 and edges[1][-1] == 0.5
    assert bench.js_error(a, b, edges) == pytest.approx(0.25 * math.log(2))
    assert bench.js_error(a, a, edges) == 0
    # the exact draws are those of kT = 23 on the surface: <U> by quadrature, in its units
    x = bench.SURFACE.sample(N, 3)
    energy = bench.SURFACE.target(x).energy
    nodes, weights = bench.SURFACE.quadrature(1)
    assert_zscore(energy.numpy(), float(weights @ bench.SURFACE.target(nodes).energy))
    surface = bench.SURFACE.target(torch.tensor([[*bench.START, 0.0]])).energy / 0.035
    assert float(surface) == pytest.approx(-146.70, abs=0.01)
