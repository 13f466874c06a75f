"""Reverse diffusion paths with exact weights: any score, any target, no divergence.

A path goes down the noise levels ``σ_0 > … > σ_L`` from a Gaussian by the ancestral kernels of
the reverse process, and its end is a proposal. What it proposes has no density that could be
computed, but the whole path has:

    q(path) = N(x_0; c, v + σ_0²) Π_i p_rev(x_{i+1}|x_i)
    p_rev(x_{i+1}|x_i) = N(x_i + Δ_i s(x_i, σ_i), Δ_i (v + σ_{i+1}²)/(v + σ_i²))
    Δ_i = σ_i² - σ_{i+1}²

and so has the law whose end is exactly the target, ``π(x_L) Π_i q_fwd(x_i|x_{i+1})`` with the
noising steps ``q_fwd = N(x_{i+1}, Δ_i)``. Their ratio is the weight of importance sampling on
path space (Neal 2001; Zhang & Chen, arXiv 2111.15141; Doucet et al., arXiv 2208.07698). It
is exact for the law at σ_L → 0 or at σ_L alike, whatever the error of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..potentials.base import Potential
from ..sampling.euler import without_mean
from ..sampling.field import reduced, target_of
from ..sampling.kernels import Info
from ..sampling.metropolis import TargetKernel, accept
from ..state import Record, State
from .weights import Weighted

__all__ = ["PathIndependence", "ReversePaths", "path_samples"]


@dataclass(frozen=True, eq=False)
class Path(Record):
    """log q (*batch) of the path that led to a state."""

    log_q: Tensor


@dataclass(frozen=True)
class ReversePaths:
    """The law of ancestral reverse paths.

    Parameters
    ----------
    potential_at : the potential at noise level σ whose F/kT is the score, right or wrong
    sigmas : (L+1,) decreasing, positive noise levels in Å
    variance : v in Å², a guess of the data's variance per coordinate: exact for a Gaussian,
        where every path then has the same weight. 0 is the ancestral sampler of Ho et al.
        2020 with its smaller variance
    centre : c in Å, broadcastable with (N, 3)
    mean_free : paths and densities in the 3N-3 dimensions without the mean

    Raises
    ------
    ValueError : levels that are not positive and decreasing, or more than 4000; kT or
        variance out of range
    """

    potential_at: Callable[[float], Potential]
    sigmas: Tensor
    kT: float
    variance: float = 0.0
    centre: Tensor | float = 0.0
    mean_free: bool = False
    _levels: list[tuple[float, float, Potential]] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        sigmas = torch.as_tensor(self.sigmas, dtype=torch.float64).tolist()
        if not 2 <= len(sigmas) <= 4000 or not all(a > b > 0 for a, b in pairwise(sigmas)):
            raise ValueError(
                f"sigmas={self.sigmas} must be 2 to 4000 positive, decreasing levels (Å)"
            )
        if not (self.kT > 0 and self.variance >= 0):
            raise ValueError(
                f"kT={self.kT!r} must be positive (eV) and variance={self.variance!r} not negative"
            )
        levels = [(a, b, self.potential_at(a)) for a, b in pairwise(sigmas)]
        object.__setattr__(self, "_levels", levels)

    @property
    def evaluations(self) -> int:
        """Of the score along one path."""
        return len(self._levels)

    def propose(
        self, like: Tensor, step: int, walkers: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Ends of new paths (*batch, N, 3) as float64, shaped like ``like``, and their log q.

        ``step`` is the address of the noise: another step, other paths.
        log q (*batch) is ``log N(x_0) + Σ log p_rev - Σ log q_fwd``: the weight of an end
        towards ``exp(-u)`` is ``exp(-u - log q)``. NaN where the score was not finite.
        """
        like = like.double()
        first = self._levels[0][0]
        total = self.variance + first**2
        away = math.sqrt(total) * self._normal(noise, step, like, walkers, ("path down", 0))
        centre = torch.as_tensor(self.centre, dtype=torch.float64).to(like)
        x = away + (without_mean(centre.expand_as(like)) if self.mean_free else centre)
        log_q = self._log_density(away, total)
        for number, (high, low, potential) in enumerate(self._levels, start=1):
            mean, variance = self._reverse(x, high, low, potential)
            xi = self._normal(noise, step, like, walkers, ("path down", number))
            y = mean + math.sqrt(variance) * xi
            log_q = log_q + self._log_density(y - mean, variance)
            log_q = log_q - self._log_density(x - y, high**2 - low**2)
            x = y
        return torch.where(torch.isfinite(log_q)[..., None, None], x, like), log_q

    def retrace(self, x: Tensor, step: int, walkers: Tensor | None, noise: Noise) -> Tensor:
        """log q (*batch) of a path with its end at x, drawn upwards by the noising steps.

        Given an end from the target, such a path is one of the target's own. ``step`` is the
        address of the noise.
        """
        x = x.double()
        x = without_mean(x) if self.mean_free else x
        log_q = torch.zeros(x.shape[:-2], dtype=x.dtype, device=x.device)
        for number, (high, low, potential) in enumerate(reversed(self._levels)):
            spread = high**2 - low**2
            kick = math.sqrt(spread) * self._normal(noise, step, x, walkers, ("path up", number))
            above = x + kick
            mean, variance = self._reverse(above, high, low, potential)
            log_q = log_q + self._log_density(x - mean, variance)
            log_q = log_q - self._log_density(kick, spread)
            x = above
        centre = torch.as_tensor(self.centre, dtype=torch.float64).to(x)
        away = without_mean(x - centre) if self.mean_free else x - centre
        return log_q + self._log_density(away, self.variance + self._levels[0][0] ** 2)

    def _reverse(self, x: Tensor, high: float, low: float, potential: Potential):
        forces = potential(x).forces.double()
        if self.mean_free:
            forces = without_mean(forces)
        spread = high**2 - low**2
        shrink = (self.variance + low**2) / (self.variance + high**2)
        return x + (spread / self.kT) * forces, spread * shrink

    def _normal(self, noise: Noise, step: int, like: Tensor, walkers, stream: Stream) -> Tensor:
        xi = noise.normal(step, like, walkers=walkers, stream=stream)
        return without_mean(xi) if self.mean_free else xi

    def _log_density(self, away: Tensor, variance: float) -> Tensor:
        d = away.shape[-2] * 3 - (3 if self.mean_free else 0)
        squares = away.square().sum((-2, -1))
        return -0.5 * squares / variance - 0.5 * d * math.log(2.0 * math.pi * variance)


