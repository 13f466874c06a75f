"""A slab whose lower layer is held: what is learned, run and judged are the atoms that move."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from messages import names

from diffmd_ase.cli.main import main
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.held import Held
from diffmd_ase.score import embedded_fit as embedded
from diffmd_ase.score.embedded_fit import fit_embedded
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.embedded import EmbeddedEnergy
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.testing import check_potential
from diffmd_ase.validation.bench import Effort
from diffmd_ase.validation.validate import validate

HELD = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def frames():
    """400 frames of Cu(111), three layers, 300 K: an ordinary script of ASE."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8)
    del atoms.info["adsorbate_info"]  # not for files
    atoms.set_constraint(FixAtoms(HELD))
    atoms.calc = EMT()
    rng = np.random.default_rng(1)
    dynamics = Langevin(
        atoms, 5 * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    dynamics.run(200)
    found = []
    for _ in range(400):
        dynamics.run(10)
        found.append(atoms.copy())
        found[-1].calc = EMT()
        found[-1].get_forces()
    return found


@pytest.fixture(scope="module")
def snapshots(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("slab") / "slab.traj"
    ase.io.write(path, frames)
    with pytest.warns(UserWarning, match=names("slab.traj", "time-ordered", "held out")):
        return Snapshots.read(path, temperature_K=300)


@pytest.fixture(scope="module")
def model(snapshots):
    torch.set_default_dtype(torch.float64)
    return train(snapshots.take(slice(0, 320)), config=TrainConfig(processes=1), device="cpu")


def test_which_atoms_move(snapshots):
    moving = np.arange(12) >= 4
    assert np.array_equal(snapshots.moving, moving)
    assert np.array_equal(snapshots.take(slice(5, 6)).moving, moving)
    assert snapshots.system.pbc.tolist() == [True, True, False]
    with pytest.raises(ValueError, match=names("slab.traj", "no atom moves")):
        train(
            replace(snapshots, positions=snapshots.positions[[0] * 30], energies=None, forces=None)
        )


def error(model, snapshots):
    """Relative error of the forces on atoms that move, on frames that were not learned from."""
    late = snapshots.take(slice(320, None))
    learned = model.potential(late.system)(torch.as_tensor(late.positions)).forces.numpy()
    return np.std((learned - late.forces)[:, 4:]) / np.std(late.forces[:, 4:])


def test_forces_are_those_of_the_moving_atoms(model, snapshots, rng):
    """Noise on held atoms as well asks the energy for a crystal without any fluctuation."""
    assert error(model, snapshots) < 0.11
    x = snapshots.positions[:320]
    shaken = x + 1e-5 * rng.normal(size=x.shape)
    blind = replace(snapshots, positions=shaken, energies=None, forces=None)
    assert blind.moving.all()
    wrong = train(blind, config=TrainConfig(processes=1), device="cpu")
    assert error(wrong, snapshots) > 0.4


def test_pair_energies_are_smooth(snapshots, monkeypatch):
    """Where few pairs are, V goes on as nearby, and never pulls atoms into each other."""
    few, late = snapshots.take(slice(0, 320, 8)), snapshots.take(slice(320, None))

    def fitted():
        torch.set_default_dtype(torch.float64)
        energy = EmbeddedEnergy(5.9, tables := fit_embedded(few, **options))
        x = torch.as_tensor(late.positions).requires_grad_()
        where = torch.as_tensor(late.system.cell), (True, True, False)
        total = energy(x, torch.as_tensor(late.system.numbers), *where).sum()
        forces = -late.kT * torch.autograd.grad(total, x)[0].numpy()
        wrong = (forces - late.forces)[:, 4:]
        return np.std(wrong) / np.std(late.forces[:, 4:]), tables["pair"]

    options = {"cutoff": 5.9, "functions": 24, "sigma": 0.004}
    smooth, pair = fitted()
    assert smooth < 0.12 and pair[0, 0] >= pair[0, 2]
    # a ridge in its place keeps coefficients small, not alike
    monkeypatch.setattr(embedded, "_roughness", lambda energy: torch.eye(24 + 6))
    rough, pair = fitted()
    assert rough > 1.5 * smooth and pair[0, 0] >= pair[0, 2]


def test_forces_of_the_frames_may_help(snapshots, monkeypatch):
    few = snapshots.take(slice(0, 320, 8))
    known = train(few, config=TrainConfig(processes=1, force_weight=100), device="cpu")
    assert error(known, snapshots) < 0.04
    wrong = replace(few, forces=-few.forces)
    with pytest.raises(ValueError, match=names("force_weight=100", "slab.traj", "gradient", "-1")):
        train(wrong, config=TrainConfig(force_weight=100), device="cpu")
    # the control: what would have come of them
    monkeypatch.setattr("diffmd_ase.score.plan.force_doubt", lambda part: None)
    misled = train(wrong, config=TrainConfig(processes=1, force_weight=100), device="cpu")
    assert error(misled, snapshots) > 1
    with pytest.raises(ValueError, match=names("force_weight=100", "slab.traj", "force_weight=0")):
        train(replace(few, forces=None), config=TrainConfig(force_weight=100), device="cpu")


def test_the_card(model, tmp_path):
    again = ScoreModel.load(model.save(tmp_path / "slab.safetensors"))
    assert again.card.systems[0].held == HELD
    assert np.flatnonzero(~again.card.moving(model.system)).tolist() == HELD
    larger = replace(model.system, numbers=[29] * 24, masses=[63.5] * 24)
    assert again.card.moving(larger).all()


@pytest.mark.parametrize("more", [[], ["--target", "model"]], ids=["plain", "corrected"])
def test_runs_hold_them(model, frames, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    model.save("slab.safetensors")
    ase.io.write("start.xyz", frames[:20])
    words = ["run", "slab.safetensors", "--start", "start.xyz", "--walkers", "3", "--steps", "60"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--every", "20", "--json", "--no-progress", "--device", "cpu", *more])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["held_atoms"] == 4
    x = Trajectory("md.h5").positions[:]
    assert x.shape == (4, 3, 12, 3)
    moved = np.ptp(x, axis=0).max(axis=(0, 2))
    assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()


@pytest.mark.slow
def test_validation_holds_them(model, snapshots):
    small = Effort(walkers=32, moves=20, plain_steps=100, labels=100)
    card = validate(model, snapshots, effort=small, device="cpu")
    verdicts = {line.name: line.verdict for line in card.lines}
    assert "fail" not in (verdicts["lost, plain dynamics"], verdicts["JS distances: corrected MD"])
    # all atoms free: the lower layer falls into its own surface states and the energy rises
    blind = replace(snapshots)
    blind.__dict__["moving"] = np.ones(12, bool)
    free = {one.name: one for one in validate(model, blind, effort=small, device="cpu").lines}
    assert free["JS energy: corrected MD"].verdict == "fail"
    assert verdicts["JS energy: corrected MD"] != "fail"


def test_held():
    """A function of the moving atoms: right derivatives, the others where they were."""
    places, moving = np.arange(12.0).reshape(4, 3), np.array([True, False, True, True])
    inner = Harmonic(2.0)
    held = Held(inner, places, moving)
    x = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_potential(held, x[0])
    whole = held.whole(x)
    assert torch.equal(whole[:, 1], torch.tensor([[3.0, 4.0, 5.0]]).expand(5, 3))
    assert torch.equal(whole[:, [0, 2, 3]], x)
    assert torch.equal(held(x).forces, inner(whole).forces[:, [0, 2, 3]])
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        Held(inner, places[:3], moving)
    with pytest.raises(ValueError, match=names("(4, 3)", "0 moving atoms of 4", "(N, 3)")):
        Held(inner, places, np.zeros(4, bool))
