"""Several draws of noise for each frame, and frames that follow each other in time."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from diffmd_ase import Snapshots
from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_tables import parameter_numbers, term_tables
from diffmd_ase.score.linear_fit import FOLDS, mixed
from diffmd_ase.score.linear_form import Form, Frames, gradient_noise, moments

SIGMA = 0.0012  # Å, that of the shipped model


@pytest.fixture(scope="module")
def plain():
    """A force field of alanine dipeptide, and some frames of it."""
    snapshots = Snapshots.read("alanine-dipeptide").take(slice(0, 20))
    frames = Frames.of(snapshots, 0.0)
    prior = MechanicsPrior(term_tables(snapshots.topology, frames.positions))
    orbits = parameter_numbers(prior, snapshots.topology)
    group = torch.zeros(int(orbits.max()) + 1, dtype=torch.long)
    return Form(prior, orbits, group), frames


def seeds(many: int):
    return (torch.Generator().manual_seed(seed) for seed in range(many))


def test_drive_of_many_draws_has_their_mean_and_less_noise(plain):
    form, frames = plain
    one, eight = (
        torch.stack([moments(form, frames, SIGMA, g, draws)[1] for g in seeds(100)])
        for draws in (1, 8)
    )
    variance, less = one.var(0), eight.var(0)
    z = (one.mean(0) - eight.mean(0)) / ((variance + less) / 100).sqrt()
    assert z.abs().max() < 4.5  # of 400 parameters
    assert 7 < float((variance / less).median()) < 9


def test_covariance_of_gradients_is_of_the_draws_that_are_used(plain):
    """Its part that is noise goes with 1/K: as much from 1 to 2 draws as from 2 to infinity."""
    form, frames = plain
    gram, drive = moments(form, frames, SIGMA, torch.Generator().manual_seed(0))
    theta = torch.linalg.lstsq(gram + 1e-3 * torch.diag(gram.diagonal()), drive).solution
    unit = torch.ones_like(theta)
    size = [
        torch.stack(
            [gradient_noise(form, unit, theta, frames, SIGMA, g, k).diagonal() for g in seeds(40)]
        ).mean(0)
        for k in (1, 2, 8)
    ]
    part = (size[1] - size[2]) / (size[0] - size[2])  # (1/2 - 1/8)/(1 - 1/8)
    assert float(part.median()) == pytest.approx(3 / 7, abs=0.05)


def test_folds_of_frames_in_time_are_parts_of_it():
    every = Snapshots.read("alanine-dipeptide").take(slice(0, 503))
    ordered = replace(every, correlation=20.0, checked=True)
    order = mixed(ordered, 10_000, torch.Generator().manual_seed(0))
    assert len(order) == len(set(order.tolist())) == 500
    folds = [order[n::FOLDS] for n in range(FOLDS)]
    ends = sorted((int(fold.min()), int(fold.max())) for fold in folds)
    assert all(a[1] < b[0] for a, b in pairwise(ends))
    assert not torch.equal(folds[0], folds[0].sort().values)
    whole = mixed(every, 10_000, torch.Generator().manual_seed(0))
    assert int(whole[::FOLDS].max()) > 400 > 100 > int(whole[::FOLDS].min())
