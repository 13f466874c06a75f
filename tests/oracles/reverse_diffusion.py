"""Reverse diffusion to its end, and what starts it: short forms for tests."""

import torch

from diffmd_ase.independent.reverse import reverse_levels


def karras_sigmas(sigma_max, sigma_min, n, rho=7.0):
    """``n`` levels evenly spaced in ``σ^(1/ρ)`` (Karras et al. 2022, eq. 5)."""
    u = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    return (sigma_max ** (1 / rho) * (1 - u) + sigma_min ** (1 / rho) * u) ** rho


def initial_noise(sigma_max, like, *, noise, walkers=None, mean_free=False):
    """``σ_max ξ`` of the shape of ``like``."""
    x = sigma_max * noise.normal((1 << 40) - 1, like, walkers=walkers)
    return x - x.mean(-2, keepdim=True) if mean_free else x


def reverse_diffusion(potential_at, x, sigmas, **options):
    """The last positions of `reverse_levels`."""
    *_, (_, last) = reverse_levels(potential_at, x, sigmas, **options)
    return last
