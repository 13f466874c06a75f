"""Variables and biases on a CUDA device: the numbers of the CPU, and what moves between them."""

import math

import numpy as np
import pytest
import torch

from diffmd_ase.potentials.biases.cvs import (
    RMSD,
    Angle,
    Coordination,
    Distance,
    Function,
    NativeContacts,
    Position,
    Torsion,
    join,
)
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES, OPESExplore
from diffmd_ase.potentials.biases.recorded import Recorded
from diffmd_ase.potentials.biases.restraints import LowerWall, MovingRestraint, Restraint, UpperWall
from diffmd_ase.system import System

pytestmark = pytest.mark.gpu
N, B = 8, 16
CELL = np.array([[7.0, 0.0, 0.0], [3.4, 6.0, 0.0], [-3.0, 2.9, 6.5]])
SYSTEM = System([6] * N, [12.0] * N, CELL, True)
REFERENCE = np.random.default_rng(5).normal(size=(N, 3)) * 1.5
CVS = [Torsion(SYSTEM, [0, 1, 2, 3], name="t"), Distance(SYSTEM, [0, 3], name="d")]
ALL = [
    *CVS,
    Position(SYSTEM, 3, 1),
    Angle(SYSTEM, [0, 1, 2]),
    Coordination(SYSTEM, [0, 1, 2], [3, 4, 5], r_0=2.0),
    NativeContacts(SYSTEM, [[0, 5], [1, 7]], [1.8, 2.2]),
    RMSD(SYSTEM, REFERENCE),
    Function(SYSTEM, lambda x: x[..., 0, :].square().sum(-1).sin()),
]
TAUGHT = {"kT": 0.0258, "sigma": [0.3, 0.4], "pace": 1}
METADYNAMICS = TAUGHT | {"height": 0.01, "biasfactor": 6}
MAKE = {
    "restraint": lambda: Restraint(ALL, at=0.1, kappa=1.0),
    "upper": lambda: UpperWall(CVS, at=0.5, kappa=1.0),
    "lower": lambda: LowerWall(CVS, at=0.5, kappa=1.0),
    "moving": lambda: MovingRestraint(CVS, steps=[0, 9], at=[0.0, 1.0], kappa=1.0),
    "hills": lambda: Metadynamics(CVS, **METADYNAMICS),
    "own hills": lambda: Metadynamics(CVS, **METADYNAMICS, walkers="independent"),
    "grid": lambda: Metadynamics(CVS, **METADYNAMICS, grid=Grid([50, 50], [0, 0], [0, 9.0])),
    "own grids": lambda: Metadynamics(
        CVS, **METADYNAMICS, grid=Grid([50, 50], [0, 0], [0, 9.0]), walkers="independent"
    ),
    "opes": lambda: OPES(CVS, **TAUGHT, barrier=0.4),
    "explore": lambda: OPESExplore(CVS, **TAUGHT, barrier=0.4),
}


def positions(seed):
    rng = np.random.default_rng(seed)
    return torch.tensor(REFERENCE + 0.3 * rng.normal(size=(B, N, 3)))


def close(there, here):
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-11)


def test_variables():
    cv, x = join(ALL), positions(0)
    (here, back), (there, back_there) = cv.vjp(x), cv.vjp(x.cuda())
    close(there, here)
    close(back_there(torch.ones_like(there)), back(torch.ones_like(here)))


@pytest.mark.parametrize("name", MAKE)
def test_biases(name, tmp_path):
    cpu, gpu = MAKE[name](), MAKE[name]()
    recorded = [Recorded(b, tmp_path / str(i), every=1) for i, b in enumerate((cpu, gpu))]
    for step in range(1, 9):
        x = positions(step)
        recorded[0].update(x, step)
        recorded[1].update(x.cuda(), step)
    x = positions(0)
    here, there = cpu(x), gpu(x.cuda())
    close(there.energy, here.energy)
    close(there.forces, here.forces)
    assert gpu(x.cuda().float()).forces.dtype == torch.float32
    tables = [np.loadtxt(tmp_path / str(i)) for i in range(2)]
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-8, atol=1e-10)
    again = MAKE[name]()
    again.restore(gpu.checkpoint(), x.cuda(), 8)
    close(again(x.cuda()).energy, here.energy)
    keep = torch.arange(B) % 3 > 0
    gpu.select(keep.cuda())
    close(gpu(x[keep].cuda()).energy, here.energy[keep])
    close_on_cpu = gpu(x[keep]).energy  # and back
    torch.testing.assert_close(close_on_cpu, here.energy[keep], rtol=1e-9, atol=1e-11)


def test_periodic_difference():
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([-3.0, 2.0])
    close(join(CVS).difference(a.cuda(), b.cuda()), torch.tensor([6 - 2 * math.pi, -1.0]))
