"""Monte Carlo moves by energy alone: displacements, torsions, swaps of elements, vacancy hops.

What dynamics cannot do in reach of a simulation, a move does in one step: exchange two
elements, carry an atom over a barrier. Every move keeps the numbers of the atoms in place.
Mixed with dynamics they stay exact, each leaving ``exp(-U/kT)`` invariant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ..geometry import Lattice, rotate_about
from ..noise import Noise
from ..potentials.base import Potential
from ..state import State
from .kernels import Info, check_kT, take_rows
from .metropolis import TargetKernel, accept

__all__ = [
    "AtomSwap",
    "Displacement",
    "Move",
    "SingleDisplacement",
    "TorsionRotation",
    "VacancyHop",
]


@dataclass(frozen=True)
class Move(TargetKernel):
    """A proposal y of new positions, accepted by the energy of the target,

        log α = -[U(y) - U(x)]/kT + log q(x|y) - log q(y|x)

    A move of your own is a frozen dataclass with `propose`; test that its reverse has the
    probability it claims.

    Parameters
    ----------
    target : has the energy
    kT : thermal energy in eV, scalar or (B,)

    Raises
    ------
    ValueError : a target without energy, kT that is not positive
    """

    target: Potential
    kT: float | Tensor

    def __post_init__(self):
        self._bind(self.target, None)
        check_kT(self.kT)

    @abstractmethod
    def propose(
        self, x: Tensor, step: int, walkers: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor | float]:
        """New positions (*batch, N, 3) and ``log q(x|y) - log q(y|x)`` (*batch) or 0.

        -inf where there is nothing to propose. The streams "kernel", "choose" and "rotor" of
        ``step`` are free to use.
        """

    def take(self, rows: Tensor) -> Move:
        return replace(self, kT=take_rows(self.kT, rows, ndim=1))

    def step(self, state, noise) -> tuple[State, Info]:
        y, log_q = self.propose(state.x, state.step, state.walkers, noise)
        new = self.field.state(y, state.step + 1, state.walkers)
        log_q = log_q + torch.zeros_like(new.energy, dtype=torch.float64)
        return accept(state, new, log_q, self.kT, noise, evaluations=(0, 1))


@dataclass(frozen=True)
class _Sized(Move, ABC):
    """A move by ``size ξ``, whose h is ``size²/2``."""

    size: float | Tensor

    def __post_init__(self):
        super().__post_init__()
        size = torch.as_tensor(self.size)
        if not (torch.isfinite(size).all() and (size >= 0).all() and (size > 0).any()):
            raise ValueError(
                f"{size=} must be finite, not negative, and positive for some atom (Å)"
            )

    def scaled(self, factor: float):
        return replace(self, size=self.size * factor**0.5)

    def take(self, rows: Tensor) -> Move:
        kT, size = take_rows(self.kT, rows, ndim=1), take_rows(self.size, rows, ndim=2)
        return replace(self, kT=kT, size=size)

    def _widths(self, x: Tensor) -> Tensor:
        """Of positions x, broadcastable with (*batch, N, 1)."""
        size = torch.as_tensor(self.size, dtype=torch.float64).to(x)
        if size.ndim and size.shape != x.shape[x.ndim - 1 - size.ndim : -1]:
            raise ValueError(
                f"size {tuple(size.shape)} does not fit positions {tuple(x.shape)}: expected a "
                "scalar, (N,) or (B, N)"
            )
        return size[..., None] if size.ndim else size


@dataclass(frozen=True)
class Displacement(_Sized):
    """All atoms at once, ``y = x + size ξ``: random-walk Metropolis (Metropolis et al. 1953).

    Parameters
    ----------
    size : standard deviation in Å; scalar, (N,) or (B, N); 0 holds an atom fixed
    others : as of `Move`

    Raises
    ------
    ValueError : a size that is negative or does not fit; others as of `Move`
    """

    size: float | Tensor = 0.05

    def propose(self, x, step, walkers, noise):
        return x + self._widths(x) * noise.normal(step, x, walkers=walkers), 0.0


@dataclass(frozen=True)
class SingleDisplacement(_Sized):
    """One atom, chosen uniformly, by ``size ξ``; h of `scaled` is ``size²/2`` for all moves.

    Parameters and errors are those of `Displacement`; an atom with a ``size`` of 0 is never moved.
    """

    size: float | Tensor = 0.2

    def propose(self, x, step, walkers, noise):
        widths = self._widths(x).expand(*x.shape[:-1], 1)[..., 0]
        chosen, _ = _choose(widths > 0, step, walkers, noise)
        kick = widths[..., None] * noise.normal(step, x, walkers=walkers)
        return x + torch.where(chosen[..., None], kick, 0.0), 0.0


@dataclass(frozen=True)
class AtomSwap(Move):
    """Two atoms of different elements exchange their positions.

    The pair is drawn uniformly from all pairs of different elements, a fixed list, so that the
    move is symmetric. Only positions move; the composition stays. Parameters as of `Move`.

    Raises
    ------
    ValueError : a target without a system, or of one element only
    """

    def __post_init__(self):
        super().__post_init__()
        if self.target.system is None:
            raise ValueError("a swap must know the elements: give the target its system=")
        if len(self._pairs) == 0:
            raise ValueError(
                f"{self.target.system.formula} has one element only: there is nothing to swap"
            )

    def propose(self, x, step, walkers, noise):
        pairs = self._pairs.to(x.device)
        every = torch.ones(*x.shape[:-2], len(pairs), dtype=torch.bool, device=x.device)
        chosen, _ = _choose(every, step, walkers, noise)
        pair = pairs[chosen.to(torch.int8).argmax(-1)]  # (*batch, 2)
        order = torch.arange(x.shape[-2], device=x.device).expand(x.shape[:-1]).clone()
        order.scatter_(-1, pair, pair.flip(-1))
        return torch.take_along_dim(x, order[..., None], -2), 0.0

    @cached_property
    def _pairs(self) -> Tensor:
        numbers = self.target.system.numbers
        i, j = np.nonzero(np.triu(numbers[:, None] != numbers[None, :]))
        return torch.as_tensor(np.stack((i, j), -1))


@dataclass(frozen=True)
class TorsionRotation(Move):
    """Parts of a molecule turn about bonds by uniform angles, ``φ_k → φ_k + size (2u_k - 1)``.

    All rotors turn at once, each by its own angle. A rotation keeps volume, and rotations about
    different bonds of a molecule commute, so that the move is symmetric. Bond lengths and
    angles stay, and a barrier between two basins is not seen.

    Parameters
    ----------
    rotors : (K, 2) axes a→b, as in `Topology`
    moved : (K, N) bool, what turns with each
    size : largest angle in rad; π draws from the whole circle
    mean_free : the mean of the positions stays (isolated molecules)
    others : as of `Move`

    Raises
    ------
    ValueError : shapes that do not fit; an axis that it turns itself; rotations that do not
        commute, which those about the bonds of a molecule do; a periodic system
    """

    rotors: Tensor = None
    moved: Tensor = None
    size: float = math.pi
    mean_free: bool = False

    def __post_init__(self):
        super().__post_init__()
        rotors, moved = self._parts
        if rotors.ndim != 2 or rotors.shape[1:] != (2,) or moved.shape[:-1] != rotors.shape[:1]:
            raise ValueError(
                f"rotors {tuple(rotors.shape)} and moved {tuple(moved.shape)}: expected (K, 2) "
                "axes and (K, N) masks, such as those of a Topology"
            )
        if not 1 <= len(rotors) <= 32 or not 0 < self.size <= math.pi:
            raise ValueError(
                f"{len(rotors)} rotors and size={self.size!r}: expected 1 to 32, an angle in (0, π]"
            )
        if self.target.system is not None and self.target.system.periodic:
            raise ValueError("a part that turns may be cut by the periodic boundary: no rotation")
        turned = [set(mask.nonzero().flatten().tolist()) for mask in moved]
        axes = [set(axis.tolist()) for axis in rotors]
        for k, axis in enumerate(axes):
            if turned[k] & axis or len(axis) < 2 or not turned[k]:
                raise ValueError(f"rotor {k}: its two axis atoms must not turn, and others must")
        for k, m in combinations(range(len(axes)), 2):
            nested = _inside(k, m, turned, axes) or _inside(m, k, turned, axes)
            if not (nested or _apart(k, m, turned, axes)):
                raise ValueError(
                    f"rotors {k} and {m} do not commute: what one turns must be moved as a "
                    "whole, or not at all, by the other; take both from one Topology"
                )

    def propose(self, x, step, walkers, noise):
        rotors, moved = self._parts
        y = x
        for number, (axis, mask) in enumerate(zip(rotors, moved.to(x.device), strict=True)):
            like = x[..., 0, 0]
            u = noise.uniform(step, like, walkers=walkers, stream=("rotor", number))
            a, b = (y[..., atom, :] for atom in axis.tolist())
            turned = rotate_about(y, a, b, self.size * (2.0 * u - 1.0))
            y = torch.where(mask[:, None], turned, y)
        if self.mean_free:
            y = y + (x - y).mean(-2, keepdim=True)
        return y, 0.0

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(self.rotors), torch.as_tensor(self.moved, dtype=torch.bool)


@dataclass(frozen=True)
class VacancyHop(Move):
    """One atom jumps by a vector of the lattice into an empty place.

    A jump (i, v) is possible if no other atom is within ``clearance`` of ``x_i + v``; one of
    the n(x) possible ones is drawn uniformly. Its reverse (i, -v) must be possible from y,

        log q(x|y) - log q(y|x) = log n(x) - log n(y)      or -inf where it is not

    The jumping atom keeps its displacement from its site. ``clearance=0`` draws from all atoms
    and vectors, and leaves the choice to the energy.

    Parameters
    ----------
    vectors : (V, 3) in Å, such as those to the nearest sites; their negatives are added
    clearance : in Å, about half the distance of neighbours: vibrations rarely reach it, sites
        that are taken are not tried
    others : as of `Move`

    Raises
    ------
    ValueError : vectors that are not (V, 3), or zero; a clearance beyond half the cell's width
    """

    vectors: Tensor = None
    clearance: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        vectors = torch.as_tensor(self.vectors, dtype=torch.float64)
        if vectors.ndim != 2 or vectors.shape[-1] != 3 or not (vectors.abs().sum(-1) > 0).all():
            raise ValueError(
                f"vectors {tuple(vectors.shape)} must be (V, 3), the jumps of one atom in Å, none 0"
            )
        room = math.inf if self._lattice is None else float(self._lattice.widths.min()) / 2
        if not 0 <= self.clearance < room:
            raise ValueError(
                f"clearance={self.clearance!r} must not be negative and below half the cell, "
                f"{room:.3g} Å"
            )

    def propose(self, x, step, walkers, noise):
        possible = self._possible(x)
        chosen, count = _choose(possible.flatten(-2), step, walkers, noise)
        chosen = chosen.reshape(possible.shape)
        y = x + torch.einsum("...iv,va->...ia", chosen.to(x.dtype), self._jumps.to(x))
        back = self._possible(y)
        reverse = chosen.flip(-1)  # the jumps are ordered v…, …-v
        fine = (back & reverse).flatten(-2).any(-1)
        n_back = back.flatten(-2).sum(-1).double()
        return y, torch.where(fine, count.log() - n_back.log(), -torch.inf)

    def _possible(self, x: Tensor) -> Tensor:
        """(*batch, N, V): the place of the jump is free."""
        sites = x[..., :, None, :] + self._jumps.to(x)
        away = sites[..., None, :] - x[..., None, None, :, :]  # (*batch, N, V, N, 3)
        if self._lattice is not None:
            away = self._lattice.wrap(away)
        near = away.square().sum(-1) < self.clearance**2
        itself = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)[:, None, :]
        return ~(near & ~itself).any(-1)

    @cached_property
    def _jumps(self) -> Tensor:
        """(2V', 3) without repeats, number j the negative of number -1-j."""
        vectors = torch.as_tensor(self.vectors, dtype=torch.float64)
        half: list[Tensor] = []
        for v in vectors:
            if not any(torch.allclose(v, w) or torch.allclose(v, -w) for w in half):
                half.append(v)
        forward = torch.stack(half)
        return torch.cat((forward, -forward.flip(0)))

    @cached_property
    def _lattice(self) -> Lattice | None:
        system = self.target.system
        return None if system is None or not system.periodic else Lattice(system)


def _apart(k: int, m: int, turned, axes) -> bool:
    """Neither rotation moves what the other one turns, or turns about."""
    return not (turned[k] & (turned[m] | axes[m]) or turned[m] & axes[k])


def _inside(k: int, m: int, turned, axes) -> bool:
    """Rotation m carries axis and part of k along as a whole, and k leaves the axis of m."""
    return turned[k] | axes[k] <= turned[m] | axes[m] and not turned[k] & axes[m]


def _choose(
    possible: Tensor, step: int, walkers: Tensor | None, noise: Noise
) -> tuple[Tensor, Tensor]:
    """One of the possible (*batch, n), uniformly, as a mask; and their count (*batch) float64."""
    count = possible.sum(-1)
    u = noise.uniform(step, count.double(), walkers=walkers, stream="choose")
    rank = torch.minimum((u * count).ceil().long(), count)  # 1…count, for u in (0, 1]
    return possible & (possible.cumsum(-1) == rank[..., None]), count.double()
