"""Fields of the test cases: energies with known means, and wrong drifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..potentials.base import Potential
from ..state import Evaluation

__all__ = ["Banana", "BeadChain", "Quadratic", "Quartic", "Scaled", "WrongDrift"]


class Quadratic(Potential):
    """``U = ½ Σ_i x_iᵀ K x_i`` for each atom, K (3, 3) symmetric in eV/Å²."""

    def __init__(self, K):
        self.K = torch.as_tensor(K, dtype=torch.float64)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        forces = -x @ self.K.to(x)
        return Evaluation(-0.5 * (x * forces).sum((-2, -1)), forces)


class Quartic(Potential):
    """``U = ¼ c Σ_i |x_i|⁴``, c in eV/Å⁴: no step size is stable everywhere."""

    def __init__(self, c: float):
        self.c = c

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        square = x.square().sum(-1)
        return Evaluation(0.25 * self.c * square.square().sum(-1), -self.c * square[..., None] * x)


class Banana(Potential):
    """``U = x²/2 + (y - b(x² - 1))²/(2 w²) + z²/2`` for each atom (eV, Å).

    Curved by ``b`` and narrow by ``w``.
    """

    def __init__(self, *, b: float, w: float):
        self.b, self.w = b, w

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        u, z = x[..., 0], x[..., 2]
        across = (x[..., 1] - self.b * (u.square() - 1.0)) / self.w**2
        energy = 0.5 * (u.square() + (self.w * across).square() + z.square())
        along = 2.0 * self.b * u * across - u
        return Evaluation(energy.sum(-1), torch.stack((along, -across, -z), dim=-1))


class BeadChain(Potential):
    """Beads on a string: stiff bonds, bent next neighbours, repulsion of the others, a weak tether.

        U = 50 Σ (r_i,i+1 - 1)² + 10 Σ (r_i,i+2 - 1.6)² + 1.2 Σ_{j>i+2} (r^-12 - r^-6) + ¼ Σ |x_i|²

    in eV and Å: not convex, with stiff and soft directions that turn, as those of a molecule.
    ``count`` is that of the beads; `start` is a zigzag near the minimum.
    """

    def __init__(self, count: int):
        self.count = count
        self._pairs = torch.triu_indices(count, count, 3)

    def start(self) -> Tensor:
        """Positions (N, 3), float64."""
        place = torch.arange(self.count, dtype=torch.float64)
        x = torch.stack((0.8 * place, 0.6 * (place % 2), 0.1 * torch.sin(place)), -1)
        return x - x.mean(0)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        forces, energy = -0.5 * x, 0.25 * x.square().sum((-2, -1))
        for gap, k, length in ((1, 100.0, 1.0), (2, 20.0, 1.6)):
            apart = x[..., gap:, :] - x[..., :-gap, :]
            r = apart.square().sum(-1, keepdim=True).sqrt()
            pull = k * (1.0 - length / r) * apart
            energy = energy + 0.5 * k * (r - length).square().sum((-2, -1))
            forces = forces + nn.functional.pad(pull, (0, 0, 0, gap))
            forces = forces - nn.functional.pad(pull, (0, 0, gap, 0))
        i, j = self._pairs.to(x.device)
        apart = x.index_select(-2, j) - x.index_select(-2, i)
        c6 = apart.square().sum(-1, keepdim=True) ** -3
        push = 1.2 * (12.0 * c6 * c6 - 6.0 * c6) * c6 ** (1.0 / 3.0) * apart
        energy = energy + 1.2 * (c6 * c6 - c6).sum((-2, -1))
        return Evaluation(energy, forces.index_add(-2, j, push).index_add(-2, i, -push))


class Scaled(Potential):
    """``factor · U`` of ``potential``."""

    def __init__(self, potential: Potential, factor: float):
        self.potential, self.factor, self.system = potential, factor, potential.system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        energy, forces, _ = self.potential(x)
        return Evaluation(self.factor * energy, self.factor * forces)


class WrongDrift(Potential):
    """``F = scale · F_target + spin × x_i + tilt`` for each atom; no gradient, so no energy.

    ``target`` gives F_target, ``spin`` (3,) is in eV/Å² and ``tilt`` (3,) in eV/Å.
    """

    conservative = False

    def __init__(self, target: Potential, *, scale: float = 0.8, spin=(0.0,) * 3, tilt=(0.0,) * 3):
        self.target, self.scale, self.system = target, scale, target.system
        self.spin = torch.tensor(spin, dtype=torch.float64)
        self.tilt = torch.tensor(tilt, dtype=torch.float64)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        turn = torch.linalg.cross(self.spin.to(x).expand_as(x), x)
        return Evaluation(None, self.scale * self.target(x).forces + turn + self.tilt.to(x))
