"""How far one step of `ReverseDiffusion` runs through the house, counted by calls.

A *move* is a call into a file of the package whose caller is in another file, or outside of it.
"""

import sys
from pathlib import Path

import pytest

import diffmd_ase
from diffmd_ase import ReverseDiffusion, ScoreCalculator, ScoreModel, Snapshots
from diffmd_ase.noise import Noise

ROOT = f"{Path(diffmd_ase.__file__).parent}/"


def moves(action) -> list[tuple[str, str, str]]:
    """(file of the caller, file, function) of every move in ``action()``."""
    found = []

    def look(frame, event, argument):
        called = frame.f_code.co_filename
        if event != "call" or not called.startswith(ROOT):
            return
        caller = frame.f_back.f_code.co_filename
        if caller != called:
            place = caller.removeprefix(ROOT) if caller.startswith(ROOT) else "outside"
            found.append((place, called.removeprefix(ROOT), frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(before)
    return found


@pytest.fixture
def dynamics():
    frames = Snapshots.read("alanine-dipeptide")
    atoms = frames.system.to_atoms(frames.positions[0])
    atoms.calc = ScoreCalculator("alanine-dipeptide", device="cpu")
    kelvin = ScoreModel.load("alanine-dipeptide").card.temperature_K

    def make(**options):
        dyn = ReverseDiffusion(atoms, temperature_K=kelvin, rng=1, **options)
        dyn.run(2)  # noise is drawn ahead, coefficients are cast
        return dyn

    return make


def test_the_counter_sees_moves():
    noise = Noise(1)
    assert moves(lambda: noise.child(0)) == [("outside", "noise.py", "child")]
    assert moves(lambda: sorted([2, 1])) == []


def test_a_plain_step(dynamics):
    dyn = dynamics()
    found = moves(lambda: dyn.run(1))
    files = {called for _, called, _ in found}
    assert len(found) <= 16 and len(files) <= 9, "\n".join(map(str, found))
    # each is touched once: nothing is compared, followed or bound a second time
    once = [(called, name) for _, called, name in found if name != "irun"]
    assert len(once) == len(set(once)), "\n".join(map(str, found))
    assert {"adapters/dynamics.py", "sampling/euler.py", "noise.py"} <= files


def test_a_metropolis_step(dynamics):
    """Twice as much to do: a ratio, a draw, a choice and a tally."""
    dyn = dynamics(target="model")
    found = moves(lambda: dyn.run(1))
    assert len(found) <= 25, "\n".join(map(str, found))
    assert "adapters/physics.py" not in {called for _, called, _ in found}
