"""Tiny trainings: determinism, restarts, refusals, early stopping, processes."""

import json
import re
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron, Octahedron
from ase.md.langevin import Langevin
from messages import names
from pydantic import ValidationError
from safetensors.torch import load_file

from diffmd_ase.independent.draws import sample
from diffmd_ase.noise import Noise
from diffmd_ase.score import sets, snapshot_checks, training
from diffmd_ase.score.fit import frames_of
from diffmd_ase.score.force_field_tables import parameter_numbers
from diffmd_ase.score.job import Job, read_job, write_job
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.build import parameter_count
from diffmd_ase.score.objective import SetLoss
from diffmd_ase.score.sets import as_sets
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, fit, plan, train
from diffmd_ase.system import System

TINY = {"steps": 12, "batch_size": 16, "width": 8, "evaluations": 4, "processes": 1}
TINY |= {"max_minutes": 1e4, "validation_fraction": 0.2}


def config(**more):
    return TrainConfig(**{**TINY, **more})


@pytest.fixture(autouse=True)
def _single():
    """What a user has; child processes have it in any case."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def peroxide():
    atoms = molecule("H2O2")
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.03 * rng.normal(size=(200, 4, 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


@pytest.fixture(scope="module")
def finished(peroxide, tmp_path_factory):
    """A model and the folder of its training."""
    folder = tmp_path_factory.mktemp("finished")
    return train(peroxide, config=config(), seed=3, device="cpu", directory=folder), folder


def test_what_the_network_was_good_for_is_said(finished):
    fine, broad = finished[0].card.experts
    kept = fine.best_step > 0
    assert fine.correction.startswith("kept" if kept else "dropped") and broad.correction is None
    assert fine.network.depth == (2 if kept else 0)


def test_parameters_are_those_that_were_fitted(finished):
    """What symmetry makes equal once, and no table of statistics."""
    fine, broad = finished[0].networks
    weights = sum(p.numel() for p in fine.parameters())
    assert parameter_count(fine) - weights == len(fine.prior.parameter.unique())
    assert parameter_count(fine) < weights + len(fine.prior.parameter)
    assert parameter_count(broad) == sum(p.numel() for p in broad.parameters())
    old = ScoreModel.load("alanine-dipeptide").networks[0]
    topology = Snapshots.read("alanine-dipeptide").take(slice(0, 50)).topology
    assert parameter_count(old) == int(parameter_numbers(old.prior, topology).max()) + 1


def test_clusters_of_metals(tmp_path):
    """One energy of neighbours for dynamics, at any size; pair distances for i.i.d. samples."""
    atoms = Icosahedron("Cu", 2)
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.08 * rng.normal(size=(300, 13, 3))
    system = System.from_atoms(Atoms(atoms.numbers))
    model = train(Snapshots(system, x, 300), config=config(steps=4), device="cpu")
    kinds = [(e.name, e.network.kind) for e in model.card.experts]
    assert kinds == [("fine", "embedded"), ("broad", "pair")]
    drawn = sample(model, 3, noise=Noise(0), levels=20, relax_steps=5, device="cpu")
    assert drawn.shape == (3, 13, 3) and torch.isfinite(drawn).all()
    larger = System.from_atoms(Atoms("Cu14"))
    assert len(model.potential(larger, device="cpu").system) == 14
    with pytest.raises(ValueError, match="this model knows Cu13"):
        model.potential(larger, sigma=1.0, device="cpu")
    atoms = Octahedron("Cu", 5, 1)
    x = atoms.positions + 0.08 * rng.normal(size=(30, len(atoms), 3))
    many = Snapshots(System.from_atoms(Atoms(atoms.numbers)), x, 300)
    assert [e.name for e in plan(many, config(cutoff=5.0))] == ["fine"]


def test_forces_are_learned_by_networks(peroxide):
    """Harmonic data with their forces: those of the networks are right in a few steps; the labels
    turn with their atoms where like atoms are exchanged."""
    u = peroxide.positions - molecule("H2O2").positions
    labelled = replace(peroxide, forces=-peroxide.kT * u / 0.03**2)
    some = labelled.topology.permutations[1]
    turned = replace(
        peroxide, positions=peroxide.positions[:, some], forces=labelled.forces[:, some]
    )
    for part in (labelled, turned):
        expert = plan(part, config(force_weight=50))[0]
        loss = SetLoss(expert, part, 1.0, "cpu")
        x = frames_of(part, True, "cpu")
        assert x.shape == (200, 4, 6)

        def exact(y, level, **_):
            # of each structure, in the order in which its atoms are: the nearer of two
            at = torch.as_tensor(molecule("H2O2").positions).float()
            squares = torch.stack(
                [(y - at).square().sum((1, 2)), (y - at[some]).square().sum((1, 2))]
            )
            return 0.5 * squares.min(0).values / 0.03**2

        terms = loss(exact, x, torch.Generator().manual_seed(0))
        terms = {name: float(value.detach()) for name, value in terms.items()}
        sigma = expert.sigma[0]
        # what is left is the noise: 12 components move by σ, forces by σ/0.03²
        assert terms["forces"] == pytest.approx(12 * sigma**4 / 0.03**4, rel=0.2)
        both = (terms["denoising"] + 50 * terms["forces"]) / 51
        rest = sum(getattr(expert, k) * terms.get(k, 0.0) for k in ("torsional", "contrastive"))
        assert terms["loss"] == pytest.approx(expert.denoising * both + rest, rel=1e-5)
    model = train(labelled, config=config(force_weight=50, steps=3), seed=3, device="cpu")
    assert ["validation_forces" in e.history[0] for e in model.card.experts] == [True, False]


def weights(model):
    return {
        f"{n}.{k}": v for n, net in enumerate(model.networks) for k, v in net.state_dict().items()
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -------------------------------------------------------------------------- works


def test_every_second_noise_level_decides_a_shape(peroxide):
    broad = plan(peroxide, config())[1]
    low, high = broad.focus
    assert broad.sigma[0] <= low < high < broad.sigma[1]
    seen = []

    def network(x, sigma, **_):
        seen.append(sigma)
        return x.square().sum((1, 2))

    generator = torch.Generator().manual_seed(0)
    x = torch.as_tensor(peroxide.positions, dtype=torch.float32).repeat(10, 1, 1)
    SetLoss(broad, peroxide, 1.0, "cpu")(network, x, generator)
    levels = seen[0][: len(x)]
    inside = (levels >= low) & (levels <= high)
    assert inside[::2].all()
    assert levels[::2].log().std() == pytest.approx(np.log(high / low) / 12**0.5, rel=0.1)
    share = np.log(high / low) / np.log(broad.sigma[1] / broad.sigma[0])
    assert inside[1::2].float().mean() == pytest.approx(share, abs=0.06)


def test_bonds_that_break_are_for_no_closed_form(peroxide, monkeypatch):
    """A hydrogen that leaves its oxygen in one frame of ten is named, with what to do.

    Of small molecules, whose distances are all multiplied, this is no harm.
    """
    x = peroxide.positions.copy()
    oxygen, hydrogen = next(b for b in peroxide.topology.bonds.tolist() if b[1] >= 2)
    x[::10, hydrogen] += 0.9 * (x[::10, hydrogen] - x[::10, oxygen])
    broken = replace(peroxide, positions=x)
    assert plan(broken, config(network="auto"))[0].network.kind == "mechanics"
    monkeypatch.setattr("diffmd_ase.score.force_field_tables._SMALL", 3)
    with pytest.warns(UserWarning, match="O. and H. are bound in some of .*only.*equivariant"):
        assert plan(broken, config(network="auto"))[0].network.kind == "mechanics"
    assert plan(broken, config(network="equivariant"))[0].network.kind == "equivariant"
    assert plan(peroxide, config(network="auto"))[0].network.kind == "mechanics"


def test_constrained_bonds_are_refused(peroxide):
    """A rigid bond has no finite score; with a noise level of the user's choice it has."""
    x = peroxide.positions.copy()
    x[:, 1] = x[:, 0] + [0.0, 0.0, 1.4]
    rigid = Snapshots(peroxide.system, x, 300)
    with pytest.raises(
        ValueError, match=names("atoms 0 and 1", "without constraints", "sigma_min")
    ):
        plan(rigid, config())
    assert plan(rigid, config(sigma_min=0.01))[0].sigma == (0.01, 0.01)


