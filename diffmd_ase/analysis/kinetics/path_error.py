"""Path errors of plain Euler–Maruyama steps: the score's, and the step's own.

A chain with drift score ŝ and metric M (h for one step size), and the diffusion with the true
score s, over one step from x_n:

    score            ¼ (ŝ(x_n) - s(x_n))ᵀ M (ŝ(x_n) - s(x_n))
    discretisation   ∫₀¹ ¼ (s(x_u) - s(x_n))ᵀ M (s(x_u) - s(x_n)) du
    together         ∫₀¹ ¼ (ŝ(x_n) - s(x_u))ᵀ M (ŝ(x_n) - s(x_u)) du
    x_u = x_n + u M ŝ(x_n) + sqrt(2 u M) ζ

in nats. Summed over steps and averaged over the chain the first is exactly the KL from the
reference's own chain at the same step, and the last that from the reference's diffusion (Girsanov;
Diamond & Lill, arXiv 2511.17741); ``together ≤ (sqrt(score) + sqrt(discretisation))²``. The
integrals are averages over one random time u of each step, with density 2u: unbiased, for one more
evaluation of the reference. With a Lipschitz constant L of M^½ s M^-½ in the metric,

    discretisation ≤ L² (d/4 + ŝᵀ M ŝ/12)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...noise import Noise
from ...potentials.base import Potential, evaluate
from ...potentials.curvature import measured_stiffness
from ...sampling.euler import EulerMaruyama
from ..statistics import Estimate, mean_estimate

__all__ = [
    "ErrorsByStep",
    "PathErrors",
    "StepErrors",
    "clock",
    "errors_by_step",
    "lipschitz",
    "path_errors",
    "step_errors",
]


@dataclass(frozen=True, eq=False)
class StepErrors:
    """Of one step of each walker, or of steps (T, B), in nats; see `step_errors`."""

    score: Tensor  # (*batch)
    discretisation: Tensor  # (*batch), unbiased
    together: Tensor  # (*batch), unbiased; may be negative for one step
    drift: Tensor  # (*batch) ŝᵀ M ŝ


@dataclass(frozen=True)
class PathErrors:
    """Averages of one step, in nats; over n steps they add up."""

    score: Estimate  # of the model, KL from the reference's chain at the same step
    discretisation: Estimate  # of the step, along the model's chain
    together: Estimate  # KL from the reference's diffusion
    drift: Estimate  # ŝᵀ M ŝ
    h: float  # step on the clock, D·Δt in Å²
    freedom: int  # d, coordinates that move
    stiffness: float  # h λ, the Lipschitz constant on the visited support (see `lipschitz`)

    @property
    def bound(self) -> Estimate:
        """``(hλ)² (d/4 + ⟨ŝᵀMŝ⟩/12)`` ≥ discretisation, in nats per step."""
        square = self.stiffness**2
        value = square * (self.freedom / 4 + self.drift.value / 12)
        return Estimate(value, square * self.drift.error / 12, self.drift.n_effective)

    @property
    def rate(self) -> Estimate:
        """r = score/h in nats per Å² of D·t, ¼E|ŝ - s|² whatever the step."""
        return Estimate(self.score.value / self.h, self.score.error / self.h, self.score[2])


@dataclass(frozen=True)
class ErrorsByStep:
    """Errors at several steps, in nats per Å² of D·t."""

    h: list[float]  # Å²
    score: list[Estimate]  # the same at each step
    discretisation: list[Estimate]  # of the step alone

    def to_dict(self) -> dict:
        """Numbers by name, as JSON holds them."""
        rows = {"score": self.score, "discretisation": self.discretisation}
        return {"h_A2": self.h} | {n: [e.to_dict() for e in row] for n, row in rows.items()}


def step_errors(
    kernel: EulerMaruyama,
    x: Tensor,
    forces: Tensor,
    reference: Potential,
    *,
    step: int,
    walkers: Tensor | None,
    noise: Noise,
) -> StepErrors:
    """The errors of the step that ``kernel`` makes from x (B, N, 3) or (N, 3).

    Parameters
    ----------
    forces : F of the kernel's drift at x, eV/Å
    reference : gives the true forces; evaluated at x and once within the step
    step, walkers : address the noise of the look within the step, apart from that of the chain
    """
    true = evaluate(reference.terms, x).forces
    score = kernel.divergence(forces, true)
    u = noise.uniform(step, like=score, walkers=walkers, stream="within step").sqrt()
    zero = torch.zeros_like(x)
    kick = kernel.propose(zero, zero, step, walkers, noise, stream="probe")
    part = u[..., None, None].to(x)
    inside = x + part * (kernel.mean(x, forces) - x) + part.sqrt() * kick
    moved = evaluate(reference.terms, inside).forces
    discretisation = kernel.divergence(moved, true) / (2 * u)
    together = score + (kernel.divergence(forces, moved) - score) / (2 * u)
    drift = 4 * kernel.divergence(forces, torch.zeros_like(forces))
    return StepErrors(score, discretisation, together, drift)


def path_errors(
    kernel: EulerMaruyama, errors: StepErrors, *, n_atoms: int, stiffness: float
) -> PathErrors:
    """Averages of ``errors`` (T, B) of the steps of a ``kernel``, time first.

    Parameters
    ----------
    n_atoms : of a walker
    stiffness : h λ, from `lipschitz`
    """
    series = (errors.score, errors.discretisation, errors.together, errors.drift)
    estimates = [mean_estimate(s.detach().cpu().double().numpy()) for s in series]
    score, discretisation, together, drift = estimates
    freedom = kernel.freedom(n_atoms)
    return PathErrors(score, discretisation, together, drift, clock(kernel), freedom, stiffness)


def lipschitz(kernel: EulerMaruyama, reference: Potential, x: Tensor) -> float:
    """h λ of the ``reference`` in the metric of a ``kernel``, the largest of structures x.

    λ is the largest eigenvalue in size of -M∇s by power iteration on central differences
    (`potentials.curvature.measured_stiffness`): a Lipschitz constant on the visited support,
    and not beyond. 0 where the reference's forces do not change.
    """
    try:
        kT = float(torch.as_tensor(kernel.kT).reshape(-1)[0])
        return measured_stiffness(reference, x, kT, moving=kernel.metric)[0]
    except ValueError:  # free particles
        return 0.0


def clock(kernel: EulerMaruyama) -> float:
    """h of a step in Å²; of atoms with their own, the largest, as the files of a run say it."""
    return float(torch.as_tensor(kernel.h, dtype=torch.float64).max())


def errors_by_step(
    kernel: EulerMaruyama,
    x: Tensor,
    reference: Potential,
    *,
    noise: Noise,
    factors: Sequence[float] = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0),
) -> ErrorsByStep:
    """Score and discretisation error per Å² of D·t for several steps, at the same structures.

    Parameters
    ----------
    x : (B, N, 3) in Å, of the chain of ``kernel``; where the chain of another step is, elsewhere by
        the bias of its step, is not asked
    reference : whose forces are the true ones
    factors : times the step of the kernel
    """
    forces = evaluate(kernel.potential.terms, x).forces
    rows: tuple[list[float], list[Estimate], list[Estimate]] = ([], [], [])
    for number, factor in enumerate(factors):
        scaled = kernel.scaled(factor)
        found = step_errors(scaled, x, forces, reference, step=number, walkers=None, noise=noise)
        h = clock(scaled)
        rows[0].append(h)
        for row, values in zip(rows[1:], (found.score, found.discretisation), strict=True):
            row.append(mean_estimate(values.detach().cpu().numpy()[None] / h))
    return ErrorsByStep(*rows)
