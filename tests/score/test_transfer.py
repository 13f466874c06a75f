"""One energy of several sets of snapshots: sizes, compositions and temperatures."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from dimers import SIGMA, dimers, pull
from messages import names
from safetensors import safe_open
from torch import nn

from diffmd_ase import ReverseDiffusion, ScoreCalculator
from diffmd_ase.cli.main import main
from diffmd_ase.score.curvature import configurational_temperatures
from diffmd_ase.score.embedded_fit import fit_embedded
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.embedded import EmbeddedConfig, EmbeddedEnergy
from diffmd_ase.score.networks.molecule import MechanicsConfig
from diffmd_ase.score.objective import Objective
from diffmd_ase.score.plan import Expert, TrainConfig, plan
from diffmd_ase.score.sets import as_sets
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import train
from diffmd_ase.simulation.frames import read_sets
from diffmd_ase.simulation.prepare import StepRequest, prepare
from diffmd_ase.system import System

F64 = {"device": "cpu", "dtype": torch.float64}


def force_error(model, snapshots):
    """Relative error of the pull along each bond, against Morse."""
    x = torch.as_tensor(snapshots.positions)
    forces = model.potential(snapshots.system, **F64)(x).forces.numpy()
    d = snapshots.positions[:, 0::2] - snapshots.positions[:, 1::2]
    r = np.linalg.norm(d, axis=-1)
    exact = pull(r)
    found = (forces[:, 0::2] * d).sum(-1) / r
    return float(np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean()))


@pytest.fixture(scope="module")
def sets():
    return [dimers(300, 8000), dimers(900, 4000, pairs=2)]


@pytest.fixture(scope="module")
def config():
    return TrainConfig(sigma_min=SIGMA, cutoff=5.5)


@pytest.fixture(scope="module")
def model(sets, config):
    return train(sets, config=config, device="cpu")


# -------------------------------------------------------------------- temperatures


class Springs(nn.Module):
    """E = ½ k |x - x₀|²: the harmonic crystal, whose stiffness is the only parameter."""

    def __init__(self, sites, k):
        super().__init__()
        self.register_buffer("sites", sites)
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x, sigma, *, numbers, cell, pbc):
        return 0.5 * self.k * (x - self.sites).square().sum((1, 2))


SPREAD = 0.1  # Å at the first temperature


def crystal(kelvin, label=None, frames=400, size=1):
    """Exact draws: variance proportional to the temperature."""
    atoms = bulk("Cu", cubic=True).repeat((size, 1, 1))
    rng = np.random.default_rng([int(kelvin), size])
    u = SPREAD * (kelvin / 300) ** 0.5 * rng.normal(size=(frames, len(atoms), 3))
    system = System.from_atoms(atoms)
    return Snapshots(system, atoms.positions + u, label or kelvin), torch.as_tensor(atoms.positions)


EXPERT = Expert(name="fine", sigma=(SIGMA, SIGMA), network=MechanicsConfig(), denoising=SIGMA**-2)


def stiffness(snapshots, sites):
    """k at the minimum of the objective and its standard error: the loss is ½ak² - bk.

    Of displacements u the set estimates k by d/|u|², so that all of them count alike.
    """
    objective = Objective(EXPERT, tuple(snapshots), "cpu")
    slopes = []
    for k in (0.0, 1.0):
        generator, springs = torch.Generator().manual_seed(1), Springs(sites[0].float(), k)
        batches = [torch.as_tensor(part.positions, dtype=torch.float32) for part in snapshots]
        loss = objective(springs, batches, generator)["loss"]
        slopes.append(torch.autograd.grad(loss, springs.k)[0].item())
    modes = sum(len(part) for part in snapshots) * sites[0].numel()
    k = -slopes[0] / (slopes[1] - slopes[0])
    return k, k * (2 / modes) ** 0.5


def test_one_stiffness_of_two_temperatures():
    """The score at T is that of the one energy: k of both sets, and of each, is the exact one."""
    (cold, sites), (hot, _) = crystal(300), crystal(1200)
    for snapshots in ([cold, hot], [hot, cold], [cold], [hot]):
        k, error = stiffness(snapshots, [sites])
        exact = 300 / snapshots[0].temperature_K / SPREAD**2
        assert abs(k - exact) < 4 * error


def test_forgotten_temperatures_are_seen():
    """The control: with the labels lost the same frames give another stiffness."""
    (cold, sites), (hot, _) = crystal(300), crystal(1200, label=300)
    k, error = stiffness([cold, hot], [sites])
    assert abs(k - 1 / SPREAD**2) > 20 * error


def test_configurational_temperatures():
    (cold, sites), (hot, _) = crystal(300), crystal(1200)
    springs = Springs(sites.float(), 1 / SPREAD**2)
    found = configurational_temperatures(springs, SIGMA, (cold, hot))
    error = (2 / (400 * 12)) ** 0.5
    assert abs(found[0] / 300 - 1) < 4 * error and abs(found[1] / 1200 - 1) < 4 * error
    wrong, _ = crystal(1200, label=900)
    with pytest.warns(UserWarning, match=r"at 900 K.* 1\d\d\d K"):
        configurational_temperatures(springs, SIGMA, (cold, wrong))


def test_forces_at_a_temperature_and_size_not_seen(model, sets, config):
    between = dimers(600, 400, pairs=3, seed=1)
    error = force_error(model, between)
    same = [Snapshots(p.system, p.positions, 600.0, source=p.source) for p in sets]
    with pytest.warns(UserWarning, match="is said to be at 600 K but fits"):
        lost = force_error(train(same, config=config, device="cpu"), between)
    print(f"force error {error:.3f}; labels lost {lost:.3f}")
    assert error < 0.15 and lost > 2 * error


@pytest.mark.slow
def test_order_of_the_sets_only_changes_the_unit(model, sets, config):
    """kT_1 is the unit of the network; energies and forces are what they are."""
    turned = train(sets[::-1], config=config, device="cpu")
    assert turned.card.temperature_K == 900 and model.card.temperature_K == 300
    x = torch.as_tensor(dimers(600, 100).positions)
    one, two = (m.potential(sets[0].system, **F64)(x).forces for m in (model, turned))
    # other frames are held out and other noise is added
    assert (one - two).square().mean() < 0.1**2 * one.square().mean()


# ----------------------------------------------------------- sizes and compositions


def test_the_loss_is_the_mean_over_all_frames():
    """Of sets of two sizes: their own losses, each with its own kT, weighted by T/T_1."""
    (small, sites), (large, more) = crystal(300, frames=30), crystal(600, frames=90, size=2)

    def seeded():
        return torch.Generator().manual_seed(1)

    class Pull(nn.Module):
        def forward(self, x, sigma, *, numbers, cell, pbc):
            at = sites if x.shape[1] == len(sites) else more
            return (x - at.float()).square().sum((1, 2)) * 30

    batches = [torch.as_tensor(p.positions, dtype=torch.float32) for p in (small, large)]
    terms = Objective(EXPERT, (small, large), "cpu")(Pull(), batches, seeded())
    by_hand, generator = 0.0, seeded()
    for x, at, share, tempering in zip(batches, (sites, more), (0.25, 0.75), (1, 0.5), strict=True):
        torch.rand(len(x), generator=generator, dtype=x.dtype)  # its noise levels
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        plus, minus = (-60 * tempering * (x + s * SIGMA * epsilon - at.float()) for s in (1, -1))
        loss = 0.5 * (plus.square() + minus.square()) + epsilon * (plus - minus) / SIGMA
        by_hand += share / tempering * float(loss.sum((1, 2)).mean())
    assert terms["loss"].item() == pytest.approx(by_hand, rel=1e-4)


def test_large_cells_are_many_small_ones(model):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.6]], cell=[4, 5, 6], pbc=True)
    atoms.rattle(0.1, seed=1)
    large = atoms.repeat((2, 2, 2))  # every cell is smaller than twice the cutoff
    one, eight = (
        model.potential(System.from_atoms(a), **F64)(torch.as_tensor(a.positions))
        for a in (atoms, large)
    )
    assert eight.energy.item() == pytest.approx(8 * one.energy.item(), rel=1e-9)
    assert torch.allclose(eight.forces, one.forces.repeat(8, 1), atol=1e-9)


def alloy(formula, kelvin=500.0, frames=12, seed=0):
    """Rattled fcc sites, occupied by the letters of ``formula``."""
    atoms = bulk("Cu", a=3.9, cubic=True)
    atoms.symbols = formula
    rng = np.random.default_rng([seed, *atoms.numbers])
    x = atoms.positions + 0.1 * rng.normal(size=(frames, 4, 3))
    return Snapshots(System.from_atoms(atoms), x, kelvin, source=formula)


def test_features_of_alloys_have_the_right_derivatives():
    """By autograd: pairs and densities of each kind of neighbour."""
    mixed = [alloy("Cu3Au"), alloy("CuAu3")]
    tables = fit_embedded(mixed, cutoff=5.0, functions=8, sigma=0.01)
    assert tables["embedding"].shape == (2, 9, 2) and tables["pair"].shape == (3, 11)
    assert tables["inner"].shape == (3,)
    energy = EmbeddedEnergy(5.0, tables)
    for part in mixed:
        where = torch.as_tensor(part.system.cell), (True,) * 3
        numbers = torch.as_tensor(part.system.numbers)
        x = torch.as_tensor(part.positions[:2]).requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x, numbers, *where).sum(), x)
        jacobian = energy.jacobian(x.detach(), numbers, *where)
        theta = torch.cat([tables["pair"][:, :-3].flatten(), tables["embedding"].flatten()])
        by_features = torch.einsum("fbd,f->bd", jacobian, theta)
        close = 1e-8 * float(theta.abs().max())
        assert torch.allclose(by_features, gradient.transpose(-1, -2).flatten(1), atol=close)


def test_models_of_alloys_are_read_again(tmp_path):
    """Each pair of elements begins at a distance of its own."""
    model = train([alloy("Cu3Au"), alloy("CuAu3")], config=TrainConfig(), device="cpu")
    again = ScoreModel.load(model.save(tmp_path / "alloy.safetensors"))
    x = torch.as_tensor(alloy("Cu3Au").positions)
    energies = [m.potential(alloy("Cu3Au").system, **F64)(x).energy for m in (model, again)]
    torch.testing.assert_close(*energies, rtol=0, atol=0)


@pytest.mark.slow
def test_elements_never_seen_together():
    known = train([alloy("Cu4"), alloy("Au4"), alloy("Cu3Ag")], config=TrainConfig(), device="cpu")
    known.potential(alloy("Cu2Ag2").system, **F64)
    for formula, words in {
        "Cu2Au2": "no snapshots of this model held Cu, Au together",
        "Cu3Pt": "this model knows Cu, Ag, Au, not Pt",
    }.items():
        with pytest.raises(ValueError, match=words):
            known.potential(alloy(formula).system, **F64)


# ------------------------------------------------------------------ files and runs


def test_the_card_lists_all_systems(model, sets, tmp_path):
    path = model.save(tmp_path / "m.safetensors")
    again = ScoreModel.load(path)
    assert again.card == model.card and again.card.temperatures == (300, 900)
    assert [(s.formula, s.snapshots, s.temperature_K) for s in again.card.systems] == [
        ("Cu2", 8000, 300.0),
        ("Cu4", 4000, 900.0),
    ]
    assert [s.sha256 for s in again.card.systems] == [part.sha256 for part in sets]
    for system in again.card.systems:
        found = system.configurational_temperature_K
        assert found == pytest.approx(system.temperature_K, rel=0.08)
    assert repr(again) == "ScoreModel(Cu2, Cu4, 300–900 K, σ 0.004–0.004 Å)"
    assert again.card.data["snapshots"] == 12_000
    for part in sets:
        x = torch.as_tensor(part.positions[:4])
        one, two = (m.potential(part.system, **F64)(x) for m in (model, again))
        assert torch.equal(one.energy, two.energy)


@pytest.mark.slow
def test_networks_train_on_sizes_and_go_on(tmp_path):
    """Message passing on cells of 4 and 8 atoms; a second call finds the first one's result."""
    both = [crystal(300, frames=20)[0], crystal(900, frames=60, size=2)[0]]
    small = TrainConfig(network="equivariant", steps=4, batch_size=8, evaluations=2, channels=4)
    one = train(both, config=small, device="cpu", directory=tmp_path)
    (expert,) = one.card.experts
    assert expert.sigma[0] == expert.sigma[1], "one energy for all temperatures: smallest noise"
    assert expert.network.elements == (29,)
    two = train(both, config=small, device="cpu", directory=tmp_path)
    for a, b in zip(one.networks[0].parameters(), two.networks[0].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="training run with another data"):
        train(both[::-1], config=small, device="cpu", directory=tmp_path)
    alike = [both[0], Snapshots(both[1].system, both[1].positions, 300.0)]
    (expert,) = plan(alike, small)
    assert expert.sigma[0] < expert.sigma[1]