def test_a_model_comes_out(finished, peroxide):
    model, folder = finished
    card = model.card
    assert [e.name for e in card.experts] == ["fine", "broad"]
    assert card.formula == "H2O2" and card.temperature_K == 300.0 and card.kT == peroxide.kT
    assert card.sigma_min == card.experts[0].sigma[0] == card.experts[0].sigma[1]
    low, high = card.experts[1].sigma
    assert card.sigma_min <= low < 0.05 and high == card.sigma_max
    assert card.data["sha256"] == peroxide.sha256 and card.data["snapshots"] == 200
    assert card.training["seed"] == 3 and TrainConfig(**card.training["config"]) == config()
    assert card.lambda_max > 100
    for expert in card.experts:
        steps = [entry["step"] for entry in expert.history]
        assert steps == [0, 3, 6, 9, 12]
        # of the weights that are kept, not the luckiest
        [kept] = [h for h in expert.history if h["step"] == expert.best_step]
        assert card.validation[f"{expert.name}_loss"] == kept["validation_loss"]
    assert {p.name for p in folder.iterdir()} == {
        "job.json", "job.npz", "fine.safetensors", "broad.safetensors",
    }  # fmt: skip


def test_training_lowers_the_validation_loss(finished):
    broad = finished[0].card.experts[1].history
    assert broad[-1]["validation_loss"] < broad[0]["validation_loss"]


