"""What a user calls a target, a reference or a draft, and the potential that it means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones as AseLennardJones
from messages import names

import diffmd_ase
from diffmd_ase import ScoreCalculator, ScoreModel, System
from diffmd_ase.potentials.analytic import Harmonic, LennardJones
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.potentials.learned import ScorePotential
from diffmd_ase.potentials.named import find_potential
from diffmd_ase.state import Evaluation

COPPER = bulk("Cu", cubic=True)
SYSTEM = System.from_atoms(COPPER)
MODELS = Path(diffmd_ase.__file__).parent / "models"


class Swirl(Potential):
    """Forces that are not a gradient."""

    conservative = False

    def __call__(self, x):
        return Evaluation(None, torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1))


def test_all_that_is_no_name():
    potential = Harmonic(1.0)
    assert find_potential(potential, SYSTEM) is potential
    assert find_potential(lambda system: potential, SYSTEM) is potential
    assert find_potential(ScoreCalculator(potential), SYSTEM).terms == (potential,)
    found = find_potential(EMT(), SYSTEM)
    assert isinstance(found, AsePotential) and found.failures == "reject"


@pytest.mark.parametrize("name", ["emt", "EMT"])
def test_a_calculator_by_name(name):
    x = torch.tensor(COPPER.positions)
    COPPER.calc = EMT()
    assert float(find_potential(name, SYSTEM)(x).energy) == COPPER.get_potential_energy()
    found = find_potential("lj", SYSTEM, options={"sigma": 2.0, "epsilon": 0.1})
    assert found.calculator.parameters["sigma"] == 2.0


@pytest.mark.parametrize("place", ["name", "file", "model"])
def test_a_model(place):
    """A shipped name, a file, or the model itself; its σ is an option of what is named."""
    name = "alanine-dipeptide"
    file = MODELS / f"{name}.safetensors"
    model = ScoreModel.load(name)
    source = {"name": name, "file": file, "model": model}[place]
    found = find_potential(source, model.system, device="cpu")
    assert isinstance(found, ScorePotential) and found.sigma == model.card.sigma_min
    if place != "model":
        sigma = 2 * model.card.sigma_min
        found = find_potential(str(source), model.system, device="cpu", options={"sigma": sigma})
        assert found.sigma == sigma
        with pytest.raises(ValueError, match="option is sigma.*colour"):
            find_potential(source, model.system, options={"colour": 1})
    with pytest.raises(ValueError, match="this model knows C6H12N2O2"):
        find_potential(source, SYSTEM)


def test_a_plugin():
    pytest.importorskip("diffmd_template")
    pair = System(np.array([2, 2]), np.array([4.0, 4.0]))
    found = find_potential("template", pair, options={"pairs": [[0, 1]], "length": 2.0})
    assert type(found).__module__ == "diffmd_template"
    with pytest.raises(ValueError, match="target 'template' with options.*nonsense"):
        find_potential("template", pair, options={"nonsense": 1})


def test_the_model_that_drives():
    drift = Harmonic(1.0)
    assert find_potential("model", SYSTEM, model=drift) is drift
    with pytest.raises(ValueError, match=names("'model'", "{'a': 1}")):
        find_potential("model", SYSTEM, model=drift, options={"a": 1})
    with pytest.raises(ValueError, match="no energy.*keep this score as the drift"):
        find_potential("model", SYSTEM, model=drift + Swirl())
    # where nothing drives there is none
    with pytest.raises(ValueError, match=names("'model'", "reference", "emt", "model file")):
        find_potential("model", SYSTEM, role="reference")


def test_an_energy_is_asked_for_where_it_is_needed():
    swirl = Swirl()
    assert find_potential(swirl, SYSTEM, role="draft", needs_energy=False) is swirl
    with pytest.raises(ValueError, match="Swirl has no energy.*reference"):
        find_potential(swirl, SYSTEM, role="reference")


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nobody", {}, ValueError, r"target 'nobody'.*installed potential.*ASE \(emt.*model file"),
        ("gone.safetensors", {}, ValueError, "'gone.safetensors'.*model file"),
        ("lj", {"rc": "x"}, ValueError, "'lj'.*cannot be made with options"),
        (3.0, {}, TypeError, "target is a float.*expected"),
        (lambda system: EMT(), {}, TypeError, "target is a EMT"),
        (Harmonic(1.0), {"k": 1}, ValueError, "options {'k': 1}.*made already"),
        (
            Harmonic(1.0, system=System.from_atoms(bulk("Cu", a=3.7, cubic=True))),
            {},
            ValueError,
            r"bound to Cu4 \(4 atoms.*3.7.*3.61.*System.from_atoms",
        ),
    ],
)
def test_refusals(source, options, error, message):
    with pytest.raises(error, match=message):
        find_potential(source, SYSTEM, options=options)


def test_masses_are_free():
    """They change no energy."""
    heavy = System(SYSTEM.numbers, 2 * SYSTEM.masses, SYSTEM.cell, SYSTEM.pbc)
    potential = LennardJones(heavy, epsilon=0.4, sigma=2.3)
    assert find_potential(potential, SYSTEM) is potential
    calculator = AseLennardJones(sigma=2.3, epsilon=0.4)
    x = torch.tensor(COPPER.positions + np.array([0.05, 0, 0]))
    assert np.isfinite(float(find_potential(calculator, SYSTEM)(x).energy))
