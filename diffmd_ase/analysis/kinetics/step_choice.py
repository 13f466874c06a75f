"""Which step keeps a bias, or a path KL, below what a user allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...noise import Noise
from ...potentials.base import Potential, evaluate
from ...sampling.euler import EulerMaruyama
from ...sampling.metropolis import Metropolis
from ...sampling.run import advance
from ..statistics import Estimate, mean_estimate
from .path_error import clock, step_errors
from .refinement import Observables, refined

__all__ = ["StepChoice", "step_for"]

_SETTLING = 5  # 1/5 of a chain is left out at first
_MOST = 2.0  # times the step that was measured: beyond, the law in h is not trusted


@dataclass(frozen=True)
class StepChoice:
    """A step, and what it rests on."""

    h: float  # Å²
    measured_at: float  # Å², the step of the kernel that was measured
    measured: dict[str, Estimate]  # there: bias in σ of each observable, or nats
    words: str  # what was asked, what it costs


def step_for(
    kernel: EulerMaruyama,
    x: Tensor,
    *,
    noise: Noise,
    bias: float | None = None,
    kl: float | None = None,
    span: float = 1.0,
    n_steps: int = 1000,
    observables: Observables | None = None,
    reference: Potential | None = None,
) -> StepChoice:
    """The step h at which plain steps keep to what is asked, from a measurement at ``kernel``'s.

    With ``bias``: averages of plain steps are off by c h. The same Brownian path with half the step
    tells ``⟨f⟩_h - ⟨f⟩_{h/2} = c h/2``; and of accepted steps -⟨log α⟩ = A bounds the variance
    of every normal mode, ``(hλ)³/4 ≤ A``, whose energy is off by ``hλ/(2 sqrt(2))`` of its σ. The
    smaller step of both is given.

    With ``kl``: the path KL of the step alone from the diffusion, over D·t = ``span``, is c h span.

    Parameters
    ----------
    kernel : of a step that is stable
    x : (B, N, 3) in Å, in equilibrium as far as possible
    bias : largest error of an average, in units of the σ of the observable
    kl : largest discretisation error of a path in nats
    span : of that path, D·t in Å²
    n_steps : of ``kernel``'s step, measured on
    observables : whose averages count, default the energy
    reference : for ``kl``, whose diffusion it is, default that of the kernel's own drift

    Raises
    ------
    ValueError : not exactly one of ``bias`` and ``kl``, not positive; no energy and no observables
    """
    if (bias is None) == (kl is None) or not min(v for v in (bias, kl, span) if v is not None) > 0:
        raise ValueError(f"{bias=}, {kl=}, {span=}: give exactly one of bias and kl, positive")
    if bias is not None:
        return _for_bias(kernel, x.double(), bias, n_steps, noise, observables)
    true = kernel.potential if reference is None else reference
    return _for_kl(kernel, x.double(), float(kl or 0.0), span, n_steps, noise, true)


def _for_bias(
    kernel: EulerMaruyama, x: Tensor, bias: float, n_steps: int, noise: Noise, observables
) -> StepChoice:
    conservative = kernel.potential.conservative
    if observables is None:
        if not conservative:
            raise ValueError("the drift has no energy: give observables= whose averages count")
        observables = {"energy": lambda x: evaluate(kernel.potential.terms, x).energy}
    series: dict[str, list] = {name: [] for name in observables}
    for n, (coarse, fine) in enumerate(refined(kernel, x, n_steps, levels=2, noise=noise)):
        if n >= n_steps // _SETTLING:
            for name, f in observables.items():
                series[name].append((f(coarse), f(fine)))
    h, measured = clock(kernel), {}
    for name, rows in series.items():
        both = np.array([[v.detach().cpu().double().numpy() for v in row] for row in rows])
        sigma = float(both[:, 1].std())
        apart = mean_estimate(2 * (both[:, 0] - both[:, 1]) / max(sigma, 1e-300))
        measured[name] = apart
    # what is not seen in the noise may still be as large as the noise
    worst = max(abs(e.value) + e.error for e in measured.values())
    words = f"averages of {', '.join(observables)} within {bias:g} of their standard deviations"
    if conservative:
        seen = _log_alpha(kernel, x, n_steps, noise.child("corrected"))
        measured["normal modes, from log alpha"] = seen
        worst = max(worst, seen.value + seen.error)
    factor = min(bias / worst, _MOST)
    beyond = f"; {_MOST:g} times the step measured, and it may be longer" * (factor == _MOST)
    return StepChoice(h * factor, h, measured, f"{words}: h = {h * factor:.3g} Å²{beyond}")


def _log_alpha(kernel: EulerMaruyama, x: Tensor, n_steps: int, noise: Noise) -> Estimate:
    """``hλ/(2 sqrt(2))`` with ``(hλ)³/4 = -⟨log α⟩``, all proposals counted."""
    chain = Metropolis(kernel)
    state, rows = chain.init(x), []
    for n in range(n_steps):
        state, info = advance(chain, state, noise)
        if n >= n_steps // _SETTLING and info.log_ratio is not None:
            rows.append(-info.log_ratio)
    found = mean_estimate(torch.stack(rows).cpu().numpy())
    value = (4 * max(found.value, found.error)) ** (1 / 3) / math.sqrt(8)
    return Estimate(value, value * found.error / (3 * max(found.value, found.error)), found[2])


def _for_kl(
    kernel: EulerMaruyama,
    x: Tensor,
    kl: float,
    span: float,
    n_steps: int,
    noise: Noise,
    true: Potential,
) -> StepChoice:
    state, rows = kernel.init(x), []
    for _ in range(n_steps):
        found = step_errors(
            kernel, state.x, state.forces, true, step=state.step, walkers=None, noise=noise
        )
        rows.append(found.discretisation.cpu().numpy())
        state, _ = advance(kernel, state, noise)
    h, each = clock(kernel), mean_estimate(np.array(rows))
    now = Estimate(each.value * span / h, each.error * span / h, each.n_effective)
    worst = now.value + now.error
    factor = min(kl / worst, _MOST)
    steps, before = span / (h * factor), span / h
    words = (
        f"discretisation within {kl:g} nats over D·t = {span:g} Å²: h = {h * factor:.3g} Å², "
        f"{steps:.3g} steps, {steps / before:.3g} times those of h = {h:.3g} Å², whose error is "
        f"{now} nats; the score's own error does not depend on the step and comes on top"
    )
    return StepChoice(h * factor, h, {"nats": now}, words)
