"""What a transition path begins with: relaxed ends, and images between them that do not clash."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ...potentials.base import Potential, evaluate
from ...potentials.biases.cvs import RMSD
from ...score.topology import Topology
from ...system import System

__all__ = ["interpolated", "nearest", "relaxed"]

log = logging.getLogger(__name__)


def relaxed(potential: Potential, x: Tensor, *, kT: float, most: int = 2000) -> Tensor:
    """The minimum of the energy that ``x`` (N, 3) in Å runs down to, by L-BFGS.

    ``potential`` has an energy, ``most`` evaluations are made.
    """

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value = evaluate(potential.terms, torch.from_numpy(flat.reshape(x.shape)))
        return float(value.energy) / kT, -value.forces.double().numpy().ravel() / kT

    options = {"maxfun": most, "maxiter": most, "ftol": 1e-8, "gtol": 1e-2}
    best = minimize(cost, x.double().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(best.x.reshape(x.shape))


def nearest(system: System, a: Tensor, b: Tensor) -> Tensor:
    """``b`` (N, 3) with like atoms exchanged so that it is nearest to ``a`` (N, 3), both in Å.

    By the symmetries of the molecule of a ``system``, as of a methyl group, and by RMSD after the
    best rotation: a path that also turned such groups would be no likeliest one. Periodic systems
    stay as they are.
    """
    if system.periodic:
        return b
    topology = Topology.from_positions(system.numbers, torch.stack([a, b]).cpu().numpy())
    orders = torch.as_tensor(topology.permutations)
    chosen = orders[int(RMSD(system, a)(b[orders])[..., 0].argmin())]
    if not torch.equal(chosen, orders[0]):
        count = int((chosen != orders[0]).sum())
        log.info("%d like atoms of the end are exchanged, to be nearer to the start", count)
    return b[chosen]


def interpolated(system: System, a: Tensor, b: Tensor, count: int) -> Tensor:
    """``count`` images (count, N, 3) from ``a`` to ``b`` (N, 3), whose distances interpolate.

    By the image dependent pair potential of ASE (Smidstrup et al., J. Chem. Phys. 140, 214106
    (2014)). Without a periodic cell b is turned onto a first.

    Raises ``ValueError`` for fewer than three images.
    """
    from ase.build import minimize_rotation_and_translation
    from ase.mep.neb import idpp_interpolate

    if count < 3:
        raise ValueError(f"{count=} images: expected at least three, the ends and one between")
    first, last = system.to_atoms(a), system.to_atoms(b)
    if not system.periodic:
        first.positions -= first.positions.mean(0)
        minimize_rotation_and_translation(first, last)
    images = [first, *(first.copy() for _ in range(count - 2)), last]
    for n, image in enumerate(images[1:-1], 1):
        part = n / (count - 1)
        image.positions = (1 - part) * first.positions + part * last.positions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a default of ASE's that it does not take
        idpp_interpolate(images, traj=None, log=None, mic=system.periodic)
    return torch.from_numpy(np.stack([image.positions for image in images]))
