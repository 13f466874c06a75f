"""What the two-dimensional benchmarks share: a network, the losses that contend, integration.

An energy E(x, σ) in kT of points in the plane, (B, 1, 2), is learned from snapshots alone with
the losses of `diffmd_ase.score.losses`, as they are for molecules. Nothing here knows the
true energy; afterwards ``exp(-E)`` is integrated on a grid and compared with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from diffmd_ase.potentials.base import Potential
from diffmd_ase.score.losses import Energy, contrastive_loss, denoising_loss, log_uniform, score
from diffmd_ase.score.networks.inputs import NoiseEmbedding
from diffmd_ase.state import Evaluation

Term = Callable[[Energy, Tensor, torch.Generator], Tensor]


# ----------------------------------------------------------------------- densities


@dataclass(frozen=True, eq=False)
class Mixture:
    """``p(x) = Σ_k w_k N(x; m_k, v_k I)`` in the plane: means (K, 2), the others (K,)."""

    means: Tensor
    variances: Tensor
    weights: Tensor

    @classmethod
    def around(
        cls, x: Tensor, generator: torch.Generator, *, width: float, centres: int = 256
    ) -> Mixture:
        """A smooth density of snapshots x: kernels of ``width`` on some of them.

        A tenth of the weight is a wide Gaussian that reaches beyond the data.
        """
        flat = x.flatten(1)
        chosen = flat[torch.randperm(len(flat), generator=generator)[:centres]]
        n, wide = len(chosen), 4 * flat.var(0).max().item()
        weights = chosen.new_full((n + 1,), 0.9 / n)
        weights[n] = 0.1
        variances = chosen.new_full((n + 1,), width**2)
        variances[n] = wide
        return cls(torch.cat([chosen, flat.mean(0, keepdim=True)]), variances, weights)

    def log_density(self, x: Tensor) -> Tensor:
        """log p (B,) of x (B, 1, 2), normalised."""
        v = self.variances.to(x)
        squares = (x - self.means.to(x)).square().sum(-1)
        logs = self.weights.to(x).log() - torch.log(2 * math.pi * v) - 0.5 * squares / v
        return torch.logsumexp(logs, dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent draws (n, 1, 2)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        xi = torch.randn(n, 2, generator=generator, dtype=self.means.dtype)
        return (self.means[k] + self.variances[k].sqrt()[:, None] * xi)[:, None]

    def smoothed(self, sigma: float) -> Mixture:
        """The mixture with noise of standard deviation ``sigma``."""
        return Mixture(self.means, self.variances + sigma**2, self.weights)


# -------------------------------------------------------------------------- losses


def noise(
    x: Tensor, sigma: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """σ (B,), uniform in log σ; ε like x; and σε."""
    sigma = log_uniform(len(x), *sigma, generator).to(x)
    epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return sigma, epsilon, sigma[:, None, None] * epsilon


@dataclass(frozen=True)
class Plain:
    """``|σs + ε|²`` at ``x + σε``, uniform in log σ: the loss of ordinary diffusion models."""

    sigma: tuple[float, float]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma, epsilon, shift = noise(x, self.sigma, generator)
        _, scores = score(energy, x + shift, sigma, create_graph=True)
        return (sigma[:, None, None] * scores + epsilon).square().sum((1, 2)).mean()


@dataclass(frozen=True)
class Antithetic:
    """`denoising_loss` at ``x ± σε``, uniform in log σ."""

    sigma: tuple[float, float]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma, epsilon, shift = noise(x, self.sigma, generator)
        both = torch.cat([x + shift, x - shift])
        _, scores = score(energy, both, sigma.repeat(2), create_graph=True)
        return denoising_loss(*scores.chunk(2), epsilon, sigma).mean()


@dataclass(frozen=True)
class Levels:
    """Which of L noise levels was it? ``E(x, σ_n) + log Σ_l exp(-E(x, σ_l))``.

    Least where every ``exp(-E)`` is the density of its level with one norm, so that the
    levels of one energy share the weights of modes (DiffCLF, arXiv 2601.21025).
    """

    sigmas: tuple[float, ...]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        n, count = len(x), len(self.sigmas)
        sigmas = x.new_tensor(self.sigmas)
        drawn = torch.randint(count, (n,), generator=generator)
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        noisy = x + sigmas[drawn, None, None] * epsilon
        energies = energy(noisy.repeat_interleave(count, 0), sigmas.repeat(n)).reshape(n, count)
        return cross_entropy(-energies, drawn)


@dataclass(frozen=True)
class FokkerPlanck:
    """``(σ² [ΔE - |∇E|²] - ∂E/∂log σ)²`` at ``x + σε``: do densities spread as by diffusion?

    Zero where every ``exp(-E)`` is the density of its level, which obeys ∂p/∂(σ²/2) = Δp; levels
    then share the weights of modes. ScoreMD (arXiv 2506.17139) adds it in a weak form that
    needs no Laplacian, which in the plane costs two more gradients.
    """

    sigma: tuple[float, float]

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        sigma, _, shift = noise(x, self.sigma, generator)
        noisy = (x + shift).requires_grad_()
        log_sigma = sigma.log().requires_grad_()
        value = energy(noisy, log_sigma.exp()).sum()
        slope, speed = torch.autograd.grad(value, (noisy, log_sigma), create_graph=True)
        laplacian = sum(
            torch.autograd.grad(slope[:, 0, n].sum(), noisy, create_graph=True)[0][:, 0, n]
            for n in range(x.shape[-1])
        )
        spread = sigma.square() * (laplacian - slope.square().sum((1, 2)))
        return (spread - speed).square().mean()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which of two is the snapshot, the other a draw of q? `contrastive_loss` with the
    proposal ratio in the logit, ``E(x) + log q(x) - E(y) - log q(y)``."""

    reference: Mixture
    sigma: float

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        return contrastive_loss(*self.odds(energy, x, generator)).mean()

    def odds(self, energy: Energy, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """``E + log q`` (B,) of noised snapshots and of as many draws of q."""
        noisy = x + self.sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        both = torch.cat([noisy, self.reference.sample(len(x), generator).to(x)])
        value = energy(both, x.new_full((1,), self.sigma))
        return list((value + self.reference.log_density(both)).chunk(2))


@dataclass(frozen=True, eq=False)
class Ranking(Pairs):
    """Which of 1 + K is the snapshot, K draws of q being one pool for the batch?

    ``log[1 + Σ_k exp(E(x) + log q(x) - E(y_k) - log q(y_k))]``, least at the true energy for any
    K and any q that covers the data; maximum likelihood for large K (Ma & Collins, EMNLP 2018).
    """

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator) -> Tensor:
        own, others = self.odds(energy, x, generator)
        return contrastive_loss(own, -torch.logsumexp(-others, dim=0)).mean()