def path_samples(
    paths: ReversePaths,
    target: Potential,
    like: Tensor,
    *,
    noise: Noise,
    kT: float | None = None,
    step: int = 0,
    walkers: Tensor | None = None,
) -> Weighted:
    """One independent path for each walker, weighted to ``exp(-U/kT)`` of a target.

    ``log w = -U(x_L)/kT - log q``, with ``E[w] = Z = ∫ exp(-U/kT)``, so that ``.log_z`` is the
    absolute ``log Z`` (Å as the unit of length, over 3N-3 dimensions if mean free).

    Parameters
    ----------
    paths : the proposals
    like : (B, N, 3): shape and device; its values are not used
    kT : of the target, default that of the paths
    step : address of the noise; other numbers for another step

    Raises
    ------
    ValueError : a target without energy; no path of finite weight. Warns of an effective
        sample below 5 %
    """
    target_of(target, None)
    kT = paths.kT if kT is None else kT
    x, log_q = paths.propose(torch.zeros_like(like), step, walkers, noise)
    log_w = -reduced(target(x).energy, kT) - log_q
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    return Weighted(x, log_w).warn()


@dataclass(frozen=True)
class PathIndependence(TargetKernel):
    """Independence Metropolis steps from reverse diffusion paths.

        log α = log w(new path) - log w(path),    log w = -U(x_L)/kT - log q(path)

    Exact for any score and any target: the chain on paths has the target as the law of their
    ends. Useful where `path_samples` has a fair effective sample, in few dimensions or with a
    good score. ``state.record`` is the log q of the path that led to the state; a chain that
    starts at given positions first draws one from there upwards, as if they came from the target.

    Parameters
    ----------
    paths : the proposals
    temperature : kT of the target in eV, default that of the paths

    Raises
    ------
    ValueError : a target without energy, a temperature that is not positive
    """

    paths: ReversePaths
    target: Potential
    temperature: float | None = None

    def __post_init__(self):
        kT = self.paths.kT if self.temperature is None else self.temperature
        if not kT > 0:
            raise ValueError(f"temperature={self.temperature} must be positive (kT in eV)")
        self._derive(kT=kT)
        self._bind(self.target, None)

    def step(self, state, noise) -> tuple[State, Info]:
        evaluations = self.paths.evaluations
        if state.record is None:  # of a state that another kernel made no path is known
            log_q = self.paths.retrace(state.x, state.step, state.walkers, noise)
            state = replace(state, record=Path(log_q))
            evaluations *= 2
        y, log_q = self.paths.propose(state.x, state.step, state.walkers, noise)
        new = replace(self.field.state(y, state.step + 1, state.walkers), record=Path(log_q))
        gain = state.record.log_q - log_q
        return accept(state, new, gain, self.kT, noise, evaluations=(evaluations, 1))
