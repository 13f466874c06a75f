"""What the benchmarks share: times in turn, ratios with errors, files of snapshots, options."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from diffmd_ase.independent.weights import Weighted
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.testing import assert_zscore

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return pytest.importorskip("shared", reason="an installed package has no benchmarks")


def test_calls_alternate_and_the_first_round_is_left_out(shared):
    now, order = [0.0], []

    def call(name, *seconds):
        each = iter(seconds)

        def spend():
            order.append(name)
            now[0] += next(each)

        return spend

    calls = {"a": call("a", 100.0, 6.0, 8.0), "b": call("b", 100.0, 2.0, 4.0)}
    times = shared.alternating(calls, 2, clock=lambda: now[0])
    assert order == ["a", "b"] * 3
    assert times["a"].tolist() == [6.0, 8.0] and times["b"].tolist() == [2.0, 4.0]
    assert shared.ratios(times["a"], times["b"]) == (2.5, (2.0, 3.0))


def test_ratio_is_the_weighted_mean_over_groups(shared, generator):
    """Also in its error, by the estimator of the package."""
    logs = torch.randn(40 * 25, generator=generator)
    values = torch.rand(40 * 25, 3, generator=generator)
    weighted = Weighted(torch.zeros(len(logs), 1, 3), logs, groups=40)
    w = logs.exp().reshape(40, 25)
    parts = torch.einsum("gn,gnf->fg", w, values.reshape(40, 25, 3))
    for ours, theirs in zip(shared.ratio(parts, w.sum(1)), weighted.mean(values), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_error_of_a_ratio_is_its_spread(shared, generator):
    """Groups whose parts follow their totals: errors of means would be three times too large."""
    total = 1 + torch.rand(2000, 50, generator=generator)
    part = total * (0.3 + 0.05 * torch.randn(total.shape, generator=generator))
    mean, error = shared.ratio(part, total)
    assert_zscore(((mean - 0.3) / error).square().numpy(), 49 / 47)  # of Student's t
    with pytest.raises(AssertionError, match="z = "):
        wrong = part.std(1) / 50**0.5 / total.mean(1)
        assert_zscore(((mean - 0.3) / wrong).square().numpy(), 1.0)


def test_snapshots_are_read_as_they_were_saved(shared, tmp_path, rng):
    atoms = bulk("Cu", cubic=True)
    x = atoms.positions + 0.01 * rng.normal(size=(5, 4, 3))
    energies, forces = rng.normal(size=5), rng.normal(size=(5, 4, 3)).astype(np.float32)
    shared.save_snapshots(tmp_path / "x.npz", atoms, x, energies, forces, temperature_K=300.0)
    frames = Snapshots.read(tmp_path / "x.npz")
    np.testing.assert_allclose(frames.positions, x, atol=1e-6)
    np.testing.assert_allclose(frames.energies, energies)
    np.testing.assert_array_equal(frames.forces, forces)
    assert frames.temperature_K == 300.0 and frames.system.pbc.all()


def test_options(shared, monkeypatch):
    threads = torch.get_num_threads()
    parser = shared.timing_options("What for.\n\nMore.", steps=7, pairs=2)
    parser.add_argument("--threads", type=int, default=threads)
    monkeypatch.setattr("sys.argv", ["script", "--pairs", "3", "--json"])
    options = shared.parsed(parser)
    assert parser.description == "What for."
    assert (options.steps, options.pairs, options.json) == (7, 3, True)
    assert torch.get_num_threads() == threads
