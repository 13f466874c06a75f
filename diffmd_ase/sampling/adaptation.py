"""Step size to a wanted acceptance: dual averaging, pooled over walkers, then frozen.

A chain whose parameters follow its own history has no invariant law: the steps of an
adaptation are warm-up, and only those of the kernel that it returns can be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..noise import Noise
from ..state import State
from .acceptance import acceptance_probability
from .kernels import Kernel
from .run import advance

__all__ = ["MALA_ACCEPTANCE", "Adaptation", "DualAveraging", "adapt", "tune"]

MALA_ACCEPTANCE = 0.574  # Roberts & Rosenthal, J. R. Stat. Soc. B 60, 255 (1998)
_TRACE = 100  # entries of the history kept at most


@dataclass(frozen=True)
class DualAveraging:
    """Settings of Hoffman & Gelman, J. Mach. Learn. Res. 15, 1593 (2014), section 3.2.

    Parameters
    ----------
    acceptance : δ, the mean acceptance probability wanted: 0.574 for MALA, 0.65 to 0.8
        for HMC
    t0, gamma, kappa : t₀ ≥ 0 damps the first steps, γ > 0 shrinks towards μ, κ in (0.5, 1]
        forgets

    Raises
    ------
    ValueError : one of them out of range
    """

    acceptance: float = MALA_ACCEPTANCE
    t0: float = 10.0
    gamma: float = 0.05
    kappa: float = 0.75

    def __post_init__(self):
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance={self.acceptance!r} must lie in (0, 1)")
        if not (self.t0 >= 0 and self.gamma > 0 and 0.5 < self.kappa <= 1):
            raise ValueError(
                f"t0={self.t0!r} must not be negative, gamma={self.gamma!r} positive, "
                f"kappa={self.kappa!r} in (0.5, 1]"
            )


@dataclass(frozen=True)
class Adaptation:
    """The record of an adaptation; JSON values with ``dataclasses.asdict``."""

    first: int  # step count before
    steps: int  # of warm-up
    wanted: float  # mean acceptance probability asked for
    reached: float  # that of the last half of the warm-up
    factor: float  # of the step size h, frozen
    trace: list[list[float]]  # (step, factor tried) along the way
    settings: dict[str, float]  # t₀, γ, κ

    @property
    def end(self) -> int:
        """The step count from which on the parameters are frozen."""
        return self.first + self.steps


def adapt(
    kernel: Kernel,
    state: State,
    n_steps: int,
    *,
    noise: Noise,
    settings: DualAveraging | None = None,
) -> tuple[Kernel, State, Adaptation]:
    """``n_steps`` steps whose step size is tuned; the kernel to go on with, frozen.

    With ``a_m`` the acceptance probability of step m, averaged over walkers, and ε the
    factor of h (eq. (6) of Hoffman & Gelman 2014, ``μ = log(10 ε₀)``, ``ε₀ = 1``)

        H_m = (1 - 1/(m+t₀)) H_{m-1} + (δ - a_m)/(m+t₀)
        log ε_{m+1} = μ - H_m sqrt(m)/γ
        log ε̄_m = m^-κ log ε_{m+1} + (1 - m^-κ) log ε̄_{m-1}

    and ε̄ of the last step is frozen. Step counts, and so the noise, go on.

    Parameters
    ----------
    kernel : has a step size and accepts or rejects its steps
    settings : δ, t₀, γ and κ; default those of `DualAveraging`

    Raises
    ------
    ValueError : ``n_steps`` below 1
    TypeError : a kernel without step size or without acceptance
    """
    kernel.scaled(1.0)  # a kernel without a step size says so before a step is made

    def step(factor: float) -> float:
        nonlocal state
        state, info = advance(kernel.scaled(factor), state, noise)
        return float(acceptance_probability(info).mean())

    record = tune(step, state.step, n_steps, settings)
    return kernel.scaled(record.factor), state, record


def tune(
    step: Callable[[float], float],
    first: int,
    n_steps: int,
    settings: DualAveraging | None = None,
) -> Adaptation:
    """What `adapt` finds, by ``n_steps`` steps from the step count ``first`` on.

    Parameters
    ----------
    step : makes one with that factor of h; its acceptance probability, the mean over walkers
    settings : as of `adapt`

    Raises ``ValueError`` for ``n_steps`` below 1.
    """
    if n_steps < 1:
        raise ValueError(f"{n_steps=}: an adaptation needs at least one step")
    chosen = settings or DualAveraging()
    mu, log_eps, log_mean, deviation = math.log(10.0), 0.0, 0.0, 0.0
    stride = -(-n_steps // _TRACE)
    trace: list[list[float]] = []
    seen: list[float] = []
    for m in range(1, n_steps + 1):
        factor = math.exp(log_eps)
        if (m - 1) % stride == 0:
            trace.append([first + m - 1, factor])
        probability = step(factor)
        seen.append(probability)
        weight = 1.0 / (m + chosen.t0)
        deviation = (1.0 - weight) * deviation + weight * (chosen.acceptance - probability)
        log_eps = mu - deviation * math.sqrt(m) / chosen.gamma
        eta = m**-chosen.kappa
        log_mean = eta * log_eps + (1.0 - eta) * log_mean
    late = seen[len(seen) // 2 :]
    return Adaptation(
        first,
        n_steps,
        chosen.acceptance,
        sum(late) / len(late),
        math.exp(log_mean),
        trace,
        {"t0": chosen.t0, "gamma": chosen.gamma, "kappa": chosen.kappa},
    )
