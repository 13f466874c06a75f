"""One calculator in several threads: each has the results of its own atoms."""

import threading

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.score.neighbours import VerletList
from diffmd_ase.system import System

THREADS, ROUNDS = 4, 40


def side_by_side(work):
    """``work(n)`` in threads that start together; raises what one of them raised."""
    start, errors = threading.Barrier(THREADS), []

    def call(n):
        try:
            start.wait()
            for _ in range(ROUNDS):
                work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def often(monkeypatch):
    """Threads take turns as often as they can."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def images():
    atoms = bulk("Cu", cubic=True)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(THREADS):
        one = atoms.copy()
        one.positions += 0.05 * rng.standard_normal(one.positions.shape)
        found.append(one)
    return found


def test_one_score_calculator(often):
    calculator = ScoreCalculator(lambda system: AsePotential(EMT(), system))
    right = [(EMT().get_potential_energy(a), EMT().get_forces(a)) for a in images()]
    mine = images()

    def work(n):
        energy = calculator.get_potential_energy(mine[n])
        forces = calculator.get_forces(mine[n])
        assert energy == pytest.approx(right[n][0], abs=1e-12)
        np.testing.assert_allclose(forces, right[n][1], atol=1e-12)

    side_by_side(work)


def test_two_potentials_of_one_calculator(often):
    """What `find_potential` makes of one calculator of ASE for several threads."""
    emt, mine = EMT(), images()
    systems = [System.from_atoms(a) for a in mine]
    potentials = [AsePotential(emt, s) for s in systems]
    right = [EMT().get_forces(a) for a in mine]

    def work(n):
        forces = potentials[n](torch.as_tensor(mine[n].positions)).forces
        np.testing.assert_allclose(forces.numpy(), right[n], atol=1e-12)

    side_by_side(work)


def test_two_systems_of_one_model(often):
    """The cache of bound potentials is shared: more systems than it holds."""
    calculator = ScoreCalculator(lambda system: AsePotential(EMT(), system))
    atoms = [molecule("H2O"), molecule("CO"), molecule("NH3"), molecule("N2")]
    right = [EMT().get_potential_energy(a) for a in atoms]

    def work(n):
        strained = atoms[n].copy()
        strained.set_masses(np.random.default_rng().uniform(1, 2, len(strained)))
        assert calculator.get_potential_energy(strained) == pytest.approx(right[n], abs=1e-12)

    side_by_side(work)


def test_lists_of_neighbours(monkeypatch):
    """Another thread makes its list between the making of this one and the reading of it."""
    x = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])
    far = torch.tensor([[[0.0, 0, 0], [9.0, 0, 0]]])
    shared = VerletList(2.0, skin=0.5)

    class Late(VerletList):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "builds" and value == 1:
                self(far, None, (False,) * 3)

    late = Late(2.0, skin=0.5)
    late(x, None, (False,) * 3)
    late.builds = 0
    super(Late, late).__setattr__("_built", ())
    assert len(late(x, None, (False,) * 3).source) == len(shared(x, None, (False,) * 3).source) == 2
