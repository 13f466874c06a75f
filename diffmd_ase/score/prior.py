"""A molecular-mechanics prior fitted to snapshots by score matching, in closed form.

    E_prior(x) = Σ_f θ_f f(x)

with the terms of classical force fields as features f: bond lengths and angles to second
order, torsions to fourth order, out-of-plane angles, and 1/r, 1/r⁶, 1/r¹² of every pair three
or more bonds apart. Score matching of an energy that is linear in its parameters is a linear
least-squares problem (Hyvärinen, JMLR 6, 695 (2005), section 3): with J = ∂f/∂x at x ± σε,

    G θ = b        G = ⟨J₊J₊ᵀ + J₋J₋ᵀ⟩        b = ⟨(J₊ - J₋) ε⟩/σ

the minimum of the antithetic denoising loss, with covariance V = G⁻¹ΣG⁻¹/M, Σ the
covariance of one frame's ``JJᵀθ``-and-``b`` terms. Score matching hardly sees the relative
weight of separated modes; moves between them do, and their likelihood is convex in θ as well:

    θ = argmin ½(θ - θ_SM)ᵀ V⁻¹ (θ - θ_SM) + Σ softplus(E(x) - E(y) - log q(y)/q(x))

Nothing is assumed but the form: all parameters, charges included, come from the snapshots.
Atoms that the molecule's symmetry exchanges share their parameters. What the form cannot say
is left to the network.
"""

from __future__ import annotations

import logging
from itertools import combinations, permutations

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .diffusion import TorsionProposals
from .topology import Topology, signed_volumes

__all__ = ["MechanicsPrior", "fit_prior"]

log = logging.getLogger(__name__)

_WALL = 0.05  # Å: width of the wall, which begins at
_CLOSE = 0.85  # of the shortest distance of a pair, or of one that symmetry exchanges with it
_HAND = 0.1  # width of the wall against the other hand, of the smallest volume in the data
HARMONICS = (1, 2, 3, 4)  # of torsions


