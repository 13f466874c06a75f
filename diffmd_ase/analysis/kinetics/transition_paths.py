"""The likeliest way between two states, and where on it the fate is open.

The probability of a path of plain steps is ``exp(-Σ |x_{n+1} - x_n - h s(x_n)|²/4h)`` (Onsager &
Machlup, Phys. Rev. 91, 1505 (1953)), harmonic springs between images tilted by the score. Without
the term of the divergence of s, which depends on the grid, and with the ends held, its exponent is
for a drift that is a gradient

    S = ¼ ∫ (|dx/dt|² + |s|²) dt + [U(b) - U(a)]/2kT

in t = D·t. Along the best path of any span ``|dx/dt|² - |s|² = e`` is constant, and t drops out:

    J = ½ ∫ sqrt(|s|² + e) |dx|

is minimised for all images at once, evenly along the path, for ever smaller e, which is a span that
is ever longer (Heymann & Vanden-Eijnden, Comm. Pure Appl. Math. 61, 1052 (2008)). As e → 0 the path
goes over a saddle of the energy and S is the sum of the climbs over kT; the committor of one half,
which shooting finds, may lie elsewhere.

The gradient of J holds the product of two second derivatives of the energy, which bonds and
torsions make a million times different. So the images first go down the energy, evenly spread (the
string method: E, Ren & Vanden-Eijnden, J. Chem. Phys. 126, 164103 (2007), here with momentum), near
to the path of e = 0; of alanine dipeptide an action of 7.5 nats, where J alone stuck, becomes 4.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ...noise import Noise
from ...potentials.base import Potential, evaluate
from ...sampling.euler import EulerMaruyama
from ...sampling.run import advance
from ...score.curvature import derivative, power_iteration
from ...state import State
from ..statistics import Estimate

__all__ = ["TransitionPath", "shoot", "spread_evenly", "transition_path"]

_TINY = 1e-4  # Å, of the differences of forces
_TRUE = 0.01  # nats: a span is long enough when a longer one changes the action by less
_STEEP = 1.0  # 1/Å, of the score across the path
_LOOK = 500  # steps of the string between two looks at it
_SHORT = 0.5  # of what the largest curvature allows: a step of the string
_KEPT = 0.97  # of the last step, in the next
_FAR = 0.05  # Å, of an image in one of them at most
_STILL = 5e-4  # nats: between two looks the action changes by less
_TURNS = 20  # of a power iteration
_EVEN = 10.0  # nats, of images spread unevenly by as much as their distance

Inside = Callable[[Tensor], Tensor]
"""Whether positions (B, N, 3) are in a state, (B,) bool."""


@dataclass(frozen=True, eq=False)
class TransitionPath:
    """A path of least action; made by `transition_path`."""

    images: Tensor  # (P, N, 3) Å, ends included
    times: np.ndarray  # (P,) D·t of each image in Å²
    action: float  # S in nats, the part of the ends' energies included
    energy: np.ndarray  # (P,) U/kT
    residual: float  # largest score across the path, 1/Å; none where e = 0
    converged: bool  # that is below 1, and a longer span changes the action by < 0.01 nats

    @property
    def length(self) -> np.ndarray:
        """(P,) arc length from the first image in Å."""
        return np.concatenate(([0.0], np.cumsum(_steps(self.images).numpy())))

    @property
    def highest(self) -> int:
        """Number of the image of the highest energy."""
        return int(self.energy.argmax())

    def to_dict(self) -> dict:
        """Numbers by name, as JSON holds them."""
        return {
            "action_nats": self.action,
            "converged": self.converged,
            "residual_1/A": self.residual,
            "highest": self.highest,
            "length_A": self.length.tolist(),
            "D_t_A2": self.times.tolist(),
            "energy_kT": self.energy.tolist(),
        }


def transition_path(
    potential: Potential,
    images: Tensor,
    *,
    kT: float,
    most: int = 2000,
    rounds: int = 8,
    relaxation: int = 10_000,
) -> TransitionPath:
    """The path of least Onsager–Machlup action between the first and the last of some images.

    Parameters
    ----------
    potential : has an energy
    images : (P, N, 3) in Å, a first guess, at least five; both ends stay where they are
    most : evaluations of a minimisation
    rounds : of minimisation at most, each with a quarter of the e of the one before
    relaxation : steps of the string method before them, at most

    Raises
    ------
    ValueError : no energy, too few images, kT that is not positive
    """
    if not potential.conservative:
        raise ValueError("no energy: the drift is no gradient, and this action is that of one")
    if images.ndim != 3 or len(images) < 5 or not kT > 0:
        raise ValueError(
            f"images {tuple(images.shape)}, {kT=}: expected (P, N, 3) with at least five images, "
            "and a positive kT"
        )

    def score(x: Tensor) -> Tensor:
        return evaluate(potential.terms, x).forces / kT

    path = _relaxed(score, spread_evenly(images.double()), relaxation)
    e = float(score(path).square().sum((-2, -1)).median())
    before, settled = np.inf, False
    for _ in range(rounds):
        path = _least(score, path, e, most)
        action, times = _measured(score, path, e)
        if settled := abs(action - before) < _TRUE:
            break
        before, e = action, e / 4
    energy = evaluate(potential.terms, path).energy.numpy() / kT
    action += 0.5 * float(energy[-1] - energy[0])
    residual = _across(score(path), path)
    return TransitionPath(path, times, action, energy, residual, settled and residual < _STEEP)


def shoot(
    kernel: EulerMaruyama,
    images: Tensor,
    in_a: Inside,
    in_b: Inside,
    *,
    shots: int,
    noise: Noise,
    most: int = 100_000,
) -> list[Estimate]:
    """The committor of each image: the fraction of plain chains from it that come to B before A.

    Parameters
    ----------
    images : (P, N, 3) in Å
    in_a, in_b : the states
    shots : chains from each image
    most : steps of each; what has come nowhere by then counts as an error of a half

    Returns
    -------
    Fractions with binomial errors (at least one in ``shots``)
    """
    x = images.double().repeat_interleave(shots, 0)
    state = kernel.init(x, walkers=torch.arange(len(x)))
    fate = torch.full((len(x),), torch.nan, dtype=torch.float64)
    for _ in range(most + 1):
        a, b = in_a(state.x), in_b(state.x)
        done = a | b
        if done.any():
            ids = _ids(state)
            fate[ids[b & ~a]], fate[ids[a]] = 1.0, 0.0
            if done.all():
                state = None
                break
            state = state.take(~done)
        state, _ = advance(kernel, state, noise)
    found = []
    for row in fate.reshape(len(images), shots).numpy():
        lost = float(np.isnan(row).mean())
        q = float(np.nanmean(row)) if lost < 1 else 0.5
        error = max(q * (1 - q) / shots, 1 / shots**2) ** 0.5 + lost / 2
        found.append(Estimate(q, error, float(shots)))
    return found


def _ids(state: State) -> Tensor:
    return torch.arange(len(state.x)) if state.walkers is None else state.walkers


def spread_evenly(images: Tensor) -> Tensor:
    """``images`` (P, N, 3) moved along the path through them, to equal distances."""
    length = np.concatenate(([0.0], np.cumsum(_steps(images).numpy())))
    even = np.linspace(0.0, length[-1], len(images))
    flat = images.reshape(len(images), -1).numpy()
    columns = [np.interp(even, length, column) for column in flat.T]
    return torch.from_numpy(np.stack(columns, 1)).reshape(images.shape)


def _relaxed(score: Callable[[Tensor], Tensor], path: Tensor, most: int) -> Tensor:
    """Images that have gone down the energy, until the action of the path hardly changes."""
    before, step = np.inf, torch.zeros_like(path)
    for first in range(0, most, _LOOK):
        h = _SHORT / _curvature(score, path)
        for _ in range(min(_LOOK, most - first)):
            step = _KEPT * step + h * score(path)
            size = step.square().sum((-2, -1), keepdim=True).sqrt()
            step = step * (_FAR / size.clamp_min(_FAR))
            step[[0, -1]] = 0.0
            path = spread_evenly(path + step)
        action = _action(score(path), path)
        if abs(action - before) < _STILL:
            break
        before = action
    return path


def _curvature(score: Callable[[Tensor], Tensor], path: Tensor) -> float:
    """The largest of the images, 1/Å², by power iteration."""
    v = torch.cos(torch.arange(path.numel(), dtype=path.dtype)).reshape(path.shape)
    turns = power_iteration(lambda v: derivative(score, path, v, _TINY), v)
    *_, (_, image) = islice(turns, _TURNS)
    return float(image.square().sum((-2, -1)).sqrt().max())


def _across(s: Tensor, path: Tensor) -> float:
    """The largest part of the score ``s`` across the path, 1/Å, of all images but the ends."""
    along = path[2:] - path[:-2]
    along = along / along.square().sum((-2, -1), keepdim=True).sqrt()
    across = s[1:-1] - (s[1:-1] * along).sum((-2, -1), keepdim=True) * along
    return float(across.square().sum((-2, -1)).sqrt().max())


def _least(score: Callable[[Tensor], Tensor], images: Tensor, e: float, most: int) -> Tensor:
    """Images of the least J for this e."""
    first, last = images[:1], images[-1:]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        path = torch.cat((first, torch.from_numpy(flat.reshape(-1, *images.shape[1:])), last))
        s, steps = score(path), path[1:] - path[:-1]
        g = (s.square().sum((-2, -1)) + e).sqrt()
        length = steps.square().sum((-2, -1)).sqrt().clamp_min(1e-12)
        mean = length.mean()
        uneven = length / mean - 1
        # ∇g = (∂s) s/g, the derivative of the score along itself, in steps of _TINY
        size = float(s.square().sum((-2, -1)).max().sqrt()) + 1e-300
        slope = derivative(score, path, s / size, _TINY) * (size / g)[:, None, None]
        value = 0.25 * ((g[1:] + g[:-1]) * length).sum() + 0.5 * _EVEN * uneven.square().sum()
        weight = torch.nn.functional.pad(0.25 * length, (1, 1))
        pull = (weight[1:] + weight[:-1])[:, None, None] * slope
        # of the length of each step, also by the mean
        of_length = 0.25 * (g[1:] + g[:-1]) + _EVEN / mean * (
            uneven - (uneven * length / mean).mean()
        )
        push = (of_length / length)[:, None, None] * steps
        return float(value), (pull[1:-1] + push[:-1] - push[1:]).numpy().ravel()

    options = {"maxfun": most, "maxiter": most, "maxcor": 30, "ftol": 1e-9, "gtol": 1e-2}
    start = images[1:-1].numpy().ravel()
    best = minimize(cost, start, jac=True, method="L-BFGS-B", options=options)
    return torch.cat((first, torch.from_numpy(best.x.reshape(-1, *images.shape[1:])), last))


def _measured(
    score: Callable[[Tensor], Tensor], path: Tensor, e: float
) -> tuple[float, np.ndarray]:
    """``½ ∫ |s| |dx|`` and the times at which the images are passed."""
    s = score(path)
    speed = (s.square().sum((-2, -1)) + e).sqrt()
    steps = 0.5 * _steps(path) * (1 / speed[1:] + 1 / speed[:-1])
    return _action(s, path), np.concatenate(([0.0], steps.cumsum(0).numpy()))


def _action(s: Tensor, path: Tensor) -> float:
    """``½ ∫ |s| |dx|`` in nats, of the score ``s`` at the images."""
    size = s.square().sum((-2, -1)).sqrt()
    return 0.25 * float(((size[1:] + size[:-1]) * _steps(path)).sum())


def _steps(path: Tensor) -> Tensor:
    """(P - 1,) distances of neighbours in Å."""
    return (path[1:] - path[:-1]).square().sum((-2, -1)).sqrt()
