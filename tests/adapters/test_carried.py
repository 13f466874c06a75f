"""What the user's `Atoms` carry reaches a calculator that is asked through a potential."""

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from recorder import Recorder, Strict, stiffness, unlike, water

from diffmd_ase.adapters.batch import BatchReverseDiffusion, MonteCarlo
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.sampling.run import advance
from diffmd_ase.system import System

STEP = {"temperature_K": 300.0, "spring": 500.0, "rng": 1}


def energy(atoms):
    return 0.5 * stiffness(atoms) * (atoms.positions**2).sum()


@pytest.mark.parametrize("make", [Recorder, Strict])
@pytest.mark.parametrize("target", [False, True])
def test_dynamics_and_target(make, target, tmp_path):
    atoms, other = water(), make() if target else None
    atoms.calc = make()
    dyn = ReverseDiffusion(
        atoms, target=other, bias=Harmonic(0.1), trajectory=str(tmp_path / "t.traj"), **STEP
    )
    judged = len(atoms.calc.seen)
    dyn.run(4)
    assert atoms.get_potential_energy() == pytest.approx(energy(atoms))
    # one evaluation a step, whatever the dynamics writes into the info of the frames
    assert len(atoms.calc.seen) - judged == 5
    seen = atoms.calc.seen + (other.seen if target else [])
    assert [unlike(one, water()) for one in seen] == [[]] * len(seen)
    frames = read(tmp_path / "t.traj@:")
    assert all(f.calc.results["energy"] == pytest.approx(energy(f)) for f in frames)


def test_caches_inside_of_a_calculator():
    """Of a sum, which has one and whose parts have theirs."""
    images = [water(0), water(2)]
    images[0].calc = SumCalculator([Recorder(), Recorder()])
    dyn = BatchReverseDiffusion(images, **STEP)
    for n, image in enumerate(images):
        assert float(dyn.state.energy[n]) == pytest.approx(2 * energy(image))
    alone = water(0)
    alone.calc = SumCalculator([Recorder(), Recorder()])
    dyn = ReverseDiffusion(alone, **STEP)
    dyn.run(1)
    alone.info["charge"] = 3
    dyn.run(0)
    assert float(dyn.state.energy) == pytest.approx(2 * energy(alone))


@pytest.mark.parametrize("make", [Recorder, Strict])
@pytest.mark.parametrize("target", [False, True])
def test_each_walker_of_a_batch_its_own(make, target):
    """At the same positions too, where a cache knows the answer of another charge."""
    images, other = [water(q) for q in (0, 1, 2)], make() if target else None
    images[0].calc = make()
    dyn = BatchReverseDiffusion(images, target=other, **STEP)
    dyn.run(0)
    for n, image in enumerate(images):
        assert float(dyn.state.energy[n]) == pytest.approx(energy(image))
    dyn.run(3)
    for n, image in enumerate(images):
        assert float(dyn.state.energy[n]) == pytest.approx(energy(image))
    seen = images[0].calc.seen + (other.seen if target else [])
    assert {one.info["charge"] for one in seen} == {0, 1, 2}
    assert not any(unlike(one, water(one.info["charge"])) for one in seen)


def test_alike_walkers_are_one():
    """A batch of any size goes through a potential of atoms that carry the same."""
    system = System.from_walkers([water(), water()])
    assert len(system.carried) == 1
    assert AsePotential(Recorder(), system)(torch.zeros(5, 3, 3)).energy.shape == (5,)
    moving = water()
    moving.set_velocities(np.zeros((3, 3)))
    assert len(System.from_walkers([water(), moving]).carried) == 2