class MechanicsPrior(nn.Module):
    """``E = f(x)·θ`` in kT for positions as planes (B, 3, N).

    Well below the shortest distance of a pair in the data its features stay constant and a
    harmonic wall takes over: r⁻¹² is never extrapolated. The terms are blind to mirror images;
    a wall where the signed volume of a centre leaves the range of the data keeps the hand.
    """

    def __init__(self, statistics: dict[str, Tensor]):
        super().__init__()
        for name, value in statistics.items():
            self.register_buffer(name, value)
        n = int(self.n_atoms)
        for name, ends in self.arms().items():
            matrix = torch.cat([differences(n, *pair) for pair in ends], dim=1)
            self.register_buffer(f"{name}_arms", matrix, persistent=False)

    def arms(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """For each kind of coordinate the difference vectors it is a function of."""
        a, c, b = self.angles.T
        return {
            "bonds": [tuple(self.bonds.T)],
            "angles": [(c, a), (c, b)],
            "torsions": [(self.torsions[:, k], self.torsions[:, k + 1]) for k in range(3)],
            "impropers": [(self.impropers[:, k], self.impropers[:, k + 1]) for k in range(3)],
            "free": [tuple(self.free.T)],
            "centres": [(self.centres[:, 0], self.centres[:, k]) for k in (1, 2, 3)],
        }

    def forward(self, planes: Tensor) -> Tensor:
        """Energy (B,) in kT."""
        features, wall = self.terms(planes)
        return (features * self.unit) @ self.theta + wall

    def terms(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """All features (B, F), and the energy of the walls (B,)."""
        q = {kind: COORDINATES[kind](*self.vectors(kind, planes)) for kind in COORDINATES}
        excess = torch.relu(self.shortest - q["free"])
        wall = 0.5 * (excess / _WALL).square().sum(-1)
        if len(self.centres):
            volume = _volume(*(planes @ self.centres_arms).chunk(3, dim=-1))
            excess = torch.relu(1 - volume / self.least_volume)
            wall = wall + 0.5 * (excess / _HAND).square().sum(-1)
        return torch.cat([f for kind in q for f in self.features(kind, q[kind])], dim=-1), wall

    def vectors(self, kind: str, planes: Tensor) -> list[Tensor]:
        """The difference vectors (B, 3, K) of a kind of coordinate."""
        matrix = getattr(self, f"{kind}_arms")
        return list((planes @ matrix).chunk(len(ARMS[kind]), dim=-1))

    def features(self, kind: str, q: Tensor) -> list[Tensor]:
        """Functions (B, K) of the coordinates q (B, K) of one kind."""
        if kind == "bonds":
            u = q - self.bond_mean
            return [u, u * u]
        if kind == "angles":
            u = q - self.angle_mean
            return [u, u * u]
        if kind == "impropers":
            return [torch.cos(2 * q)]
        if kind == "torsions":
            return [torch.cos(n * q) for n in HARMONICS]
        inverse = self.shortest / torch.maximum(q, self.shortest)
        inverse6 = inverse**6
        return [inverse, inverse6, inverse6 * inverse6]


def _length(a: Tensor) -> Tensor:
    return a.square().sum(-2).sqrt()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    # the square keeps the derivative finite for three atoms in line
    sine = (torch.linalg.cross(a, b, dim=-2).square().sum(-2) + 1e-12).sqrt()
    return torch.atan2(sine, (a * b).sum(-2))


def _dihedral(b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    n1, n2 = torch.linalg.cross(b1, b2, dim=-2), torch.linalg.cross(b2, b3, dim=-2)
    return torch.atan2((b1 * n2).sum(-2) * _length(b2), (n1 * n2).sum(-2))


def _volume(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a * torch.linalg.cross(b, c, dim=-2)).sum(-2)


COORDINATES = {
    "bonds": _length,
    "angles": _angle,
    "torsions": _dihedral,
    "impropers": _dihedral,
    "free": _length,
}
ARMS = {
    "bonds": (0,),
    "angles": (0, 1),
    "torsions": (0, 1, 2),
    "impropers": (0, 1, 2),
    "free": (0,),
}


def differences(n_atoms: int, tail: Tensor, head: Tensor) -> Tensor:
    """(N, P) matrix D with ``planes @ D`` = position of head - position of tail.

    Gathers are slow to differentiate; products are not."""
    column = torch.arange(len(tail))
    matrix = torch.zeros(n_atoms, len(tail), dtype=torch.float32)
    matrix[tail, column], matrix[head, column] = -1.0, 1.0
    return matrix


def fit_prior(snapshots, *, sigma: float, frames: int = 50_000, seed: int = 0) -> dict[str, Tensor]:
    """Tables and parameters θ of a `MechanicsPrior`, from snapshots.

    The ridge that keeps undetermined combinations at zero is chosen on held-out frames.
    """
    topology = snapshots.topology
    positions = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    statistics = _tables(topology, positions)
    prior = MechanicsPrior(statistics)
    orbits = _orbits(prior, topology)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(positions), generator=generator)[:frames]
    held_out = max(1, len(order) // 5)
    gram_out, drive_out = _moments(prior, orbits, positions[order[:held_out]], sigma, generator)
    gram, drive = _moments(prior, orbits, positions[order[held_out:]], sigma, generator)
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
    if len(topology.rotors):
        x = positions[order]
        noise = _gradient_noise(prior, orbits, unit, theta, x, sigma, generator)
        precision = _precision(gram, ridge, noise, len(order))
        theta = _weigh_modes(prior, orbits, unit, theta, precision, x, topology, generator)
    unit = unit[orbits].float()
    return {**statistics, "unit": unit, "theta": theta[orbits].float()}


def _solve(gram: Tensor, drive: Tensor, ridge: float) -> Tensor:
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), drive)


def _precision(gram: Tensor, ridge: float, noise: Tensor, frames: int) -> Tensor:
    """V⁻¹ = M (G + ridge) Σ⁻¹ (G + ridge), with Σ kept invertible."""
    eye = torch.eye(len(gram), dtype=gram.dtype)
    regular = gram + ridge * eye
    floor = 1e-6 * noise.diagonal().mean()
    return frames * regular @ torch.linalg.solve(noise + floor * eye, regular)


def _gradient_noise(prior, orbits, unit, theta, positions, sigma, generator) -> Tensor:
    """Σ: covariance over frames of the gradient ``(J₊J₊ᵀ + J₋J₋ᵀ)θ - (J₊ - J₋)ε/σ``."""
    size = len(unit)
    total = torch.zeros(size, size, dtype=torch.float64)
    mean = torch.zeros(size, dtype=torch.float64)
    scale, weights = unit.float()[:, None], (unit * theta).float()
    for x in positions[:: max(1, len(positions) // 10_000)].split(64):
        planes = x.transpose(-1, -2)
        epsilon = torch.randn(planes.shape, generator=generator)
        gradient = torch.zeros(size, len(x))
        for sign in (1, -1):
            j = _jacobian(prior, planes + sign * sigma * epsilon, orbits, size)
            force = torch.einsum("fbd,f->bd", j, weights)
            gradient += torch.einsum("fbd,bd->fb", j, force - sign * epsilon.flatten(1) / sigma)
        gradient = (scale * gradient).double()
        total += gradient @ gradient.T
        mean += gradient.sum(1)
    count = len(positions[:: max(1, len(positions) // 10_000)])
    mean = mean / count
    return total / count - torch.outer(mean, mean)


def _weigh_modes(
    prior, orbits, unit, start, precision, positions, topology, generator, *, moves: int = 4
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


def _tables(topology: Topology, positions: Tensor) -> dict[str, Tensor]:
    """Which atoms make which coordinates, and their ranges in the data."""
    n = positions.shape[1]
    graph = nx.Graph(topology.bonds.tolist())
    graph.add_nodes_from(range(n))
    near = dict(nx.all_pairs_shortest_path_length(graph, cutoff=2))
    rows = {
        "bonds": topology.bonds.tolist(),
        "free": [(i, j) for i, j in combinations(range(n), 2) if j not in near[i]],
        "angles": [(a, c, b) for c in graph for a, b in combinations(sorted(graph[c]), 2)],
        "torsions": [
            (i, j, k, m)
            for j, k in graph.edges
            for i in graph[j]
            for m in graph[k]
            if len({i, j, k, m}) == 4
        ],
        "impropers": [
            (a, b, c, d)
            for c in graph
            if graph.degree(c) == 3
            for a, b, d in permutations(sorted(graph[c]))
            if a < b
        ],
    }
    tables = {
        kind: torch.tensor(rows[kind], dtype=torch.long).reshape(-1, size)
        for kind, size in (
            ("bonds", 2),
            ("angles", 3),
            ("torsions", 4),
            ("impropers", 4),
            ("free", 2),
        )
    }
    counts = {kind: len(table) for kind, table in tables.items()}
    n_features = 2 * (counts["bonds"] + counts["angles"]) + counts["impropers"] + 3 * counts["free"]
    n_features += len(HARMONICS) * counts["torsions"]
    tables |= {
        "n_atoms": torch.tensor(n),
        "bond_mean": positions.new_zeros(counts["bonds"]),
        "angle_mean": positions.new_zeros(counts["angles"]),
        "shortest": positions.new_ones(counts["free"]),
        "theta": positions.new_zeros(n_features),
        "unit": positions.new_ones(n_features),
        "centres": torch.as_tensor(topology.centres),
        "least_volume": positions.new_ones(len(topology.centres)),
    }
    bare = MechanicsPrior(tables)
    planes = positions.transpose(-1, -2)
    q = {k: COORDINATES[k](*bare.vectors(k, planes)) for k in ("bonds", "angles", "free")}
    tables["bond_mean"], tables["angle_mean"] = q["bonds"].mean(0), q["angles"].mean(0)
    if counts["free"]:
        orbit = [_orbit(row, topology.permutations) for row in tables["free"].tolist()]
        least = dict.fromkeys(orbit, float("inf"))
        for o, r in zip(orbit, q["free"].amin(0).tolist(), strict=True):
            least[o] = min(least[o], r)
        tables["shortest"] = _CLOSE * positions.new_tensor([least[o] for o in orbit])
    if len(topology.centres):
        volume = torch.as_tensor(signed_volumes(positions.numpy(), topology.centres))
        smallest = volume.abs().amin(0) * volume[0].sign()
        tables["least_volume"] = (0.9 * smallest).float()
    return tables


def _orbits(prior: MechanicsPrior, topology: Topology) -> Tensor:
    """(F,) number of the parameter of each feature; symmetry makes features share one."""
    labels: list = []
    for kind in COORDINATES:
        table = getattr(prior, kind)
        orbit = [_orbit(row, topology.permutations) for row in table.tolist()]
        repeats = len(prior.features(kind, prior.unit.new_ones(1, len(table))))
        labels += [(kind, n, o) for n in range(repeats) for o in orbit]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


def _orbit(row: list[int], perms: np.ndarray) -> tuple[int, ...]:
    images = perms[:, row].tolist()
    return min(min(tuple(image), tuple(image[::-1])) for image in images)


def _moments(prior, orbits, positions, sigma, generator) -> tuple[Tensor, Tensor]:
    """G and b over some frames, accumulated in float64."""
    size = int(orbits.max()) + 1
    gram = torch.zeros(size, size, dtype=torch.float64)
    drive = torch.zeros(size, dtype=torch.float64)
    for x in positions.split(64):
        planes = x.transpose(-1, -2)
        epsilon = torch.randn(planes.shape, generator=generator, dtype=planes.dtype)
        plus, minus = (
            _jacobian(prior, planes + sign * sigma * epsilon, orbits, size) for sign in (1, -1)
        )
        change = (plus - minus) * epsilon.flatten(1)
        drive += change.sum((1, 2), dtype=torch.float64) / sigma
        for j in (plus, minus):
            flat = j.flatten(1)
            gram += (flat @ flat.T).double()
    return gram / len(positions), drive / len(positions)


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
        matrices = getattr(prior, f"{kind}_arms").chunk(len(vectors), dim=1)
        wilson = sum(
            s[:, :, None] * m[None, None] for s, m in zip(slopes, matrices, strict=True)
        )  # (B, 3, N, K)
        wilson = wilson.permute(3, 0, 1, 2).flatten(2)
        rows += [f.T[:, :, None] * wilson for f in functions]
    every = torch.cat(rows)
    return every.new_zeros(size, *every.shape[1:]).index_add(0, orbits, every)
