"""A baseline: its part is not learned again, and it is the same one when a model is loaded."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron
from chains import chain_energy, chains, minus_gradient
from messages import names

from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.baseline import find_baseline
from diffmd_ase.potentials.named import find_potential
from diffmd_ase.score.baseline import evaluate_baseline
from diffmd_ase.score.force_field import MechanicsPrior
from diffmd_ase.score.force_field_fit import fit_prior
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, plan, train
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

KT = 300 * units.kB
TINY = TrainConfig(steps=2, batch_size=16, width=8, evaluations=1, processes=1, max_minutes=1e4)


class Chain(Potential):
    """The exact energy of chains but for its stiffness and its torsion; counts what it is asked."""

    def __init__(self, **changed):
        self.changed, self.asked = changed, 0

    def __call__(self, x, *, stress=False):
        self.asked += len(x.reshape(-1, 4, 3))
        flat = x.reshape(-1, 4, 3).double()
        energy = KT * chain_energy(flat, **self.changed)
        forces = KT * minus_gradient(lambda y: chain_energy(y, **self.changed), flat)
        return Evaluation(energy.to(x).reshape(x.shape[:-2]), forces.to(x).reshape(x.shape))


@pytest.fixture(scope="module")
def data():
    x = chains(np.random.default_rng(5), 1500)
    return Snapshots(System(np.full(4, 6), np.ones(4)), x, 300)


def corrected(data, potential, folder, **more):
    baseline = find_baseline(potential, data.system)
    known = evaluate_baseline(baseline, data, file=folder / "known.npz")
    return known, fit_prior(known, sigma=0.002, **more)


def correction(tables):
    prior = MechanicsPrior(tables).double()
    return lambda x: prior(x.double().transpose(-1, -2))


def error(energy, x):
    exact = minus_gradient(chain_energy, x)
    return float((minus_gradient(energy, x) - exact).norm() / exact.norm())


def test_what_the_baseline_says_is_not_learned_again(data, tmp_path, rng):
    """Of an exact baseline nothing is left but the noise of a few terms; a wrong one is mended."""
    test = torch.as_tensor(chains(rng, 1000))
    alone = error(correction(fit_prior(data, sigma=0.002)), test)
    _, exact = corrected(data, Chain(), tmp_path)
    left = error(lambda x: chain_energy(x) + correction(exact)(x), test)
    assert left < 0.7 * alone
    (tmp_path / "known.npz").unlink()
    _, mended = corrected(data, Chain(stiff=300.0, turn=(0.0, 0.0, 0.0)), tmp_path)

    def base(x):
        return chain_energy(x, stiff=300.0, turn=(0.0, 0.0, 0.0))

    assert error(base, test) > 0.2
    assert error(lambda x: base(x) + correction(mended)(x), test) < 1.1 * alone
    # the forces of the baseline are what was subtracted: with their sign turned it goes wrong
    assert error(lambda x: correction(mended)(x) - base(x), test) > 1


def test_its_energies_weigh_modes(data, tmp_path):
    """An exact baseline leaves no difference between modes; energies of another sign make one."""
    known, tables = corrected(data, Chain(), tmp_path)
    values = known.baseline
    assert len(values.moved) == len(data) and (values.origin == np.arange(len(data))).all()
    x, y = torch.as_tensor(data.positions[values.origin]), torch.as_tensor(values.moved)
    change = correction(tables)(y) - correction(tables)(x)
    usual = np.abs(values.moved_energies - values.energies[values.origin]) / KT < 5
    assert float(change[usual].abs().mean()) < 0.15
    wrong = replace(values, energies=-values.energies, moved_energies=-values.moved_energies)
    turned = fit_prior(known.with_baseline(wrong), sigma=0.002)
    change = correction(turned)(y) - correction(turned)(x)
    assert float(change[usual].abs().mean()) > 0.5


def test_it_is_asked_once(data, tmp_path):
    few, potential = data.take(slice(0, 600)), Chain()
    baseline = find_baseline(potential, few.system)
    first = evaluate_baseline(baseline, few, file=tmp_path / "known.npz").baseline
    assert potential.asked == 1200
    again = evaluate_baseline(baseline, few, file=tmp_path / "known.npz").baseline
    assert potential.asked == 1200 and np.array_equal(again.forces, first.forces)
    # other frames are other values
    other = data.take(slice(600, 700))
    evaluate_baseline(baseline, other, file=tmp_path / "known.npz")
    assert potential.asked == 1400
    # a part of the frames has its own moves
    part = first.take(np.array([5, 3, 599]))
    assert np.array_equal(part.forces, first.forces[[5, 3, 599]])
    for n, origin in enumerate(part.origin):
        assert np.array_equal(part.moved[n], first.moved[[5, 3, 599][origin]])


def test_a_frame_that_fails_is_named(data, tmp_path):
    class Failing(Chain):
        def __call__(self, x, *, stress=False):
            value = super().__call__(x)
            value.forces[7] = torch.nan
            return value

    baseline = find_baseline(Failing(), data.system)
    with pytest.raises(ValueError, match=names("Failing", "fails for 1 of 20", "number 7")):
        evaluate_baseline(baseline, data.take(slice(0, 20)), file=tmp_path / "known.npz")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    few, potential = data.take(slice(0, 200)), Chain(stiff=300.0)
    folder = tmp_path_factory.mktemp("trained")
    baseline = find_baseline(potential, few.system)
    model = train(few, config=TINY, device="cpu", directory=folder, baseline=baseline)
    return few, potential, model, folder


def test_a_model_is_the_sum(trained):
    few, potential, model, folder = trained
    assert (folder / "baseline.0.npz").exists()
    assert model.card.baseline.name == "Chain" and not model.card.baseline.by_name
    x = torch.as_tensor(few.positions[:5])
    whole = model.potential(device="cpu")
    own = KT * model.networks[0](x.float(), torch.full((5,), model.card.sigma_min))
    value, base = whole(x), potential(x)
    assert torch.allclose(value.energy, base.energy + own.double(), rtol=0, atol=1e-6)
    assert (value.forces - base.forces).abs().max() > 1e-3
    assert model.card.lambda_max == pytest.approx(2 * 400, rel=0.4)
    # at larger noise the network is all there is
    asked = potential.asked
    model.potential(sigma=1.0, device="cpu")(x)
    assert potential.asked == asked


def test_a_file_says_what_it_needs(trained, tmp_path):
    few, potential, model, _ = trained
    loaded = ScoreModel.load(model.save(tmp_path / "m.safetensors"))
    with pytest.raises(ValueError, match=names("Chain", "model.baseline")):
        loaded.potential(device="cpu")
    loaded.potential(sigma=1.0, device="cpu")
    loaded.baseline = potential
    x = torch.as_tensor(few.positions[:3])
    assert torch.equal(
        loaded.potential(device="cpu")(x).forces, model.potential(device="cpu")(x).forces
    )
    loaded.baseline = Chain(stiff=290.0)
    with pytest.raises(ValueError, match=names("other forces", "Chain")):
        loaded.potential(device="cpu")


def test_a_folder_keeps_to_its_baseline(trained):
    few, _, _, folder = trained
    with pytest.raises(ValueError, match=names("another baseline")):
        train(few, config=TINY, device="cpu", directory=folder)


def test_metals_and_names(tmp_path):
    """EMT by its name below data of EMT: what is left is small, and the file finds it again."""
    atoms = Icosahedron("Cu", 2)
    x = atoms.positions + 0.05 * np.random.default_rng(0).normal(size=(60, 13, 3))
    system = System.from_atoms(Atoms(atoms.numbers))
    few = Snapshots(system, x, 300)
    baseline = find_baseline("emt", system)
    model = train(few, config=TINY, device="cpu", baseline=baseline)
    loaded = ScoreModel.load(model.save(tmp_path / "m.safetensors"))
    emt, y = find_potential(EMT(), system), torch.as_tensor(x[:3])
    whole, sigma = loaded.potential(device="cpu")(y), torch.full((3,), model.card.sigma_min)
    own = KT * loaded.networks[0](y.float(), sigma, numbers=torch.as_tensor(system.numbers))
    assert torch.allclose(whole.energy - own, emt(y).energy, rtol=0, atol=1e-4)
    assert loaded.card.baseline.by_name and loaded.card.baseline.name == "emt"


def test_what_cannot_be(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    system = System.from_atoms(molecule("H2O"))
    with pytest.raises(ImportError, match=names("baseline 'gfn1'", "pip install tblite")):
        find_baseline("gfn1", system)
    copper = Atoms("Cu4", cell=[3.6] * 3, pbc=True)
    copper.positions = [[0, 0, 0], [0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]]
    x = copper.positions + 0.05 * np.random.default_rng(0).normal(size=(20, 4, 3))
    frames = Snapshots(System.from_atoms(copper), x, 300)
    with pytest.raises(ValueError, match=names("closed form", "without a baseline")):
        plan(frames, TrainConfig(network="equivariant"), baseline=True)