def test_same_seed_same_weights(finished, peroxide):
    model, _ = finished
    again = train(peroxide, config=config(), seed=3, device="cpu")
    assert same(weights(model), weights(again))
    other = train(peroxide, config=config(), seed=4, device="cpu")
    assert not same(weights(model), weights(other))


def test_callers_random_state_is_left_alone(peroxide):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(peroxide, config=config(steps=1, evaluations=1), device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_any_default_dtype(peroxide):
    torch.set_default_dtype(torch.float64)
    model = train(peroxide, config=config(steps=2, evaluations=1), device="cpu")
    assert {v.dtype for v in weights(model).values() if v.is_floating_point()} == {torch.float32}


# ----------------------------------------------------------------------- restarts


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [3, 9])
def test_interrupted_training_goes_on_to_the_same_weights(finished, peroxide, tmp_path, at):
    def stop(name, fraction, note):
        if fraction >= (at - 1) / config().steps:  # reported after the validation of step `at`
            raise Stopped

    for expert in plan(peroxide, config()):
        with pytest.raises(Stopped):
            fit(expert, peroxide, config(), seed=3, device="cpu", folder=tmp_path, report=stop)
    model = train(peroxide, config=config(), seed=3, device="cpu", directory=tmp_path)
    assert same(weights(model), weights(finished[0]))
    for a, b in zip(model.card.experts, finished[0].card.experts, strict=True):
        assert [h["validation_loss"] for h in a.history] == [
            h["validation_loss"] for h in b.history
        ]


def test_a_finished_training_is_not_repeated(finished, peroxide, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[1], folder)
    before = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
    model = train(peroxide, config=config(), seed=3, device="cpu", directory=folder)
    assert same(weights(model), weights(finished[0]))
    assert {p.name: p.read_bytes() for p in folder.glob("*.safetensors")} == before


def test_a_folder_belongs_to_one_training(finished, peroxide):
    _, folder = finished
    for options, what in (
        ({"config": config(width=9), "seed": 3}, "config"),
        ({"config": config(), "seed": 4}, "seed"),
    ):
        with pytest.raises(ValueError, match=f"training run with another {what}; give another"):
            train(peroxide, device="cpu", directory=folder, **options)
    with pytest.raises(ValueError, match="another data"):
        train(peroxide.take(slice(0, 100)), config=config(), seed=3, device="cpu", directory=folder)


def test_checkpoints_are_whole_files(finished):
    _, folder = finished
    tensors = load_file(folder / "broad.safetensors")
    kinds = {name.split(".")[0] for name in tensors}
    assert kinds == {"network", "average", "best", "adam"}
    assert json.loads((folder / "job.json").read_text())["seed"] == 3
    assert not list(folder.glob("*.part"))


# ------------------------------------------------------------------------ stopping


