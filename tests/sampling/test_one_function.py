"""A plain step and the network behind it compiled as one function: the same chain."""

import pytest
import torch

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.restraints import Restraint
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import State

KT, H = 0.02585, 2e-5


@pytest.fixture(scope="module")
def model():
    return ScoreModel.load("alanine-dipeptide")


@pytest.fixture(scope="module")
def x():
    positions = Snapshots.read("alanine-dipeptide").positions[:4]
    return torch.as_tensor(positions, dtype=torch.float32)


def held(x):
    """The first atom does not move."""
    return torch.full(x.shape[-2:-1], H, dtype=torch.float64).index_fill(0, torch.tensor([0]), 0)


KERNELS = {
    "without a mean": lambda p, x: EulerMaruyama(p, kT=KT, h=H, mean_free=True),
    "with a mean": lambda p, x: EulerMaruyama(p, kT=KT, h=H),
    "an atom held": lambda p, x: EulerMaruyama(p, kT=KT, h=held(x)),
    "temperatures": lambda p, x: EulerMaruyama(p, kT=torch.linspace(KT, 2 * KT, len(x)), h=H),
}


def last(kernel, x, steps=4):
    [(state, _)] = run(kernel, x, steps, noise=Noise(3), every=steps)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_the_same_steps(name, model, x):
    compiled = model.potential(device="cpu", compile=True)
    called = []
    own = type(compiled).__call__
    compiled.__class__ = type("Seen", (type(compiled),), {"__call__": lambda *a: called.append(1)})
    written = model.potential(device="cpu", compile=False)
    assert own is type(written).__call__
    one = (x[0], x[0].double()) if name != "temperatures" else ()
    for part in (x, x[:1], x.double(), *one):
        kernels = (KERNELS[name](p, part) for p in (compiled, written))
        got, expected = (last(kernel, part) for kernel in kernels)
        assert got.step == expected.step == 4
        assert got.x.dtype == got.forces.dtype == part.dtype
        assert got.x.shape == part.shape and got.energy.shape == part.shape[:-2]
        assert torch.allclose(got.x, expected.x, rtol=0, atol=1e-5)
        assert torch.allclose(got.energy, expected.energy, rtol=0, atol=1e-3)
        scale = expected.forces.abs().max()
        assert (got.forces - expected.forces).abs().max() < 1e-4 * scale
    assert not called  # the potential alone is not even compiled


def some_far(x):
    """Steps of which those of the last walker are too long."""
    return torch.full(x.shape[:-1], H, dtype=torch.float64).index_fill(0, torch.tensor([3]), 2e-3)


