"""An energy that is linear in its parameters, and the moments of frames that fit it.

With J = ∂f/∂x of the features f at x ± σε, frames of which some carry labels l = F/kT, and a
baseline that gives s_b = F_base/kT of each, the loss of one frame is

    ½(|s₊|² + |s₋|²) + ε·(s₊ - s₋)/σ + (w/2)(|s₊ - l|² + |s₋ - l|²)        s = s_b - Jᵀθ

(the last term of labelled frames only). It is least, over all frames, at ``G θ = b``,

    G = ⟨(1 + w)(J₊J₊ᵀ + J₋J₋ᵀ)⟩
    b = ⟨(J₊ - J₋)ε/σ - w(J₊ + J₋)l + (1 + w)(J₊ + J₋)s_b⟩

with w = 0 where there are no labels. With one ε for each frame half of the variance of b is that
of ε; so its first term is a mean over several, K of which leave 1/K of it: the slope of all
features along one direction costs far less than J.

A form may weigh directions: with a symmetric A the frames are at x ± σAε, and AJ, Al and As_b take
the place of J, l and s_b. Any A has the same minimum, but not the same variance: of soft directions
more is learned where they are moved further. Labels and baseline are those of x, not of x ± σAε:
the score of noised data is the mean of what x says of it (`losses.force_loss`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .force_field import MechanicsPrior
from .snapshots import Snapshots

__all__ = [
    "DRAWS",
    "Form",
    "Frames",
    "Linear",
    "gradient_noise",
    "label_gradients",
    "moments",
    "square",
]

DRAWS = 16
"""Of noise for each frame, where a form costs little along a direction."""
_MADE = ("arms", "matrix")  # of the tables
_AT_ONCE, _NUMBERS = 64, 2e7  # frames, and numbers of their slopes, at most
_ENOUGH = 10_000  # frames, for a covariance
_STRIP = 96  # rows of a product with itself that are made at a time


class Linear(Protocol):
    """What moments are made of: an energy of so many parameters, and its slopes."""

    @property
    def group(self) -> Tensor:
        """(size,) the group of each parameter."""

    @property
    def size(self) -> int:
        """How many parameters there are."""

    def jacobian(self, planes: Tensor) -> Tensor:
        """∂f/∂x (size, B, 3N) of ``planes`` (B, 3, N)."""

    def along(self, planes: Tensor, arrows: Tensor) -> Tensor:
        """J v (size, B) of ``planes`` (B, 3, N) and vectors v, the ``arrows`` (B, 3, N)."""

    def weigh(self, planes: Tensor) -> Tensor:
        """A times vectors (…, 3, N)."""


class Form(NamedTuple):
    """An energy that is linear in its parameters, of which several features may share one.

    ``orbits`` (F,) are the parameters of the features of ``prior``, ``group`` (size,) the group of
    each parameter: 0 for what every force field has, then those of `couplings`.
    """

    prior: MechanicsPrior
    orbits: Tensor
    group: Tensor

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return len(self.group)

    def tables(self, unit: Tensor, theta: Tensor) -> dict[str, Tensor]:
        """Of a `MechanicsPrior`: parameters ``unit θ`` for features as they are.

        ``unit`` and ``theta`` are (size,).
        """
        tables = {name: value for name, value in self.prior.named_buffers() if name not in _MADE}
        count = len(self.prior.theta)
        tables["unit"] = unit[self.orbits[:count]].float()
        tables["theta"] = theta[self.orbits[:count]].float()
        if self.prior.coupled:
            tables["strengths"] = (unit * theta)[self.orbits[count:]].float()
        return tables

    def features(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, size) of ``planes`` (B, 3, N), added up by parameter, and the walls (B,)."""
        with torch.no_grad():
            features, wall = self.prior.terms(planes)
        return planes.new_zeros(len(planes), self.size).index_add(1, self.orbits, features), wall

    def jacobian(self, planes: Tensor) -> Tensor:
        """∂f/∂x (size, B, 3N) of ``planes`` (B, 3, N)."""
        return self.prior.jacobian(planes, self.orbits, self.size)

    def along(self, planes: Tensor, arrows: Tensor) -> Tensor:
        """J v (size, B) of ``planes`` (B, 3, N) and vectors v, the ``arrows`` (B, 3, N)."""
        return self.prior.along(planes, arrows, self.orbits, self.size)

    def weigh(self, planes: Tensor) -> Tensor:
        """A = 1: vectors (…, 3, N) as they are."""
        return planes


