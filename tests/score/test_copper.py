"""Fcc copper with a vacancy, 31 periodic atoms at 900 K: snapshots by EMT, an e3nn score."""

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin

from diffmd_ase.noise import Noise
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frames():
    """Positions and EMT forces of 500 frames, 0.1 ps apart."""
    atoms = bulk("Cu", "fcc", a=3.68, cubic=True).repeat(2)
    del atoms[0]
    atoms.calc = EMT()
    rng = np.random.default_rng(1)
    dynamics = Langevin(
        atoms, 5 * units.fs, temperature_K=900, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    dynamics.run(300)
    positions, forces = [], []
    for _ in range(500):
        dynamics.run(20)
        positions.append(atoms.get_positions())
        forces.append(atoms.get_forces())
    return System.from_atoms(atoms), np.array(positions), np.array(forces)


@pytest.fixture(scope="module")
def model(frames):
    system, positions, _ = frames
    config = TrainConfig(
        network="equivariant", steps=300, batch_size=16, learning_rate=3e-3, max_minutes=2.5
    )
    return train(Snapshots(system, positions[:440], 900.0), config=config, seed=1)


def test_forces_of_frames_not_seen(model, frames):
    """From snapshots alone; zero forces and those of other frames must fail."""
    _, positions, forces = frames
    learned = model.potential()(torch.as_tensor(positions[440:])).forces.numpy()
    correlation = np.corrcoef(learned.ravel(), forces[440:].ravel())[0, 1]
    print(f"{correlation=:.4f} in {model.card.training['seconds']} s")
    assert correlation > 0.95  # 0.968
    other = np.roll(learned, 1, axis=0)
    assert np.corrcoef(other.ravel(), forces[440:].ravel())[0, 1] < 0.5


def test_dynamics_stays_in_the_crystal(model, frames):
    """16 walkers vibrate as the snapshots do; none melts or flies apart."""
    _, positions, _ = frames
    x = torch.as_tensor(positions[:16]).float()
    kernel = EulerMaruyama(model.potential(), kT=model.card.kT, h=0.1 / model.card.lambda_max)
    moved = []
    for state, _ in run(kernel, x, 300, noise=Noise(2), every=30):
        moved.append((state.x - x).square().sum(-1).mean().sqrt().item())
    assert np.isfinite(moved).all()
    # two uncorrelated frames are sqrt(2) amplitudes apart
    apart = positions[:200] - positions[200:400]
    assert moved[-1] < 1.5 * np.sqrt((apart**2).sum(-1).mean())
