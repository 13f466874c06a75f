"""Independent samples of a learned model, by reverse diffusion from noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..io.limits import check_memory
from ..noise import Noise
from ..potentials.learned import ScorePotential, compiling_pays
from ..sampling.euler import EulerMaruyama
from ..sampling.parallel import run_parallel
from ..sampling.run import run
from ..score.card import Card
from ..score.model import ScoreModel
from ..score.networks.gradients import Compile
from .reverse import Descent, geometric_sigmas, reverse_levels
from .together import forces_of, levels_together

__all__ = ["gaussian_start", "sample"]

# addresses that neither the noise levels nor dynamics with the same seed reach
_START_ADDRESS, _RELAX_ADDRESS = 1 << 44, 1 << 45
_RELAX = 0.1  # h·λ of the last steps: the stiffest mode is 2.6 % too wide


def sample(
    model: ScoreModel,
    n: int,
    *,
    noise: Noise,
    levels: int = 150,
    corrector_steps: int = 1,
    relax_steps: int = 200,
    churn: float = 0.0,
    first: int = 0,
    device: str = "auto",
    batch_size: int = 500,
    compile: Compile = "auto",
    window: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """``n`` independent draws (n, N, 3) in Å from the model's density at ``sigma_min``.

    Reverse diffusion down ``levels`` noise levels, from the Gaussian of the data's
    covariance plus ``σ_max²``, with Langevin corrector steps. At ``sigma_min`` the hand of
    every centre is chosen by Boltzmann weights: networks of chiral molecules are even under
    reflection at larger noise. Then ``relax_steps`` steps of dynamics let stiff
    modes find their width.

    Parameters
    ----------
    noise : draw number i is the same in any batch
    corrector_steps, churn : as of `reverse_levels`
    first : number of the first draw
    batch_size : draws made side by side
    compile : as of `ScorePotential`; "auto": where so many draws save what it costs
    window : levels made together, and steps at the end, for a few draws (see
        `together.levels_together`); None: one after the other

    Raises
    ------
    ValueError : a model of a periodic system, or of one noise level; more draws or levels than
        memory holds; levels, churn or corrector steps out of range
    DivergedError : names the level (or the step) and the draws
    """
    card = model.card
    size = 24.0 * len(card.numbers)
    check_memory(3 * size * n, f"{n} samples of {card.formula}", "draw fewer at a time (--number)")
    check_memory(32.0 * levels, f"{levels} noise levels", "give fewer (--levels)")
    if card.pbc != (False, False, False):
        raise ValueError(
            "i.i.d. reverse diffusion from a Gaussian is for isolated molecules; start "
            "periodic systems from their snapshots"
        )
    # the levels of the expert that knows the largest noise, then the smallest
    low, high = max((e.sigma for e in card.experts), key=lambda sigma: sigma[1])
    if low == high:
        raise ValueError(
            f"this model of {card.formula} knows one noise level, {low:g} Å, at which dynamics "
            "runs: independent samples take all of them; start dynamics from its snapshots"
        )
    sigmas = geometric_sigmas(high, low, levels)
    walkers = torch.arange(first, first + n)

    def at(sigma: float | None = None) -> ScorePotential:
        return _potential(model, device, sigma, compile)

    if compile == "auto":
        calls = -(-n // batch_size) * ((levels - 1) * (2 + corrector_steps) + relax_steps)
        start = gaussian_start(model, noise, walkers[:batch_size])
        compile = compiling_pays(at(high), start, calls)
    out = []
    for own in walkers.split(batch_size):
        x = gaussian_start(model, noise, own)
        options: dict[str, Any] = {
            "kT": card.kT,
            "noise": noise,
            "walkers": own,
            "churn": churn,
            "corrector_steps": corrector_steps,
            "mean_free": True,
        }
        if window is None:
            steps = reverse_levels(at, x, sigmas, **options)
        else:
            descent = Descent(forces_of(model, device), sigmas, **options)
            steps = levels_together(descent, x, window=window)
        for level, (_, last) in enumerate(steps, start=1):
            x = last
            if progress:
                done = (int(own[0]) - first + len(own) * level / (levels - 1)) / n
                progress(done)
        x = _choose_hand(at(), card, x, noise, own)
        out.append(_relax(at(), card, x, noise, own, relax_steps, window))
    return torch.cat(out)


def gaussian_start(model: ScoreModel, noise: Noise, walkers: Tensor) -> Tensor:
    """Draws (B, N, 3) in Å of ``walkers`` (B,): p_σmax of ``model`` but for shape.

    From ``N(0, (C + σ_max²) ⊗ 1)`` with the covariance C of its card, mean removed.
    """
    covariance = np.array(model.card.covariance) + model.card.sigma_max**2 * np.eye(
        len(model.card.numbers)
    )
    root = torch.as_tensor(np.linalg.cholesky(covariance)).float()
    like = root.new_empty(len(walkers), len(root), 3)
    x = root @ noise.normal(_START_ADDRESS, like, walkers=walkers)
    return x - x.mean(-2, keepdim=True)


def _potential(
    model: ScoreModel, device: str, sigma: float | None, compile: Compile
) -> ScorePotential:
    """For structures that are in the making, whose bonds and hands are no cause for a warning."""
    potential = model.potential(sigma=sigma, device=device, compile=compile)
    potential.looked_at = True
    return potential


def _choose_hand(potential: ScorePotential, card: Card, x, noise, walkers) -> Tensor:
    """Gibbs steps at the smallest noise over mirror images and exchanges of like atoms.

    Each move is its own inverse and keeps volume; it is taken with probability
    ``1/(1 + exp[(E(y) - E(x))/kT])``. The moves: the mirror image; the exchange of two like
    atoms at each centre; the mirror image with all exchanges, which turns the other centres
    only. So every centre finds its hand, whatever the others have.
    """
    moves = []
    n_atoms = x.shape[-2]
    everything = torch.arange(n_atoms)
    for a, b in card.exchanges:
        one = torch.arange(n_atoms)
        one[[a, b]] = one[[b, a]]
        moves.append((1.0, one))
        everything = everything[one]
    moves = [(-1.0, torch.arange(n_atoms)), *moves, (-1.0, everything)]
    energy = potential(x).energy
    for n, (sign, order) in enumerate(moves * 2):
        y = sign * x[:, order]
        moved = potential(y).energy
        accept = torch.sigmoid(((energy - moved) / card.kT).clamp(-50, 50))
        take = noise.uniform(_START_ADDRESS + n, accept, walkers=walkers) <= accept
        x = torch.where(take[:, None, None], y, x)
        energy = torch.where(take, moved, energy)
    return x


def _relax(
    potential: ScorePotential, card: Card, x, noise, walkers, steps: int, window: int | None
) -> Tensor:
    if not steps or not card.lambda_max:
        return x
    kernel = EulerMaruyama(potential, kT=card.kT, h=_RELAX / card.lambda_max, mean_free=True)
    state = replace(kernel.init(x, walkers=walkers), step=_RELAX_ADDRESS)
    if window is None:
        [(last, _)] = run(kernel, state, steps, noise=noise, every=steps)
    else:
        last = run_parallel(kernel, state, steps, noise=noise)[1].state
    return last.x
