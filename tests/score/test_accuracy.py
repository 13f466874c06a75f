"""The learned model of alanine dipeptide against its true force field, at the default budget.

One training with the default configuration, then every claim of docs/measured.md on it, to within
what another seed or another sample may change. The force field that made the snapshots is asked
only here, to judge.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffmd_ase.analysis.divergence import excess_divergence, torsion_rows
from diffmd_ase.geometry import dihedrals, distances, signed_volumes
from diffmd_ase.independent.draws import sample
from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

openmm = pytest.importorskip("diffmd_openmm")
pytestmark = pytest.mark.slow

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)


@pytest.fixture(scope="module")
def snapshots():
    return Snapshots.read("alanine-dipeptide")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """``diffmd train alanine-dipeptide``; DIFFMD_TEST_MODEL names one made before."""
    made = os.environ.get("DIFFMD_TEST_MODEL")
    if made:
        return ScoreModel.load(made)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    command = [sys.executable, "-m", "diffmd_ase", "train", "alanine-dipeptide", "-o", str(path)]
    subprocess.run([*command, "--no-progress"], check=True)
    return ScoreModel.load(path)


@pytest.fixture(scope="module")
def held_out(snapshots, model):
    """Snapshots that training has not seen (its split, its seed)."""
    config = model.card.training["config"]
    seed = model.card.training["seed"]
    return snapshots.split(config["validation_fraction"], seed=seed)[1]


def torsion_maps(x):
    return dihedrals(x, np.array([PHI, PSI]))


def bond_lengths(x, topology):
    return distances(x, topology.bonds)


def test_training_takes_five_minutes(model):
    """296 s; 311 s where other programs had half of the machine, and one step takes longer."""
    assert model.card.training["seconds"] < 345


@pytest.mark.parametrize("which", ["trained", "shipped"])
def test_forces_and_energies_of_held_out_snapshots(which, model, held_out):
    """Of the model of a demo run, and of the shipped one, which held out the same snapshots."""
    model = model if which == "trained" else ScoreModel.load("alanine-dipeptide")
    atoms, mechanics = openmm.alanine_dipeptide()
    truth = openmm.OpenMMPotential(System.from_atoms(atoms), mechanics)
    x = torch.as_tensor(held_out.positions[:2000])
    true, learned = truth(x), model.potential()(x)
    a, b = true.forces.flatten().numpy(), learned.forces.flatten().numpy()
    correlation = np.corrcoef(a, b)[0, 1]
    relative = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
    difference = (true.energy - learned.energy).numpy() / model.card.kT
    right = torsion_maps(x.numpy())[:, 0] > 0
    offset = difference[right].mean() - difference[~right].mean()
    energies = np.corrcoef(true.energy.numpy(), learned.energy.numpy())[0, 1]
    spread = float(difference.std())
    print(f"{correlation=:.5f} {relative=:.4f} {energies=:.5f} {spread=:.3f} {offset=:.2f} kT")
    assert relative < 0.022  # 0.017; the correlation, 0.9999, is 1 - relative²/2
    assert correlation > 0.9997
    assert spread < 0.22  # 0.13 to 0.17 kT; the correlation is 0.9996
    assert energies > 0.9992
    assert abs(offset) < 0.5  # -0.10 to -0.07 kT over three seeds, standard error 0.13
    # control: forces of shuffled frames must not pass
    assert np.corrcoef(a, np.roll(b, 66))[0, 1] < 0.5


def test_bond_widths_of_dynamics(model, snapshots):
    topology = snapshots.topology
    x = torch.as_tensor(snapshots.positions[:256]).float()
    kernel = EulerMaruyama(model.potential(), kT=model.card.kT, h=2e-5, mean_free=True)
    frames = [s.x.numpy() for s, _ in run(kernel, x, 3000, noise=Noise(1), every=20)][25:]
    got = bond_lengths(np.concatenate(frames), topology).std(0)
    expected = bond_lengths(snapshots.positions, topology).std(0)
    print("bond std ratios", np.round(got / expected, 3))
    # 1.006 to 1.026: the step alone widens the stiffest by (1 - hλ/2)^-½ = 1.028
    assert np.all((0.995 < got / expected) & (got / expected < 1.035))


def test_iid_samples(model, snapshots):
    topology = snapshots.topology
    x = sample(model, 4000, noise=Noise(2)).double().numpy()
    lengths, reference = (bond_lengths(p, topology) for p in (x, snapshots.positions))
    intact = (np.abs(lengths - reference.mean(0)) < 6 * reference.std(0)).all(1)
    hand = np.sign(signed_volumes(snapshots.positions[0], topology.centres))
    right = (signed_volumes(x, topology.centres) * hand > 0).all(1)
    good = (intact & right).mean()
    maps, truth = torsion_maps(x), torsion_maps(snapshots.positions)
    divergence = excess_divergence(torsion_rows(truth), torsion_rows(maps))
    positive = (maps[:, 0] > 0).mean()
    print(f"{good=:.4f} {positive=:.4f}", divergence)
    assert good > 0.997  # 100 %; where training had less of a machine, 1 of 1000 was not
    # 4.4 ± 0.3 %; 2.8 % of the data, and of models of other seeds
    assert 0.02 < positive < 0.056
    # 0.008 ± 0.002; 0.015 where five minutes on a busy machine made half as many steps
    assert -0.004 < divergence.excess < 0.022
    assert divergence.error < 0.008


def test_no_walker_is_lost(model, snapshots):
    x = torch.as_tensor(snapshots.positions[:64]).float()
    h = 0.2 / model.card.lambda_max
    kernel = EulerMaruyama(model.potential(), kT=model.card.kT, h=h, mean_free=True)
    state = None
    for state, _ in run(kernel, x, 20_000, noise=Noise(3), every=5_000):
        assert len(state.x) == 64
    lengths = bond_lengths(state.x.double().numpy(), snapshots.topology)
    reference = bond_lengths(snapshots.positions, snapshots.topology)
    assert (np.abs(lengths - reference.mean(0)) < 8 * reference.std(0)).all()
