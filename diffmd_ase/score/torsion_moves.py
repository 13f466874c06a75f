"""Moves between the modes of a molecule: rotations about its bonds, with known densities."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..geometry import dihedrals, rotate_about

__all__ = ["Moves", "TorsionProposals", "free_rotors"]


class Moves:
    """Rotations about the rotatable bonds of one molecule, those of its ``topology``."""

    def __init__(self, topology, device="cpu"):
        self.axes = torch.as_tensor(topology.rotors, device=device)
        self.moved = torch.as_tensor(topology.moved, device=device)

    def __len__(self) -> int:
        return len(self.axes)

    def choose(self, n: int, generator: torch.Generator) -> Tensor:
        """Random rotors (n,)."""
        return torch.randint(len(self), (n,), generator=generator).to(self.axes.device)

    def rotate(self, x: Tensor, rotor: Tensor, angle: Tensor) -> Tensor:
        """x (B, N, 3) after turning by ``angle`` (B,) about ``rotor`` (B,)."""
        turned = rotate_about(x, *self._ends(x, rotor), angle)
        return torch.where(self.moved[rotor][:, :, None], turned, x)

    def angular_score(self, x: Tensor, s: Tensor, rotor: Tensor) -> Tensor:
        """``Σ_moved s_i·(u × (x_i - a))`` (B,), the score along a rotor."""
        a, b = self._ends(x, rotor)
        u = torch.nn.functional.normalize(b - a, dim=-1)
        torque = (torch.linalg.cross(u[:, None], x - a[:, None]) * s).sum(-1)
        return (torque * self.moved[rotor]).sum(-1)

    def scramble(self, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """x after uniform rotations about one to ``most`` random bonds."""
        n = len(x)
        count = torch.randint(1, most + 1, (n,), generator=generator)
        for k in range(most):
            angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=x.dtype) * (count > k)
            x = self.rotate(x, self.choose(n, generator), angle.to(x.device))
        return x

    def _ends(self, x: Tensor, rotor: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.arange(len(x), device=x.device)
        return x[row, self.axes[rotor, 0]], x[row, self.axes[rotor, 1]]


def free_rotors(topology) -> list[int]:
    """Numbers of the rotors whose modes are not all one by symmetry, as those of a methyl are.

    An end of those bears three like atoms or more, which `Topology.permutations` turn.
    """
    orders, found = topology.permutations, []
    for number, (a, b) in enumerate(topology.rotors.tolist()):
        kept = orders[(orders[:, a] == a) & (orders[:, b] == b)]
        if not any(
            _turned(kept, _others(topology.bonds, end, axis)) for end, axis in ((a, b), (b, a))
        ):
            found.append(number)
    return found


def _others(bonds: np.ndarray, atom: int, neighbour: int) -> list[int]:
    """What an ``atom`` is bound to besides a ``neighbour``."""
    bound = bonds[(bonds == atom).any(1)].ravel()
    return [int(k) for k in bound if k not in (atom, neighbour)]


def _turned(orders: np.ndarray, ends: list[int]) -> bool:
    """Whether one of the ``orders`` puts each of three ``ends`` or more in the place of another."""
    images = orders[:, ends]
    among = np.isin(images, ends).all(1)
    return len(ends) > 2 and bool((among & (images != ends).all(1)).any())


class TorsionProposals:
    """Moves that draw two torsions anew from the data's own statistics.

    For each pair of rotors the density q is a smoothed histogram of their torsions in the
    data, constant in a bin, with a share of uniform draws. A quarter of the moves is about any two
    rotors, the others about two that have several modes: a methyl's are one by symmetry
    (`free_rotors`). A proposal y of x replaces both torsions; the logit that x and not y is the
    snapshot is

        E(y) - E(x) + log q(y) - log q(x)

    (conditional noise-contrastive estimation, Ceylan & Gutmann, ICML 2018). Nearly every
    proposal is a plausible structure, often in another basin: it weighs modes.

    Parameters
    ----------
    topology : gives the rotors and their torsions
    positions : (M, N, 3) in Å of the data
    """

    BINS, UNIFORM = 36, 0.1
    ANY = 0.25  # of the moves

    def __init__(self, topology, positions: Tensor):
        self.moves, self.quads = Moves(topology), topology.torsions
        n = len(self.moves)
        self.groups = torch.tensor(list(combinations(range(n), min(2, n))))
        index = self._bins(self.angles(positions))  # (M, K)
        several = torch.zeros(n, dtype=torch.bool)
        several[[k for k in free_rotors(topology) if self._modes(index[:, k]) > 1]] = True
        most = several[self.groups].sum(1)  # two, or as many as there are
        chosen = (most == most.max()).double()
        self.often = self.ANY / len(chosen) + (1 - self.ANY) * chosen / chosen.sum()
        d = self.groups.shape[1]
        shape = (self.BINS,) * d
        tables = []
        for group in self.groups.tolist():
            flat = sum(index[:, k] * self.BINS**i for i, k in enumerate(group))
            counts = torch.bincount(flat, minlength=self.BINS**d).reshape(shape).numpy()
            smooth = gaussian_filter(counts.astype(float), 1.0, mode="wrap")
            share = torch.as_tensor(smooth / smooth.sum()).flatten()
            tables.append((1 - self.UNIFORM) * share + self.UNIFORM / share.numel())
        self.density = torch.stack(tables)  # (groups, bins), of a bin
        probe = positions[:1]
        turned = self.moves.rotate(
            probe.expand(n, -1, -1), torch.arange(n), probe.new_full((n,), 0.1)
        )
        change = (self.angles(turned) - self.angles(probe)).diagonal()
        self.sign = torch.sign(torch.sin(change))  # of a torsion when its rotor turns by +

    def angles(self, x: Tensor) -> Tensor:
        """Torsions (B, K) of the rotors in (-π, π]."""
        return dihedrals(x, self.quads)

    def propose(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """y (B, N, 3) and ``log q(y) - log q(x)`` (B,)."""
        n = len(x)
        which = torch.multinomial(self.often, n, True, generator=generator)
        angles, drawn = self.angles(x), torch.empty_like(which)
        for group, density in enumerate(self.density):  # a search in each, not a row for each x
            mine = which == group
            count = int(mine.sum())
            if count:
                drawn[mine] = torch.multinomial(density, count, True, generator=generator)
        old, y, rest = torch.zeros_like(drawn), x, drawn
        for i, rotor in enumerate(self.groups[which].T):
            here = angles.gather(1, rotor[:, None])[:, 0]
            old = old + self._bins(here) * self.BINS**i
            place = (rest % self.BINS) + torch.rand(n, generator=generator, dtype=x.dtype)
            rest = rest // self.BINS
            new = place * (2 * math.pi / self.BINS) - math.pi
            y = self.moves.rotate(y, rotor, (self.sign[rotor] * (new - here)).to(x))
        ratio = (self.density[which, drawn] / self.density[which, old]).log()
        return y, ratio

    def _modes(self, index: Tensor) -> int:
        """Maxima of the histogram of one torsion, of three snapshots or more."""
        counts = torch.bincount(index, minlength=self.BINS).double().numpy()
        smooth = gaussian_filter(counts, 1.0, mode="wrap")
        above = (smooth > np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1))
        return int((above & (smooth >= 3)).sum())

    def _bins(self, angles: Tensor) -> Tensor:
        index = ((angles + math.pi) * (self.BINS / (2 * math.pi))).long()
        return index.clamp(0, self.BINS - 1)