def test_patience(peroxide, tmp_path):
    """Steps so large that nothing improves: stopped after two evaluations, and for good."""
    bad = config(learning_rate=1e6, steps=400, evaluations=100, patience=2)
    model = train(peroxide, config=bad, seed=0, device="cpu", directory=tmp_path)
    assert len(model.card.experts) == 2
    for expert in model.card.experts:
        losses = [entry["validation_loss"] for entry in expert.history]
        assert expert.history[-1]["step"] < 100
        assert model.card.validation[f"{expert.name}_loss"] == np.nanmin(losses)
    again = train(peroxide, config=bad, seed=0, device="cpu", directory=tmp_path)
    for one, two in zip(again.card.experts, model.card.experts, strict=True):
        np.testing.assert_equal(one.history, two.history)  # NaN equals NaN


@pytest.mark.slow
def test_wall_clock(peroxide):
    long = config(steps=10_000_000, max_minutes=0.03, evaluations=1)
    model = train(peroxide, config=long, device="cpu")
    fine, broad = (expert.history[-1] for expert in model.card.experts)
    # the budget holds the fit of the prior, which may use it up on a busy machine
    assert 0 <= fine["step"] < 10_000_000 and 0 < broad["step"] < 10_000_000


# ------------------------------------------------------------------- other systems


@pytest.fixture(scope="module")
def copper():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    options = {"temperature_K": 400, "friction": 0.02, "fixcm": False}
    md = Langevin(atoms, 2 * units.fs, rng=np.random.default_rng(0), **options)
    frames = []
    md.attach(lambda: frames.append(atoms.positions.copy()), 5)
    md.run(100)
    return Snapshots(System.from_atoms(atoms), np.array(frames), 400)


def test_crystal(copper):
    small = config(
        network="equivariant", channels=4, cutoff=3.0, steps=4, evaluations=2, batch_size=4
    )
    [expert] = plan(copper, small)
    assert expert.network.kind == "equivariant" and expert.network.elements == (29,)
    assert expert.network.neighbours == pytest.approx(12, abs=1)
    model = train(copper, config=small, device="cpu")
    assert model.transferable and model.card.pbc == (True, True, True)
    assert model.card.lambda_max > 0
    vacancy = System.from_atoms(bulk("Cu", cubic=True).repeat((2, 1, 1))[:7])
    x = torch.as_tensor(bulk("Cu", cubic=True).repeat((2, 1, 1)).positions[:7])
    assert torch.isfinite(model.potential(vacancy, device="cpu")(x).forces).all()


def test_chiral_molecule_learns_its_hand():
    corners = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    x = corners * np.array([0, 1.09, 1.35, 1.76, 1.94])[:, None]
    rng = np.random.default_rng(0)
    system = System(np.array([6, 1, 9, 17, 35]), np.ones(5))
    data = Snapshots(system, x + 0.02 * rng.normal(size=(200, 5, 3)), 300)
    [both] = plan(data, config(network="equivariant"))
    assert both.network.chiral and both.network.layers >= 3 and both.mirror > 0
    model = train(data, config=config(), device="cpu")
    y = torch.as_tensor(x)
    potential = model.potential(device="cpu")
    with pytest.warns(UserWarning, match="mirror image"):
        mirrored = potential(-y).energy
    assert mirrored > potential(y).energy + 20 * model.card.kT


def test_choice_of_the_network(peroxide, copper):
    assert [e.network.kind for e in plan(peroxide, config())] == ["mechanics", "pair"]
    assert [e.network.kind for e in plan(copper, config())] == ["embedded"]
    silicon = bulk("Si", cubic=True)
    x = silicon.positions + 0.05 * np.random.default_rng(0).normal(size=(20, 8, 3))
    directed = Snapshots(System.from_atoms(silicon), x, 300.0)
    (expert,) = plan(directed, config())
    assert expert.network.kind == "embedded" and expert.network.angular > 0
    with pytest.raises(ValueError, match=names("network='pair'", "'equivariant'")):
        plan(copper, config(network="pair"))


def test_bad_configurations(peroxide):
    with pytest.raises(ValueError, match=names("1 to 0.5 Å", "sigma_min < sigma_max")):
        plan(peroxide, config(sigma_min=1.0, sigma_max=0.5))
    for wrong in ({"steps": 0}, {"ema": 1.0}, {"stesp": 3}, {"network": "mace"}):
        with pytest.raises(ValidationError):
            config(**wrong)
    with pytest.raises(ValueError, match=names("fraction=0.2", "2 snapshots", "5 or more")):
        train(peroxide.take(slice(0, 2)), config=config(), device="cpu")


# --------------------------------------------------------------- what is done once


