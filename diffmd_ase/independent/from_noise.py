"""Annealing from noise: absolute free energies of a model and of what it is coupled to.

Independent draws of a Gaussian go down the noise levels of a model, weighted, and from its smallest
noise on to any target:

    u_0 = |x - c|²/(2(v + σ_0²))        exact draws; Z_0 = (2π(v + σ_0²))^(d/2)
    u_i = E(x, σ_i)/kT                  the levels of the model, i = 1 … L
    u of each kernel of ``beyond``      for instance from E to U, λ after λ

Each level is kept by Metropolis steps, so that nothing depends on the score's being right: a wrong
one costs weights. Unlike the weights of whole paths (`paths`), those of populations that are
resampled stay even in many dimensions, if there are levels enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.analytic import Harmonic
from ..potentials.base import Potential
from ..potentials.ladder import Blend
from ..potentials.learned import ScorePotential
from ..sampling.euler import EulerMaruyama, without_mean
from ..sampling.kernels import Kernel
from ..sampling.metropolis import Metropolis
from ..sampling.moves import Move
from ..score.model import ScoreModel
from .reverse import geometric_sigmas
from .smc import Particles, smc_levels
from .weights import Weighted, effective_fraction

__all__ = ["Annealed", "anneal_from_noise", "noise_levels"]

_HANDS = 6  # moves
_START = (1 << 46) - 1  # address of the draws, before the first step of `smc`


@dataclass(frozen=True)
class Annealed:
    """What an annealing from noise found, in kT, each a value and its standard error."""

    model: tuple[float, float]  # -ln ∫ exp(-E/kT) at the model's smallest noise, Å as unit
    end: tuple[float, float]  # the same of the last kernel
    difference: tuple[float, float]  # end - model, from the same populations
    samples: Weighted  # of the last kernel's law
    smallest: float  # effective fraction of a population, the smallest of all levels
    populations: float  # effective number of them, by their weights at the model's smallest noise


def anneal_from_noise(
    levels: Sequence[Kernel],
    like: Tensor,
    *,
    variance: float,
    noise: Noise,
    beyond: Sequence[Kernel] = (),
    centre: Tensor | float = 0.0,
    mean_free: bool = False,
    n_steps: int = 1,
    populations: int = 8,
    progress: Callable[[float], None] | None = None,
) -> Annealed:
    """Anneal Gaussian draws, shaped as ``like``, through ``levels`` and then through ``beyond``.

    Parameters
    ----------
    levels : exact kernels from the widest noise to the model's own law, as `noise_levels` has them;
        all at the kT of the first
    like : (M·P, N, 3): shape and device; its values are not used
    variance : v + σ_0² of the Gaussian, in Å²
    beyond : exact kernels from there (without the model itself) to the target
    centre : c in Å of the Gaussian
    mean_free : in the 3N-3 dimensions without the mean, as the kernels must be
    n_steps : at each level
    populations : M, independent, for the errors, which want 4 or more
    progress : told the part of the levels that is done

    Raises
    ------
    ValueError : no levels, a variance that is not positive, and as `smc_levels`
    """
    if not levels or not (math.isfinite(variance) and variance > 0):
        raise ValueError(
            f"{len(levels)} levels and {variance=}: expected one at least, and a variance in Å²"
        )
    kT = float(levels[0].kT)
    well = Harmonic(kT / variance, centre=centre)
    start = Metropolis(EulerMaruyama(well, kT=kT, h=0.1 * variance, mean_free=mean_free))
    kernels: list[Kernel] = [start, *levels, *beyond]
    x = variance**0.5 * noise.normal(_START, like.double())
    at = torch.as_tensor(centre, dtype=x.dtype).to(x).expand_as(x)
    x = without_mean(x + at) if mean_free else x + at
    found, smallest = [], 1.0
    for last in smc_levels(kernels, x, noise=noise, n_steps=n_steps, populations=populations):
        smallest = min(smallest, float(last.ess.min()))
        if last.level in (len(levels), len(kernels) - 1):
            found.append(_log_means(last))
        if progress:
            progress(last.level / (len(kernels) - 1))
    dimensions = 3 * (like.shape[-2] - mean_free)
    known = -0.5 * dimensions * math.log(2.0 * math.pi * variance)
    of_model, of_end = found[0], found[-1]
    model, end = (_estimate(log_means, known) for log_means in (of_model, of_end))
    even = len(of_model) * float(effective_fraction(of_model))
    difference = _difference(of_model, of_end)
    return Annealed(model, end, difference, last.weighted, smallest, even)


def noise_levels(
    model: ScoreModel,
    n: int,
    *,
    kT: float | None = None,
    size: float = 0.1,
    bridge: int = 24,
    device: str = "auto",
) -> list[Kernel]:
    """Kernels down ``n`` noise levels of an isolated molecule's ``model``, for `anneal_from_noise`.

    Between networks that know different levels their energies are mixed, linearly in ``bridge``
    steps: two networks are further apart than two levels of one. The wider one takes mirror images
    for the same, and a population that came down would all have the hand of its one ancestor:
    Metropolis moves draw hands, and which of two like atoms is which, once more before.

    Parameters
    ----------
    model : of a molecule, with all noise levels
    n : levels of constant ratio, from the widest
    kT : in eV, default that of the snapshots
    size : step h at level σ over ``w + σ²``, w the variance of the stiffest coordinate

    Raises
    ------
    ValueError : a model of a periodic system, less than two levels
    """
    card = model.card
    if any(card.pbc):
        raise ValueError("annealing from noise is for isolated molecules, this model is periodic")
    kT = card.kT if kT is None else kT
    stiffness = (card.lambda_max or 1.0 / card.sigma_min**2) * card.kT / kT
    experts = sorted((e.sigma for e in card.experts), key=lambda sigma: -sigma[1])
    broad = geometric_sigmas(experts[0][1], experts[0][0], n).tolist()
    known: list[tuple[Potential, float]] = [(_of(model, sigma, device), sigma) for sigma in broad]
    moves: list[Kernel] = []
    if card.exchanges:
        moves = [_Hands(known[-1][0], kT, card.exchanges)] * _HANDS
    for _, narrow in experts[1:]:
        first, last = known[-1][0], _of(model, narrow, device)
        shares = [step / bridge for step in range(1, bridge)]
        known += [(Blend([first, last], [1.0 - s, s]), narrow) for s in shares]
        known.append((last, narrow))
    kernels: list[Kernel] = [
        Metropolis(
            EulerMaruyama(potential, kT=kT, h=size * (1.0 / stiffness + sigma**2), mean_free=True)
        )
        for potential, sigma in known
    ]
    return kernels[:n] + moves + kernels[n:]


@dataclass(frozen=True)
class _Hands(Move):
    """One of these, drawn uniformly, each its own inverse: the mirror image; two like atoms at a
    centre exchanged; the mirror image with all exchanged."""

    exchanges: Sequence[tuple[int, int]] = ()

    def propose(self, x, step, walkers, noise):
        same = torch.arange(x.shape[-2])
        orders, every = [same], same
        for pair in self.exchanges:
            one = same.clone()
            one[list(pair)] = one[list(pair[::-1])]
            orders.append(one)
            every = every[one]
        orders.append(every)
        signs = torch.tensor([-1.0, *[1.0] * len(self.exchanges), -1.0], dtype=x.dtype)
        u = noise.uniform(step, x[..., 0, 0].double(), walkers=walkers, stream="choose")
        chosen = (u * len(orders)).ceil().long().cpu() - 1  # of u in (0, 1]
        order = torch.stack(orders)[chosen].to(x.device)[..., None].expand_as(x)
        return signs[chosen].to(x.device)[..., None, None] * x.gather(-2, order), 0.0


def _of(model: ScoreModel, sigma: float, device: str) -> ScorePotential:
    """For structures that are in the making, which are no cause for a warning."""
    potential = model.potential(sigma=sigma, device=device)
    potential.looked_at = True
    return potential


def _log_means(particles: Particles) -> Tensor:
    """(M,) log of the mean weight of each population."""
    log_w = particles.log_weights.reshape(len(particles.ess), -1)
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])


def _estimate(log_means: Tensor, known: float) -> tuple[float, float]:
    w = (log_means - log_means.max()).exp()
    value = float(w.mean().log() + log_means.max())
    return known - value, float(w.std() / w.mean() / len(w) ** 0.5)


def _difference(first: Tensor, last: Tensor) -> tuple[float, float]:
    """``ln⟨w⟩ - ln⟨w'⟩`` of the same populations; the error by linearisation."""
    a, b = ((v - v.max()).exp() for v in (first, last))
    value = float(a.mean().log() + first.max() - b.mean().log() - last.max())
    return value, float((a / a.mean() - b / b.mean()).std() / len(a) ** 0.5)