class Frames(NamedTuple):
    """What the moments are made of.

    Attributes
    ----------
    positions : (M, N, 3) in Å
    labels : l = F/kT (M, N, 3), NaN of frames without any; None: no frame has any
    weight : w of the labels
    base : s_b (M, N, 3), or None
    """

    positions: Tensor
    labels: Tensor | None = None
    weight: float = 0.0
    base: Tensor | None = None

    @classmethod
    def of(cls, snapshots: Snapshots, weight: float, dtype: torch.dtype = torch.float32) -> Frames:
        """Those of ``snapshots``, with their labels if these have a ``weight``."""
        labels = base = None
        if weight:
            labels = torch.as_tensor(snapshots.reduced_forces, dtype=dtype)
        if snapshots.baseline is not None:
            base = torch.as_tensor(snapshots.baseline.forces / snapshots.kT, dtype=dtype)
        return cls(torch.as_tensor(snapshots.positions, dtype=dtype), labels, weight, base)

    def take(self, index) -> Frames:
        """Those at ``index``."""
        labels, base = (None if p is None else p[index] for p in (self.labels, self.base))
        return Frames(self.positions[index], labels, self.weight, base)

    @property
    def labelled(self) -> Tensor:
        """(M,) bool: which have labels."""
        if self.labels is None:
            return torch.zeros(len(self.positions), dtype=torch.bool)
        return self.labels[:, 0, 0].isfinite()

    def some(self, count: int) -> Frames:
        """``count`` of them at most: all that have labels, then the first of the others."""
        if count >= len(self.positions):
            return self
        order = torch.argsort((~self.labelled).int(), stable=True)[:count]
        return self.take(order.sort().values)

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Planes (B, 3, N), labels and s_b (B, 3N), some frames at a time."""
        for first in range(0, len(self.positions), size):
            part = self.take(slice(first, first + size))
            labels, base = (
                None if p is None else p.transpose(-1, -2).flatten(1)
                for p in (part.labels, part.base)
            )
            yield part.positions.transpose(-1, -2), labels, base


class _Probe(NamedTuple):
    """J₊ and J₋ (size, B, 3N) of some frames, and what they are told."""

    sides: list[Tensor]
    drive: Tensor  # (size, B): (J₊ - J₋)ε/σ, a mean over ε
    pull: Tensor | None  # (B, 3N): w l - (1 + w) s_b, or None
    weight: Tensor | float  # 1 + w, (B, 1) where it differs


def moments(
    form: Linear, frames: Frames, sigma: float, generator, draws: int = DRAWS
) -> tuple[Tensor, Tensor]:
    """G and b of ``frames``, in float64.

    Parameters
    ----------
    sigma : in Å
    generator : of the noise
    draws : ε for each frame, of whose mean b is made
    """
    gram = torch.zeros(form.size, form.size, dtype=torch.float64)
    total = torch.zeros(form.size, dtype=torch.float64)
    for sides, drive, pull, weight in _probed(form, frames, sigma, generator, draws):
        total += drive.sum(1, dtype=torch.float64)
        for j in sides:
            if pull is not None:
                total -= torch.einsum("fbd,bd->fb", j, pull).sum(1, dtype=torch.float64)
            if isinstance(weight, Tensor):
                gram += ((j * weight).flatten(1) @ j.flatten(1).T).double()
            else:
                gram += square(j.flatten(1)).double()
    return gram / len(frames.positions), total / len(frames.positions)


def gradient_noise(
    form: Linear, unit, theta, frames: Frames, sigma: float, generator, draws: int = DRAWS
) -> Tensor:
    """Σ (size, size): covariance over frames of the gradient of their loss.

    Parameters
    ----------
    unit, theta : (size,) units of the parameters, and these in them
    frames : some of them are used
    sigma : Å
    draws : as of `moments`
    """
    size = len(unit)
    total = torch.zeros(size, size, dtype=torch.float64)
    mean = torch.zeros(size, dtype=torch.float64)
    dtype = frames.positions.dtype
    scale, weights = unit.to(dtype)[:, None], (unit * theta).to(dtype)
    some = frames.take(slice(None, None, max(1, len(frames.positions) // _ENOUGH)))
    for sides, drive, pull, weight in _probed(form, some, sigma, generator, draws):
        gradient = -drive
        for j in sides:
            force = weight * torch.einsum("fbd,f->bd", j, weights)
            gradient += torch.einsum("fbd,bd->fb", j, force if pull is None else force + pull)
        gradient = (scale * gradient).double()
        total += gradient @ gradient.T
        mean += gradient.sum(1)
    count = len(some.positions)
    mean = mean / count
    return total / count - torch.outer(mean, mean)


def label_gradients(form: Linear, unit, theta, frames: Frames) -> Tensor:
    """``2 J(l - s_b + Jᵀθ)`` (size, M) of labelled frames: what their labels pull, where w = 1.

    ``unit`` and ``theta`` are as for `gradient_noise`.
    """
    found, weights = [], (unit * theta).float()
    for planes, labels, base in frames.parts(_at_once(form, frames)):
        if labels is None:
            raise ValueError("frames without labels, expected labelled ones")
        j = _weighed(form, form.jacobian(planes))
        labels, base = (None if p is None else _weighed(form, p) for p in (labels, base))
        wrong = labels + torch.einsum("fbd,f->bd", j, weights)
        if base is not None:
            wrong = wrong - base
        found.append((2 * unit.float()[:, None] * torch.einsum("fbd,bd->fb", j, wrong)).double())
    return torch.cat(found, dim=1)


def square(rows: Tensor) -> Tensor:
    """``rows @ rowsᵀ`` of ``rows`` (F, M): one half is computed, the other is its image."""
    size = len(rows)
    if size < 2 * _STRIP:
        return rows @ rows.T
    whole = rows.new_empty(size, size)
    for first in range(0, size, _STRIP):
        strip = slice(first, first + _STRIP)
        torch.mm(rows[strip], rows[: first + _STRIP].T, out=whole[strip, : first + _STRIP])
        whole[:first, strip] = whole[strip, :first].T
    return whole


def _probed(form: Linear, frames: Frames, sigma: float, generator, draws: int) -> Iterator[_Probe]:
    """All frames, some at a time."""
    w = frames.weight
    for planes, labels, base in frames.parts(_at_once(form, frames)):
        noise = torch.randn(draws, *planes.shape, generator=generator, dtype=planes.dtype)
        first, others = (sigma * form.weigh(noise)).tensor_split([1])
        plus, minus = (form.jacobian(planes + sign * first[0]) for sign in (1, -1))
        drive = torch.einsum("fbd,bd->fb", plus - minus, first[0].flatten(1))
        if len(others):
            arrows = torch.cat([others, -others])  # all at once: most of the time is in the calls
            slopes = form.along((planes + arrows).flatten(0, 1), arrows.flatten(0, 1))
            drive += slopes.unflatten(1, (len(arrows), -1)).sum(1)
        drive /= draws * sigma**2
        sides = [_weighed(form, j) for j in (plus, minus)]
        labels, base = (None if p is None else _weighed(form, p) for p in (labels, base))
        pull: Tensor | None = None
        weight: Tensor | float = 1.0
        if labels is not None:
            known = labels.isfinite().all(-1, keepdim=True)
            pull = w * torch.where(known, labels, 0.0)
            weight = 1.0 + w * known.to(labels)
        if base is not None:
            pull = (0.0 if pull is None else pull) - weight * base
        yield _Probe(sides, drive, pull, weight)


def _weighed(form: Linear, rows: Tensor) -> Tensor:
    """A times rows (…, 3N)."""
    return form.weigh(rows.unflatten(-1, (3, -1))).flatten(-2)


def _at_once(form: Linear, frames: Frames) -> int:
    return max(1, min(_AT_ONCE, int(_NUMBERS / (form.size * frames.positions[0].numel()))))
