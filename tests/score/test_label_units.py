"""Labels that are not in eV, or of another temperature, are seen from positions alone."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.units import kB, kcal, mol
from messages import names

from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.score.label_units import doubts, energy_factor, force_doubt, force_factor
from diffmd_ase.score.plan import TrainConfig, plan
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

KELVIN = 300.0
ETHANOL = molecule("CH3CH2OH")
STIFF = 8.0  # eV/Å²


def springs(rng, base, *, count=400, fixed=None):
    """Exact frames, energies and forces of atoms on springs to their places."""
    width = np.sqrt(kB * KELVIN / STIFF)
    away = width * rng.standard_normal((count, len(base), 3))
    if fixed is not None:
        away[:, fixed] = 0.0
    energies, forces = 0.5 * STIFF * (away**2).sum((1, 2)), -STIFF * away
    return Snapshots(
        System.from_atoms(base), base.positions + away, KELVIN, energies=energies, forces=forces
    )


def copper():
    return bulk("Cu", cubic=True) * (2, 2, 2)


def slab(rng):
    """Copper whose lowest layer is held, as where its forces are those of a relaxed crystal."""
    base = copper()
    fixed = base.positions[:, 2] < 0.1
    frames = springs(rng, base, fixed=fixed)
    # what holds atoms in their places says nothing of the temperature
    held = rng.standard_normal((len(frames), int(fixed.sum()), 3))
    frames.forces[:, fixed] = 10 * held
    return frames


@pytest.mark.parametrize("case", ["molecule", "crystal", "slab", "wrapped"])
def test_right_forces_have_the_factor_one(rng, case):
    if case == "molecule":
        frames = springs(rng, ETHANOL)
    elif case == "slab":
        frames = slab(rng)
    else:
        frames = springs(rng, copper())
    if case == "wrapped":
        cell = np.diag(frames.system.cell)
        frames = replace(frames, positions=frames.positions % cell)
    factor = force_factor(frames)
    assert abs(factor.value - 1) < 4 * factor.error < 0.3
    assert not doubts(frames) and force_doubt(frames) is None
    # the control: of another size they are off by many errors
    wrong = force_factor(replace(frames, forces=1.6 * frames.forces))
    assert abs(wrong.value - 1) > 4 * wrong.error


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        (mol / kcal, "kcal/mol/Å"),
        (96.485, "kJ/mol/Å"),
        (964.85, "kJ/mol/nm"),
        (1 / 51.422, "hartree/bohr"),
        (1 / 27.211, "hartree/Å"),
        (1 / (kB * KELVIN), "kT/Å"),
        (-1.0, "gradient"),
        (-mol / kcal, "kcal/mol/Å"),
    ],
)
def test_units_of_forces_are_named_with_the_remedy(rng, factor, name):
    frames = springs(rng, ETHANOL)
    frames = replace(frames, forces=factor * frames.forces, source="s.npz")
    [words] = doubts(frames)
    assert name in words and "s.npz" in words and "eV/Å" in words
    by = float(words.split("multiply them by ")[1])
    assert by == pytest.approx(1 / factor, rel=1e-3)
    with pytest.raises(ValueError, match=names("force_weight=10", "s.npz")):
        plan(frames, TrainConfig(force_weight=10))
    assert plan(frames, TrainConfig())  # forces that are not used are no fault


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        (mol / kcal, "kcal/mol"),
        (96.485, "kJ/mol"),
        (1 / 27.211, "hartree"),
        (1 / len(ETHANOL), "eV per atom"),
    ],
)
def test_units_of_energies(rng, factor, name):
    frames = springs(rng, ETHANOL)
    assert 0.8 < energy_factor(frames) < 1.5
    frames = replace(frames, energies=factor * frames.energies - 4e5)
    [words] = doubts(frames)
    assert name in words
    assert float(words.split("multiply them by ")[1]) == pytest.approx(1 / factor, rel=1e-3)


def test_energies_that_do_not_vary(rng):
    frames = springs(rng, ETHANOL)
    [words] = doubts(replace(frames, energies=np.full(len(frames), -3.0)))
    assert "hardly vary" in words


def test_a_wrong_temperature_is_told_but_not_refused(rng):
    frames = replace(springs(rng, copper()), temperature_K=200.0)
    words = " ".join(doubts(frames))
    assert "200 K" in words
    told = float(words.split("right for ")[1].split(" K")[0])
    assert told == pytest.approx(KELVIN, rel=0.1)
    assert force_doubt(frames) is None


def test_forces_of_other_frames(rng):
    frames = springs(rng, ETHANOL)
    assert force_doubt(replace(frames, forces=frames.forces[::-1])) is not None


def test_what_cannot_be_told(rng):
    frames = springs(rng, ETHANOL)
    assert force_factor(frames.take(slice(0, 9))) is None
    assert force_factor(replace(frames, forces=None)) is None
    rigid = replace(frames, positions=np.repeat(frames.positions[:1], len(frames), axis=0))
    assert force_factor(rigid) is None
    lonely = System.from_atoms(molecule("H2O")[:1])
    one = Snapshots(lonely, np.zeros((20, 1, 3)), KELVIN, forces=np.zeros((20, 1, 3)))
    assert force_factor(one) is None and not doubts(one)


def test_a_fluid(rng):
    """Two atoms in a box, where nothing stays together: draws by rejection, exactly."""
    kT, box = 0.05, 6.0
    system = System(np.array([18, 18]), np.full(2, 39.9), box * np.eye(3), np.ones(3, bool))
    potential = LennardJones(system, epsilon=0.02, sigma=2.5, rc=2.9)
    x = box * rng.random((40_000, 2, 3))
    value = potential(torch.as_tensor(x))
    energy = value.energy.numpy()
    kept = rng.random(len(x)) < np.exp(-(energy - energy.min()) / kT)
    frames = Snapshots(system, x[kept], kT / kB, forces=value.forces.numpy()[kept])
    assert kept.sum() > 5000
    factor = force_factor(frames)
    assert abs(factor.value - 1) < 4 * factor.error < 1
    wrong = force_factor(replace(frames, forces=23.06 * frames.forces))
    assert abs(wrong.value - 1) > 4 * wrong.error


def test_reading_warns(tmp_path, rng):
    frames = springs(rng, ETHANOL)
    content = {"positions": frames.positions, "numbers": ETHANOL.numbers, "temperature": KELVIN}
    np.savez(tmp_path / "s.npz", **content, F=frames.forces, E=frames.energies[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Snapshots.read(tmp_path / "s.npz").energies.shape == (400,)
    np.savez(tmp_path / "s.npz", **content, F=23.06 * frames.forces)
    with pytest.warns(UserWarning, match=names("s.npz", "kcal/mol/Å", "eV/Å")):
        Snapshots.read(tmp_path / "s.npz")


def test_frames_in_order_of_time_are_no_alarm(rng):
    """Slow springs: a short run is about a mean of its own."""
    base, count = copper(), 40
    width, a = np.sqrt(kB * KELVIN / STIFF), np.exp(-1 / 30)
    away = np.empty((count, len(base), 3))
    away[0] = width * rng.standard_normal(away[0].shape)
    for n in range(1, count):
        kick = width * np.sqrt(1 - a * a) * rng.standard_normal(away[0].shape)
        away[n] = a * away[n - 1] + kick
    system = System.from_atoms(base)
    frames = Snapshots(system, base.positions + away, KELVIN, forces=-STIFF * away)
    assert force_factor(frames).value < 0.8
    assert not doubts(frames) and force_doubt(frames) is None
