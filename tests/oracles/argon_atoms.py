"""Argon as an ASE user has it, small potentials to drive it by, a network of random weights."""

from functools import partial

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from diffmd_ase.adapters.calculator import ScoreCalculator
from diffmd_ase.potentials.analytic import LennardJones
from diffmd_ase.potentials.base import Potential
from diffmd_ase.score.card import Card, ExpertCard
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.equivariant import EquivariantConfig
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

ARGON = {"epsilon": 0.0104, "sigma": 3.4}
argon = partial(LennardJones, **ARGON)
STEP = {"temperature_K": 30.0, "spring": 1000.0, "rng": 7}  # h λ ≈ 0.02


class Counted(Potential):
    """Counts its evaluations, of single structures."""

    def __init__(self, potential):
        self.potential, self.system, self.count = potential, potential.system, 0

    def __call__(self, x, *, stress=False):
        self.count += x.shape[:-2].numel()
        return self.potential(x, stress=stress)


class Swirl(Potential):
    """Forces that are not a gradient."""

    conservative = False

    def __call__(self, x):
        return Evaluation(None, torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1))


class Boost(Potential):
    """``U_b = E_base/2``: a bias on the energy."""

    needs_base = True

    def __call__(self, x, *, base, stress=False):
        return Evaluation(0.5 * base.energy, 0.5 * base.forces)


class Count(Potential):
    """Rising hills: the energy is the number of updates, at the last position."""

    has_memory = True

    def __init__(self):
        self.steps, self.calls = [], 0

    def __call__(self, x):
        self.calls += 1
        return Evaluation(x.new_full(x.shape[:-2], float(len(self.steps))), 0.01 * x)

    def update(self, x, step):
        self.steps.append(step)
        return True


class Cliff(Potential):
    """Free particles; those that pass x = 1 Å get forces that are not finite."""

    def __call__(self, x):
        forces = torch.where(x[..., :1] > 1.0, torch.nan, 0.0) * torch.ones_like(x)
        return Evaluation(x.new_zeros(x.shape[:-2]), forces)


def cluster() -> Atoms:
    rng = np.random.default_rng(3)
    atoms = Atoms("Ar4", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8]])
    atoms.positions += 0.1 * rng.standard_normal((4, 3))
    return atoms


def crystal() -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.26, cubic=True)
    atoms.set_cell(
        atoms.cell.array @ [[1.02, 0, 0.03], [0, 0.99, -0.02], [0.1, -0.01, 1.03]],
        scale_atoms=True,
    )
    atoms.rattle(0.1, seed=1)
    return atoms


def attached(make=cluster, **options) -> Atoms:
    atoms = make()
    atoms.calc = ScoreCalculator(argon, **options)
    return atoms


def network(system: System, seed: int = 0, kT: float = 0.025) -> ScoreModel:
    """A real model with random weights: nothing here depends on training."""
    config = EquivariantConfig(
        channels=4, layers=1, cutoff=5.0, elements=tuple(sorted(set(system.numbers.tolist())))
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(config, None)
    card = Card(
        formula=system.formula,
        numbers=system.numbers.tolist(),
        masses=system.masses.tolist(),
        cell=None if system.cell is None else system.cell.tolist(),
        pbc=tuple(system.pbc.tolist()),
        temperature_K=kT / 8.617330337217213e-05,
        kT=kT,
        sigma_min=0.01,
        sigma_max=1.0,
        lambda_max=2000.0,
        covariance=np.eye(len(system)).tolist(),
        experts=[ExpertCard(name="fine", sigma=(0.01, 1.0), network=config)],
        data={"source": "no data", "snapshots": 0, "sha256": ""},
        training={},
        validation={},
        versions={},
    )
    return ScoreModel(card, [net])
