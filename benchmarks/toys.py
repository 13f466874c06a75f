"""What the two-dimensional benchmarks share: contenders, exact integration, tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmd_ase.score.diffusion import log_uniform, score
from diffmd_ase.score.points import (
    Denoising,
    KernelDensity,
    Levels,
    PointConfig,
    PointNetwork,
    Ranking,
    fit_points,
)

CONFIG = PointConfig()
CONFIG_LEVELS = PointConfig(steps=3000)


@dataclass(frozen=True)
class PlainDenoising:
    """``|σs + ε|²`` at ``x + σε``, uniform in log σ: the loss of ordinary diffusion models."""

    sigma: tuple[float, float]

    def __call__(self, energy, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma = log_uniform(len(x), *self.sigma, generator).to(x)
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        noisy = x + sigma[:, None, None] * epsilon
        _, s = score(energy, noisy, sigma, create_graph=True)
        return (sigma[:, None, None] * s + epsilon).square().sum((1, 2)).mean()


def contenders(x: Tensor, sigma: tuple[float, float], seed: int) -> dict[str, tuple]:
    """Name → (terms, config) of each training; the last ones know only the smallest noise."""
    low = sigma[0]
    reference = KernelDensity(x, torch.Generator().manual_seed(seed), sigma=low)
    width = float(torch.cov(x.flatten(1).T).diagonal().mean().sqrt())
    between = (0.5 * width / low) ** (1 / 3)  # noise levels from the smallest to the width of all
    levels = tuple(low * between**n for n in range(4)) + (width, 2 * width, sigma[1])
    # in units of a tenth of the width, in which score matching and likelihood weigh alike
    matching = 0.1 * (0.1 * width / low) ** 2, Denoising((low, low))
    ranking = 1.0, Ranking(reference, low)
    return {
        "plain, all noise": ([(1.0, PlainDenoising(sigma))], CONFIG_LEVELS),
        "antithetic, all noise": ([(1.0, Denoising(sigma))], CONFIG_LEVELS),
        "and noise levels told apart": (
            [(1.0, Denoising(sigma)), (1.0, Levels(levels))],
            CONFIG_LEVELS,
        ),
        "antithetic, smallest noise": ([matching], CONFIG_LEVELS),
        "and ranking": ([matching, ranking], CONFIG_LEVELS),
        "ranking alone": ([ranking], CONFIG),
    }
