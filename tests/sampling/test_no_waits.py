"""A step never waits for a number, nor mixes devices: it runs where there are no numbers."""

from dataclasses import replace

import pytest
import torch
from without_data import Operations, without_data

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.potentials.biases.restraints import Restraint, UpperWall
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots

KT = 0.02585
HILLS = {"kT": KT, "sigma": 0.35, "height": 0.01, "pace": 500, "biasfactor": 8.0}


@pytest.fixture(scope="module")
def frames():
    return Snapshots.read("alanine-dipeptide").take(slice(0, 4))


@pytest.fixture(scope="module")
def model():
    return ScoreModel.load("alanine-dipeptide")


def plain(potential, kT=KT):
    return EulerMaruyama(potential, kT=kT, h=2e-5)


KERNELS = {
    "plain": plain,
    "Metropolis": lambda p: Metropolis(plain(p)),
    "HMC": lambda p: HamiltonianMonteCarlo(p, kT=KT, timestep=0.5, n_leapfrog=3),
    "GHMC": lambda p: GeneralizedHMC(p, kT=KT, timestep=0.5, friction=0.1),
    "MALT": lambda p: MALT(p, kT=KT, timestep=0.5, friction=0.1, n_leapfrog=3),
}


def exchange(p):
    ladder = torch.linspace(KT, 2 * KT, 4, dtype=torch.float64)
    return ReplicaExchange(Metropolis(plain(p, ladder)), n_states=4, every=1)


def biases(system):
    phi, d = Torsion(system, (4, 6, 8, 14), name="phi"), Distance(system, (0, 4), name="d")
    return {
        "metadynamics": Metadynamics(phi, grid=Grid([60]), **HILLS),
        "metadynamics of each": Metadynamics(phi, grid=Grid([60]), walkers="independent", **HILLS),
        "OPES": OPES(phi, kT=KT, sigma=0.3, barrier=0.3, pace=500),
        "restraint": Restraint(d, at=2.0, kappa=1.0),
        "wall": UpperWall(d, at=2.0, kappa=1.0),
    }


def started(kernel, x):
    state = kernel.init(x)
    if kernel.potential.has_memory and kernel.potential.begin(state.x, state.step):
        state = kernel.refresh(state)
    return state


def step(kernel, x):
    """Two steps on the device without data, each of which the exchange makes otherwise."""
    kernel, state = without_data(kernel, started(kernel, x))
    for n in range(2):
        kernel.step(replace(state, step=state.step + n), Noise(1))


def test_noise_asks_for_walkers_once(monkeypatch):
    asked, ids, x = [], torch.tensor([3, 1]), torch.zeros(2, 4, 3)
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: asked.append(1) or tolist(t))
    noise = Noise(1)
    for n in range(5):
        noise.normal(n, x, walkers=ids)
        noise.uniform(n, x[:, 0, 0], walkers=ids)
    assert len(asked) == 1
    ids[0] = 7  # other walkers by the same name
    assert torch.equal(noise.normal(5, x, walkers=ids), Noise(1).normal(5, x, walkers=[7, 1]))
    assert len(asked) == 2


@pytest.mark.parametrize("name", [*KERNELS])
def test_kernels(name, model, frames):
    x = torch.as_tensor(frames.positions)
    step(KERNELS[name](model.potential(compile=False)), x)


@pytest.mark.parametrize("kind", ["plain", "Metropolis"])
@pytest.mark.parametrize(
    "name", ["metadynamics", "metadynamics of each", "OPES", "restraint", "wall"]
)
def test_biases(name, kind, model, frames):
    x = torch.as_tensor(frames.positions)
    bias = biases(frames.system)[name]
    step(KERNELS[kind](model.potential(compile=False) + bias), x)


def test_exchange(model, frames):
    step(exchange(model.potential(compile=False)), torch.as_tensor(frames.positions))


def waiting(model, system):
    """What is known to wait, and why that is allowed."""
    p, d = model.potential(compile=False), Distance(system, (0, 4), name="d")
    edges = Metadynamics(d, grid=Grid([60], [0.5], [9.0]), **HILLS)
    return {
        # leaves out the walkers that did not move: an expensive reference is worth a look
        "delayed acceptance": DelayedAcceptance(Metropolis(plain(p)), p, n_inner=2),
        # warns of the first walker beyond the edges of a grid
        "a grid with edges": plain(p + edges),
    }


@pytest.mark.parametrize("name", ["delayed acceptance", "a grid with edges"])
def test_those_that_wait_are_known(name, model, frames):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(waiting(model, frames.system)[name], torch.as_tensor(frames.positions))


class Asks(EulerMaruyama):
    """The mutant: it looks at a number."""

    def step(self, state, noise):
        state.x.sum().item()
        return super().step(state, noise)


def test_one_that_waits_is_found(model, frames):
    kernel = Asks(model.potential(compile=False), kT=KT, h=2e-5)
    with pytest.raises(RuntimeError, match="item"):
        step(kernel, torch.as_tensor(frames.positions))


def test_one_on_another_device_is_found(model, frames):
    kernel, state = without_data(*_plain_start(model, frames))
    with pytest.raises((RuntimeError, NotImplementedError)):
        kernel.step(replace(state, x=torch.as_tensor(frames.positions)), Noise(1))


def _plain_start(model, frames):
    kernel = plain(model.potential(compile=False))
    return kernel, kernel.init(torch.as_tensor(frames.positions))


@pytest.mark.parametrize("kind, most", [("plain", 215), ("Metropolis", 255)])
def test_operations_of_a_step(kind, most, model, frames):
    """As many launches on a GPU; a step that needs more has to say why."""
    kernel, noise = KERNELS[kind](model.potential(compile=False)), Noise(1)
    state = kernel.init(torch.as_tensor(frames.positions))
    for _ in range(2):  # then random numbers of several steps are there
        state, _ = kernel.step(state, noise)
    with Operations() as seen:
        kernel.step(state, noise)
    assert 0.9 * most < seen.count <= most
