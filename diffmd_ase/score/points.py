"""Points in a plane or in space: densities without symmetry, of which a picture says everything.

The losses are those of molecules (`diffusion`), the network is a plain perceptron that is
neither invariant under translations nor rotations: for systems held by a field, and for toys
on which training can be judged by exact integration. Positions are (B, N, D) with any D; the
energy is that of the D·N coordinates.

An objective is a weighted sum of terms, each called as ``term(energy, x, generator) -> ()``
with a batch of snapshots x: `Denoising`, `Ranking` and `Levels` here, or a user's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .diffusion import Energy, denoising_loss, level_loss, log_uniform, ranking_loss, score
from .network import NoiseEmbedding

__all__ = [
    "Denoising",
    "KernelDensity",
    "Levels",
    "PointConfig",
    "PointNetwork",
    "Ranking",
    "fit_points",
]

Term = Callable[[Energy, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class PointConfig:
    """Hyper-parameters of `PointNetwork` and of its training by `fit_points`.

    Parameters
    ----------
    width, depth : units of each hidden layer, hidden layers
    steps, batch_size : of the optimiser
    learning_rate : of Adam; cosine decay to a thousandth
    ema : decay of the averaged weights
    """

    width: int = 64
    depth: int = 3
    steps: int = 4000
    batch_size: int = 512
    learning_rate: float = 5e-3
    ema: float = 0.998


class PointNetwork(nn.Module):
    """``E(x, σ) = ½|u|² + ½ log det(C + σ²) + MLP(u; σ)`` in kT.

    ``u = (C + σ²)^(-½) (x - m)`` with mean m and covariance C of the data: the prior is their
    Gaussian at every noise level, so that the energy grows outside of the data, and at the
    largest it is all there is.

    Parameters
    ----------
    positions : (M, N, D) snapshots, for m and C
    config : see `PointConfig`
    generator : of the weights

    Raises
    ------
    ValueError : a coordinate that does not vary
    """

    def __init__(self, positions: Tensor, config: PointConfig, generator: torch.Generator):
        super().__init__()
        flat = positions.flatten(1).double()
        n, width = flat.shape[1], config.width
        variances, axes = torch.linalg.eigh(torch.cov(flat.T).reshape(n, n))
        if not variances.min() > 1e-12 * variances.max():
            raise ValueError(
                f"the snapshots have variances {variances.tolist()} along their principal axes: "
                "every coordinate must vary; leave constant ones out"
            )
        for name, value in {"mean": flat.mean(0), "variances": variances, "axes": axes}.items():
            self.register_buffer(name, value)
        # layers draw their weights from the global generator: it is left alone
        with torch.random.fork_rng(devices=[]):
            self.embedding = NoiseEmbedding(width)
            sizes = [n] + [width] * config.depth
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in self.layers)
            self.out = nn.Linear(width, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for p in layer.parameters():
                    nn.init.uniform_(p, -bound, bound, generator=generator)
        nn.init.zeros_(self.out.weight)  # begins as the Gaussian
        nn.init.zeros_(self.out.bias)
        self.float()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Energy (B,) in kT of x (B, N, D) at noise level sigma (B,), or (1,) for them all."""
        variances = self.variances + sigma.square()[:, None]
        u = (x.flatten(1) - self.mean) @ self.axes * variances.rsqrt()
        h, c = u, self.embedding(sigma)
        for n, (layer, modulate) in enumerate(zip(self.layers, self.modulate, strict=True)):
            gain, shift = modulate(c).chunk(2, dim=-1)
            new = silu(layer(h) * (1 + gain) + shift)
            h = h + new if n else new
        return self.out(h)[:, 0] + 0.5 * (u.square() + variances.log()).sum(-1)


