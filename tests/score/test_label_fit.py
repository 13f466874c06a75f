"""A force field from energies and forces of a few structures that follow no law."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import units
from chains import chain_energy, chains, minus_gradient
from messages import names

from diffmd_ase.score.baseline import BaselineValues
from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.label_fit import fit_labels
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

KT = 300 * units.kB
SHIFT = -321.0  # eV: the zero of an energy is anywhere


def loose(energy):
    """A chain with softer bonds and another torsion: what a cheap potential says."""
    return chain_energy(energy, stiff=300.0, turn=(0.2, -0.3, 0.4))


@pytest.fixture(scope="module")
def labelled():
    """80 chains, stretched and bent at random, so that they are no draws of anything."""
    rng = np.random.default_rng(3)
    x = chains(rng, 80) + 0.03 * rng.normal(size=(80, 4, 3))
    at = torch.as_tensor(x)
    return Snapshots(
        System(np.full(4, 6), np.ones(4)),
        x,
        300,
        energies=SHIFT + KT * chain_energy(at).numpy(),
        forces=KT * minus_gradient(chain_energy, at).numpy(),
    )


def misfit(tables, below=None):
    """Relative error of forces, and std of energies in kT, on exact draws of the chain."""
    x = torch.as_tensor(chains(np.random.default_rng(9), 500))
    prior = MechanicsPrior(tables).double()

    def own(y):
        energy = prior(y.transpose(-1, -2))
        return energy if below is None else energy + below(y)

    exact = minus_gradient(chain_energy, x)
    error = (minus_gradient(own, x) - exact).norm() / exact.norm()
    return float(error), float((own(x) - chain_energy(x)).detach().std())


def above(data, energy):
    x, none = torch.as_tensor(data.positions), np.zeros(0)
    values = KT * energy(x).numpy(), KT * minus_gradient(energy, x).numpy()
    return data.with_baseline(BaselineValues(*values, none, none, none, none.astype(int)))


def test_an_energy_of_the_form_is_found_from_few_structures(labelled):
    force, energy = misfit(fit_labels(labelled))
    assert force < 0.005
    assert energy < 0.02


def test_above_a_baseline_the_rest_is_found_and_its_repulsion_stays(labelled):
    data = above(labelled, loose)
    force, energy = misfit(fit_labels(data), loose)
    assert force < 0.001
    assert energy < 0.004
    # what is added is not the whole
    assert misfit(fit_labels(data))[0] > 0.1
    # 1/r⁶ and 1/r¹² of the ends, held at zero and free
    held, free = (fit_labels(data, repulsion_ridge=ridge)["theta"][-3:] for ridge in (1e8, 1e-8))
    assert (held[1:].abs() < 1e-3 * free[1:].abs()).all()
    assert held[0].abs() > 0.1  # not 1/r


def test_energies_say_what_forces_leave_open():
    """Two basins with few frames between them: forces alone do not tell how far they are apart."""
    rng = np.random.default_rng(5)
    x = chains(rng, 4000)
    ends = np.linalg.norm(x[:, 3] - x[:, 0], axis=1)
    x = np.concatenate([x[ends > 3.75][:40], x[ends < 2.95][:40]])
    at = torch.as_tensor(x)
    noisy = minus_gradient(chain_energy, at) + torch.as_tensor(3 * rng.normal(size=x.shape))
    data = Snapshots(
        System(np.full(4, 6), np.ones(4)),
        x,
        300,
        energies=KT * chain_energy(at).numpy(),
        forces=KT * noisy.numpy(),
    )
    test = torch.as_tensor(chains(rng, 4000))
    far = (test[:, 3] - test[:, 0]).norm(dim=-1)

    def offset(weight):
        prior = MechanicsPrior(fit_labels(data, energy_weight=weight)).double()
        wrong = prior(test.transpose(-1, -2)) - chain_energy(test)
        return abs(float(wrong[far > 3.75].mean() - wrong[far < 2.95].mean()))

    assert offset(300.0) < 0.1
    assert offset(0.0) > 3 * offset(300.0)


def test_frames_without_labels_are_refused(labelled):
    with pytest.raises(ValueError, match="with energies and with forces"):
        fit_labels(replace(labelled, energies=None))
    some = labelled.energies.copy()
    some[:3] = np.nan
    with pytest.raises(ValueError, match=names(3, 80)):
        fit_labels(replace(labelled, energies=some))
    box = System(np.full(4, 6), np.ones(4), np.eye(3) * 20, np.ones(3, bool))
    with pytest.raises(ValueError, match="periodic"):
        fit_labels(replace(labelled, system=box))
