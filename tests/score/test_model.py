"""The model file: what is written is what is read, and nothing else is read."""

import json
import pickle

import numpy as np
import pytest
import torch
from ase.build import molecule
from messages import names
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffmd_ase.io.tensors import save_tensors
from diffmd_ase.score.card import Card
from diffmd_ase.score.curvature import largest_curvature
from diffmd_ase.score.losses import score
from diffmd_ase.score.model import ScoreModel, resolve_device
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System

SMALL = {"steps": 4, "batch_size": 16, "width": 8, "evaluations": 2, "processes": 1}
SMALL |= {"validation_fraction": 0.2, "channels": 4}


def data():
    atoms = molecule("H2O2")
    x = atoms.positions + 0.03 * np.random.default_rng(0).normal(size=(60, 4, 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


@pytest.fixture(scope="module")
def snapshots():
    return data()


@pytest.fixture(scope="module", params=["pair", "equivariant"])
def model(request, snapshots):
    return train(snapshots, config=TrainConfig(network=request.param, **SMALL), device="cpu")


@pytest.fixture(scope="module")
def molecular(snapshots):
    return train(snapshots, config=TrainConfig(**SMALL), device="cpu")


@pytest.fixture(scope="module")
def transferable(snapshots):
    return train(snapshots, config=TrainConfig(network="equivariant", **SMALL), device="cpu")


def energies(model, snapshots, dtype=torch.float32):
    x = torch.as_tensor(snapshots.positions[:8])
    levels = (model.card.sigma_min, 0.2, model.card.sigma_max)
    return [model.potential(sigma=s, device="cpu", dtype=dtype)(x).energy for s in levels]


# ---------------------------------------------------------------------- round trip


def test_round_trip_keeps_every_bit(model, snapshots, tmp_path):
    path = model.save(tmp_path / "m.safetensors")
    again = ScoreModel.load(path)
    assert again.card == model.card
    for a, b in zip(energies(model, snapshots), energies(again, snapshots), strict=True):
        assert torch.equal(a, b)
    assert again.save(tmp_path / "n.safetensors").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "n.safetensors"]


def test_loading_under_another_default_dtype(model, snapshots, tmp_path):
    model.save(tmp_path / "m.safetensors")
    expected = energies(model, snapshots)
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        again = ScoreModel.load(tmp_path / "m.safetensors")
        for a, b in zip(energies(again, snapshots), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-6)


def test_the_card_is_readable_by_anyone(molecular, snapshots, tmp_path):
    path = molecular.save(tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["diffmd_card"])
    assert card.pop("schema_version") == 6 and len(card.pop("sha256")) == 64
    assert card["formula"] == "H2O2"
    assert card["numbers"] == [8, 8, 1, 1] and card["cell"] is None
    assert card["temperature_K"] == 300.0 and card["kT"] == pytest.approx(snapshots.kT)
    assert card["units"] == {"length": "Å", "energy": "eV", "network": "kT_train"}
    assert card["data"]["sha256"] == snapshots.sha256
    assert set(card["versions"]) >= {"torch", "ase", "numpy"}
    assert Card.model_validate(card) == molecular.card


def test_covariance_is_that_of_centred_snapshots(molecular, snapshots):
    x = snapshots.positions - snapshots.positions.mean(1, keepdims=True)
    c = np.array(molecular.card.covariance)
    assert np.allclose(c, sum(a @ a.T for a in x) / (3 * len(x)))
    assert np.allclose(c.sum(0), 0, atol=1e-12)


def test_short_description(molecular):
    assert repr(molecular).startswith("ScoreModel(H2O2, 300 K, σ ")
    assert molecular.system == data().system


# ----------------------------------------------------------------------- bad files


@pytest.fixture
def path(molecular, tmp_path):
    return molecular.save(tmp_path / "m.safetensors")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=names("m.safetensors", "truncated", ".safetensors")):
        ScoreModel.load(path)


def test_foreign(path, tmp_path):
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=names("m.safetensors", "diffmd card", "ScoreModel.save", "diffmd train")
    ):
        ScoreModel.load(path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="not readable"):
        ScoreModel.load(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="folder"):
        ScoreModel.load(tmp_path)


