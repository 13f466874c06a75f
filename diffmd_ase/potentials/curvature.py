"""Derivatives of forces by differences: stiffness, divergence, distance from a gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise import Noise
from ..score.curvature import both_sides, derivative, divergence, power_iteration
from .base import Potential, evaluate

__all__ = ["forces_and_divergence", "hessian", "measured_stiffness", "non_conservativeness"]

log = logging.getLogger(__name__)


def measured_stiffness(
    potential: Potential,
    x: Tensor,
    kT: float,
    *,
    length: float = 1e-3,
    most: int = 60,
    moving: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, int]:
    """λ at ``x`` by power iteration on central differences of the forces.

        Hv = -(F(x + εv) - F(x - εv))/(2 ε kT)        v ← Hv/|Hv|        λ = max |Hv|

    the largest of all walkers, when it changes by less than 1 % from one iteration to the next.

    Parameters
    ----------
    x : (N, 3) or (B, N, 3) in Å
    length : ε in Å
    most : iterations, two evaluations each; what there is after them counts
    moving : the part of displacements (*batch, N, 3) that atoms can make; default all

    Returns
    -------
    λ in 1/Å² and the number of evaluations of each structure

    Raises
    ------
    ValueError : no stiffness there (free particles, forces that are not finite)
    """
    # a fixed seed: the step must not depend on the seed of the run
    start = Noise(0).normal(0, x, stream="probe")
    start = start if moving is None else moving(start)

    def product(v: Tensor) -> Tensor:
        image = -derivative(_forces(potential), x, v, length) / kT
        return image if moving is None else moving(image)

    lam, evaluations = 0.0, 0
    for _, image in islice(power_iteration(product, start), most):
        evaluations += 2
        before, lam = lam, float(image.square().sum((-2, -1)).max().sqrt())
        if not np.isfinite(lam) or lam < 1e-8:
            break
        if abs(lam - before) < 0.01 * lam:
            log.info("stiffness %.4g/A^2 from %d evaluations of forces", lam, evaluations)
            return lam, evaluations
    if np.isfinite(lam) and lam >= 1e-8:
        return lam, evaluations
    raise ValueError(
        f"no default step: the stiffness at the initial positions is {lam}; give timestep and "
        "mobility, or spring"
    )


def forces_and_divergence(
    potential: Potential, x: Tensor, *, noise: Noise, step: float = 1e-3, batch: int = 500
) -> tuple[Tensor, Tensor]:
    """|F|² in eV²/Å² and an unbiased estimate of -∇·F in eV/Å², each (M,).

    The probes v of `score.curvature.divergence` have components of ±1, one for each structure:
    ``-v·[F(x + εv) - F(x - εv)]/(2ε)``.

    Parameters
    ----------
    x : (M, N, 3) in Å
    noise : gives the probes, row m those of walker m at step 0
    step : ε in Å
    batch : structures evaluated at a time; it changes no number
    """
    forces, squares, divergences = _forces(potential), [], []
    for begin in range(0, len(x), batch):
        part = x[begin : begin + batch]
        walkers = torch.arange(begin, begin + len(part))
        v = torch.sign(noise.normal(0, part, walkers=walkers, stream="probe"))
        squares.append(forces(part).square().sum((1, 2)))
        divergences.append(-divergence(*both_sides(forces, part, v, step), v, step))
    return torch.cat(squares), torch.cat(divergences)


def hessian(potential: Potential, x: Tensor, *, step: float = 0.01, batch: int = 96) -> Tensor:
    """``K = -∂F/∂x`` (3N, 3N) in eV/Å² at ``x`` (N, 3) in Å, its symmetric part.

    ``K_ij = -[F_i(x + ε e_j) - F_i(x - ε e_j)]/(2ε)``, 6N evaluations.

    Parameters
    ----------
    step : ε in Å
    batch : structures evaluated at a time; it changes no number

    Raises
    ------
    ValueError : forces there are not finite
    """
    forces, x = _forces(potential), x.double()
    steps = step * torch.eye(x.numel(), dtype=x.dtype, device=x.device)
    columns = []
    for part in steps.reshape(-1, *x.shape).split(max(1, batch // 2)):
        above, below = forces(torch.cat((x + part, x - part))).double().chunk(2)
        columns.append((below - above).flatten(1) / (2.0 * step))
    K = torch.cat(columns)
    if not torch.isfinite(K).all():
        raise ValueError("no Hessian: forces of structures displaced from x are not finite there")
    return 0.5 * (K + K.T)


def non_conservativeness(
    potential: Potential, x: Tensor, *, n_probes: int = 8, step: float = 1e-3, noise: Any = None
) -> float:
    """How far the field is from a gradient: 0 for a gradient, ∞ for a pure rotation.

        c = ‖J − Jᵀ‖ / ‖J + Jᵀ‖        J = ∂F/∂x, Frobenius norms, root mean square over x

    which is ``(E|(J − Jᵀ)v|² / E|(J + Jᵀ)v|²)^½`` for random v. With two random directions
    ``u·(J ∓ Jᵀ)v = u·Jv ∓ v·Ju``, and Jv is a central difference of forces, so that any
    potential will do. Relative standard error about ``1/sqrt(2 n_probes B)`` or less.

    Parameters
    ----------
    x : (N, 3) or (B, N, 3) in Å, where the field is used
    n_probes : pairs of directions for each structure; four evaluations each
    step : length of the differences in Å, for one coordinate; float32 fields: 1e-2
    noise : a `Noise`, default ``Noise(0)``

    Raises
    ------
    ValueError : ``n_probes`` below 1, or a field that does not change with x at all
    """
    if n_probes < 1:
        raise ValueError(f"{n_probes=} must be at least 1")
    noise = Noise(0) if noise is None else noise
    forces, x = _forces(potential), x.double()
    rotation, stretch = 0.0, 0.0
    for probe in range(n_probes):
        u, v = (noise.normal(2 * probe + side, x, stream="probe") for side in (0, 1))
        j_u, j_v = (derivative(forces, x, direction, step).double() for direction in (u, v))
        uv, vu = ((a * b).sum((-2, -1)) for a, b in ((u, j_v), (v, j_u)))
        rotation += float((uv - vu).square().mean())
        stretch += float((uv + vu).square().mean())
    if not rotation + stretch > 0:
        raise ValueError("the forces do not change near these positions: nothing to compare")
    return (rotation / stretch) ** 0.5 if stretch > 0 else float("inf")


def _forces(potential: Potential) -> Callable[[Tensor], Tensor]:
    return lambda x: evaluate(potential.terms, x).forces