ACCEPTED = {
    "one step size": (lambda p, x: EulerMaruyama(p, kT=KT, h=6e-5, mean_free=True), True),
    "of each walker": (
        lambda p, x: EulerMaruyama(p, kT=torch.linspace(KT, 2 * KT, 4), h=some_far(x)),
        False,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_the_same_choices(name, model, x):
    """Positions, energies, forces and all of `Info`; a rejection leaves what was there."""
    make, alone = ACCEPTED[name]
    compiled, written = (model.potential(device="cpu", compile=c) for c in (True, False))
    for part in (x.double(), *((x[:1].double(), x[0].double()) if alone else ())):
        kernels = [Metropolis(make(p, part)) for p in (compiled, written)]
        states, noise = [k.init(part) for k in kernels], Noise(3)
        for _ in range(3):
            made = [k.step(s, noise) for k, s in zip(kernels, states, strict=True)]
            assert kernels[0]._at_once(states[0], noise) is not None
            assert kernels[1]._at_once(states[1], noise) is None
            (got, info), (expected, other) = made
            assert got.x.shape == part.shape and got.step == expected.step
            assert torch.equal(info.accepted, other.accepted)
            assert torch.equal(info.divergent, other.divergent)
            assert info[5:] == other[5:] == (1, 0)
            if not alone:
                assert info.accepted.tolist()[3] is False
                assert torch.equal(got.x[3], states[0].x[3])
                assert torch.equal(got.forces[3], states[0].forces[3])
                assert torch.equal(got.energy[3], states[0].energy[3])
            assert torch.allclose(got.x, expected.x, rtol=0, atol=1e-6)
            for number in ("delta_u", "log_q", "log_ratio"):
                a, b = getattr(info, number), getattr(other, number)
                assert a.dtype == b.dtype == torch.float64 and a.shape == b.shape
                near = info.accepted
                assert torch.allclose(a[near], b[near], rtol=1e-3, atol=1e-2)
            states = [got, expected]


def hills(system, **options):
    torsions = Torsion(system, [[4, 6, 8, 14], [6, 8, 14, 16]])
    return Metadynamics(
        torsions, kT=KT, sigma=0.35, height=0.05, pace=2, grid=Grid([40, 40]), **options
    )


@pytest.mark.slow
def test_the_same_steps_on_a_bias_that_grows(model, x):
    """Hills that come after the step was compiled act in it; the network's part is kept."""
    for part in (x, x[0]):
        last = []
        for compiled in (True, False):
            potential = model.potential(device="cpu", compile=compiled)
            bias = hills(potential.system)
            kernel = EulerMaruyama(potential + bias, kT=KT, h=H, mean_free=True)
            assert kernel._fused is potential
            [(state, _)] = run(kernel, part, 7, noise=Noise(3), every=7)
            assert bias.hills[1].numel() == 3 * part[..., 0, 0].numel()
            own = potential(state.x)
            assert torch.allclose(state.fixed[0].forces, own.forces, rtol=0, atol=1e-3)
            last.append((state, bias(state.x)))
        (got, felt), (expected, other) = last
        assert torch.allclose(got.x, expected.x, rtol=0, atol=1e-5)
        assert felt.energy.abs().min() > 1e-2
        assert torch.allclose(felt.energy, other.energy, rtol=0, atol=1e-5)
        assert torch.allclose(got.energy, expected.energy, rtol=0, atol=1e-3)
        scale = expected.forces.abs().max()
        assert (got.forces - expected.forces).abs().max() < 1e-4 * scale


def test_biases_that_are_no_part_of_one_function(model):
    written = model.potential(device="cpu", compile=False)
    system = written.system
    assert EulerMaruyama(written + hills(system), kT=KT, h=H)._fused is written
    d = Distance(system, (0, 4))
    edges = Metadynamics(d, kT=KT, sigma=0.3, height=0.1, pace=2, grid=Grid([60], [0.5], [9.0]))
    for bias in (edges, hills(system, walkers="independent"), Restraint(d, at=2.0, kappa=1.0)):
        assert EulerMaruyama(written + bias, kT=KT, h=H)._fused is None


def test_what_is_not_one_function(model, x):
    """As it is written, other precision, biased, accepted: nothing is fused."""
    written = model.potential(device="cpu", compile=False)
    assert written.within(torch.add, x, x) is None
    compiled = model.potential(device="cpu", compile=True)
    assert compiled.within(torch.add, x[None], x[None]) is None  # batches of batches
    learned, start = Metropolis(EulerMaruyama(compiled, kT=KT, h=H), n_steps=2), x.double()
    state = State(start, start[:, 0, 0], start)
    assert learned._at_once(state, Noise(1)) is None  # of two steps
    other = Metropolis(EulerMaruyama(compiled, kT=KT, h=H), target=written)
    assert other._at_once(state, Noise(1)) is None  # accepted to something else
    biased = Metropolis(EulerMaruyama(compiled + hills(compiled.system), kT=KT, h=H))
    assert biased._at_once(state, Noise(1)) is None  # the bias has a say
    assert EulerMaruyama(written + written, kT=KT, h=H)._fused is None
    directions = torch.eye(3).expand(22, 3, 3)
    assert EulerMaruyama(written, kT=KT, h=H, directions=directions)._fused is None
    assert isinstance(Metropolis(EulerMaruyama(written, kT=KT, h=H)), Metropolis)