class KernelDensity:
    """A smooth density q of snapshots that is known exactly: Gaussians on some of them.

        q(x) = (1 - w) ⟨N(x; x_j, b²C + σ²)⟩_j + w N(x; m, 4C + σ²)

    with the covariance C of the data. The last term reaches beyond the data.

    Parameters
    ----------
    positions : (M, N, D) snapshots
    bandwidth : b
    centres : number of snapshots x_j
    sigma : σ, the noise level at which q is compared with the data
    generator : chooses the snapshots
    """

    WIDE = 0.1  # w

    def __init__(
        self,
        positions: Tensor,
        generator: torch.Generator,
        *,
        bandwidth: float = 0.3,
        centres: int = 256,
        sigma: float = 0.0,
    ):
        if not (bandwidth > 0 and centres >= 1 and sigma >= 0):
            raise ValueError(
                f"{bandwidth=} must be positive, {centres=} at least 1, {sigma=} not negative"
            )
        self.shape, flat = positions.shape[1:], positions.flatten(1).double()
        n = flat.shape[1]
        covariance = torch.cov(flat.T).reshape(n, n)
        chosen = flat[torch.randperm(len(flat), generator=generator)[:centres]]
        eye = sigma**2 * torch.eye(n, dtype=flat.dtype)
        self._narrow = torch.linalg.cholesky(bandwidth**2 * covariance + eye)
        self._wide = torch.linalg.cholesky(4 * covariance + eye)
        self._chosen, self._mean = chosen, flat.mean(0)
        self._whitened = self._whiten(self._narrow, chosen - self._mean)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent draws (n, N, D), float32."""
        size = len(self._mean)
        xi = torch.randn(n, size, generator=generator, dtype=torch.float64)
        which = torch.randint(len(self._chosen), (n,), generator=generator)
        wide = torch.rand(n, 1, generator=generator) < self.WIDE
        near = self._chosen[which] + xi @ self._narrow.T
        far = self._mean + xi @ self._wide.T
        return torch.where(wide, far, near).float().reshape(n, *self.shape)

    def log_density(self, x: Tensor) -> Tensor:
        """log q (B,) of x (B, N, D), normalised, in the precision of x."""
        flat = x.flatten(1)
        n = flat.shape[1]
        norms = [
            -0.5 * n * math.log(2 * math.pi) - float(root.diagonal().log().sum())
            for root in (self._narrow, self._wide)
        ]
        away, centres = flat - self._mean.to(flat), self._whitened.to(flat)
        here = self._whiten(self._narrow, away)
        # |a - b|² by a matrix product
        d2 = torch.addmm(centres.square().sum(1), here, centres.T, alpha=-2)
        near = torch.logsumexp(-0.5 * d2, dim=1) - 0.5 * here.square().sum(1)
        near = near - math.log(len(centres)) + norms[0]
        far = -0.5 * self._whiten(self._wide, away).square().sum(1) + norms[1]
        return torch.logaddexp(near + math.log(1 - self.WIDE), far + math.log(self.WIDE))

    @staticmethod
    def _whiten(root: Tensor, flat: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(root.to(flat), flat.T, upper=False).T


# ------------------------------------------------------------------------ losses


@dataclass(frozen=True)
class Denoising:
    """Antithetic denoising score matching, `diffusion.denoising_loss`, over noise levels.

    Parameters
    ----------
    sigma : smallest and largest noise level, uniform in log σ between; the loss is in units
        of 1/σ², which weighs all levels alike
    """

    sigma: tuple[float, float]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma = log_uniform(len(x), *self.sigma, generator).to(x)
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        shift = sigma[:, None, None] * epsilon
        both = torch.cat([x + shift, x - shift])
        _, scores = score(energy, both, sigma.repeat(2), create_graph=True)
        return denoising_loss(*scores.chunk(2), epsilon, sigma).mean()


@dataclass(frozen=True, eq=False)
class Ranking:
    """`diffusion.ranking_loss` of noised snapshots against as many draws of a density.

    Parameters
    ----------
    reference : gives ``draw(n, generator)`` and ``log_density(x)``, at noise level ``sigma``
    sigma : noise level at which the energy is compared
    """

    reference: KernelDensity
    sigma: float

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        noisy = x + self.sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        drawn = self.reference.draw(len(x), generator).to(x)
        both = torch.cat([noisy, drawn])
        value, log_q = energy(both, x.new_full((1,), self.sigma)), self.reference.log_density(both)
        (own, other), (q, q_other) = value.chunk(2), log_q.chunk(2)
        return ranking_loss(own, q, other, q_other).mean()


@dataclass(frozen=True)
class Levels:
    """`diffusion.level_loss`: at which of some noise levels was a snapshot noised?

    Parameters
    ----------
    sigmas : the levels; neighbours that overlap pass on the weights of modes
    """

    sigmas: tuple[float, ...]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        n, count = len(x), len(self.sigmas)
        sigmas = x.new_tensor(self.sigmas)
        drawn = torch.randint(count, (n,), generator=generator)
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        noisy = x + sigmas[drawn, None, None] * epsilon
        together = noisy.repeat_interleave(count, dim=0)
        return level_loss(energy(together, sigmas.repeat(n)).reshape(n, count), drawn).mean()


# ---------------------------------------------------------------------- training


def fit_points(
    positions: Tensor,
    terms: Sequence[tuple[float, Term]],
    config: PointConfig | None = None,
    *,
    seed: int = 0,
) -> PointNetwork:
    """Train a `PointNetwork` on snapshots by Adam on ``Σ weight·term``; the averaged weights.

    Parameters
    ----------
    positions : (M, N, D) snapshots
    terms : weights and losses
    seed : of weights, batches and noise: the same seed gives the same network

    Raises
    ------
    ValueError : positions of another shape, not finite, or constant along some axis
    RuntimeError : the loss was no longer finite
    """
    config = config or PointConfig()
    if positions.ndim != 3 or len(positions) < 2 or not torch.isfinite(positions).all():
        raise ValueError(
            f"positions {tuple(positions.shape)} must be finite, of shape (M, N, D) with M > 1"
        )
    generator = torch.Generator().manual_seed(seed)
    network = PointNetwork(positions, config, generator)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    x = positions.float()
    for step in range(config.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * max(cosine, 1e-3) * min(1, (step + 1) / 100)
        batch = x[torch.randint(len(x), (config.batch_size,), generator=generator)]
        loss = sum(weight * term(network, batch, generator) for weight, term in terms)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss.item()} at step {step}: use a smaller learning_rate "
                f"(now {config.learning_rate:g}) or larger noise"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(average.parameters(), network.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
    return average.eval()
