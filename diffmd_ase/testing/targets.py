"""Targets whose Boltzmann law is known: exact samples and exact means of 20 observables.

Each builder returns a `Case` at a temperature of choice. Samples are independent draws
(Gaussian tricks, or rejection from a piecewise constant envelope), means are quadratures
of the same observables. The drift of a case is wrong on purpose, by 20 % and by a rotation
or a constant force, so that it is no gradient of anything: an exact kernel must not care.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..potentials.analytic import (
    DoubleWell,
    GaussianMixture,
    Harmonic,
    LennardJones,
    MuellerBrown,
    PeriodicWell,
)
from ..potentials.base import Potential
from ..system import System
from .fields import Banana, Quadratic, Quartic, Scaled, WrongDrift

__all__ = [
    "CASES",
    "Case",
    "banana",
    "dimer",
    "double_well",
    "gaussian",
    "mixture",
    "mueller_brown",
    "periodic_well",
    "quartic",
    "trimer",
]


@dataclass(frozen=True, eq=False)
class Case:
    """A Boltzmann law ``exp(-U/kT)`` that is known, and what a kernel needs to sample it.

    Parameters
    ----------
    target : U, with an energy
    drift : not conservative; proposes roughly what the forces of the target would
    surrogate : conservative and about 15 % off, for kernels that need a cheap energy
    kT : in eV
    h : step size in Å² at which one MALA step is accepted in 50 to 90 % of the cases
    sample : ``(n, seed) -> (n, N, 3)``, independent exact draws
    observables : ``(n, N, 3) -> (n, 20)``
    quadrature : ``refine -> (nodes, weights)``, (Q, N, 3) and (Q,) with sum 1; finer for a
        larger integer
    known : means of observables that the nodes do not see, by column
    """

    name: str
    target: Potential
    drift: Potential
    surrogate: Potential
    kT: float
    h: float | Tensor
    sample: Callable[[int, int], Tensor]
    observables: Callable[[Tensor], Tensor]
    quadrature: Callable[[int], tuple[Tensor, Tensor]]
    known: dict[int, float]

    @cached_property
    def exact(self) -> Tensor:
        """(20,) exact means of the observables."""
        return self.means(1)

    def means(self, refine: int) -> Tensor:
        """(20,) means by a quadrature of ``refine`` times as many nodes along each axis."""
        nodes, weights = self.quadrature(refine)
        values = weights @ self.observables(nodes)
        for column, value in self.known.items():
            values[column] = value
        return values


def gaussian(kT: float = 0.7) -> Case:
    """A correlated Gaussian; the drift turns about a tilted axis."""
    K = np.array([[2.0, 0.8, 0.3], [0.8, 1.2, -0.4], [0.3, -0.4, 0.9]])
    root = np.linalg.cholesky(kT * np.linalg.inv(K))

    def sample(n, seed):
        xi = np.random.default_rng(seed).standard_normal((n, 3))
        return torch.from_numpy(xi @ root.T)[:, None]

    def quadrature(refine):
        nodes, weights = _hermite((24 * refine,) * 3)
        return (nodes @ torch.from_numpy(root.T))[:, None], weights

    return _one_atom(
        "gaussian", Quadratic(K), kT, 0.45, sample, quadrature, scale=(0.8, 0.9, 1.0), spin=0.6
    )


def mixture(kT: float = 0.7) -> Case:
    """Three unequal modes of an energy ``-0.7 log p``."""
    means = [[[-1.3, -0.4, 0.0]], [[1.0, -0.9, 0.0]], [[0.4, 1.4, 0.0]]]
    target = GaussianMixture(means, [0.3] * 3, [0.5, 0.2, 0.3], kT=0.7)
    edges = np.linspace(-5.5, 5.5, 221), np.linspace(-5.5, 5.5, 221)
    return _planar("mixture", target, kT, 0.3, edges, stiffness=0.7 / 0.3, spin=0.5)


def double_well(kT: float = 0.7) -> Case:
    """A barrier of two to three kT, stiffer across."""
    target = DoubleWell(barrier=1.6, a=1.0, k=2.5)
    edges = np.linspace(-2.6, 2.6, 161), np.linspace(-5.0, 5.0, 161)
    return _planar("double well", target, kT, 0.12, edges, stiffness=2.5, spin=0.6)


def mueller_brown(kT: float = 0.7) -> Case:
    """The Müller–Brown surface at a twentieth of its scale or less, barriers of some kT."""
    target = MuellerBrown(scale=0.035, k=4.0)
    edges = np.linspace(-3.6, 3.2, 341), np.linspace(-2.8, 3.8, 331)
    scale, centre = (0.7, 0.7, 0.42), (-0.3, 0.8, 0.0)
    return _planar(
        "Müller–Brown",
        target,
        kT,
        0.012,
        edges,
        stiffness=4.0,
        spin=1.0,
        scale=scale,
        centre=centre,
    )


def banana(kT: float = 0.7) -> Case:
    """Curved and narrow: curvature changes along the ridge."""
    target = Banana(b=0.7, w=0.5)
    sx, sy = kT**0.5, 0.5 * kT**0.5

    def bent(xi):
        x, y, z = sx * xi[..., 0], sy * xi[..., 1], sx * xi[..., 2]
        return torch.stack((x, y + 0.7 * (x * x - 1.0), z), dim=-1)[:, None]

    def sample(n, seed):
        return bent(torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3))))

    def quadrature(refine):
        nodes, weights = _hermite((72 * refine, 40 * refine, 8))
        return bent(nodes), weights

    return _one_atom(
        "banana", target, kT, 0.12, sample, quadrature, scale=(0.9, 0.9, 0.9), spin=0.5
    )


def quartic(kT: float = 0.7) -> Case:
    """Forces that grow with the cube of the distance."""
    target = Quartic(1.5)

    def sample(n, seed):
        rng = np.random.default_rng(seed)
        # t = c r⁴/4kT has the density t^(-1/4) e^-t
        r = (rng.gamma(0.75, size=n) * 4.0 * kT / 1.5) ** 0.25
        axis = rng.standard_normal((n, 3))
        axis *= (r / np.linalg.norm(axis, axis=1))[:, None]
        return torch.from_numpy(axis)[:, None]

    def quadrature(refine):
        line = np.linspace(-3.2, 3.2, 48 * refine) * (kT / 0.7) ** 0.25
        return _boltzmann(target, kT, torch.cartesian_prod(*(torch.from_numpy(line),) * 3)[:, None])

    return _one_atom("quartic", target, kT, 0.15, sample, quadrature, spin=0.6)


def periodic_well(kT: float = 0.7) -> Case:
    """Wells every 2 Å; observables have the period, and the drift a constant force."""
    target = PeriodicWell(barrier=1.8, period=2.0)
    drift = WrongDrift(target, tilt=(0.7, -0.3, 0.2))

    def sample(n, seed):
        rng = np.random.default_rng(seed)
        edges = (np.linspace(0.0, 2.0, 101),)

        def along(points):
            return 0.9 * (np.cos(np.pi * points[:, 0]) - 1.0) / kT

        return torch.from_numpy(_reject(along, edges, 3 * n, rng)).reshape(n, 1, 3)

    def quadrature(refine):
        line = torch.arange(28 * refine, dtype=torch.float64) * (2.0 / (28 * refine))
        return _boltzmann(target, kT, torch.cartesian_prod(line, line, line)[:, None])

    def observables(x):
        c, s = torch.cos(np.pi * x[:, 0]), torch.sin(np.pi * x[:, 0])
        e = target(x).energy[:, None] / kT
        double = torch.cat((2 * c * c - 1, 2 * s * c), 1)
        pairs = torch.cat((c[:, :1] * c[:, 1:2], s[:, 1:2] * s[:, 2:], c[:, 2:] * s[:, :1]), 1)
        return torch.cat((c, s, double, e, e * e, pairs, c.prod(1, True), c**3), 1)[:, :20]

    return Case(
        "periodic well", target, drift, Scaled(target, 0.85), kT, 0.12, sample, observables,
        quadrature, {},
    )  # fmt: skip


_EPSILON, _SIGMA, _TRAP = 1.0, 1.0, 2.5  # eV, Å, eV/Å² of the trap of each atom


def dimer(kT: float = 0.7) -> Case:
    """Two Lennard-Jones atoms in a harmonic trap, with a step size for each."""
    target = _cluster(2)
    r_edges = (np.linspace(0.5, 6.0, 551),)

    def radial(points):
        r = points[:, 0]
        return 2.0 * np.log(r) - _pair(r, _TRAP / 4.0) / kT

    def sample(n, seed):
        rng = np.random.default_rng(seed)
        bond = _reject(radial, r_edges, n, rng) * _directions(rng, n)
        centre = rng.standard_normal((n, 3)) * np.sqrt(kT / (2.0 * _TRAP))
        return torch.from_numpy(np.stack((centre - bond / 2, centre + bond / 2), axis=1))

    def quadrature(refine):
        r = np.linspace(0.5, 6.0, 500 * refine)
        along = np.exp(radial(r[:, None]) - radial(r[:, None]).max())
        axes, sphere = _sphere()
        centres, hermite = _hermite((3, 3, 3))
        bond = (torch.from_numpy(r)[:, None, None] * axes)[:, :, None]
        centre = centres * np.sqrt(kT / (2.0 * _TRAP))
        nodes = torch.stack((centre - bond / 2, centre + bond / 2), dim=-2).reshape(-1, 2, 3)
        weights = torch.from_numpy(along / along.sum())[:, None, None] * sphere[:, None] * hermite
        return nodes, weights.flatten()

    def observables(x):
        bond, centre = x[:, 1] - x[:, 0], x.mean(1)
        r = bond.norm(dim=1, keepdim=True)
        axis = bond / r
        e = target(x).energy[:, None] / kT
        columns = (r, r * r, 1 / r, torch.cos(3 * r), torch.tanh(4 * (r - 1.2)), e, e * e, centre,
                   centre.square().sum(1, True), axis, axis[:, :1] ** 2, axis[:, :1] * axis[:, 1:2],
                   (centre * bond).sum(1, True), x[:, 0].square().sum(1, True),
                   (x[:, 0] * x[:, 1]).sum(1, True), torch.exp(-8 * (r - 1.1) ** 2))  # fmt: skip
        return torch.cat(columns, 1)[:, :20]

    drift = WrongDrift(target, spin=(0.3, 0.0, 0.4))
    h = torch.tensor([0.012, 0.008], dtype=torch.float64)
    return Case(
        "LJ dimer", target, drift, Scaled(target, 0.85), kT, h, sample, observables, quadrature, {}
    )


def trimer(kT: float = 0.7) -> Case:
    """Three Lennard-Jones atoms in a harmonic trap."""
    target = _cluster(3)
    edges = (np.linspace(0.5, 6.0, 551),)

    def radial(points):
        return 2.0 * np.log(points[:, 0]) - _pair(points[:, 0], _TRAP / 6.0) / kT

    well = _pair(np.linspace(0.9, 1.5, 10001), _TRAP / 6.0).min()

    def sample(n, seed):
        """Two bonds of dimers at a free angle, kept by the Boltzmann factor of the third."""
        rng, kept, count = np.random.default_rng(seed), [], 0
        while count < n:
            a, b = (_reject(radial, edges, 4 * n, rng) * _directions(rng, 4 * n) for _ in "ab")
            third = _pair(np.linalg.norm(a - b, axis=1), _TRAP / 6.0)
            fine = rng.random(4 * n) < np.exp(-(third - well) / kT)
            kept.append(np.stack((np.zeros_like(a), a, b), axis=1)[fine])
            count += int(fine.sum())
        x = np.concatenate(kept)[:n]
        centre = rng.standard_normal((n, 1, 3)) * np.sqrt(kT / (3.0 * _TRAP))
        return torch.from_numpy(x - x.mean(1, keepdims=True) + centre)

    def quadrature(refine):
        r = np.geomspace(0.6, 5.2, 84 * refine)  # finer where the core is
        cosine, gauss = np.polynomial.legendre.leggauss(96 * refine)
        a, b, c = (g.ravel() for g in np.meshgrid(r, r, cosine, indexing="ij"))
        third = np.sqrt(a * a + b * b - 2 * a * b * c)
        logs = radial(a[:, None]) + radial(b[:, None]) - _pair(third, _TRAP / 6.0) / kT
        weights = a * b * np.exp(logs - logs.max()) * np.tile(gauss, len(r) ** 2)
        heavy = weights > 1e-14 * weights.max()
        a, b, c, weights = a[heavy], b[heavy], c[heavy], weights[heavy]
        x = np.zeros((len(a), 3, 3))
        x[:, 1, 0], x[:, 2, 0], x[:, 2, 1] = a, b * c, b * np.sqrt(1 - c * c)
        x -= x.mean(1, keepdims=True)
        return torch.from_numpy(x), torch.from_numpy(weights / weights.sum())

    def observables(x):
        centre = x.mean(1, keepdim=True)
        a, b = x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]
        p, q = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        r = (a - b).norm(dim=1, keepdim=True)
        cosine = (a * b).sum(1, True) / (p * q)
        e = target(x - centre).energy[:, None] / kT
        flat = centre[:, 0]
        columns = (p, q, r, p * p, r * r, p * q, 1 / p, 1 / r, cosine, cosine * cosine, e, e * e,
                   torch.tanh(4 * (p - 1.2)), torch.tanh(4 * (r - 1.2)), torch.cos(2 * (q + r)),
                   flat, flat.square().sum(1, True), a[:, 2:])  # fmt: skip
        return torch.cat(columns, 1)

    known = {15: 0.0, 16: 0.0, 17: 0.0, 18: kT / _TRAP, 19: 0.0}
    drift = WrongDrift(target, spin=(0.3, 0.0, 0.4))
    return Case(
        "LJ trimer", target, drift, Scaled(target, 0.85), kT, 0.007, sample, observables,
        quadrature, known,
    )  # fmt: skip


CASES: dict[str, Callable[..., Case]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "double well": double_well,
    "Müller–Brown": mueller_brown,
    "banana": banana,
    "quartic": quartic,
    "LJ dimer": dimer,
    "LJ trimer": trimer,
    "periodic well": periodic_well,
}
"""Builders of all cases by name; each takes kT."""


def _planar(
    name, target, kT, h, edges, *, stiffness, spin, scale=(1.0, 1.0, 0.5), centre=(0.0,) * 3
) -> Case:
    """An atom in a plane, sampled on a grid, with a harmonic well of ``stiffness`` across."""
    width = np.sqrt(kT / stiffness)

    def plane(points):
        x = torch.zeros(len(points), 1, 3, dtype=torch.float64)
        x[:, 0, :2] = torch.from_numpy(points)
        return (-target(x).energy / kT).numpy()

    def sample(n, seed):
        rng = np.random.default_rng(seed)
        flat = _reject(plane, edges, n, rng)
        return torch.from_numpy(np.c_[flat, rng.standard_normal(n) * width])[:, None]

    def quadrature(refine):
        lines = [np.linspace(e[0], e[-1], refine * (len(e) - 1)) for e in edges]
        points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
        logs = plane(points)
        across, hermite = np.polynomial.hermite_e.hermegauss(6)
        weights = np.exp(logs - logs.max())
        heavy = weights > 1e-16
        points, weights = points[heavy], weights[heavy]
        nodes = np.concatenate([np.c_[points, np.full(len(points), z * width)] for z in across])
        weights = np.outer(hermite / hermite.sum(), weights / weights.sum())
        return torch.from_numpy(nodes)[:, None], torch.from_numpy(weights).flatten()

    return _one_atom(name, target, kT, h, sample, quadrature, scale=scale, centre=centre, spin=spin)


def _one_atom(
    name, target, kT, h, sample, quadrature, *, spin, scale=(1.0,) * 3, centre=(0.0,) * 3
) -> Case:
    drift = WrongDrift(target, spin=(0.2 * spin, 0.0, spin))
    observables = partial(_features, target, kT, scale, centre)
    return Case(
        name, target, drift, Scaled(target, 0.85), kT, h, sample, observables, quadrature, {}
    )


def _features(target, kT, scale, centre, x: Tensor) -> Tensor:
    """Twenty functions of the scaled position of one atom and of its energy."""
    q = (x[:, 0] - x.new_tensor(centre)) / x.new_tensor(scale)
    u, v, w = q.unbind(1)
    e = target(x).energy / kT
    return torch.stack(
        (u, v, w, u * u, v * v, w * w, u * v, v * w, w * u, u**3, u * u * v, e, e * e,
         torch.tanh(3 * u), torch.tanh(3 * v), torch.sin(2 * u), torch.cos(2 * u),
         torch.sin(2 * v), torch.cos(2 * v), torch.exp(-0.5 * u * u - 0.5 * v * v)),
        dim=1,
    )  # fmt: skip


def _cluster(count: int) -> Potential:
    system = System(np.full(count, 18), np.ones(count))
    # a cutoff so far that forces have no jump
    pairs = LennardJones(system, epsilon=_EPSILON, sigma=_SIGMA, rc=1e3)
    return pairs + Harmonic(_TRAP)


def _pair(r, trap: float):
    """Lennard-Jones pair with its share of the trap, ``½·2·trap·r²/2``."""
    c6 = (_SIGMA / r) ** 6
    return 4.0 * _EPSILON * (c6 * c6 - c6) + trap * r * r


def _boltzmann(target, kT, nodes: Tensor) -> tuple[Tensor, Tensor]:
    logs = -target(nodes).energy / kT
    return nodes, torch.softmax(logs, 0)


def _hermite(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Nodes (Q, 3) and weights of a standard normal."""
    rules = [np.polynomial.hermite_e.hermegauss(count) for count in counts]
    nodes = np.array(list(product(*(rule[0] for rule in rules))))
    weights = np.array([np.prod(w) for w in product(*(rule[1] for rule in rules))])
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def _sphere() -> tuple[Tensor, Tensor]:
    """Directions (Q, 3) and weights, exact for polynomials up to degree 5."""
    cosine, gauss = np.polynomial.legendre.leggauss(3)
    angle = 2.0 * np.pi * np.arange(6) / 6
    sine = np.sqrt(1 - cosine**2)
    axes = [(s * np.cos(a), s * np.sin(a), c) for c, s in zip(cosine, sine, strict=True)
            for a in angle]  # fmt: skip
    return torch.tensor(axes, dtype=torch.float64), torch.from_numpy(np.repeat(gauss, 6) / 12.0)