def test_the_command_line(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, name in zip(sets, ("a.npz", "b.npz"), strict=True):
        system, kelvin = part.system, part.temperature_K
        np.savez(
            name,
            positions=part.positions[:300],
            numbers=system.numbers,
            cell=system.cell,
            pbc=system.pbc,
            temperature_K=kelvin,
        )
    words = ["train", "a.npz", "b.npz", "--sigma-min", "0.004", "--cutoff", "5.5"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", "m.safetensors", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["trained_on"].startswith("300 of Cu2 at 300 K (by ")
    with safe_open("m.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["diffmd_card"])
    assert card["schema_version"] == 6 and card["temperature_K"] == 300
    assert [s["source"] for s in card["systems"]] == ["a.npz", "b.npz"]
    with pytest.raises(SystemExit):
        main(["train", "--config", "m.safetensors.yml", "-o", "again.safetensors"])
    again, first = (ScoreModel.load(n) for n in ("again.safetensors", "m.safetensors"))
    assert again.card.systems == first.card.systems


def test_runs_tell_of_temperatures_without_snapshots(model, sets, recwarn):
    """300 to 900 K is known; a model of one temperature knows that one."""
    potential = model.potential(sets[0].system, device="cpu")
    for kelvin in (298.15, 600, 910):
        prepare(potential, temperature_K=kelvin)
    assert not [w for w in recwarn if "temperature_K" in str(w.message)]
    with pytest.warns(
        UserWarning, match=names("temperature_K=1200", "Cu2", "300 and 900 K", "hotter")
    ):
        prepare(potential, temperature_K=1200)
    atoms = bulk("Cu", a=3.68, cubic=True).repeat(2)
    atoms.calc = ScoreCalculator("copper-vacancy", device="cpu")
    words = "temperature_K=700.* Cu31 are at 900 K: the same energy is used with the kT of the run"
    with pytest.warns(UserWarning, match=words):
        ReverseDiffusion(atoms, temperature_K=700, rng=1)
    ReverseDiffusion(atoms, temperature_K=900, rng=1)


def test_drift_is_that_of_the_temperature_of_the_run(model, sets):
    """x' = x + h F/kT: twice the temperature, half the drift of the same energy."""
    potential = model.potential(sets[0].system, **F64)
    x = torch.as_tensor(sets[0].positions[:5])
    drifts = []
    for kelvin in (400.0, 800.0):
        step = StepRequest(spring=1 / 2e-4)
        kernel = prepare(potential, temperature_K=kelvin, step=step).kernel
        state = kernel.init(x)
        drifts.append(kernel.h / kernel.kT * state.forces)
    assert torch.allclose(drifts[0], 2 * drifts[1])


# ----------------------------------------------------------------------- bad input


def test_sets_that_do_not_go_together():
    copper = alloy("Cu4")
    cluster = Snapshots(
        System.from_atoms(molecule("H2O")),
        molecule("H2O").positions[None].repeat(3, 0),
        300,
    )
    bohr = Snapshots(
        System(copper.system.numbers, copper.system.masses, copper.system.cell * 1.89, [True] * 3),
        copper.positions * 1.89,
        500,
        source="bohr.xyz",
    )
    for sets, words in {
        (): "no snapshots",
        (copper, copper): "hold the same snapshots",
        (copper, cluster): r"has pbc=\[False, False, False\] but Cu4 has \[True",
        (copper, bohr): r"Å apart in bohr.xyz but \d.\d\d Å in Cu4: are the positions of both in Å",
    }.items():
        with pytest.raises(ValueError, match=words):
            as_sets(sets)
    with pytest.raises(TypeError, match=names("Snapshots", "got str")):
        as_sets(["a.npz"])
    with pytest.raises(ValueError, match=names("network='pair'", "'equivariant'")):
        hot = Snapshots(cluster.system, cluster.positions + 1, 600)
        plan([cluster, hot], TrainConfig(network="pair"))


def test_temperatures_of_files(tmp_path):
    import ase.io

    frames = [alloy("Cu4").system.to_atoms(x) for x in alloy("Cu4").positions]
    files = [tmp_path / "a.xyz", tmp_path / "b.xyz"]
    for name in files:
        ase.io.write(name, frames, format="extxyz")
    with pytest.raises(ValueError, match=names("a.xyz", "--temperature", "kelvin")):
        read_sets(files, [])
    with pytest.raises(ValueError, match="3 temperatures for 2 files"):
        read_sets(files, [1, 2, 3])
    assert [p.temperature_K for p in read_sets(files, [300, 500])] == [300, 500]
    assert [p.temperature_K for p in read_sets(files, [400])] == [400, 400]


def test_closed_forms_are_planned_for_all_sets():
    (expert,) = plan([alloy("Cu4"), alloy("Cu3Au", 900.0)], TrainConfig())
    assert isinstance(expert.network, EmbeddedConfig)