def rewritten(path, change, tensors=None):
    """The file again with its card changed."""
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["diffmd_card"])
    tensors = load_file(path) if tensors is None else tensors
    del card["sha256"]
    change(card)
    save_tensors(path, tensors, "diffmd_card", card)


def test_newer_schema(path):
    rewritten(path, lambda card: card.update(schema_version=99, something="new"))
    with pytest.raises(ValueError, match=names("m.safetensors", "99", "6", "upgrade")):
        ScoreModel.load(path)


def test_schema_1_is_of_one_system(path):
    """Before cards listed their systems; data stood for the only one."""
    now = ScoreModel.load(path).card

    def before(card):
        (system,) = card.pop("systems")
        known = ("source", "snapshots", "sha256", "correlation")
        card.update(schema_version=1, data={name: system[name] for name in known})

    rewritten(path, before)
    then = ScoreModel.load(path).card
    assert then.schema_version == 1 and then.systems[0].held == []
    left_out = {"configurational_temperature_K"}
    assert [s.model_dump(exclude=left_out) for s in then.systems] == [
        s.model_dump(exclude=left_out) for s in now.systems
    ]


def test_damaged_card(path):
    rewritten(path, lambda card: card.pop("kT"))
    with pytest.raises(ValueError, match=r"damaged card.*"):
        ScoreModel.load(path)
    for text in ("{", "[1, 2]", '"text"'):
        save_file({"a": torch.zeros(1)}, path, metadata={"diffmd_card": text})
        with pytest.raises(ValueError, match=names("m.safetensors", "damaged")):
            ScoreModel.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kT", 0.0), ("masses", [-1.0, 16.0, 1.0, 1.0]), ("numbers", [8, 8, 1, 119]),
        ("numbers", [8, 8, 1]), ("temperature_K", float("nan")), ("sigma_min", float("inf")),
    ],
)  # fmt: skip
def test_cards_of_impossible_numbers(path, field, value):
    rewritten(path, lambda card: card.update({field: value}))
    with pytest.raises(ValueError, match=names("m.safetensors", "damaged card")) as refused:
        ScoreModel.load(path)
    assert field in str(refused.value) and "http" not in str(refused.value)


def test_escape_sequences_do_not_reach_the_terminal(path):
    rewritten(path, lambda card: card.update(name="a model\x1b[2J"))
    with pytest.raises(ValueError, match=names("m.safetensors", "control characters")) as refused:
        ScoreModel.load(path)
    assert "\x1b" not in str(refused.value)


