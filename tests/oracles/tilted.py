"""A model that is wrong on purpose: a reference plus a wave, whose Boltzmann law can be sampled."""

import numpy as np
import torch

from diffmd_ase.potentials.base import Potential
from diffmd_ase.state import Evaluation


class Wave(Potential):
    """``a cos(q·x + φ)`` of one atom."""

    def __init__(self, a: float, q, phase: float):
        self.a, self.q, self.phase = a, torch.as_tensor(q, dtype=torch.float64), phase

    def __call__(self, x):
        q = self.q.to(x)
        angle = (x[..., 0, :] * q).sum(-1) + self.phase
        forces = self.a * torch.sin(angle)[..., None, None] * q
        return Evaluation(self.a * torch.cos(angle), forces.expand(x.shape))


def tilted_samples(case, wave: Wave, n: int, seed: int) -> torch.Tensor:
    """Exact independent draws (n, 1, 3) of ``exp(-(U + wave)/kT)``, by rejection."""
    x = case.sample(4 * n, seed)
    log_accept = -(wave(x).energy + abs(wave.a)) / case.kT
    u = torch.from_numpy(np.random.default_rng(seed + 1).random(len(x)))
    kept = x[u.log() < log_accept]
    if len(kept) < n:
        raise ValueError(f"{len(kept)} of {n} draws: a gentler wave")
    return kept[:n]
