"""Time step and temperature set later, as annealing scripts for ASE do."""

import numpy as np
import pytest
import torch
from argon_atoms import Count, attached, cluster
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixedPlane
from ase.md.langevin import Langevin
from messages import names
from plane_well import KELVIN, KT, SPRING, Well, atoms, z_scores

from diffmd_ase.adapters.batch import BatchReverseDiffusion, MonteCarlo
from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.adapters.dynamics import ReverseDiffusion
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run

CLOCK = {"timestep": 0.1 * units.fs, "friction": 0.5 / units.fs}


def single(**options):
    one = atoms()
    one.calc = ScoreCalculator(Well())
    return ReverseDiffusion(one, temperature_K=KELVIN, rng=1, **options)


def h_of(dyn):
    step = dyn.kernel if isinstance(dyn.kernel, EulerMaruyama) else dyn.kernel.proposal
    return torch.as_tensor(step.h, dtype=torch.float64).numpy()


STEPS = [CLOCK, {"spring": SPRING}, {"mobility": 2.0}, {}]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_dt_is_the_step(step):
    """``h`` in proportion, and the clock goes on from where it is."""
    dyn = single(**step)
    h, dt = h_of(dyn), dyn.dt
    dyn.run(10)
    assert dyn.get_time() == pytest.approx(10 * dt)
    dyn.dt = dt / 4
    np.testing.assert_allclose(h_of(dyn), h / 4)
    assert dyn.step_size.timestep == dyn.todict()["timestep"] == pytest.approx(dt / 4)
    assert "dt set" in dyn.todict()["step-source"]
    dyn.run(10)
    assert dyn.get_time() == pytest.approx(10 * dt + 10 * dt / 4)
    dyn.set_timestep(dt)
    np.testing.assert_allclose(h_of(dyn), h)
    if "timestep" in step:
        named = single(**(step | {"timestep": dt / 4}))
        dyn.dt = dt / 4
        np.testing.assert_allclose(h_of(dyn), h_of(named), rtol=1e-12)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_temperature(step):
    """The kernel is that of a dynamics made at this temperature; nothing is measured again."""
    dyn = single(**step)
    for change in (
        lambda: dyn.set_temperature(temperature_K=2 * KELVIN),
        lambda: setattr(dyn, "temperature_K", KELVIN / 1.2),
    ):
        change()
        new = atoms()
        new.calc = ScoreCalculator(Well())
        again = ReverseDiffusion(new, temperature_K=dyn.temperature_K, rng=1, **step)
        assert dyn.kernel.kT == pytest.approx(again.kernel.kT)
        np.testing.assert_allclose(h_of(dyn), h_of(again), rtol=1e-9)
        assert dyn.dt == pytest.approx(again.dt)
        assert dyn.todict()["temperature_K"] == dyn.temperature_K
    dyn.run(2)
    time, diffused = dyn.get_time(), dyn._now().diffused
    dyn.set_temperature(temperature_K=KELVIN)
    assert (dyn.get_time(), dyn._now().diffused) == pytest.approx((time, diffused))


def test_the_chain_goes_on_at_the_new_temperature():
    dyn = single(**CLOCK)
    dyn.run(3)
    x = torch.tensor(dyn.atoms.positions)
    dyn.set_temperature(temperature_K=900.0)
    dyn.run(4)
    kernel = EulerMaruyama(Well(), kT=900.0 * units.kB, h=torch.as_tensor(dyn.step_size.h))
    from dataclasses import replace

    start = replace(kernel.init(x), step=3)
    *_, (state, _) = run(kernel, start, 4, noise=Noise(1))
    np.testing.assert_allclose(dyn.atoms.positions, state.x, atol=1e-12)


def test_an_annealed_batch_has_the_law_of_the_last_temperature():
    images = [atoms() for _ in range(400)]
    images[0].calc = ScoreCalculator(Well())
    dyn = BatchReverseDiffusion(
        images, temperature_K=4 * KELVIN, spring=SPRING / 2, target="model", rng=5
    )
    for kelvin in (4 * KELVIN, 2 * KELVIN, KELVIN):
        dyn.set_temperature(temperature_K=kelvin)
        dyn.run(60)
        x = np.stack([image.positions for image in images])
    assert abs(z_scores(x, np.eye(6))).max() < 4
    assert abs(z_scores(x * 1.2, np.eye(6))).max() > 4


def test_the_temperature_of_the_log_is_that_of_its_steps(tmp_path):
    """In planes, and at another temperature: of the steps since."""
    images = [atoms() for _ in range(200)]
    for image in images:
        image.set_constraint(FixedPlane([0, 1], [1.0, 1.0, 1.0]))
    images[0].calc = ScoreCalculator(Well())
    log = tmp_path / "log"
    dyn = BatchReverseDiffusion(
        images, temperature_K=KELVIN, spring=4 * SPRING, rng=1, logfile=str(log)
    )
    # relax, then count; a temperature that is nearly the same begins the average anew
    for kelvin in (2 * KELVIN, 2.001 * KELVIN, KELVIN, 1.001 * KELVIN):
        dyn.set_temperature(temperature_K=kelvin)
        dyn.run(100)
    lines = log.read_text().splitlines()
    column = lines[0].split().index("Tconf[K]")
    shown = [float(line.split()[column]) for line in lines[1:]]
    # 200 walkers, 4 coordinates, steps that remember 20 others: a standard error of 3 %
    assert shown[200] == pytest.approx(2 * KELVIN, rel=0.12)
    assert shown[400] == pytest.approx(KELVIN, rel=0.12)


