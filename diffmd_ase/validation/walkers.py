"""The walkers of a validation: corrected, plain, and exchanged from one mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.base import Potential
from ..sampling.adaptation import DualAveraging, adapt
from ..sampling.combine import Mixture
from ..sampling.euler import EulerMaruyama
from ..sampling.exchange import ExchangeSummary, ReplicaExchange
from ..sampling.hamiltonian import MALT
from ..sampling.kernels import DivergedError, Kernel
from ..sampling.metropolis import Metropolis
from ..sampling.moves import TorsionRotation
from ..sampling.run import run, survive
from ..sampling.temperature_ladder import geometric_kT
from ..simulation.prepare import Prepared

__all__ = [
    "HOT",
    "STATES",
    "Corrected",
    "Plain",
    "Start",
    "corrected_walkers",
    "exchanged_walkers",
    "plain_walkers",
]

STATES, HOT = 5, 2.5  # temperatures of a ladder, and the highest over the model's

_LEAPFROG = 20
_MASS = 12.0  # u, of every atom: only configurations count, and equal masses allow long steps
_FREQUENCY_STEP = 0.8  # ω Δt of the stiffest mode at first; leapfrog is stable below 2
_DAMPING = 0.002  # of that frequency
_ACCEPTANCE = 0.75
_MALA = 0.55  # h λ
_EVERY = 10


class Start(NamedTuple):
    """Where walkers start, and whose law they sample."""

    potential: Potential
    x: Tensor  # (W, N, 3)
    kT: float
    stiffness: float  # the largest curvature λ of U/kT in 1/Å²
    mean_free: bool  # without motion of the whole
    noise: Noise


class Corrected(NamedTuple):
    """Metropolis-corrected Langevin trajectories."""

    positions: np.ndarray  # (T, W, N, 3) frames in Å
    energies: np.ndarray  # (T, W) of the model in eV
    acceptance: float  # mean


class Plain(NamedTuple):
    """Plain reverse-diffusion dynamics."""

    lost: int  # how many walkers
    diffused: float  # D·t of each in Å²
    positions: np.ndarray  # (W, N, 3) last ones of the others in Å


def corrected_walkers(start: Start, moves: int, progress: Callable[[float], None]) -> Corrected:
    """Metropolis-corrected trajectories of 20 steps of each walker, exact for the energy.

    ``moves`` of them, frames of each walker; a fifth as many come before, in which the time step is
    adapted, then frozen (see `MALT`).
    """
    omega = math.sqrt(start.kT * start.stiffness / _MASS)
    kernel: Kernel = MALT(
        start.potential,
        kT=start.kT,
        timestep=_FREQUENCY_STEP / omega,
        n_leapfrog=_LEAPFROG,
        masses=_MASS,
        friction=_DAMPING * omega,
        mean_free=start.mean_free,
    )
    settings = DualAveraging(acceptance=_ACCEPTANCE)
    first = max(10, moves // 5)
    warm = kernel.init(start.x)
    kernel, warm, _ = adapt(kernel, warm, first, noise=start.noise, settings=settings)
    frames, energies, accepted = [], [], []
    for n, (state, info) in enumerate(run(kernel, warm, moves, noise=start.noise), 1):
        frames.append(state.x.cpu().numpy())
        energies.append(state.energy.cpu().numpy())
        accepted.append(float(info.accepted.double().mean()))
        progress(n / moves)
    return Corrected(np.stack(frames), np.stack(energies), float(np.mean(accepted)))


def plain_walkers(
    prepared: Prepared,
    x: Tensor,
    *,
    steps: int,
    noise: Noise,
    progress: Callable[[float], None],
) -> Plain:
    """``steps`` plain steps of walkers ``x`` (W, N, 3) in Å; lost ones are counted."""
    kernel: Kernel = prepared.kernel
    lost: list[int] = []
    diffused = steps * float(prepared.step.h)
    state = kernel.init(x.float())
    for done in range(1, steps + 1):
        try:
            kernel, state, _ = survive(kernel, state, noise, lambda e: lost.extend(e.walkers))
        except DivergedError:  # nobody is left
            return Plain(len(x), diffused, np.zeros((0, *x.shape[1:])))
        if done % 50 == 0:
            progress(done / steps)
    return Plain(len(lost), diffused, state.x.double().cpu().numpy())


def exchanged_walkers(
    start: Start,
    *,
    steps: int,
    rotors: np.ndarray,
    moved: np.ndarray,
    progress: Callable[[float], None],
) -> tuple[np.ndarray, ExchangeSummary]:
    """Frames (T, L, N, 3) at kT of L ladders of 5 temperatures up to 2.5 kT, and a summary.

    A third of the steps turn parts of the molecule, the others are Metropolis-corrected reverse
    steps. Frames of the first fifth are left out.

    Parameters
    ----------
    start : of 5 L walkers, those of one ladder in a row; no mean moves
    steps : of each walker
    rotors : (K, 2) axes of the rotatable bonds
    moved : (K, N) bool, the atoms that turn
    """
    potential, x, kT = start.potential, start.x, start.kT
    ladder = geometric_kT(kT, HOT * kT, STATES).repeat(len(x) // STATES).to(x.device)
    # h ∝ kT keeps h times the curvature of U/kT
    h = _MALA / start.stiffness * (ladder / kT)[:, None].expand(-1, x.shape[1])
    mala = Metropolis(EulerMaruyama(potential, ladder, h, mean_free=True))
    turn = TorsionRotation(
        potential, ladder, torch.as_tensor(rotors), torch.as_tensor(moved), mean_free=True
    )
    kernel = ReplicaExchange(Mixture([turn, mala], [1, 2]), STATES, every=_EVERY)
    frames = []
    for state, _ in run(kernel, x, steps, noise=start.noise, every=_EVERY):
        if state.step > steps // 5:
            frames.append(state.x[::STATES].cpu().numpy())
        progress(state.step / steps)
    return np.stack(frames), kernel.summary(state)
