"""Ladders of temperatures for replica exchange, and how to space them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ..noise import Noise
from ..state import State
from .exchange import ReplicaExchange
from .run import run

__all__ = ["by_replica", "equalised_kT", "geometric_kT", "tuned_kT"]


def by_replica(values: Tensor, replica: Tensor, n_states: int) -> Tensor:
    """A trajectory by states, turned into one by replicas.

    Parameters
    ----------
    values : (T, B, …), rows are states
    replica : (T, B), the labels ``state.record.replica`` of the same frames
    n_states : K

    Returns
    -------
    (T, B, …) : row ``m·K + r`` follows replica r of ladder m through the states

    Raises
    ------
    ValueError : shapes that do not fit
    """
    if values.shape[:2] != replica.shape or replica.shape[1] % n_states:
        raise ValueError(
            f"values {tuple(values.shape)} and labels {tuple(replica.shape)} must both begin with "
            f"(T, M·{n_states})"
        )
    ladder = torch.arange(replica.shape[1], device=replica.device) // n_states
    row = torch.argsort(replica + n_states * ladder, dim=1)
    return values[torch.arange(len(row), device=row.device)[:, None], row]


def geometric_kT(kT_min: float, kT_max: float, n_states: int) -> Tensor:
    """``n_states`` thermal energies (K,) from ``kT_min`` to ``kT_max`` (eV), of constant ratio.

    Acceptance is equal if the heat capacity is constant. Raises ``ValueError`` unless
    0 < kT_min < kT_max and n_states ≥ 2.
    """
    if not (0 < kT_min < kT_max < np.inf and n_states >= 2):
        raise ValueError(f"{kT_min=} < {kT_max=} must be positive, and {n_states=} at least 2")
    return torch.as_tensor(np.geomspace(kT_min, kT_max, n_states))


def equalised_kT(kT: Tensor, acceptance: Sequence[float] | Tensor) -> Tensor:
    """(K,) thermal energies with the same ends, at equal rejection between neighbours.

    The sum of the rejection rates ``1 - α`` up to a state is the communication barrier
    Λ(kT), which does not depend on the ladder to leading order; log kT is interpolated
    monotonically in it and put on K equal parts (Syed et al. 2022, algorithm 2).

    Parameters
    ----------
    kT : (K,), increasing or decreasing
    acceptance : (K-1,), of a run with this ladder

    Raises
    ------
    ValueError : shapes that do not fit; an acceptance that is NaN, of a pair that never tried
    """
    kT = torch.as_tensor(kT, dtype=torch.float64)
    alpha = torch.as_tensor(acceptance, dtype=torch.float64)
    fine = torch.isfinite(alpha) & (alpha >= 0) & (alpha <= 1)
    if kT.ndim != 1 or alpha.shape != (len(kT) - 1,) or not fine.all():
        raise ValueError(
            f"kT {tuple(kT.shape)} and acceptance {acceptance}: expected (K,) and K-1 numbers in "
            "[0, 1]; NaN means that a pair never tried to swap: run longer"
        )
    # a pair that always swaps still has its length
    barrier = np.concatenate(([0.0], np.cumsum((1.0 - alpha).clamp(min=1e-3).cpu().numpy())))
    even = np.linspace(0.0, barrier[-1], len(kT))
    new = np.exp(PchipInterpolator(barrier, np.log(kT.cpu().numpy()))(even))
    new[[0, -1]] = kT[[0, -1]].cpu().numpy()
    return torch.as_tensor(new)


def tuned_kT(
    make: Callable[[Tensor], ReplicaExchange],
    kT: Tensor,
    x: Tensor,
    *,
    n_steps: int,
    rounds: int = 3,
    noise: Noise,
) -> tuple[Tensor, State]:
    """A ladder of equal acceptance, from ``rounds`` short runs of ``n_steps`` each.

    Production starts from what is returned, with ``make(kT)`` frozen: the short runs are warm-up
    and belong to no ensemble.

    Parameters
    ----------
    make : thermal energies (K,) in eV → the kernel of these states
    kT : (K,), where to start, as from `geometric_kT`
    x : (M·K, N, 3); acceptance is averaged over the ladders

    Returns
    -------
    kT : (K,)
    state : the last one, of the ladder before the last change; its positions are a start

    Raises
    ------
    ValueError : ``n_steps`` so few that a pair never tried to swap
    """
    state = None
    for _ in range(rounds):
        exchange = make(kT)
        start = exchange.init(x)
        if state is not None:
            start = replace(start, step=state.step, walkers=state.walkers)
        [(state, _)] = run(exchange, start, n_steps, noise=noise, every=n_steps)
        x = state.x
        kT = equalised_kT(kT, exchange.summary(state).acceptance.mean(0))
    return kT, state
