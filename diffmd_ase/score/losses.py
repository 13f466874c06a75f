"""Noise levels and losses: what makes an energy the energy of noised data.

Noise is added in Å, ``x_σ = x + σε``, so that the score of the noised density is a force
divided by kT. All losses are expectations over the data that are minimal at the true
energy; none needs a partition function. The score here is s = -∇E with E in kT.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = [
    "Energy",
    "contrastive_loss",
    "denoising_loss",
    "force_loss",
    "log_uniform",
    "score",
    "torsional_loss",
]

Energy = Callable[[Tensor, Tensor], Tensor]  # (B, N, 3), (B,) -> (B,)


def score(energy: Energy, x: Tensor, sigma: Tensor, *, create_graph: bool = False):
    """``(E, s)`` with ``s = -∇E`` (B, N, 3), by automatic differentiation.

    Parameters
    ----------
    energy : (x, σ) → E (B,) in kT
    sigma : σ (B,) in Å
    create_graph : derivatives flow through s, as a training needs
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x, sigma)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=create_graph)
    return value, -gradient


def log_uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(n,) noise levels ``low exp(u ln(high/low))``, u uniform in [0, 1): uniform in log σ.

    ``n``: how many, from the ``generator``; ``low`` and ``high`` in Å.
    """
    u = torch.rand(n, generator=generator, dtype=torch.float32)
    return low * torch.exp(u * math.log(high / low))


def denoising_loss(plus: Tensor, minus: Tensor, epsilon: Tensor, sigma: Tensor) -> Tensor:
    """Antithetic denoising loss (B,) of the scores at x ± σε, in units of 1/σ².

    ``σ²[½(|s₊|² + |s₋|²) + ε·(s₊ - s₋)/σ]`` (Vincent, Neural Comput. 23, 1661 (2011), without its
    constant); the pair cancels the variance d/σ² that swamps a single one at small noise.

    Parameters
    ----------
    plus, minus : s₊, s₋ (B, N, 3) in 1/Å
    epsilon : ε (B, N, 3) of unit variance
    sigma : σ (B,) in Å
    """
    s = sigma[:, None, None]
    terms = 0.5 * s**2 * (plus.square() + minus.square()) + s * epsilon * (plus - minus)
    return terms.sum((1, 2))


def force_loss(plus: Tensor, minus: Tensor, labels: Tensor, sigma: Tensor) -> Tensor:
    """Squared error (B,) of the scores at x ± σε from F(x)/kT, in units of 1/σ².

    ``½σ²(|s₊ - f|² + |s₋ - f|²)``: the score of noised data is the mean of their forces,
    ∇ log p_σ(y) = E[f(x) | y] (De Bortoli et al., Target Score Matching, arXiv 2402.08667, eq. 7).

    Parameters
    ----------
    plus, minus : s₊, s₋ (B, N, 3) in 1/Å
    labels : f = F(x)/kT (B, N, 3) in 1/Å
    sigma : σ (B,) in Å
    """
    square = (plus - labels).square() + (minus - labels).square()
    return 0.5 * sigma**2 * square.sum((1, 2))


def torsional_loss(plus: Tensor, minus: Tensor, xi: Tensor, delta: float) -> Tensor:
    """Antithetic loss (B,) of the angular scores g at rotations by ±δξ.

    ``½(g₊² + g₋²) + ξ(g₊ - g₋)/δ`` with ``g = Σ_moved s_i·(u × (x_i - a))``: rotations about a bond
    keep volume, and soft modes are not drowned by stiff bonds.

    Parameters
    ----------
    plus, minus : g₊, g₋ (B,) in 1/rad
    xi : ξ (B,) of unit variance
    delta : δ in rad
    """
    return 0.5 * (plus.square() + minus.square()) + xi * (plus - minus) / delta


def contrastive_loss(energy: Tensor, energy_moved: Tensor) -> Tensor:
    """``softplus(E(x) - E(y))`` (B,): x is data, y a symmetric move of it that keeps volume.

    ``energy``: E(x), ``energy_moved``: E(y), in kT; see `Energy`. Conditional noise-contrastive
    estimation (Ceylan & Gutmann, ICML 2018) sees the relative weight of separated modes, as
    score matching does not.
    """
    # clashes have E(y) of thousands of kT: cut off gradients below 1e-13, which would be
    # denormal numbers and make every product of the backward pass slow
    return softplus((energy - energy_moved).clamp_min(-30.0))