def test_processes():
    system = System.from_walkers([water(q) for q in (0, 1, 2)])
    x = torch.tensor(water().positions).expand(2, 3, 3, 3)
    loop = AsePotential(Recorder(), system)
    potential = AsePotential(Recorder(), system, processes=2)
    try:
        torch.testing.assert_close(potential(x).energy, loop(x).energy)
        keep = torch.tensor([True, False, True])
        for one in (potential, loop):
            one.select(keep)
        left = potential(x[:, keep]).energy
    finally:
        potential.close()
    torch.testing.assert_close(left, loop(x[:, keep]).energy)
    assert (left[0] == left[1]).all()
    np.testing.assert_allclose(left[0] / left[0, 0], [1.0, 9.0 / 5.0])
    with pytest.raises(ValueError, match=r"2 walkers .* expected \(\*batch, 2, N, 3\)"):
        loop(x)
    odd = water()
    odd.info["odd"] = lambda: None
    odd.info["charge"] = 1
    with pytest.raises(TypeError, match="what the atoms carry, cannot be sent"):
        _unpicklable(odd)


def _unpicklable(atoms):
    AsePotential(Recorder(), System.from_atoms(atoms), processes=2)


class Fragile(Recorder):
    """Gives forces that are not finite to the charge 1, once its atoms have moved."""

    def calculate(self, *args, **options):
        super().calculate(*args, **options)
        start = np.array_equal(self.atoms.positions, water().positions)
        if self.atoms.info["charge"] == 1 and not start:
            self.results["forces"] = self.results["forces"] * np.nan


def test_a_lost_walker_takes_its_own_along():
    images = [water(q) for q in (0, 1, 2)]
    system = System.from_walkers(images)
    kernel = EulerMaruyama(AsePotential(Fragile(), system), kT=0.025, h=1e-3)
    state = kernel.init(torch.tensor(np.stack([i.positions for i in images])))
    from diffmd_ase.noise import Noise

    with pytest.raises(DivergedError) as error:
        advance(kernel, state, Noise(1))
    state, _ = advance(kernel, error.value.survivors, Noise(1))
    squares = state.x.square().sum((1, 2))
    torch.testing.assert_close(state.energy, 0.5 * torch.tensor([5.0, 9.0]).to(squares) * squares)

    images[0].calc = Fragile()
    dyn = BatchReverseDiffusion(images, **STEP)
    with pytest.warns(RuntimeWarning, match=r"walkers \[1\] diverged"):
        dyn.run(2)
    images[2].info["charge"] = 5
    dyn.run(2)
    assert dyn.lost == {1: 1}
    for n, image in enumerate((images[0], images[2])):
        assert float(dyn.state.energy[n]) == pytest.approx(energy(image))


def test_a_restart_with_survivors():
    images = [water(q) for q in (0, 1, 2)]
    images[0].calc = Recorder()
    dyn = BatchReverseDiffusion(images, **STEP)
    dyn.run(2)
    fresh = [water(q) for q in (0, 1, 2)]
    fresh[0].calc = Recorder()
    second = BatchReverseDiffusion(fresh, **STEP)
    second.state = dyn.state.take(torch.tensor([0, 2]))
    second.run(1)
    dyn.run(1)
    for n in (0, 2):
        assert np.array_equal(fresh[n].positions, images[n].positions)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("what", ["charge", "calculator", "masses", "cell"])
def test_what_changes_between_runs_counts(batch, what):
    atoms = water(0)
    atoms.calc = Recorder()
    friction = {"temperature_K": 300.0, "timestep": 0.01, "friction": 0.1, "rng": 1}
    if batch:
        dyn = BatchReverseDiffusion([atoms, water(0)], **friction)
    else:
        dyn = ReverseDiffusion(atoms, **friction)
    dyn.run(2)
    h = np.array(dyn.step_size.h)
    for image in dyn.chain.images:
        if what == "charge":
            image.info["charge"] = 4
        elif what == "masses":
            image.set_masses([18.0, 1.0, 2.0])
        elif what == "cell":
            image.set_cell([9.5, 9.0, 0.0])
    if what == "calculator":
        atoms.calc = Recorder()
    count = len(atoms.calc.seen)
    dyn.run(1)
    assert float(dyn.state.energy.reshape(-1)[0]) == pytest.approx(energy(atoms))
    assert len(atoms.calc.seen) > count and not unlike(atoms.calc.seen[-1], dyn.chain.images[-1])
    factor = [1.0, 2.0, 1.0] if what == "masses" else 1.0
    np.testing.assert_allclose(dyn.step_size.h, h * factor)


