"""A learned score as a potential: conformance, units, precision, chunks, stress."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from diffmd_ase.potentials import learned
from diffmd_ase.potentials.learned import ScorePotential
from diffmd_ase.score.losses import score
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import TrainConfig, train
from diffmd_ase.system import System
from diffmd_ase.testing import check_equivariant, check_potential, check_stress

SMALL = {"steps": 4, "batch_size": 8, "width": 8, "evaluations": 2, "processes": 1}
SMALL |= {"validation_fraction": 0.2, "channels": 4}
F64 = {"device": "cpu", "dtype": torch.float64}


def rattled(atoms, count):
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.05 * rng.normal(size=(count, len(atoms), 3))
    return Snapshots(System.from_atoms(atoms), x, 350)


@pytest.fixture(scope="module")
def made():
    peroxide, copper = rattled(molecule("H2O2"), 60), rattled(bulk("Cu", cubic=True), 20)
    small = TrainConfig(**SMALL)
    loose = TrainConfig(network="equivariant", **SMALL)
    return {
        "mechanics": (train(peroxide, config=small, device="cpu"), peroxide),
        "equivariant": (train(peroxide, config=loose, device="cpu"), peroxide),
        "crystal": (train(copper, config=small, device="cpu"), copper),
    }


@pytest.fixture(params=["mechanics", "equivariant", "crystal"])
def case(request, made):
    model, snapshots = made[request.param]
    return model, torch.as_tensor(snapshots.positions[:6])


def test_conformance(case):
    model, x = case
    periodic = model.system.periodic
    factory = (lambda system: model.potential(system, **F64)) if periodic else None
    check_potential(
        model.potential(**F64), x[0], rtol=1e-5, factory=factory, translation_invariant=True
    )


def test_symmetries(made):
    for name in ("mechanics", "equivariant"):
        model, snapshots = made[name]
        x = torch.as_tensor(snapshots.positions[0])
        check_equivariant(model.potential(**F64), x, reflections=True, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_stress_of_crystals(made, size):
    """By finite strain, also of another cell of the same elements."""
    model, _ = made["crystal"]
    atoms = bulk("Cu", cubic=True).repeat((size, 1, 1))
    atoms.set_cell(atoms.cell @ np.array([[1, 0.05, 0], [0, 1.02, 0], [0, -0.03, 0.97]]), True)
    atoms.rattle(0.05, seed=2)
    if size == 2:
        del atoms[3]
    system, x = System.from_atoms(atoms), torch.as_tensor(atoms.positions)
    check_stress(lambda s: model.potential(s, **F64), system, x, rtol=1e-5)


def test_no_stress_without_a_cell(made):
    model, snapshots = made["mechanics"]
    value = model.potential(**F64)(torch.as_tensor(snapshots.positions[0]), stress=True)
    assert value.stress is None


def test_forces_are_kT_times_the_score(case):
    model, x = case
    potential = model.potential(**F64)
    network = model.network_at(potential.sigma, torch.device("cpu"), torch.float64)
    system = model.system
    numbers = torch.as_tensor(system.numbers)
    cell = None if system.cell is None else torch.as_tensor(system.cell)

    def energy(y, sigma):
        return network(y, sigma, numbers=numbers, cell=cell, pbc=tuple(system.pbc.tolist()))

    value, s = score(energy, x, x.new_full((len(x),), potential.sigma))
    found = potential(x)
    kT = 8.617330337217213e-05 * 350
    assert torch.allclose(found.forces, kT * s, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.energy, kT * value, rtol=1e-9)
    assert potential.kT_train == pytest.approx(kT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_of_the_positions_come_back(case, dtype):
    model, x = case
    x = x.to(dtype)
    for network in (None, torch.float64):
        value = model.potential(device="cpu", dtype=network)(x)
        assert value.energy.dtype == value.forces.dtype == dtype
        assert value.forces.device == x.device and value.stress is None
    # without a dtype the network runs in single precision: float64 in, the same numbers out
    default = model.potential(device="cpu")
    assert default.dtype == torch.float32
    assert torch.equal(default(x).forces, default(x.float()).forces.to(dtype))
    exact = model.potential(**F64)(x.double()).forces
    assert (default(x).forces - exact).abs().max() < 2e-3 * exact.abs().max()


def test_chunks_do_not_change_numbers(made, monkeypatch):
    model, snapshots = made["crystal"]
    x = torch.as_tensor(snapshots.positions[:7])
    potential = model.potential(**F64)
    whole = potential(x, stress=True)
    monkeypatch.setattr(learned, "_CHUNK", 9)  # two structures of four atoms at a time
    parts = potential(x, stress=True)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_batch_axes(case):
    model, x = case
    potential = model.potential(**F64)
    flat, grid = potential(x), potential(x.reshape(2, 3, *x.shape[1:]))
    assert grid.energy.shape == (2, 3) and torch.equal(grid.energy.flatten(), flat.energy)
    assert torch.equal(grid.forces.flatten(0, 1), flat.forces)
    assert potential(x[0]).energy.shape == ()


def test_wrong_shapes(case):
    model, x = case
    potential = model.potential(**F64)
    n = len(model.system)
    for wrong in (x[:, :-1], x[..., :2], x.flatten(1)):
        with pytest.raises(ValueError, match=rf"expected \(\*batch, {n}, 3\)"):
            potential(wrong)


def test_levels(made):
    model, snapshots = made["mechanics"]
    x = torch.as_tensor(snapshots.positions[0])
    wide = model.potential(sigma=1.0, **F64)
    assert wide.sigma == 1.0 and model.potential(**F64).sigma == model.card.sigma_min
    assert wide(x).forces.abs().max() < model.potential(**F64)(x + 0.1 * x).forces.abs().max()


def test_is_a_potential_of_its_system(made):
    model, _ = made["crystal"]
    potential = ScorePotential(model, device="cpu")
    assert potential.system == model.system and potential.conservative
    assert not potential.has_memory and not potential.needs_base


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(case):
    model, x = case
    here, there = model.potential(**F64)(x), model.potential(device="cuda", dtype=torch.float64)(x)
    assert there.forces.device == x.device
    assert torch.allclose(here.forces, there.forces, rtol=1e-8, atol=1e-10)
    assert torch.allclose(here.energy, there.energy, rtol=1e-10)


@pytest.mark.slow
def test_compiled_when_it_pays(made, monkeypatch):
    model, snapshots = made["mechanics"]
    x = torch.as_tensor(snapshots.positions[:3])
    monkeypatch.setattr(ScorePotential, "PAYS", 2)
    potential = model.potential(device="cpu")
    values = [potential(x).forces for _ in range(3)]
    assert potential.compiled
    assert torch.equal(values[0], values[1])  # as it is written
    torch.testing.assert_close(values[2], values[0], rtol=1e-4, atol=1e-4)
    never = model.potential(device="cpu", compile=False)
    for _ in range(3):
        assert torch.equal(never(x).forces, values[0])
    at_once = model.potential(device="cpu", compile=True)
    assert torch.equal(at_once(x).forces, values[2])
    with pytest.raises(ValueError, match="compile='always'"):
        model.potential(compile="always")


@pytest.mark.parametrize("compiled", [False, True])
def test_without_memory_for_all_some_at_a_time(case, monkeypatch, compiled):
    """Half of the structures, and half of these again, from then on; the numbers are the same."""
    model, x = case
    expected = model.potential(**F64, compile=False)(x, stress=True)
    potential, sizes = model.potential(**F64, compile=compiled), []
    own = ScorePotential._as_written

    def little(self, x, *rest):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own(self, x, *rest)

    def by_function(x, strain, sigma, told, pairs):
        return little(potential, x, strain, sigma, pairs)

    by_function.within = lambda step, rows, *rest: little(potential, rows[0])
    monkeypatch.setattr(ScorePotential, "_as_written", little)
    monkeypatch.setattr(model, "compiled_at", lambda network: by_function)
    first = pytest.warns(UserWarning, match="no memory for 6 structures of .* atoms at once: 3")
    with first, pytest.warns(UserWarning, match="no memory for 3 structures"):
        got = potential(x, stress=True)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    for a, b in zip(got, expected, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    sizes.clear()
    potential(x)
    assert sizes == [1] * 6  # without trying again
    assert potential.within(torch.add, x, x) is None


def test_messages_some_at_a_time(made, monkeypatch):
    """As many structures as a cache holds, the rest after them; nothing else differs."""
    model, snapshots = made["equivariant"]
    x = torch.as_tensor(snapshots.positions[:7])
    expected = model.potential(**F64, compile=False)(x)
    monkeypatch.setattr(learned, "_CACHED", 3 * x.shape[1])
    potential, sizes = model.potential(**F64, compile=False), []
    own = potential._as_written
    potential._as_written = lambda part, *rest: sizes.append(len(part)) or own(part, *rest)
    got = potential(x)
    assert sizes == [3, 3, 1]
    for a, b in zip(got[:2], expected[:2], strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_without_memory(made, monkeypatch):
    model, snapshots = made["mechanics"]
    x = torch.as_tensor(snapshots.positions[:4])
    potential = model.potential(**F64, compile=True)

    class Full:
        def within(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "compiled_at", lambda network: Full())
    with pytest.warns(UserWarning, match="no memory for 4 structures"):
        assert potential.within(torch.add, x, x) is None


def test_another_error_is_no_lack_of_memory(made, monkeypatch):
    model, snapshots = made["mechanics"]
    potential = model.potential(**F64, compile=False)

    def wrong(*_):
        raise RuntimeError("expected scalar type Float but found Double")

    monkeypatch.setattr(ScorePotential, "_as_written", wrong)
    with pytest.raises(RuntimeError, match="scalar type"):
        potential(torch.as_tensor(snapshots.positions[:4]))
