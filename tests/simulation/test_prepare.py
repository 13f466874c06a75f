"""What a user asks, and the kernel that it means; one driver for ASE, commands and validation."""

import numpy as np
import pytest
import torch
from messages import names
from pydantic import ValidationError
from quartic_run import SYSTEM

from diffmd_ase import ReverseDiffusion, ScoreCalculator, ScoreModel, Snapshots
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.simulation.prepare import StepRequest, prepare
from diffmd_ase.simulation.settings import RunSettings
from diffmd_ase.state import Evaluation
from diffmd_ase.units import kB

KELVIN = 300.0
H = 1e-3
GIVEN = StepRequest(spring=1 / (2 * H))


class Springs(Potential):
    """Bound to the system, as the models of the command line are."""

    system = SYSTEM

    def __call__(self, x):
        return Evaluation(x.square().sum((-2, -1)) / 2, -x)


def test_a_step_of_a_clock():
    fs = 0.09822694788464063
    asked = StepRequest(timestep=0.5 * fs, friction=0.1 / fs)
    found = prepare(Springs(), temperature_K=KELVIN, step=asked)
    # h = kT Δt/(m γ); 1 eV = 9.64853e-3 u Å²/fs²
    kT = KELVIN * 8.617333e-5 * 9.64853e-3
    expected = kT * 0.5 / (SYSTEM.masses * 0.1)
    assert found.kernel.h.numpy() == pytest.approx(expected, rel=1e-5)
    assert found.step.physical and isinstance(found.kernel, EulerMaruyama)
    assert prepare(Springs(), temperature_K=KELVIN, step=GIVEN).kernel.h == pytest.approx(H)


def test_without_a_card_a_step_is_measured_or_asked_for():
    with pytest.raises(ValueError, match="no stiffness.*give one"):
        prepare(Springs(), temperature_K=KELVIN)
    x = torch.zeros(3, 3)
    found = prepare(Springs(), temperature_K=KELVIN, x=x)
    assert found.kernel.h == pytest.approx(0.2 * kB * KELVIN, rel=0.02)
    assert "measured at the start" in found.step.source
    found = prepare(Springs(), temperature_K=KELVIN, stiffness=500.0)
    assert found.kernel.h == pytest.approx(0.2 / 500)


def test_a_bias_is_measured_where_there_are_positions():
    """What it adds to the stiffness is on no card."""
    learned = ScoreModel.load("alanine-dipeptide")
    potential = learned.potential(device="cpu", dtype=torch.float64)
    x = torch.as_tensor(Snapshots.read("alanine-dipeptide").positions[0]).double()
    by_card = prepare(potential, temperature_K=KELVIN).step
    assert "model card" in by_card.source
    stiff = Harmonic(20 * learned.card.lambda_max * learned.card.kT)
    measured = prepare(potential, temperature_K=KELVIN, bias=stiff, x=x).step
    assert "measured" in measured.source and measured.h < by_card.h / 15


def test_target_bias_and_who_learns():
    """One bias for drift and target; "model" needs no separate target."""
    options = {"temperature_K": KELVIN, "step": GIVEN, "bias": Harmonic(0.1)}
    drift, target, bias = Springs(), Harmonic(2.0), options["bias"]
    kernel = prepare(drift, target=target, proposal_steps=3, **options).kernel
    assert isinstance(kernel, Metropolis) and kernel.n_steps == 3
    assert kernel.drift.terms == (drift, bias) and kernel.potential.terms == (target, bias)
    kernel = prepare(drift, target="model", **options).kernel
    assert kernel.target is None and kernel.potential.terms == (drift, bias)
    assert prepare(drift, target=drift, **options).kernel.target is None
    with pytest.raises(ValueError, match="proposal_steps=3 without a target"):
        prepare(drift, proposal_steps=3, **options)


def test_a_bias_that_needs_the_step_is_made_once():
    made = []

    def bias(step):
        made.append(step)
        return Harmonic(0.1)

    found = prepare(Springs(), temperature_K=KELVIN, step=GIVEN, bias=bias, target="model")
    assert made == [found.step] and len(found.kernel.potential.terms) == 2


def test_what_is_held():
    moving = np.array([True, False, True])
    kernel = prepare(Springs(), temperature_K=KELVIN, step=GIVEN, moving=moving).kernel
    assert kernel.h.numpy() == pytest.approx([H, 0.0, H])
    with pytest.raises(ValueError, match="all atoms are fixed"):
        prepare(Springs(), temperature_K=KELVIN, step=GIVEN, moving=~moving & moving)
    assert prepare(Springs(), temperature_K=KELVIN, step=GIVEN, mean_free=True).kernel.mean_free


def test_adapted_and_bound_again():
    found = prepare(Springs(), temperature_K=KELVIN, step=GIVEN, target=Harmonic(1.0))
    scaled = found.scaled(3.0)
    assert scaled.kernel.proposal.h == pytest.approx(3 * H) == scaled.step.h
    assert scaled.step.timestep == pytest.approx(3 * found.step.timestep)
    drift, target = Harmonic(2.0), Harmonic(3.0)
    again = scaled.bound(drift, target)
    assert (again.kernel.drift, again.kernel.potential) == (drift, target)
    assert again.kernel.proposal.h == scaled.kernel.proposal.h and again.step is scaled.step


def test_large_steps_are_refused_in_both_units():
    """One message for those who speak ASE time and those who speak fs; not with a target."""
    potential = ScoreModel.load("alanine-dipeptide").potential(device="cpu")
    large = StepRequest(spring=1.0)
    with pytest.raises(ValueError, match=r"unstable: h\*lambda = .* timestep=.* fs, spring="):
        prepare(potential, temperature_K=KELVIN, step=large)
    prepare(potential, temperature_K=KELVIN, step=large, target="model")


def test_ase_and_the_command_mean_the_same_kernel():
    learned, frames = ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")
    atoms = learned.system.to_atoms(frames.positions[0])
    atoms.calc = ScoreCalculator(learned, device="cpu")
    ours = prepare(learned.potential(device="cpu"), temperature_K=KELVIN)
    theirs = ReverseDiffusion(atoms, temperature_K=KELVIN, rng=1)
    assert (theirs.kernel.h, theirs.kernel.kT) == (ours.kernel.h, ours.kernel.kT)
    assert theirs.step_size == ours.step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 1e-3, "spring": 10.0}, "give one"),
        ({"step_size": 1e-3, "timestep": 1.0, "friction": 1.0}, "give one"),
        ({"step_size": 0.0}, "must be positive"),
        ({"step_size": float("nan")}, "must be positive"),
        ({"timestep": 1.0}, "needs a friction"),
        ({"adapt": 5}, "give --target"),
        ({"target_options": "{}"}, "give --target"),
        ({"target": "lj", "target_options": "[1]"}, "expected an object"),
        ({"target": "lj", "adapt": 7, "steps": 5}, "first part of the run"),
        ({"target": "lj", "adapt": 7, "plumed": "plumed.dat"}, "adapt without the bias"),
        ({"walkers": 0}, "walkers"),
        ({"nonsense": 0}, "nonsense"),
    ],
)
def test_settings_that_contradict_each_other(options, message):
    with pytest.raises(ValidationError, match=message):
        RunSettings(model="m", **options)


def test_settings_are_frozen():
    settings = RunSettings(model="m")
    with pytest.raises(ValidationError, match=names("steps", "frozen")):
        settings.steps = 3


def test_a_spring_that_is_no_spring():
    with pytest.raises(ValueError, match=names("spring=-1.0", "positive")):
        prepare(Springs(), temperature_K=KELVIN, step=StepRequest(spring=-1.0))