def _directions(rng, n: int) -> np.ndarray:
    axis = rng.standard_normal((n, 3))
    return axis / np.linalg.norm(axis, axis=1, keepdims=True)


def _reject(log_density, edges: tuple[np.ndarray, ...], n: int, rng) -> np.ndarray:
    """``n`` exact draws (n, d) of a density on a grid of cells, from a constant in each.

    The constant is that of the largest corner and a tenth more; cells where that would not
    be an envelope are noticed.
    """
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1)
    logs = log_density(corners.reshape(-1, len(edges))).reshape(corners.shape[:-1])
    for axis in range(len(edges)):
        upper = np.take(logs, range(1, logs.shape[axis]), axis)
        logs = np.maximum(upper, np.take(logs, range(logs.shape[axis] - 1), axis))
    logs = logs + 0.1
    heights = np.cumsum(np.exp(logs - logs.max()).ravel())
    starts = np.array([edge[0] for edge in edges])
    sizes = np.array([edge[1] - edge[0] for edge in edges])
    kept, count = [], 0
    while count < n:
        cell = np.searchsorted(heights, rng.random(2 * (n - count) + 100) * heights[-1], "right")
        where = np.stack(np.unravel_index(cell, logs.shape), axis=-1)
        points = starts + (where + rng.random(where.shape)) * sizes
        excess = log_density(points) - logs.ravel()[cell]
        if excess.max() > 0:
            raise RuntimeError(f"the grid is too coarse for the density: {excess.max():.3g}")
        kept.append(points[np.log(rng.random(len(points))) < excess])
        count += len(kept[-1])
    return np.concatenate(kept)[:n]
