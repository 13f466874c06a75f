"""Noise that is drawn again for the same frames, and frames that follow each other in time."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from diffmd_ase import ScoreModel, Snapshots
from diffmd_ase.score import force_field_fit
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.linear_fit import FOLDS, mixed
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork

SIGMA = 0.0012  # Å, that of the shipped model


def force_error(snapshots, held_out) -> float:
    """Relative, against the shipped model, which knows fifty times as many snapshots."""
    network = MechanicsNetwork(MechanicsConfig(depth=0), {}, fit_prior(snapshots, sigma=SIGMA))
    x = torch.as_tensor(held_out.positions, dtype=torch.float32).requires_grad_()
    energy = network(x, x.new_zeros(len(x)))
    own = -snapshots.kT * torch.autograd.grad(energy.sum(), x)[0].numpy()
    exact = ScoreModel.load("alanine-dipeptide").potential(device="cpu")(x.detach()).forces.numpy()
    return float(np.linalg.norm(own - exact) / np.linalg.norm(exact))


def test_more_draws_do_no_harm(monkeypatch):
    """Were a frame both learned from and left out, with other noise, ridges would be too small."""
    every = Snapshots.read("alanine-dipeptide")
    some, held_out = every.take(slice(0, 1000)), every.take(slice(2000, 2200))
    errors = []
    for most in (1, 3):
        monkeypatch.setattr(force_field_fit, "_MOST_DRAWS", most)
        errors.append(force_error(some, held_out))
    assert errors[1] < 1.02 * errors[0] < 0.2


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