def contenders(x: Tensor, low: float, seed: int) -> dict[str, list[tuple[float, Term]]]:
    """Weighted losses by name; "all noise" is from ``low`` to three times the width of all.

    Levels and pools are chosen from the snapshots x alone.
    """
    width = x.flatten(1).std(0).max().item()
    noise = low, 3 * width
    generator = torch.Generator().manual_seed(seed)
    q = Mixture.around(x, generator, width=math.hypot(0.3 * width, low))
    ratio = (noise[1] / low) ** (1 / 6)
    levels = Levels(tuple(low * ratio**n for n in range(7)))
    # in units of a tenth of the width, where matching and classification weigh alike
    matching = (0.1 * (0.1 * width / low) ** 2, Antithetic((low, low)))
    return {
        "plain, all noise": [(1.0, Plain(noise))],
        "antithetic, all noise": [(1.0, Antithetic(noise))],
        "antithetic + levels told apart": [(1.0, Antithetic(noise)), (1.0, levels)],
        "antithetic + Fokker-Planck": [(1.0, Antithetic(noise)), (1.0, FokkerPlanck(noise))],
        "antithetic, smallest noise": [matching],
        "antithetic + pairs": [matching, (1.0, Pairs(q, low))],
        "antithetic + ranking": [matching, (1.0, Ranking(q, low))],
        "pairs": [(1.0, Pairs(q, low))],
        "ranking": [(1.0, Ranking(q, low))],
    }