def test_weights_that_do_not_fit(path):
    tensors = load_file(path)
    for change in ("missing", "another shape", "none"):
        other = dict(tensors)
        name = next(k for k, v in tensors.items() if k.startswith("broad.") and v.ndim == 2)
        if change == "missing":
            del other[name]
        elif change == "another shape":
            other[name] = torch.zeros(2, 2)
        else:
            other = {"fine.x": torch.zeros(1)}
        rewritten(path, lambda card: None, other)
        with pytest.raises(ValueError, match=names("m.safetensors", "card")):
            ScoreModel.load(path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for name, write in (
        ("a.safetensors", lambda p: torch.save({"x": Trap()}, p)),
        ("b.safetensors", lambda p: p.write_bytes(pickle.dumps(Trap()))),
    ):
        write(tmp_path / name)
        with pytest.raises(ValueError, match="not readable"):
            ScoreModel.load(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match=r"no model file 'nothing'.*diffmd train"):
        ScoreModel.load("nothing")


def test_failed_save_keeps_the_old_file(molecular, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        molecular.save(path)
    assert path.read_bytes() == before


# ------------------------------------------------------------- what may be asked for


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(
        ValueError, match=names("device='cuda:99'", "CUDA", "device='cpu'", "'auto'")
    ):
        resolve_device("cuda:99")
    for wrong in ("gpu", "cuda:x", ""):
        with pytest.raises(ValueError, match="not a device; use auto, cpu, cuda"):
            resolve_device(wrong)
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="device='mps' is not on this machine"):
            resolve_device("mps")


def test_noise_levels_of_the_experts(molecular):
    card = molecular.card
    _, broad = card.experts
    assert molecular.expert(card.sigma_min) is molecular.networks[0]
    assert molecular.expert(broad.sigma[0]) is molecular.networks[1]
    assert molecular.expert(card.sigma_max) is molecular.networks[1]
    # between the two the nearest level on a logarithmic scale stands in
    low, high = card.sigma_min, broad.sigma[0]
    if low < high:
        assert molecular.level(low * (high / low) ** 0.4) == low
        assert molecular.level(low * (high / low) ** 0.6) == high
        assert molecular.expert(low * (high / low) ** 0.6) is molecular.networks[1]
    assert molecular.level(2 * high) == 2 * high
    low = card.sigma_min
    for sigma in (low / 2, 2 * card.sigma_max, 0.0, -1.0, float("nan")):
        said = names(f"sigma={sigma}" if sigma != low / 2 else "sigma", f"{low:.3g} to 4 Å")
        with pytest.raises(ValueError, match=said):
            molecular.expert(sigma)
        with pytest.raises(ValueError, match=said):
            molecular.potential(sigma=sigma, device="cpu")


def test_other_molecules(molecular):
    for name, what in (("H2O", "not H2O in the order OH2"), ("C2H2", "not C2H2 in the order")):
        with pytest.raises(ValueError, match=what):
            molecular.potential(System.from_atoms(molecule(name)), device="cpu")
    swapped = System.from_atoms(molecule("H2O2")[[0, 2, 1, 3]])
    with pytest.raises(ValueError, match=names("H2O2", "O2H2", "OHOH", "equivariant")):
        molecular.potential(swapped, device="cpu")


def test_other_compositions_of_known_elements(transferable):
    water = molecule("H2O")
    potential = transferable.potential(System.from_atoms(water), device="cpu")
    assert torch.isfinite(potential(torch.as_tensor(water.positions)).forces).all()
    with pytest.raises(ValueError, match=r"this model knows H, O, not C \(of CH4\)"):
        transferable.potential(System.from_atoms(molecule("CH4")), device="cpu")


def test_other_pbc(model):
    atoms = molecule("H2O2", vacuum=4.0, pbc=True)
    with pytest.raises(
        ValueError, match=names("pbc=[True, True, True]", "pbc=[False, False, False]")
    ):
        model.potential(System.from_atoms(atoms), device="cpu")


def test_networks_are_placed_once(molecular):
    device = torch.device("cpu")
    sigma = molecular.card.sigma_min
    one, two = (molecular.network_at(sigma, device, torch.float64) for _ in range(2))
    assert one is two and one is not molecular.networks[0]
    assert next(molecular.networks[0].buffers()).dtype != torch.float64
    assert not any(p.requires_grad for n in molecular.networks for p in n.parameters())


# ----------------------------------------------------------------------- curvature


@pytest.mark.parametrize("kind", ["pair", "equivariant"])
def test_largest_curvature_is_that_of_the_hessian(kind, snapshots):
    model = train(snapshots, config=TrainConfig(network=kind, **SMALL), device="cpu")
    part = snapshots.take(slice(0, 6))
    sigma = model.card.sigma_min
    network = model.network_at(sigma, torch.device("cpu"), torch.float64)
    numbers = torch.as_tensor(snapshots.system.numbers)

    def energy(flat):
        x = flat.reshape(1, -1, 3)
        return network(x, x.new_tensor([sigma]), numbers=numbers, cell=None, pbc=(False,) * 3)[0]

    exact = []
    for x in torch.as_tensor(part.positions):
        hessian = torch.autograd.functional.hessian(energy, x.flatten())
        exact.append(float(torch.linalg.eigvalsh(hessian)[-1]))
    found = largest_curvature(model, part)
    # power iteration ends a little below; the stability limit hλ < 2 has room for that
    assert 0.9 * max(exact) < found <= max(exact) * 1.001
    assert model.card.lambda_max == pytest.approx(largest_curvature(model, snapshots))


def test_card_fields_are_closed(molecular):
    fields = molecular.card.model_dump()
    with pytest.raises(ValidationError, match="extra"):
        Card.model_validate({**fields, "unknown": 1})


def test_force_of_the_model_is_kT_times_the_score(molecular, snapshots):
    x = torch.as_tensor(snapshots.positions[:3])
    potential = molecular.potential(device="cpu", dtype=torch.float64)
    network = molecular.network_at(potential.sigma, torch.device("cpu"), torch.float64)
    _, s = score(network, x, x.new_full((3,), potential.sigma))
    assert torch.allclose(potential(x).forces, snapshots.kT * s, rtol=1e-12)