def test_after_an_adaptation():
    dyn = single(spring=SPRING, target="model")
    record = dyn.adapt(50)
    h, dt = h_of(dyn), dyn.dt
    assert h == pytest.approx(record.factor / (2 * SPRING))
    dyn.set_temperature(temperature_K=2 * KELVIN)
    assert h_of(dyn) == pytest.approx(h) and dyn.dt == pytest.approx(dt / 2)
    clocked = single(target="model", **CLOCK)
    clocked.adapt(50)
    h, dt = h_of(clocked), clocked.dt
    clocked.set_temperature(temperature_K=2 * KELVIN)
    np.testing.assert_allclose(h_of(clocked), 2 * h)
    assert clocked.dt == dt
    # what was found and set stays with it when the atoms become others
    clocked.atoms.set_masses(2 * clocked.atoms.get_masses())
    clocked.run(1)
    np.testing.assert_allclose(h_of(clocked), h)


def test_a_step_beyond_the_limit_is_refused_and_changes_nothing():
    """As for models: measured at the start, with a calculator that has no card."""
    dyn = single(spring=SPRING)
    h = h_of(dyn)
    with pytest.raises(ValueError, match=names("unstable", "limit 2", "measured at the start")):
        dyn.dt = 10 * dyn.dt
    with pytest.warns(UserWarning, match="is large"):
        dyn.dt = 2 * dyn.dt
    assert h_of(dyn) == pytest.approx(2 * h)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive and finite"):
            dyn.dt = wrong
    # a spring stays, and is too soft where the well is three times as stiff in units of kT
    cooled = single(spring=SPRING)
    with pytest.raises(ValueError, match=names("unstable", "limit 2")):
        cooled.set_temperature(temperature_K=KELVIN / 3)
    assert cooled.temperature_K == KELVIN and cooled.kernel.kT == pytest.approx(KT)
    cooled.set_temperature(temperature_K=3 * KELVIN)


def test_500_femtoseconds_with_emt():
    copper = bulk("Cu", cubic=True)
    copper.calc = EMT()
    step = {"timestep": 500 * units.fs, "friction": 0.001 / units.fs}
    with pytest.raises(ValueError, match=names("h = 1.96", "unstable", "timestep", "spring")):
        ReverseDiffusion(copper, temperature_K=300, **step)
    # a target rejects it
    ReverseDiffusion(copper, temperature_K=300, target="model", **step)
    # nothing is stiff: nothing to say
    free = bulk("Cu", cubic=True)
    free.calc = ScoreCalculator(Harmonic(0.0))
    ReverseDiffusion(free, temperature_K=300, **step)


def test_as_langevin_has_it():
    """The same words in the same place; one of them is deprecated there too."""
    dyn = single(spring=SPRING)
    copper = bulk("Cu", cubic=True)
    copper.calc = EMT()
    theirs = Langevin(copper, 1.0, temperature_K=300, friction=0.01, fixcm=False)
    for one in (dyn, theirs):
        one.set_temperature(temperature_K=500)
        with pytest.raises(TypeError, match="Exactly one"):
            one.set_temperature()
        with pytest.warns(FutureWarning, match="temperature_K"):
            one.set_temperature(500 * units.kB)
    assert dyn.kernel.kT == pytest.approx(theirs.temp) == 500 * units.kB


def test_what_cannot_be_set_says_so():
    dyn = single(spring=SPRING)
    for name in ("timestep", "friction", "mobility", "spring", "bias", "target", "rng", "temp"):
        with pytest.raises(AttributeError, match=names(name, "chosen at construction", "dt")):
            setattr(dyn, name, 1.0)
    for wrong in ([300.0, 400.0], float("nan")):
        with pytest.raises(ValueError, match=names("one temperature", "MonteCarlo")):
            dyn.set_temperature(temperature_K=wrong)
    with pytest.raises(ValueError, match=names("temperature_K=-1.0", "positive")):
        dyn.set_temperature(temperature_K=-1.0)
    learning = ReverseDiffusion(attached(), temperature_K=30.0, spring=1000.0, bias=Count(), rng=1)
    with pytest.raises(ValueError, match=names("Count", "30", "new bias")):
        learning.set_temperature(temperature_K=60.0)


def test_a_kernel_of_several_temperatures_is_made_anew():
    kT = torch.tensor([KT, 2 * KT], dtype=torch.float64)
    kernel = ReplicaExchange(Metropolis(EulerMaruyama(Well(), kT, 1e-3)), 2)
    dyn = MonteCarlo([atoms(), atoms()], kernel, rng=1)
    for name in ("temperature_K", "dt"):
        with pytest.raises(AttributeError, match=names(name, "MonteCarlo", "new one")):
            setattr(dyn, name, 1.0)
    with pytest.raises(TypeError, match=names("kernel", "kT", "MonteCarlo")):
        dyn.set_temperature(temperature_K=500)


def test_a_kernel_does_not_follow_a_cell(tmp_path):
    images = [cluster(), cluster()]
    from argon_atoms import argon

    from diffmd_ase.system import System

    potential = argon(System.from_atoms(images[0]))
    dyn = MonteCarlo(images, EulerMaruyama(potential, kT=0.0026, h=1e-4), rng=1)
    dyn.run(1)
    for image in images:
        image.set_cell([20.0, 20.0, 20.0])
    with pytest.raises(ValueError, match=names("kernel", "cell", "System.from_atoms")):
        dyn.run(1)
