"""Reverse diffusion with many noise levels at a time: the samples of one level after the other.

Step n takes x_n to x_{n+1} = Φ_n(x_n), with noise that is known. Where all of a window are made at
once, from inputs y_n that are guesses,

    x_{n+1} = Φ_n(y_n) + x_n - y_n

and what has moved by less than the tolerance, |x_n - y_n|, is final: Picard's iteration in a
sliding window (Shih et al., arXiv 2305.16317). Jacobians of Φ, which long trajectories need
(`sampling.linear`), take a third off the rounds here and cost more than that. It pays for a few
samples, where a batch costs less than its structures one by one; many samples are the better use of
a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..score.model import ScoreModel, resolve_device
from ..score.networks.inputs import Inputs
from .reverse import Descent, ForcesAt

__all__ = ["Made", "forces_of", "levels_together"]

_FINE, _COARSE = 1e-9, 2e-5  # tolerances in noise levels, for float64 and float32


@dataclass
class Made:
    """What was done; it goes on counting while levels are made.

    Parameters
    ----------
    levels : that are final
    rounds : batches one after the other, each as long as one level
    structures : in all of them
    """

    levels: int = 0
    rounds: int = 0
    structures: int = 0


def levels_together(
    steps: Descent,
    x: Tensor,
    *,
    window: int = 16,
    tolerance: float | None = None,
    made: Made | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Yield ``(σ, x)`` after each level, as `reverse_levels` does, within the tolerance.

    Parameters
    ----------
    steps : of the descent
    x : (*batch, N, 3) in Å, at its first level; samples go in step
    window : levels made together
    tolerance : in noise levels, of one step, which later ones enlarge where modes part; None: 1e-9,
        or 2e-5 of float32
    made : counts what is done

    Raises
    ------
    ValueError : ``window`` below 1
    DivergedError : as `reverse_levels`
    """
    if window < 1:
        raise ValueError(f"{window=} must be at least 1")
    made = Made() if made is None else made
    if tolerance is None:
        tolerance = _FINE if x.dtype == torch.float64 else _COARSE
    x, first = steps.start(x), 0
    inputs = x[None]
    while first < len(steps):
        width = min(window, len(steps) - first)
        more = inputs[-1:].expand(max(0, width - len(inputs)), *x.shape)
        inputs = torch.cat((inputs[:width], more))
        inputs = torch.where(torch.isfinite(inputs), inputs, x)
        out = steps.make(range(first, first + width), inputs)
        made.rounds += 1
        made.structures += width * x[..., 0, 0].numel()
        # the first input is exact: a round makes at least one level
        moved = torch.cat((torch.zeros_like(x)[None], (out - inputs)[:-1].cumsum(0)))
        moved = x + moved - inputs
        far = moved.abs().flatten(1).amax(1) / torch.tensor(steps.levels[first + 1 :][:width])
        done = int((far <= tolerance).long().cumprod(0).sum())
        after = out + moved
        for n in range(done):
            steps.check(after[n], first + n)
            yield steps.levels[first + n + 1], after[n]
        made.levels += done
        first, x, inputs = first + done, after[done - 1], after[done - 1 :]


def forces_of(model: ScoreModel, device: str = "auto") -> ForcesAt:
    """Forces of an isolated molecule's ``model`` at many noise levels, those of a network at once.

    In float32, as potentials are by default.
    """
    place, kT = resolve_device(device), model.card.kT
    inputs = Inputs.of(model.system, device=place)

    def forces(x: Tensor, levels: Sequence[float]) -> Tensor:
        flat = x.detach().to(place, torch.float32)
        out, several = torch.empty_like(flat), x[0, ..., 0, 0].numel()
        networks = [model.network_at(sigma, place, torch.float32) for sigma in levels]
        for network in {id(n): n for n in networks}.values():
            rows = [n for n, other in enumerate(networks) if other is network]
            sigma = flat.new_tensor([model.level(levels[n]) for n in rows])
            with torch.enable_grad():
                at = flat[rows].flatten(0, -3).requires_grad_()
                energy = inputs.energy(network)(at, sigma.repeat_interleave(several))
                (slope,) = torch.autograd.grad(energy.sum(), at)
            out[rows] = -kT * slope.reshape(len(rows), *x.shape[1:])
        return out.to(x)

    return forces
