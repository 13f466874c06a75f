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
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential
from ..sampling.euler import without_mean
from ..sampling.kernels import DivergedError

__all__ = ["Descent", "ForcesAt", "by_level", "geometric_sigmas", "reverse_levels"]

ForcesAt = Callable[[Tensor, Sequence[float]], Tensor]
"""Forces (T, *batch, N, 3) at positions (T, *batch, N, 3) and noise levels σ (T) of their rows."""

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

    and then ``corrector_steps`` steps of `EulerMaruyama` at σ' (one evaluation each), with
    ``h = corrector_size · σ'²``: where noise dominates, the bias of their variance is
    ``corrector_size/2``.

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
    steps = Descent(
        by_level(potential_at),
        sigmas,
        kT=kT,
        noise=noise,
        walkers=walkers,
        churn=churn,
        corrector_steps=corrector_steps,
        corrector_size=corrector_size,
        mean_free=mean_free,
    )
    x = steps.start(x)
    for n in range(len(steps)):
        x = steps.make([n], x[None])[0]
        steps.check(x, n)
        yield steps.levels[n + 1], x


class Descent:
    """The steps of `reverse_levels`, which has the equations: one of them, or many at a time.

    Parameters
    ----------
    forces_at : forces (T, *batch, N, 3) at x and the noise levels σ of its rows; see `by_level`
    sigmas, kT, noise, walkers, churn, corrector_steps, corrector_size, mean_free : as there

    Attributes
    ----------
    levels : σ of each step, and the last one

    Raises
    ------
    ValueError : schedule not positive and decreasing, or options out of range
    """

    def __init__(
        self,
        forces_at: ForcesAt,
        sigmas: Tensor,
        *,
        kT: float,
        noise: Noise,
        walkers: Tensor | None = None,
        churn: float = 0.0,
        corrector_steps: int = 0,
        corrector_size: float = 0.05,
        mean_free: bool = False,
    ):
        levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
        if len(levels) < 2 or not all(a > b > 0 for a, b in pairwise(levels)):
            raise ValueError(f"{sigmas=} must be at least two positive, decreasing levels (Å)")
        if not (kT > 0 and churn >= 0 and corrector_steps >= 0 and corrector_size > 0):
            raise ValueError(
                f"{kT=} and {corrector_size=} must be positive, {churn=} and {corrector_steps=} "
                "not negative"
            )
        self.levels, self._forces_at, self._kT = levels, forces_at, kT
        self._noise, self._walkers = noise, walkers
        self._corrector, self._size = corrector_steps, corrector_size
        self._mean_free = mean_free
        gamma = min(churn / len(levels), math.sqrt(2.0) - 1.0)
        self._hot = [min((1.0 + gamma) * sigma, levels[0]) for sigma in levels]
        drawn = [(hot > s) + corrector_steps for hot, s in zip(self._hot, levels, strict=True)]
        self._address = list(accumulate(drawn, initial=_FIRST + 1))

    def __len__(self) -> int:
        return len(self.levels) - 1

    def start(self, x: Tensor) -> Tensor:
        """Positions x (*batch, N, 3), without their mean where that is asked for."""
        return self._projected(x)

    def make(self, places: Sequence[int], x: Tensor) -> Tensor:
        """Positions (T, *batch, N, 3) after steps of numbers ``places`` (T,), from x of each."""
        kT = self._kT
        sigma, hot, lower = (
            [values[n + shift] for n in places]
            for values, shift in ((self.levels, 0), (self._hot, 0), (self.levels, 1))
        )
        first = [self._address[n] for n in places]
        heated = [h > s for h, s in zip(hot, sigma, strict=True)]
        if any(heated):
            more = [math.sqrt(h**2 - s**2) for h, s in zip(hot, sigma, strict=True)]
            x = x + _wide(more, x) * self._normal(first, x)
        # −σ s, the slope of the probability flow
        width = _wide([low - h for low, h in zip(lower, hot, strict=True)], x)
        slope = _wide([-h / kT for h in hot], x) * self._forces(x, hot)
        end = _wide([-low / kT for low in lower], x)
        x, at = x + 0.5 * width * slope, x + width * slope
        x = x + 0.5 * width * (end * self._forces(at, lower))
        drift = _wide([self._size * low**2 / kT for low in lower], x)
        kick = _wide([math.sqrt(2.0 * self._size * low**2) for low in lower], x)
        for number in range(self._corrector):
            step = [begin + was + number for begin, was in zip(first, heated, strict=True)]
            x = x + drift * self._forces(x, lower) + kick * self._normal(step, x)
        return x

    def check(self, x: Tensor, place: int) -> None:
        """Raises `DivergedError` where x after step number ``place`` is not finite."""
        _check(x, place + 1, self._walkers)

    def _forces(self, x: Tensor, levels: Sequence[float]) -> Tensor:
        return self._projected(self._forces_at(x, levels))

    def _normal(self, addresses: list[int], like: Tensor) -> Tensor:
        if len(addresses) == 1:
            xi = self._noise.normal(addresses[0], like[0], walkers=self._walkers)
            return self._projected(xi)[None]
        known, place = torch.unique(torch.tensor(addresses), return_inverse=True)
        xi = self._noise.normal(known, like[: len(known)], walkers=self._walkers)
        return self._projected(xi[place.to(xi.device)])

    def _projected(self, v: Tensor) -> Tensor:
        return without_mean(v) if self._mean_free else v


def by_level(potential_at: Callable[[float], Potential]) -> ForcesAt:
    """Forces of several noise levels, one potential ``potential_at`` (σ) after the other."""
    potential_at = lru_cache(maxsize=2)(potential_at)  # a step has two

    def forces(x: Tensor, levels: Sequence[float]) -> Tensor:
        if len(set(levels)) == 1:
            return potential_at(levels[0])(x).forces
        out = torch.empty_like(x)
        for level in dict.fromkeys(levels):
            rows = [n for n, other in enumerate(levels) if other == level]
            out[rows] = potential_at(level)(x[rows]).forces
        return out

    return forces


def _wide(values: Sequence[float], like: Tensor) -> Tensor:
    """(T, 1, …) as a factor of ``like`` (T, …)."""
    return torch.tensor(values, dtype=torch.float64).to(like).reshape(-1, *(1,) * (like.ndim - 1))


def _check(x: Tensor, level: int, walkers) -> None:
    if math.isfinite(x.sum()):
        return
    lost = ~torch.isfinite(x).flatten(-2).all(-1).reshape(-1)
    if lost.any():
        ids = torch.arange(len(lost)) if walkers is None else torch.as_tensor(walkers)
        raise DivergedError(level, ids[lost.cpu()].tolist())
