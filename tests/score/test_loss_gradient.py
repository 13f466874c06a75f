"""The step of a training as one compiled function: the same gradient, restarts, and where not."""

import logging

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from safetensors.torch import load_file

from diffmd_ase.score.fit import frames_of
from diffmd_ase.score.loss_gradient import LossGradient
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.molecule import MechanicsConfig, PairConfig
from diffmd_ase.score.objective import Objective
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, fit, plan, train
from diffmd_ase.score.training_state import read_checkpoint
from diffmd_ase.system import System

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}
SMALL = [MechanicsConfig(width=8, depth=1), PairConfig(width=8, depth=1)]
TINY = {"steps": 12, "batch_size": 16, "evaluations": 4, "processes": 1, "max_minutes": 1e4}


@pytest.fixture(scope="module")
def peroxide():
    """Frames of which every second one has forces."""
    atoms = molecule("H2O2")
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.03 * rng.normal(size=(200, 4, 3))
    forces = -300 * units.kB / 0.03**2 * (x - atoms.positions)
    forces[::2] = np.nan
    return Snapshots(System.from_atoms(atoms), x, 300, forces=forces)


def gradient_of(snapshots, config, compiled, dtype=torch.float32):
    experts = plan(snapshots, TrainConfig(force_weight=1.0))
    expert = experts[isinstance(config, PairConfig)].model_copy(update={"network": config})
    torch.manual_seed(0)
    network = build(config, snapshots, sigma=expert.sigma[0], force_weight=0.0)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn(weight.shape).to(weight)
    objective = Objective(expert, (snapshots,), "cpu")
    x = frames_of(snapshots, bool(expert.force_weight), "cpu")
    return LossGradient(network.to(dtype), objective, compiled), [x[:16].to(dtype)]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def gradients(of):
    return [weight.grad for weight in of.parameters]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        pytest.param(config, dtype, marks=() if n == m == 1 else pytest.mark.slow)
        for n, config in enumerate(SMALL)
        for m, dtype in enumerate(reversed(CLOSE))
    ],
)
def test_the_gradient_is_that_of_the_loss_as_written(peroxide, config, dtype):
    """Of labels and moves as well, for weights that have changed since it was compiled."""
    (compiled, batch), (written, _) = (
        gradient_of(peroxide, config, choice, dtype) for choice in (True, False)
    )
    compiled(batch, seeded())
    for weight, same in zip(compiled.parameters, written.parameters, strict=True):
        same.data = weight.data.mul_(1.1).clone()
    terms, expected = compiled(batch, seeded(2)), written(batch, seeded(2))
    assert compiled.compiled is True
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert abs(terms[name] - value) <= CLOSE[dtype] * max(1, abs(value))
    largest = max(float(g.norm()) for g in gradients(written) if g is not None)
    for got, g in zip(gradients(compiled), gradients(written), strict=True):
        assert (got is None) == (g is None)
        assert got is None or (got - g).norm() <= CLOSE[dtype] * largest
    before = [None if g is None else g.clone() for g in gradients(written)]
    written.objective(written.network, batch, seeded(2))["loss"].backward()
    for twice, once in zip(gradients(written), before, strict=True):
        assert once is None or torch.allclose(twice, 2 * once)


def test_it_is_compiled_where_that_pays(peroxide, caplog):
    caplog.set_level(logging.INFO)
    step, batch = gradient_of(peroxide, SMALL[1], None)
    for _ in range(24):
        step(batch, seeded())
    assert not step.undecided
    step(batch, seeded())
    assert step.undecided
    assert step.pays(10**7, 1e5)
    assert not step.pays(10**7, 60.0)
    assert not step.pays(100, 1e5)
    assert "compiled: 10000000 steps" in caplog.text
    assert "not compiled: 100 steps" in caplog.text


@pytest.mark.slow
def test_a_restart_repeats_the_choice(peroxide, tmp_path):
    """The bits of the uninterrupted training, and the weights of one that is not compiled."""
    (_, broad), given = plan(peroxide, TrainConfig()), {"seed": 3, "device": "cpu"}
    broad = broad.model_copy(update={"network": SMALL[1]})
    on, off = (TrainConfig(compile=choice, **TINY) for choice in ("on", "off"))

    class Stopped(Exception):
        pass

    def stop(name, fraction, note):
        if fraction >= 8 / 12:
            raise Stopped

    def quiet(*told):
        pass

    whole, parts, written = (tmp_path / name for name in ("whole", "parts", "written"))
    for folder in (whole, parts, written):
        folder.mkdir()
    fit(broad, peroxide, on, folder=whole, report=quiet, **given)
    with pytest.raises(Stopped):
        fit(broad, peroxide, on, folder=parts, report=stop, **given)
    fit(broad, peroxide, TrainConfig(**TINY), folder=parts, report=quiet, **given)
    fit(broad, peroxide, off, folder=written, report=quiet, **given)
    facts = [read_checkpoint(f / "broad.safetensors")[0] for f in (whole, parts, written)]
    assert [one.compiled for one in facts] == [True, True, False]
    one, other, third = (load_file(f / "broad.safetensors") for f in (whole, parts, written))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        if name.startswith("network."):
            assert torch.allclose(value.double(), third[name].double(), atol=1e-4), name
    assert facts[0].history[-1]["validation_loss"] == pytest.approx(
        facts[2].history[-1]["validation_loss"], rel=1e-4
    )


@pytest.mark.slow
def test_without_a_compiler(peroxide, tmp_path, monkeypatch):
    """Processes say what is missing, and train as it is written."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    chosen = TrainConfig(**{**TINY, "width": 8, "compile": "on", "processes": 2})
    with pytest.warns(UserWarning, match="cannot be compiled .*torch.compile needs a C") as said:
        model = train(peroxide, config=chosen, seed=3, device="cpu")
    assert len([w for w in said if "cannot be compiled" in str(w.message)]) == 2
    written = train(
        peroxide, config=chosen.model_copy(update={"compile": "off"}), seed=3, device="cpu"
    )
    for a, b in zip(model.networks, written.networks, strict=True):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name])


def test_what_is_not_compiled():
    """A closed form leaves nothing to train, and neighbours are others in each batch."""
    atoms = bulk("Cu", cubic=True)
    x = atoms.positions + 0.05 * np.random.default_rng(0).normal(size=(50, 4, 3))
    copper = Snapshots(System.from_atoms(atoms), x, 300)
    for kind in ("auto", "equivariant"):
        asked = TrainConfig(network=kind, compile="on")
        with pytest.raises(ValueError, match="compile='on', but the step of a network of kind"):
            plan(copper, asked)
