"""Frames with labels beside frames without: read, joined, weighted by how good the labels are."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from chains import chain_energy, chains, minus_gradient
from messages import names

from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.plan import plan
from diffmd_ase.score.sets import as_sets, joined
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System

KT = 300 * units.kB
CARBON = System(np.full(4, 6), np.ones(4))


@pytest.fixture(scope="module")
def frames():
    """Chains, of which every tenth has forces with an error, in kT/Å."""
    x = chains(np.random.default_rng(3), 600)
    exact = KT * minus_gradient(chain_energy, torch.as_tensor(x)).numpy()

    def labelled(noise, every=10):
        forces = np.full_like(x, np.nan)
        wrong = np.random.default_rng(4).normal(size=x.shape)
        forces[::every] = (exact + KT * noise * wrong)[::every]
        return Snapshots(CARBON, x, 300, forces=forces)

    return labelled


def fitted(data, weight):
    tables = fit_prior(data, sigma=0.002, force_weight=weight)
    prior = MechanicsPrior(tables).double()
    test = torch.as_tensor(chains(np.random.default_rng(9), 1000))
    exact = minus_gradient(chain_energy, test)
    own = minus_gradient(lambda y: prior(y.transpose(-1, -2)), test)
    return float((own - exact).norm() / exact.norm()), tables.get("label_weight")


def test_a_few_labels_help_and_bad_ones_do_no_harm(frames):
    blind, _ = fitted(replace(frames(0.0), forces=None), 0.0)
    good, much = fitted(frames(1.0), "auto")
    poor, little = fitted(frames(100.0), "auto")
    assert good < 0.3 * blind
    assert poor < 1.1 * blind
    # that is the weight, not the labels: with the one of the good, the bad do harm
    assert fitted(frames(100.0), float(much))[0] > 1.5 * blind
    # the variance of labels: a hundred times the error, a ten thousandth of the weight
    assert float(much / little) == pytest.approx(1e4, rel=0.7)


def test_weight_that_is_given(frames):
    """A number is taken as it is, and frames without labels count as before."""
    error, weight = fitted(frames(1.0), 100.0)
    assert weight is None and error < 0.4 * fitted(replace(frames(0.0), forces=None), 0.0)[0]


def test_frames_of_either_kind_in_one_file(tmp_path):
    rng, water = np.random.default_rng(0), molecule("H2O")
    images = []
    for n in range(12):
        atoms = water.copy()
        atoms.positions += 0.03 * rng.normal(size=(3, 3))
        if n % 3 == 0:
            forces = -KT * (atoms.positions - water.positions) / 0.03**2
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - 0.01 * n, forces=forces)
        images.append(atoms)
    ase.io.write(tmp_path / "mixed.extxyz", images)
    data = Snapshots.read(tmp_path / "mixed.extxyz", temperature_K=300)
    assert data.labelled.tolist() == [n % 3 == 0 for n in range(12)]
    assert np.isfinite(data.energies).sum() == 4
    np.savez(
        tmp_path / "mixed.npz",
        positions=data.positions,
        numbers=data.system.numbers,
        forces=data.forces,
        temperature_K=300.0,
    )
    again = Snapshots.read(tmp_path / "mixed.npz")
    assert (again.labelled == data.labelled).all()
    assert again.take(np.array([3, 4])).labelled.tolist() == [True, False]


def test_numbers_that_are_missing_in_part_are_refused():
    x = molecule("H2O").positions + 0.03 * np.random.default_rng(0).normal(size=(6, 3, 3))
    system = System.from_atoms(molecule("H2O"))
    forces = np.zeros_like(x)
    forces[2] = np.nan
    assert Snapshots(system, x, 300, forces=forces).labelled.sum() == 5
    forces[4, 1, 0] = np.nan
    with pytest.raises(ValueError, match=names("forces hold NaN", "frame 4, atom 1")):
        Snapshots(system, x, 300, forces=forces)
    with pytest.raises(ValueError, match=names("forces hold NaN", "frame 0")):
        Snapshots(system, x, 300, forces=np.full_like(x, np.nan))


def test_two_files_of_one_molecule_are_one_set(frames):
    data = frames(1.0)
    known, unknown = data.take(data.labelled), data.take(~data.labelled)
    (both,) = joined(as_sets([replace(unknown, forces=None), known]))
    assert len(both) == 600 and both.labelled.sum() == 60
    # evenly: the last tenth holds a tenth of them
    assert 8 <= both.labelled[-100:].sum() <= 12
    first = np.flatnonzero(both.labelled)[0]
    assert np.array_equal(both.forces[first], known.forces[0])
    assert np.array_equal(both.positions[first], known.positions[0])
    warm = replace(known, temperature_K=400.0)
    assert len(joined(as_sets([unknown, warm]))) == 2


def test_labels_are_for_the_energy_that_drives(frames):
    """Independent samples are drawn by a network that larger noise keeps from forces."""
    data = frames(1.0)
    fine, broad = plan(data, TrainConfig(force_weight="auto"))
    assert fine.force_weight == "auto" and broad.force_weight == 0
    bare = plan(replace(data, forces=None), TrainConfig())[1]
    assert broad == bare
    with pytest.raises(ValueError, match="force_weight"):
        TrainConfig(force_weight=-1)
    with pytest.raises(ValueError, match=names("force_weight=auto", "holds no forces")):
        plan(replace(data, forces=None), TrainConfig(force_weight="auto"))


def test_the_network_learns_from_the_labels_there_are(frames):
    torch.set_default_dtype(torch.float32)
    config = TrainConfig(
        steps=3, batch_size=32, width=8, evaluations=1, processes=1, force_weight="auto"
    )
    data = frames(1.0)
    model = train(
        [data.take(data.labelled), data.take(~data.labelled)], config=config, device="cpu"
    )
    history = model.card.experts[0].history
    assert all(np.isfinite(entry["validation_forces"]) for entry in history)
    assert "validation_forces" not in model.card.experts[1].history[0]