def test_one_process_writes_no_arrays_and_plans_once(finished, peroxide, monkeypatch):
    """Unless a directory was asked for, of which test_a_model_comes_out speaks."""
    plans = []
    monkeypatch.setattr(
        training, "plan", lambda *given, **more: plans.append(plan(*given, **more)) or plans[-1]
    )
    monkeypatch.setattr(training, "write_job", None)
    monkeypatch.setattr(snapshot_checks, "check_positions", None)
    monkeypatch.setattr(np, "savez", None)
    model = train(peroxide, config=config(), seed=3, device="cpu")
    assert len(plans) == 1 and same(weights(model), weights(finished[0]))


def test_several_sets_are_compared_once(copper, monkeypatch):
    compared = []
    nearest = sets.nearest_by_element
    monkeypatch.setattr(
        sets, "nearest_by_element", lambda part: compared.append(part) or nearest(part)
    )
    hot = Snapshots(copper.system, copper.positions + 0.01, 500)
    train([copper, hot], config=config(), device="cpu")
    assert compared == [copper, copper, hot]


def test_a_job_tells_children_all(peroxide, copper, tmp_path):
    """The plan, the frames, and the structure that was seen in more of them."""
    for name, whole, more in (
        ("molecule", peroxide, {"force_weight": 0.5}),
        ("crystal", copper, {}),
    ):
        places = whole.positions.mean(0)
        springs = -whole.kT / whole.positions.var(0).mean() * (whole.positions - places)
        whole = replace(whole, forces=springs)
        part = as_sets(whole.take(slice(0, 15)))
        settings = config(**more)
        job = Job(experts=tuple(plan(part, settings)), config=settings, seed=3, device="cpu")
        write_job(tmp_path / name, part, job)
        (again,), told = read_job(tmp_path / name)
        assert told == job
        assert again.system == whole.system and again.sha256 == part[0].sha256
        assert (again.forces is None) == (not more)
        assert again.correlation == whole.correlation and again.source == whole.source
        assert np.array_equal(again.moving, whole.moving)
        if name == "molecule":
            for field in fields(whole.topology):
                one, two = (getattr(p.topology, field.name) for p in (again, whole))
                assert np.array_equal(one, two) and type(one) is type(two), field.name


def test_threads_are_the_callers(peroxide):
    """Also after a failure."""
    torch.set_num_threads(2)
    try:
        train(peroxide, config=config(steps=1, evaluations=1), device="cpu")
        assert torch.get_num_threads() == 2

        def stop(name, fraction, note):
            assert torch.get_num_threads() == 1
            raise Stopped

        with pytest.raises(Stopped):
            train(peroxide, config=config(), device="cpu", progress=stop)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_progress_is_told(peroxide, capsys):
    told = []
    small = config(steps=4, evaluations=2)
    train(peroxide, config=small, device="cpu", progress=lambda *one: told.append(one))
    for name in ("fine", "broad"):
        fractions = [fraction for part, fraction, _ in told if part == name]
        assert fractions[0] == 0.0 and fractions[-1] == 1.0 and fractions == sorted(fractions)
    assert re.fullmatch(r"step 4  validation -?[\d.e+-]+", told[-1][2])
    train(peroxide, config=small, device="cpu", progress=True)
    out, err = capsys.readouterr()
    assert not out and re.findall(r"(\w+) 100%  step 4  validation", err) == ["fine", "broad"]


def test_systems_that_do_not_tell_their_memory(peroxide, monkeypatch):
    """As Windows: no module of resources, and no number."""
    monkeypatch.setitem(sys.modules, "resource", None)
    model = train(peroxide, config=config(steps=1, evaluations=1), device="cpu")
    assert "peak_memory_MB" not in model.card.training
    assert all("peak_memory_MB" not in e for c in model.card.experts for e in c.history)


# ----------------------------------------------------------------------- processes


@pytest.mark.slow
def test_experts_in_processes_of_their_own(finished, peroxide, tmp_path):
    """The same weights; a child that fails is heard."""
    two = train(
        peroxide, config=config(processes=2), seed=3, device="cpu", directory=tmp_path / "two"
    )
    assert same(weights(two), weights(finished[0]))
    assert two.card.training["seconds"] > 0
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "fine.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RuntimeError, match=r"(?s)training stopped with code 1: .*[Ss]afetensor"):
        train(peroxide, config=config(processes=2), seed=3, device="cpu", directory=folder)
