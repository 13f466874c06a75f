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
        # One matrix product gives the difference vectors of all coordinates, with those of
        # one function side by side, so that it is called once for them all.
        matrices, first = [], 0
        self.columns: dict[str, list[slice]] = {}
        for kind, tail, head in self._ends():
            matrices.append(differences(int(self.n_atoms), tail, head))
            self.columns.setdefault(kind, []).append(slice(first, first + len(tail)))
            first += len(tail)
        self.register_buffer("arms", torch.cat(matrices, dim=1), persistent=False)

    def _ends(self) -> list[tuple[str, Tensor, Tensor]]:
        """Tails and heads of the difference vectors of each kind of coordinate."""
        a, c, b = self.angles.T
        ends = [("bonds", *self.bonds.T), ("free", *self.free.T)]
        ends += [("angles", c, a), ("angles", c, b)]
        for k in range(3):
            for kind, table in (("torsions", self.torsions), ("impropers", self.impropers)):
                ends.append((kind, table[:, k], table[:, k + 1]))
        return ends + [("centres", self.centres[:, 0], self.centres[:, k]) for k in (1, 2, 3)]

    def forward(self, planes: Tensor) -> Tensor:
        """Energy (B,) in kT."""
        features, wall = self.terms(planes)
        return (features * self.unit) @ self.theta + wall

    def terms(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """All features (B, F), and the energy of the walls (B,)."""
        v, at = along(planes, self.arms), self.columns
        n_bonds, n_torsions = len(self.bonds), len(self.torsions)
        lengths = _length(v[..., : at["free"][0].stop])
        cosines = _cosine(
            *(
                v[..., t.start : i.stop]
                for t, i in zip(at["torsions"], at["impropers"], strict=True)
            )
        )
        q = {
            "bonds": lengths[:, :n_bonds],
            "angles": _angle(*(v[..., c] for c in at["angles"])),
            "torsions": cosines[:, :n_torsions],
            "impropers": cosines[:, n_torsions:],
            "free": lengths[:, n_bonds:],
        }
        wall = 0.5 * (torch.relu(self.shortest - q["free"]) / _WALL).square().sum(-1)
        if len(self.centres):
            volume = _volume(*(v[..., c] for c in at["centres"]))
            excess = torch.relu(1 - volume / self.least_volume)
            wall = wall + 0.5 * (excess / _HAND).square().sum(-1)
        return torch.cat([f for kind in q for f in self.features(kind, q[kind])], dim=-1), wall

    def vectors(self, kind: str, planes: Tensor) -> list[Tensor]:
        """The difference vectors (B, 3, K) of a kind of coordinate."""
        return [along(planes, self.arms[:, columns]) for columns in self.columns[kind]]

    def features(self, kind: str, q: Tensor) -> list[Tensor]:
        """Functions (B, K) of the coordinates q (B, K) of one kind."""
        if kind == "bonds":
            u = q - self.bond_mean
            return [u, u * u]
        if kind == "angles":
            u = q - self.angle_mean
            return [u, u * u]
        if kind in ("torsions", "impropers"):  # q = cos φ; cos nφ by Chebyshev's recursion
            double = 2 * q * q - 1
            if kind == "impropers":
                return [double]
            return [q, double, q * (2 * double - 1), 2 * double * double - 1]
        inverse = self.shortest / torch.maximum(q, self.shortest)
        inverse2 = inverse * inverse
        inverse6 = inverse2 * inverse2 * inverse2
        return [inverse, inverse6, inverse6 * inverse6]


# keeps derivatives finite where atoms coincide or lie in line
TINY = 1e-12


def _length(a: Tensor) -> Tensor:
    return (a.square().sum(-2) + TINY).sqrt()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    sine = (torch.linalg.cross(a, b, dim=-2).square().sum(-2) + TINY).sqrt()
    return torch.atan2(sine, (a * b).sum(-2))


def _cosine(b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    """cos φ of a dihedral."""
    n1, n2 = torch.linalg.cross(b1, b2, dim=-2), torch.linalg.cross(b2, b3, dim=-2)
    return (n1 * n2).sum(-2) * (n1.square().sum(-2) * n2.square().sum(-2) + TINY).rsqrt()


def _volume(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a * torch.linalg.cross(b, c, dim=-2)).sum(-2)


COORDINATES = {
    "bonds": _length,
    "angles": _angle,
    "torsions": _cosine,
    "impropers": _cosine,
    "free": _length,
}


def differences(n_atoms: int, tail: Tensor, head: Tensor) -> Tensor:
    """(N, P) matrix D with ``planes @ D`` = position of head - position of tail.

    Gathers are slow to differentiate; products are not."""
    column = torch.arange(len(tail))
    matrix = torch.zeros(n_atoms, len(tail), dtype=torch.float32)
    matrix[tail, column], matrix[head, column] = -1.0, 1.0
    return matrix


def along(planes: Tensor, matrix: Tensor) -> Tensor:
    """``planes @ matrix`` (B, 3, P) as one product; torch would make one for each structure."""
    return (planes.reshape(-1, planes.shape[-1]) @ matrix).reshape(*planes.shape[:-1], -1)


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
        epsilon = torch.randn(planes.shape, generator=generator, dtype=planes.dtype)
        gradient = planes.new_zeros(size, len(x))
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
    n_features += 4 * counts["torsions"]
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
    for name, kind, values, reduce in (
        ("bond_mean", "bonds", q["bonds"].mean(0), "mean"),
        ("angle_mean", "angles", q["angles"].mean(0), "mean"),
        ("shortest", "free", _CLOSE * q["free"].amin(0), "amin"),
    ):
        tables[name] = _shared(values, tables[kind], topology.permutations, reduce)
    if len(topology.centres):
        volume = torch.as_tensor(signed_volumes(positions.numpy(), topology.centres))
        smallest = volume.abs().amin(0) * volume[0].sign()
        tables["least_volume"] = (0.9 * smallest).float()
    return tables


def _shared(values: Tensor, rows: Tensor, perms: np.ndarray, reduce: str) -> Tensor:
    """Values (K,) of coordinates, made one where symmetry exchanges the coordinates."""
    names = [_orbit(row, perms) for row in rows.tolist()]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    index = torch.tensor([number[name] for name in names], dtype=torch.long)
    one = values.new_zeros(len(number)).scatter_reduce(0, index, values, reduce, include_self=False)
    return one[index]


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
        matrices = [prior.arms[:, columns] for columns in prior.columns[kind]]
        wilson = sum(
            s[:, :, None] * m[None, None] for s, m in zip(slopes, matrices, strict=True)
        )  # (B, 3, N, K)
        wilson = wilson.permute(3, 0, 1, 2).flatten(2)
        rows += [f.T[:, :, None] * wilson for f in functions]
    every = torch.cat(rows)
    return every.new_zeros(size, *every.shape[1:]).index_add(0, orbits, every)
