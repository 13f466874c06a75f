"""Annealed importance sampling and sequential Monte Carlo along a sequence of kernels.

The sequence may go down the noise levels of a model, over temperatures, or over λ: each
kernel keeps the law ``exp(-u_t)``, ``u_t = U_t/kT_t``, of its own target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..sampling.exchange import adopt_target
from ..sampling.field import reduced
from ..sampling.kernels import Kernel
from ..state import State
from .weights import Weighted, effective_fraction

__all__ = ["Particles", "smc", "smc_levels"]

_FIRST = 1 << 46  # address of the first step: dynamics of the same seed does not get there


class Particles(NamedTuple):
    """Weighted particles of one level."""

    state: State  # of the kernel of this level, after its steps
    log_weights: Tensor  # (B,) since the start; constant over a population just resampled
    level: int  # t
    ess: Tensor  # (M,) effective fraction of each population before any resampling
    resampled: Tensor  # (M,) bool

    @property
    def weighted(self) -> Weighted:
        """Positions and weights towards the law of this level."""
        return Weighted(self.state.x, self.log_weights, groups=len(self.ess))


def smc(
    kernels: Sequence[Kernel],
    x: Tensor,
    *,
    noise: Noise,
    n_steps: int = 1,
    populations: int = 8,
    threshold: float = 0.5,
    walkers: Tensor | None = None,
) -> Weighted:
    """The last level of `smc_levels`: weighted samples of the last kernel's law.

    ``.log_z`` is ``log Z_T/Z_0``, hence ``ΔF = -kT log_z`` at one temperature, with an error from
    independent populations; ``.mean(values)`` are reweighted averages. Warns where the
    weights have degenerated. ``kernels``, ``n_steps``, ``populations``, ``threshold`` and
    errors are those of `smc_levels`.
    """
    levels = smc_levels(
        kernels,
        x,
        noise=noise,
        n_steps=n_steps,
        populations=populations,
        threshold=threshold,
        walkers=walkers,
    )
    *_, last = levels
    return last.weighted.warn()


def smc_levels(
    kernels: Sequence[Kernel],
    x: Tensor | Particles,
    *,
    noise: Noise,
    n_steps: int = 1,
    populations: int = 8,
    threshold: float = 0.5,
    walkers: Tensor | None = None,
) -> Iterator[Particles]:
    """Yield the particles of every level, from the first (as given) to the last.

    From level t to t+1 (Neal, Stat. Comput. 11, 125 (2001); Del Moral, Doucet & Jasra, J. R.
    Stat. Soc. B 68, 411 (2006)):

        log w += -(u_{t+1} - u_t)(x)           first, with the positions of level t
        resample if ESS < threshold · P        each population by itself, systematically
        n_steps of kernel t+1                  which leave exp(-u_{t+1}) invariant

    The mean weight estimates ``Z_{t+1}/Z_0`` without bias, whatever the steps.

    Parameters
    ----------
    kernels : (T,), exact ones (`Metropolis`): an unadjusted step has another law than its u.
        They carry nothing of their own from level to level (momenta are drawn afresh)
    x : (M·P, N, 3), M populations of P particles, exact samples of the first kernel's law
        (whose own steps are not used); or the `Particles` of a level, to go on from it
    noise : steps are addressed from 2⁴⁶ on, far from dynamics with the same seed
    populations : M, independent of each other, for the error, which wants 4 or more
    threshold : 0 never resamples: annealed importance sampling, whose particles are all
        independent and whose ``-log_weights`` are the works that ``pymbar.bar`` takes

    Raises
    ------
    ValueError : less than two kernels, targets with memory or without energy, sizes that do
        not fit, no particle with a finite weight
    """
    kernels = list(kernels)
    if len(kernels) < 2 or n_steps < 1 or not 0 <= threshold <= 1:
        raise ValueError(
            f"{len(kernels)} kernels, {n_steps=}, {threshold=}: expected at least 2 kernels and "
            "1 step, and a threshold in [0, 1]"
        )
    if any(k.potential.has_memory or not k.potential.conservative for k in kernels):
        raise ValueError("annealing compares fixed energies: no target may learn or lack an energy")
    if not all(k.exact for k in kernels[1:]):
        raise ValueError(
            "an unadjusted step does not keep the law that the weights are for: wrap it in "
            "Metropolis (a kernel of your own that is exact says exact = True)"
        )
    if isinstance(x, Particles):
        particles = x
    else:
        few = threshold > 0 and len(x) == populations  # alone there is nobody to be resampled
        if x.ndim != 3 or populations < 1 or not len(x) or len(x) % populations or few:
            raise ValueError(
                f"positions {tuple(x.shape)} in {populations} populations: expected "
                f"({populations}·P, N, 3) with P > 1 particles in each"
            )
        start = replace(kernels[0].init(x, walkers=walkers), step=_FIRST)
        none = start.energy.new_zeros(populations, dtype=torch.float64)
        particles = Particles(
            start, start.energy.new_zeros(len(x), dtype=torch.float64), 0, none + 1.0, none > 0
        )
        yield particles
    while particles.level + 1 < len(kernels):
        level = particles.level + 1
        particles = _next(kernels[level - 1], kernels[level], particles, noise, n_steps, threshold)
        yield particles


def _next(
    old: Kernel, new: Kernel, particles: Particles, noise: Noise, n_steps: int, threshold: float
) -> Particles:
    before = particles.state
    state = before
    if new.potential.terms != old.potential.terms:  # else they differ in kT alone
        bare = replace(before, momenta=None, fixed={}, record=None)
        state = adopt_target(new, bare)
    else:
        state = new.adopt(before, old.drift)
    change = reduced(state.energy, new.kT) - reduced(before.energy, old.kT)
    log_w = particles.log_weights - change
    # a particle without an energy has no weight, now and later
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    M = len(particles.ess)
    ess = effective_fraction(log_w.reshape(M, -1))
    if threshold > 0 and not (ess > 0).all():  # without resampling others go on
        lost = (ess == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"level {particles.level + 1}: no particle of populations {lost} has a finite weight; "
            "take more levels, or more particles"
        )
    resampled = ess < threshold
    if resampled.any():
        state, log_w = _resample(state, log_w.reshape(M, -1), resampled, noise)
    for _ in range(n_steps):
        state, _info = new.step(state, noise.child("levels"))
    return Particles(state, log_w, particles.level + 1, ess, resampled)


def _resample(state: State, log_w: Tensor, which: Tensor, noise: Noise) -> tuple[State, Tensor]:
    """Systematic resampling of the populations in the mask ``which`` (M,)."""
    M, P = log_w.shape
    rows = torch.arange(M * P, device=log_w.device).reshape(M, P)
    walkers = rows.flatten() if state.walkers is None else state.walkers
    u = noise.uniform(state.step, log_w[:, 0], walkers=walkers[rows[:, 0]], stream="resample")
    places = (rows - rows[:, :1] + 1.0 - u[:, None]) / P
    ladder = torch.softmax(log_w, -1).cumsum(-1)
    # the last step of the ladder may miss 1 by round-off
    parent = torch.searchsorted(ladder / ladder[:, -1:], places, right=True).clamp(max=P - 1)
    parent = torch.where(which[:, None], rows[:, :1] + parent, rows).flatten()
    mean = (log_w.logsumexp(-1) - math.log(P))[:, None].expand(M, P)
    moved = replace(state.take(parent), walkers=state.walkers)
    return moved, torch.where(which[:, None], mean, log_w).flatten()