def test_settings_of_the_calculator():
    """Set between two runs: the energy that the next step is compared with is the new one."""
    atoms = water()
    atoms.calc = LennardJones(epsilon=0.01, sigma=0.8)
    dyn = ReverseDiffusion(atoms, target="model", **STEP)
    dyn.run(2)
    before = float(dyn.state.energy)
    atoms.calc.set(epsilon=0.02)
    atoms.calc.reset()  # which that of LennardJones leaves to its user
    assert float(dyn.state.energy) == pytest.approx(2 * before)


def test_an_observer_that_writes_into_the_info():
    """It is followed like any other change, and the chain is the same."""
    images = [water(), water()]
    for image in images:
        image.calc = Recorder()
    plain, watched = (ReverseDiffusion(image, **STEP) for image in images)
    watched.attach(lambda: images[1].info.update(step=watched.nsteps))
    plain.run(3)
    watched.run(3)
    assert np.array_equal(images[0].positions, images[1].positions)


def test_a_calculator_of_potentials_that_ask_a_calculator():
    """`ScoreCalculator` around a function that makes them for the atoms."""
    inner = Recorder()
    atoms = water(0)
    atoms.calc = ScoreCalculator(lambda system: AsePotential(inner, system))
    for charge in (0, 2, 0):
        atoms.info["charge"] = charge
        assert atoms.get_potential_energy() == pytest.approx(energy(atoms))
    dyn = ReverseDiffusion(atoms, **STEP)
    dyn.run(2)
    atoms.info["charge"] = 3
    dyn.run(2)
    assert atoms.get_potential_energy() == pytest.approx(energy(atoms))
    assert unlike(inner.seen[-1], atoms) == []


class TestCalculatorsOfWalkers:
    """What ASE users write: one for each."""

    def test_equal_ones(self):
        images = [water() for _ in range(3)]
        for image in images:
            image.calc = Recorder()
        BatchReverseDiffusion(images, **STEP).run(2)
        assert images[0].calc.seen and not images[1].calc.seen
        models = [water() for _ in range(2)]
        for image in models:
            image.calc = ScoreCalculator(Harmonic(1.0))
        with pytest.raises(ValueError, match="differs from that of image 0 in model"):
            BatchReverseDiffusion(models, **STEP)
        models[1].calc = ScoreCalculator(models[0].calc._members[0]._model)
        BatchReverseDiffusion(models, **STEP).run(1)

    def test_results_that_have_been_read(self):
        """Frames of a trajectory as starts."""
        images = [water(), water()]
        for image in images:
            image.calc = SinglePointCalculator(image, energy=1.0)
        images[0].calc = Recorder()
        BatchReverseDiffusion(images, **STEP).run(1)

    def test_a_kernel_asks_none(self):
        images = [water(), water()]
        images[0].calc, images[1].calc = EMT(), LennardJones()
        MonteCarlo(images, EulerMaruyama(Harmonic(1.0), kT=0.025, h=1e-3), rng=1).run(1)

    @pytest.mark.parametrize(
        ("a", "b", "named"),
        [
            (EMT(), LennardJones(), r"class \(EMT and LennardJones\)"),
            (LennardJones(), LennardJones(epsilon=2.0), "parameters"),
            (EMT(), EMT(asap_cutoff=True), "parameters"),
        ],
    )
    def test_different_ones(self, a, b, named):
        images = [water(), water()]
        images[0].calc, images[1].calc = a, b
        with pytest.raises(ValueError, match=f"image 1 .* {named}"):
            BatchReverseDiffusion(images, **STEP)

    def test_settings_that_are_no_parameters(self):
        images = [water(), water()]
        for image, constant in zip(images, (1.0, 2.0), strict=True):
            image.calc = Recorder()
            image.calc.constant = constant
        with pytest.raises(ValueError, match="image 1 .* constant"):
            BatchReverseDiffusion(images, **STEP)
        images[1].calc.constant = 1.0
        images[1].get_potential_energy()  # a calculation is no setting
        BatchReverseDiffusion(images, **STEP).run(1)
