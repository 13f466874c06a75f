"""The models in the package, and the embedded-atom energy that copper is made of."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from messages import names

from diffmd_ase import EulerMaruyama, Noise, ScoreCalculator, ScoreModel, Snapshots, System, run
from diffmd_ase.score.embedded_fit import fit_embedded
from diffmd_ase.score.networks.embedded import EmbeddedEnergy
from diffmd_ase.simulation.frames import states_temperature
from diffmd_ase.testing import check_stress

F64 = {"device": "cpu", "dtype": torch.float64}


def copper(repeat=2, rattle=0.1, seed=1):
    atoms = bulk("Cu", "fcc", a=3.68, cubic=True).repeat(repeat)
    del atoms[0]
    atoms.rattle(rattle, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def model():
    return ScoreModel.load("copper-vacancy")


def test_shipped_by_name():
    alanine = ScoreModel.load("alanine-dipeptide")
    frames = Snapshots.read("alanine-dipeptide").positions[:200]
    energy = alanine.potential(device="cpu")(torch.as_tensor(frames)).energy
    assert 5.0 < float(energy.std()) / alanine.card.kT < 6.3  # of 60 springs: 30^½ = 5.5
    with pytest.raises(
        FileNotFoundError, match=names("'cooper'", "alanine-dipeptide", "copper-vacancy")
    ):
        ScoreModel.load("cooper")


@pytest.mark.parametrize("repeat", [2, 3, 5])
def test_copper_is_copper_at_any_size(repeat):
    """Forces and energies of EMT, from snapshots of 31 atoms alone; 499 as well."""
    atoms, exact = copper(repeat), EMT()
    atoms.calc = ScoreCalculator("copper-vacancy", device="cpu")
    other = atoms.copy()
    other.rattle(0.05, seed=5)
    other.calc = atoms.calc
    ours = other.get_potential_energy() - atoms.get_potential_energy()
    forces = atoms.get_forces()
    truth = EMT()
    reference = atoms.copy()
    reference.calc = exact
    moved = other.copy()
    moved.calc = truth
    change = moved.get_potential_energy() - reference.get_potential_energy()
    f = reference.get_forces()
    assert np.corrcoef(forces.ravel(), f.ravel())[0, 1] > 0.9997
    assert abs((forces * f).sum() / (f * f).sum() - 1) < 0.02
    assert ours == pytest.approx(change, rel=0.03)


def test_symmetries_stress_and_supercells(model):
    atoms = copper()
    system, x = System.from_atoms(atoms), torch.as_tensor(atoms.positions)
    check_stress(lambda s: model.potential(s, **F64), system, x, rtol=1e-5)
    potential = model.potential(system, **F64)
    one = potential(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    moved = potential(x[order] + torch.tensor([3.0, -20.0, 1.0]))
    assert torch.allclose(moved.energy, one.energy, rtol=0, atol=1e-9)
    assert torch.allclose(moved.forces, one.forces[order], rtol=0, atol=1e-9)
    # the cell is shorter than twice the cutoff: images are neighbours
    twice = atoms.repeat((2, 1, 1))
    big = model.potential(System.from_atoms(twice), **F64)(torch.as_tensor(twice.positions))
    assert torch.allclose(big.energy, 2 * one.energy, rtol=0, atol=1e-9)
    assert torch.allclose(big.forces[: len(x)], one.forces, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_clusters_turn(model):
    """The energy itself, without a cell: rotations and reflections."""
    energy = model.networks[0].energy
    x = torch.as_tensor(copper().positions)[None]
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    numbers = torch.full((31,), 29)
    e = [energy.double()(y, numbers, None, (False,) * 3) for y in (x, x @ q.T, -x)]
    assert torch.allclose(e[0], e[1], rtol=1e-12) and torch.allclose(e[0], e[2], rtol=1e-12)
    energy.float()


def test_dynamics_of_499_atoms(model):
    atoms = copper(5, rattle=0.0)
    potential = model.potential(System.from_atoms(atoms), device="cpu")
    kernel = EulerMaruyama(potential, kT=model.card.kT, h=0.2 / model.card.lambda_max)
    x = torch.as_tensor(atoms.positions).float()[None]
    [(last, _)] = run(kernel, x, 100, noise=Noise(1), every=100)
    size = (last.x - x).square().sum(-1).mean().sqrt()
    assert 0.1 < size < 0.4


def test_atoms_pressed_together_push_apart(model):
    """Inside of the data: finite, and repelling ever more."""
    energy, numbers = model.networks[0].energy, torch.tensor([29, 29])
    r = torch.tensor([0.5, 1.0, 1.5, 1.8])
    x = torch.zeros(4, 2, 3)
    x[:, 1, 0] = r
    e = energy(x.float(), numbers, None, (False,) * 3)
    assert (e[:-1] > e[1:] + 1).all() and torch.isfinite(e).all()
    assert e[0] - e[1] > e[1] - e[2] + 50  # ever steeper


@pytest.fixture(scope="module")
def springs():
    """Random displacements of a crystal: -∇ log p is -u/s² but for the constraint of form."""
    atoms = copper(rattle=0.0)
    rng = np.random.default_rng(0)
    return Snapshots(
        System.from_atoms(atoms), atoms.positions + 0.12 * rng.normal(size=(150, 31, 3)), 900.0
    )


def test_the_fit(springs):
    """Derivatives of the features by autograd, and least squares: no θ nearby is better."""
    tables = fit_embedded(springs, cutoff=5.5, functions=12, sigma=0.005)
    energy = EmbeddedEnergy(5.5, tables)
    numbers = torch.as_tensor(springs.system.numbers)
    where = torch.as_tensor(springs.system.cell), (True,) * 3
    x = torch.as_tensor(springs.positions[:3]).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x, numbers, *where).sum(), x)
    jacobian = energy.jacobian(x.detach(), numbers, *where)
    theta = torch.cat([tables["pair"][:, :-3].flatten(), tables["embedding"].flatten()])
    assert torch.allclose(
        torch.einsum("fbd,f->bd", jacobian, theta),
        gradient.transpose(-1, -2).flatten(1),
        rtol=0,
        atol=1e-8 * float(theta.abs().max()),
    )
    # pulled back to the sites, on average as strongly as the law of the displacements says
    u = torch.as_tensor(springs.positions[:3] - copper(rattle=0.0).positions)
    assert 0.85 < float((gradient * u).sum() / (u * u).sum()) * 0.12**2 < 1.05


def test_a_folder_hides_no_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("copper-vacancy", "alanine-dipeptide"):
        (tmp_path / name).mkdir()
    assert ScoreModel.load("copper-vacancy").card.formula == "Cu31"
    assert len(Snapshots.read("alanine-dipeptide")) > 1000
    assert states_temperature("alanine-dipeptide")
    # what is called a path is one
    for path in ("./copper-vacancy", tmp_path / "copper-vacancy"):
        with pytest.raises(ValueError, match=names("copper-vacancy", "folder", "model file")):
            ScoreModel.load(path)
    # a file wins, as ever
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    atoms = copper()
    ase.io.write("copper-vacancy", [atoms] * 2, format="extxyz")
    with pytest.raises(ValueError, match=names("copper-vacancy", "readable")):
        ScoreModel.load("copper-vacancy")


def test_frames_may_be_a_folder(tmp_path):
    """As those of ASE's format of bundles."""
    path = tmp_path / "md.bundle"
    frames = [copper(rattle=0.1, seed=n) for n in range(5)]
    ase.io.write(path, frames, format="bundletrajectory")
    assert path.is_dir() and len(Snapshots.read(path, temperature_K=300.0)) == 5


def test_water_runs_in_any_number(tmp_path):
    """Forces of TIP3P, which were not learned from, on its snapshots; 64 molecules as 32."""
    data, water = Snapshots.read("water"), ScoreModel.load("water")
    x = torch.as_tensor(data.positions[:40])
    told = water.potential(device="cpu")(x)
    wrong = told.forces.numpy() - data.forces[:40]
    assert np.linalg.norm(wrong) / np.linalg.norm(data.forces[:40]) < 0.04
    assert float((told.energy - torch.as_tensor(data.energies[:40])).std()) < 2.5 * data.kT
    atoms = data.system.to_atoms(data.positions[0]).repeat((2, 1, 1))
    larger = water.potential(System.from_atoms(atoms), **F64)
    one = water.potential(**F64)(x[:1]).energy
    np.testing.assert_allclose(larger(torch.as_tensor(atoms.positions)).energy, 2 * one, rtol=1e-6)
    assert larger.extrapolation(torch.as_tensor(atoms.positions)) < 1
