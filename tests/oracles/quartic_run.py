"""Runs of three atoms in a quartic well that leave files: what is run, and whether two are one."""

import numpy as np
import torch

from diffmd_ase.io.trajectory import RunInfo
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

SYSTEM = System(np.array([1, 8, 1]), np.array([1.0, 16.0, 1.0]))
H, KT = 0.01, 1.0


class Quartic(Potential):
    """``Σ x⁴/4``: stable near the origin, a step from far away overshoots for ever."""

    def __call__(self, x):
        return Evaluation(x.pow(4).sum((-2, -1)) / 4, -x.pow(3))


KERNEL = EulerMaruyama(Quartic(), kT=KT, h=H)


def info(**changes):
    options = {"seed": 3, "kT": KT, "h": H, "kinetics_valid": True, "model_sha256": "abc"}
    return RunInfo(**{**options, **changes})


def go(prefix, steps, *, walkers=(0, 1, 2, 3), bad=(), restart=False, every=5, kernel=KERNEL, **k):
    ids = torch.tensor(walkers)
    x = torch.full((len(walkers), 3, 3), 0.1)
    for column, walker in enumerate(walkers):
        if walker in bad:
            x[column] = 50.0  # h x² = 25: grows without bound
    return simulate(
        kernel,
        SYSTEM,
        None if restart else x,
        steps,
        files=Files(str(prefix)),
        info=info(**k),
        every=every,
        walkers=ids,
        restart=restart,
    )


def same(a, b):
    return all(np.array_equal(p, q, equal_nan=True) for p, q in zip(a, b, strict=True))
