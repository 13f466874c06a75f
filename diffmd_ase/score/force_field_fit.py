"""The parameters of a force field, fitted to snapshots by score matching, in closed form.

    E_prior(x) = Σ_f θ_f f(x)

with the terms of `force_field` as features f. Score matching of an energy that is linear in its
parameters is a linear least-squares problem (Hyvärinen, JMLR 6, 695 (2005), section 3): with
J = ∂f/∂x at x ± σε,

    G θ = b        G = ⟨J₊J₊ᵀ + J₋J₋ᵀ⟩        b = ⟨(J₊ - J₋) ε⟩/σ

the minimum of the antithetic denoising loss, with covariance V = G⁻¹ΣG⁻¹/M, Σ the
covariance of one frame's ``JJᵀθ``-and-``b`` terms. Where snapshots carry forces F, b may be the
mean with what they say, ``[b - w⟨(J₊ + J₋) F/kT⟩]/(1 + w)``. Score matching hardly sees the
relative weight of separated modes; moves between them do, and their likelihood is convex in θ
as well:

    θ = argmin ½(θ - θ_SM)ᵀ V⁻¹ (θ - θ_SM) + Σ softplus(E(x) - E(y) - log q(y)/q(x))

Nothing is assumed but the form: all parameters, charges included, come from the snapshots.
Atoms that the molecule's symmetry exchanges share their parameters. What the form cannot say
is left to the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .force_field import COORDINATES, MechanicsPrior, parameter_numbers, term_tables
from .snapshots import Snapshots
from .torsion_moves import TorsionProposals

__all__ = ["fit_prior"]

log = logging.getLogger(__name__)


def fit_prior(
    snapshots: Snapshots,
    *,
    sigma: float,
    frames: int = 50_000,
    moves: int = 4,
    seed: int = 0,
    force_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Tables and parameters θ of a `MechanicsPrior`, from snapshots.

    The ridge that keeps undetermined combinations at zero is chosen on held-out frames.

    Parameters
    ----------
    snapshots : of one molecule, that is not periodic
    sigma : noise in Å
    frames : at most
    moves : between modes, from each snapshot; 0 leaves θ to score matching
    seed : of the noise, the moves and the held-out frames
    force_weight : w of forces that the snapshots carry
    """
    topology = snapshots.topology
    positions = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    labels = None
    if force_weight:
        labels = torch.as_tensor(snapshots.reduced_forces, dtype=torch.float32)
    statistics = term_tables(topology, positions)
    prior = MechanicsPrior(statistics)
    orbits = parameter_numbers(prior, topology)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(positions), generator=generator)[:frames]
    held_out = max(1, len(order) // 5)
    every = _Frames(positions, labels, force_weight)
    gram_out, drive_out = _moments(prior, orbits, every.take(order[:held_out]), sigma, generator)
    gram, drive = _moments(prior, orbits, every.take(order[held_out:]), sigma, generator)
    # features in their own units: the ridge must not see Å or radians
    unit = gram.diagonal().clamp_min(1e-20).rsqrt()
    gram, drive, gram_out, drive_out = (
        unit[:, None] * gram * unit,
        unit * drive,
        unit[:, None] * gram_out * unit,
        unit * drive_out,
    )
    candidates = []
    for ridge in torch.logspace(-8, -1, 22, dtype=torch.float64):
        theta = _solve(gram, drive, float(ridge))
        loss = 0.5 * theta @ gram_out @ theta - theta @ drive_out
        candidates.append((float(loss), float(ridge)))
    _, ridge = min(candidates)
    share = held_out / len(order)
    gram, drive = (1 - share) * gram + share * gram_out, (1 - share) * drive + share * drive_out
    theta = _solve(gram, drive, ridge)
    if moves and len(topology.rotors):
        x = positions[order]
        noise = _gradient_noise(prior, orbits, unit, theta, every.take(order), sigma, generator)
        precision = _precision(gram, ridge, noise, len(order))
        theta = _weigh_modes(prior, orbits, unit, theta, precision, x, topology, generator, moves)
    unit = unit[orbits].float()
    return {**statistics, "unit": unit, "theta": theta[orbits].float()}


class _Frames(NamedTuple):
    """Positions (M, N, 3), F/kT likewise or None, and the weight of these."""

    positions: Tensor
    labels: Tensor | None
    weight: float

    def take(self, index) -> _Frames:
        labels = None if self.labels is None else self.labels[index]
        return self._replace(positions=self.positions[index], labels=labels)

    def planes(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Positions (B, 3, N) and F/kT (B, 3N), some frames at a time."""
        for first in range(0, len(self.positions), size):
            part = self.take(slice(first, first + size))
            turned = [None if p is None else p.transpose(-1, -2) for p in part[:2]]
            labels = None if turned[1] is None else turned[1].flatten(1)
            yield turned[0], labels


def _solve(gram: Tensor, drive: Tensor, ridge: float) -> Tensor:
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), drive)


def _precision(gram: Tensor, ridge: float, noise: Tensor, frames: int) -> Tensor:
    """V⁻¹ = M (G + ridge) Σ⁻¹ (G + ridge), with Σ kept invertible."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    regular = gram + ridge * eye
    floor = 1e-6 * noise.diagonal().mean()
    return frames * regular @ torch.linalg.solve(noise + floor * eye, regular)


def _gradient_noise(prior, orbits, unit, theta, frames: _Frames, sigma, generator) -> Tensor:
    """Σ: covariance over frames of the gradient ``(J₊J₊ᵀ + J₋J₋ᵀ)θ - (J₊ - J₋)ε/σ``."""
    size = len(unit)
    total = torch.zeros(size, size, dtype=torch.float64)
    mean = torch.zeros(size, dtype=torch.float64)
    scale, weights = unit.float()[:, None], (unit * theta).float()
    some = frames.take(slice(None, None, max(1, len(frames.positions) // 10_000)))
    share = 1 / (1 + frames.weight)
    for jacobians, epsilon, labels in _probed(prior, orbits, size, some, sigma, generator):
        gradient = epsilon.new_zeros(size, len(epsilon))
        for sign, j in zip((1, -1), jacobians, strict=True):
            force = torch.einsum("fbd,f->bd", j, weights)
            drive = sign * share * epsilon / sigma
            if labels is not None:
                drive = drive - (1 - share) * labels
            gradient += torch.einsum("fbd,bd->fb", j, force - drive)
        gradient = (scale * gradient).double()
        total += gradient @ gradient.T
        mean += gradient.sum(1)
    count = len(some.positions)
    mean = mean / count
    return total / count - torch.outer(mean, mean)


def _weigh_modes(
    prior, orbits, unit, start, precision, positions, topology, generator, moves: int
) -> Tensor:
    """Newton's method for the convex objective with moves between modes."""
    proposals = TorsionProposals(topology, positions)
    changes, offsets = [], []
    for x in positions.repeat(moves, 1, 1).split(4096):
        y, log_ratio = proposals.propose(x, generator)
        parts = [_tied_features(prior, orbits, len(unit), p.transpose(-1, -2)) for p in (x, y)]
        (fx, wall_x), (fy, wall_y) = parts
        changes.append((fx - fy) * unit.float())
        offsets.append(wall_x - wall_y - log_ratio.float())
    change, offset = torch.cat(changes), torch.cat(offsets)
    # a snapshot in several moves is one snapshot
    share = 1.0 / moves

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        logit = change @ theta.float() + offset
        away = theta - start
        value = 0.5 * away @ precision @ away + share * softplus(logit).double().sum()
        return value, logit

    theta = start
    value, logit = objective(theta)
    for _ in range(30):
        p = torch.sigmoid(logit)
        gradient = precision @ (theta - start) + share * (change.T @ p).double()
        curved = change * (share * p * (1 - p)).sqrt()[:, None]
        step = torch.linalg.solve(precision + (curved.T @ curved).double(), gradient)
        size = 1.0
        while size > 1e-6:
            trial, trial_logit = objective(theta - size * step)
            if trial <= value:
                break
            size /= 2
        decrease = value - trial
        theta, value, logit = theta - size * step, trial, trial_logit
        log.info("mode weights: objective %.6g, step %.3g", float(value), size)
        if decrease < 1e-3:
            break
    return theta


def _tied_features(prior, orbits, size: int, planes: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features, wall = prior.terms(planes)
    return planes.new_zeros(len(planes), size).index_add(1, orbits, features), wall


def _moments(prior, orbits, frames: _Frames, sigma, generator) -> tuple[Tensor, Tensor]:
    """G and b over some frames, accumulated in float64."""
    size = int(orbits.max()) + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    drive = torch.zeros(size, dtype=torch.float64)
    share = 1 / (1 + frames.weight)
    for (plus, minus), epsilon, labels in _probed(prior, orbits, size, frames, sigma, generator):
        change = share / sigma * (plus - minus) * epsilon
        if labels is not None:
            change = change - (1 - share) * (plus + minus) * labels
        drive += change.sum((1, 2), dtype=torch.float64)
        for j in (plus, minus):
            flat = j.flatten(1)
            gram += (flat @ flat.T).double()
    return gram / len(frames.positions), drive / len(frames.positions)


def _probed(
    prior, orbits, size: int, frames: _Frames, sigma, generator
) -> Iterator[tuple[list[Tensor], Tensor, Tensor | None]]:
    """J₊ and J₋, ε (B, 3N) and F/kT, some frames at a time."""
    for planes, labels in frames.planes(64):
        epsilon = torch.randn(planes.shape, generator=generator, dtype=planes.dtype)
        sides = (planes + sign * sigma * epsilon for sign in (1, -1))
        yield [_jacobian(prior, side, orbits, size) for side in sides], epsilon.flatten(1), labels


def _jacobian(prior: MechanicsPrior, planes: Tensor, orbits: Tensor, size: int) -> Tensor:
    """∂f/∂x (size, B, 3N): f'(q) times the derivative of each coordinate (Wilson's B)."""
    rows = []
    for kind, coordinate in COORDINATES.items():
        vectors = [v.requires_grad_() for v in prior.vectors(kind, planes)]
        with torch.enable_grad():
            q = coordinate(*vectors)
            # each coordinate depends on its own vectors only: one sum gives all derivatives
            slopes = torch.autograd.grad(q.sum(), vectors)
            q = q.detach().requires_grad_()
            functions = [
                torch.autograd.grad(f.sum(), q, retain_graph=True)[0]
                for f in prior.features(kind, q)
            ]
        matrices = [prior.arms[:, columns] for columns in prior.columns[kind]]
        terms = [s[:, :, None] * m[None, None] for s, m in zip(slopes, matrices, strict=True)]
        wilson = sum(terms[1:], terms[0])  # (B, 3, N, K)
        wilson = wilson.permute(3, 0, 1, 2).flatten(2)
        rows += [f.T[:, :, None] * wilson for f in functions]
    every = torch.cat(rows)
    return every.new_zeros(size, *every.shape[1:]).index_add(0, orbits, every)