# ------------------------------------------------------------- network and training


@dataclass(frozen=True)
class Config:
    """Hidden units, hidden layers; steps, batch and largest rate of Adam; averaging of weights."""

    width: int = 64
    depth: int = 3
    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 5e-3
    ema: float = 0.998


class PlaneNetwork(nn.Module):
    """``E(x, σ) = ½|u|² + ½ log det(C + σ²) + MLP(u; σ)`` in kT.

    ``u = (C + σ²)^(-½) (x - m)`` with mean m and covariance C of the snapshots: it begins as
    their Gaussian, noised, and grows outside of them.
    """

    def __init__(self, x: Tensor, config: Config, generator: torch.Generator):
        super().__init__()
        flat, width = x.flatten(1).double(), config.width
        variances, axes = torch.linalg.eigh(torch.cov(flat.T))
        for name, value in {"mean": flat.mean(0), "variances": variances, "axes": axes}.items():
            self.register_buffer(name, value)
        # layers draw their weights from the global generator: it is left alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            self.embedding = NoiseEmbedding(width)
            sizes = [flat.shape[1]] + [width] * config.depth
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
            self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in self.layers)
            self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.float()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Energy (B,) of x (B, 1, 2) at noise level sigma (B,), or (1,) for them all."""
        variances = self.variances + sigma.square()[:, None]
        u = (x.flatten(1) - self.mean) @ self.axes * variances.rsqrt()
        h, c = u, self.embedding(sigma)
        for n, (layer, modulate) in enumerate(zip(self.layers, self.modulate, strict=True)):
            gain, shift = modulate(c).chunk(2, dim=-1)
            new = silu(layer(h) * (1 + gain) + shift)
            h = h + new if n else new
        return self.out(h)[:, 0] + 0.5 * (u.square() + variances.log()).sum(-1)


def fit(
    x: Tensor, terms: Sequence[tuple[float, Term]], config: Config, *, seed: int
) -> PlaneNetwork:
    """Train on snapshots x (M, 1, 2) by Adam on ``Σ weight·term``; the averaged weights.

    Raises
    ------
    ValueError : snapshots of another shape, not finite, or on a line
    RuntimeError : the loss was no longer finite
    """
    if x.ndim != 3 or x.shape[1:] != (1, 2) or len(x) < 3 or not torch.isfinite(x).all():
        raise ValueError(f"snapshots {tuple(x.shape)} must be finite and of shape (M, 1, 2), M > 2")
    if torch.linalg.matrix_rank(torch.cov(x.flatten(1).T)) < 2:
        raise ValueError("the snapshots lie on a line: the density in the plane is not defined")
    generator = torch.Generator().manual_seed(seed)
    network = PlaneNetwork(x, config, generator)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    x = x.float()
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


class Learned(Potential):
    """A trained network at one noise level as a potential in units of kT."""

    def __init__(self, network: PlaneNetwork, sigma: float):
        self.network, self.sigma = network, sigma

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        value, s = score(self.network, x.float(), torch.tensor([self.sigma], dtype=torch.float32))
        return Evaluation(value.detach().to(x), s.to(x))


# --------------------------------------------------------------------- integration


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells of equal size in a box: ``points`` (P, 1, 2), float64."""

    points: Tensor

    @classmethod
    def box(cls, x: tuple[float, float], y: tuple[float, float], n: int = 400) -> Grid:
        middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return cls(torch.cartesian_prod(*(a + (b - a) * middles for a, b in (x, y)))[:, None])

    def probabilities(self, network: PlaneNetwork, sigma: float) -> Tensor:
        """``exp(-E)`` (P,) of each cell, normalised on the grid."""
        with torch.no_grad():
            energy = network(self.points.float(), torch.tensor([sigma], dtype=torch.float32))
        return torch.softmax(-energy.double(), 0)
