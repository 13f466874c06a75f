"""Independent samples by ordinary reverse diffusion: from wide noise to the data.

The forward process is ``x_σ = x_0 + σ ε`` (σ in Å). Its reverse is integrated down a
schedule of noise levels, a tensor, by the stochastic Heun method of Karras et al. 2022
(arXiv 2206.00364, algorithm 2) and ends at the last level: the samples follow
``p_σ`` of that level, the law that dynamics at the same level keeps.

Every random number has an address: level n of walker w is the same in any batch, and
far from the steps of dynamics, which may go on with the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential
from ..sampling.euler import EulerMaruyama, without_mean
from ..sampling.kernels import DivergedError

__all__ = ["geometric_sigmas", "reverse_levels"]

_FIRST = 1 << 40  # address of the first draw: no dynamics gets that far


def geometric_sigmas(sigma_max: float, sigma_min: float, n: int) -> Tensor:
    """``n`` noise levels (Å) from ``sigma_max`` down to ``sigma_min``, of constant ratio.

    Raises ``ValueError`` unless 0 < sigma_min < sigma_max and n ≥ 2.
    """
    if not (0 < sigma_min < sigma_max < math.inf and n >= 2):
        raise ValueError(
            f"{sigma_max=} and {sigma_min=} must satisfy 0 < sigma_min < sigma_max (Å), "
            f"and {n=} be at least 2"
        )
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), n, dtype=torch.float64)


def reverse_levels(
    potential_at: Callable[[float], Potential],
    x: Tensor,
    sigmas: Tensor,
    *,
    kT: float,
    noise: Noise,
    walkers: Tensor | None = None,
    churn: float = 0.0,
    corrector_steps: int = 0,
    corrector_size: float = 0.05,
    mean_free: bool = False,
) -> Iterator[tuple[float, Tensor]]:
    """Yield ``(σ, x)`` after each level.

    One level, from σ to σ', with ``σ̂ = (1 + γ) σ`` and ``s = F/kT`` (2 evaluations):

        x̂ = x + sqrt(σ̂² − σ²) ξ             d = −σ̂ s(x̂, σ̂)
        y = x̂ + (σ' − σ̂) d                  d' = −σ' s(y, σ')
        x' = x̂ + ½ (σ' − σ̂)(d + d')

    and then ``corrector_steps`` steps of `EulerMaruyama` at σ' (one evaluation each and one to
    start; without churn the last one is the first of the next level), with
    ``h = corrector_size · σ'²``: where noise dominates, the bias of
    their variance is ``corrector_size/2``.

    Parameters
    ----------
    potential_at : the potential at noise level σ whose F/kT is the score of p_σ
    x : (B, N, 3) or (N, 3) in Å, a sample at ``sigmas[0]``
    sigmas : (L,) decreasing noise levels in Å, all positive
    churn : noise added and removed again, ``γ = min(churn/L, √2 − 1)`` per level
        (S_churn of the paper); 0 is the deterministic flow. It forgets the errors of
        earlier levels, at a price: with an exact score, 100 levels over a factor of 2000
        widen the variance of a Gaussian by 0.1 % with churn 0, 0.6 % with 10, 1.3 % with
        30, and by 1.8 % with one corrector step. σ̂ is never above ``sigmas[0]``
    mean_free : remove the mean from x, ξ and F (isolated molecules)

    Raises
    ------
    ValueError : schedule not positive and decreasing, or options out of range
    DivergedError : names the level (as step) and the walkers
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    if len(levels) < 2 or not all(a > b > 0 for a, b in pairwise(levels)):
        raise ValueError(f"{sigmas=} must be at least two positive, decreasing levels (Å)")
    if not (kT > 0 and churn >= 0 and corrector_steps >= 0 and corrector_size > 0):
        raise ValueError(
            f"{kT=} and {corrector_size=} must be positive, {churn=} and {corrector_steps=} "
            "not negative"
        )
    gamma = min(churn / len(levels), math.sqrt(2.0) - 1.0)
    x = without_mean(x) if mean_free else x
    address, known = _FIRST + 1, None
    for level, (sigma, lower) in enumerate(pairwise(levels), start=1):
        hot = min((1.0 + gamma) * sigma, levels[0])
        if hot > sigma:
            xi = _normal(noise, address, x, walkers, mean_free)
            x = x + math.sqrt(hot**2 - sigma**2) * xi
            address += 1
        potential = potential_at(lower)
        # −σ s, the slope of the probability flow
        if known is None or hot > sigma:
            known = potential_at(hot)(x).forces
        slope = (-hot / kT) * (without_mean(known) if mean_free else known)
        guess = x + (lower - hot) * slope
        end = (-lower / kT) * _forces(potential, guess, mean_free)
        x, known = x + 0.5 * (lower - hot) * (slope + end), None
        if corrector_steps:
            kernel = EulerMaruyama(
                potential, kT=kT, h=corrector_size * lower**2, mean_free=mean_free
            )
            state = replace(kernel.init(x, walkers=walkers), step=address)
            for _ in range(corrector_steps):
                state, _ = kernel.step(state, noise)
            # where no noise is added, of the same positions and level as the next ones
            x, address, known = state.x, state.step, state.forces
        _check(x, level, walkers)
        yield lower, x


def _forces(potential: Potential, x: Tensor, mean_free: bool) -> Tensor:
    forces = potential(x).forces
    return without_mean(forces) if mean_free else forces


def _normal(noise: Noise, address: int, like: Tensor, walkers, mean_free: bool) -> Tensor:
    xi = noise.normal(address, like, walkers=walkers)
    return without_mean(xi) if mean_free else xi


def _check(x: Tensor, level: int, walkers) -> None:
    if math.isfinite(x.sum()):
        return
    lost = ~torch.isfinite(x).flatten(-2).all(-1).reshape(-1)
    if lost.any():
        ids = torch.arange(len(lost)) if walkers is None else torch.as_tensor(walkers)
        raise DivergedError(level, ids[lost.cpu()].tolist())
