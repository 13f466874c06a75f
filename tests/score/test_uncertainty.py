"""Errors of forces are those that they have: of molecules, metals and liquids."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import chain_energy, chains, minus_gradient
from dimers import SIGMA, dimers, pull
from liquids import CONFIG, KELVIN, solution

from diffmd_ase.score.embedded_fit import fit_embedded
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.liquid_fit import fit_liquid
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.embedded import EmbeddedConfig, EmbeddedNetwork
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.networks.molecule import MechanicsConfig, MechanicsNetwork
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.uncertainty import compare_forces, force_errors
from diffmd_ase.system import System

NUMBERS = np.full(4, 6)


def test_a_molecule():
    """The energy lies in the form: of all components 68 % are within one standard error."""
    inside, ratio, test = [], [], torch.as_tensor(chains(np.random.default_rng(77), 300))
    exact = minus_gradient(chain_energy, test)
    for seed in range(16):
        x = chains(np.random.default_rng(100 + seed), 500)
        data = Snapshots(System(NUMBERS, np.ones(4)), x, 300)
        network = MechanicsNetwork(
            MechanicsConfig(depth=0), {}, fit_prior(data, sigma=0.002, seed=seed)
        )
        network = network.double()
        own = minus_gradient(lambda y, n=network: n(y, torch.zeros(len(y))), test)
        error = force_errors(network, test, Inputs.of(data.system))
        off = (own - exact).abs()
        inside.append(float((off < error).double().mean()))
        ratio.append(float(off.norm() / error.norm()))
    assert 0.6 < np.mean(inside) < 0.75
    # errors of half the size would not do
    assert 0.8 < np.mean(ratio) < 1.25
    told = compare_forces(network.float(), data)
    assert told.statistical == pytest.approx(float(error.norm() / exact.norm()), rel=0.2)
    assert told.found is None and not told.misfit


def test_a_metal():
    """A bond has one dimension, so that errors of a fit go up and down together: eight fits."""
    test, inside, ratio = dimers(300, 300, seed=99), [], []
    told = Inputs.of(test.system, dtype=torch.float64)
    d = test.positions[:, 0] - test.positions[:, 1]
    r = np.linalg.norm(d, axis=-1, keepdims=True)
    on_one = pull(r) / test.kT * d / r
    exact, x = torch.tensor(np.stack([on_one, -on_one], axis=1)), torch.as_tensor(test.positions)
    for seed in range(8):
        data = dimers(300, 300, seed=seed)
        tables = fit_embedded(data, cutoff=5.5, functions=12, sigma=SIGMA, seed=seed)
        network = EmbeddedNetwork(EmbeddedConfig(functions=12), tables).double()
        own = minus_gradient(lambda y, n=network: told.energy(n)(y, y[:, 0, 0]), x)
        off, error = (own - exact).abs(), force_errors(network, x, told)
        inside.append(float((off < error).double().mean()))
        ratio.append(float(off.norm() / error.norm()))
    assert 0.5 < np.mean(inside) < 0.8
    assert 0.6 < np.mean(ratio) < 1.5


def test_a_liquid(rng):
    """Snapshots of no energy that the form holds: fits scatter as their errors say."""
    atoms, scores, errors, x = solution(rng, others=()), [], [], None
    system = System.from_atoms(atoms)
    told = Inputs.of(system, dtype=torch.float64)
    for seed in range(6):
        positions = atoms.positions + 0.06 * rng.normal(size=(100, len(atoms), 3))
        data = Snapshots(system, positions, temperature_K=KELVIN)
        x = torch.as_tensor(positions[:20]) if x is None else x
        network = fit_liquid(data, CONFIG, sigma=0.005, seed=seed).double()
        scores.append(minus_gradient(lambda y, n=network: told.energy(n)(y, y[:, 0, 0]), x))
        errors.append(force_errors(network, x, told))
    scatter = torch.stack(scores).var(0).mean().sqrt()
    assert 0.8 < float(scatter / torch.stack(errors).square().mean().sqrt()) < 1.4


def test_forces_that_snapshots_carry_tell_the_misfit():
    """Labels that are off by noise, a known one for each element of a chain."""
    rng = np.random.default_rng(5)
    x = torch.as_tensor(chains(rng, 600))
    system = System(np.array([6, 6, 8, 8]), np.ones(4))
    noise = np.array([3.0, 3.0, 6.0, 6.0])[:, None] * rng.normal(size=x.shape)
    data = Snapshots(system, x.numpy(), 300)
    forces = data.kT * (minus_gradient(chain_energy, x).numpy() + noise)
    tables = fit_prior(data, sigma=0.002)
    network = MechanicsNetwork(MechanicsConfig(depth=0), {}, tables)
    told = compare_forces(network, replace(data, forces=forces, checked=True))
    assert told.found > told.statistical
    assert told.misfit["C"] == pytest.approx(3.0 * data.kT, rel=0.1)
    assert told.misfit["O"] == pytest.approx(6.0 * data.kT, rel=0.1)


def test_error_bars_of_a_model_hold_the_misfit():
    """Of water, whose forces beyond 6 Å no form of it holds: what was found in training."""
    model, snapshots = ScoreModel.load("water"), Snapshots.read("water")
    potential = model.potential(device="cpu")
    x = torch.as_tensor(snapshots.positions[:20], dtype=torch.float32)
    error, forces = potential.force_errors(x), potential(x).forces
    told = model.card.force_error
    assert told.found > 1.5 * told.statistical
    assert float(error.norm() / forces.norm()) == pytest.approx(told.found, rel=0.1)
    oxygen = torch.as_tensor(snapshots.system.numbers == 8)
    assert float(error[:, oxygen].min()) >= told.misfit["O"] - 1e-6
