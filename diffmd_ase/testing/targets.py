"""Targets whose Boltzmann law is known: exact samples and exact means of 20 observables.

Each builder returns a `Case` at a temperature of choice. Samples are independent draws
(Gaussian tricks, or rejection from a piecewise constant envelope), means are quadratures
of the same observables. The drift of a case is wrong on purpose, by 20 % and by a rotation
or a constant force, so that it is no gradient of anything: an exact kernel must not care.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..potentials.analytic import DoubleWell, GaussianMixture, MuellerBrown, PeriodicWell
from .case import Case, boltzmann_nodes, gauss_hermite, rejection
from .clusters import dimer, trimer
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


def gaussian(kT: float = 0.7) -> Case:
    """A correlated Gaussian; the drift turns about a tilted axis."""
    K = np.array([[2.0, 0.8, 0.3], [0.8, 1.2, -0.4], [0.3, -0.4, 0.9]])
    root = np.linalg.cholesky(kT * np.linalg.inv(K))

    def sample(n, seed):
        xi = np.random.default_rng(seed).standard_normal((n, 3))
        return torch.from_numpy(xi @ root.T)[:, None]

    def quadrature(refine):
        nodes, weights = gauss_hermite((24 * refine,) * 3)
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
        nodes, weights = gauss_hermite((72 * refine, 40 * refine, 8))
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
        return boltzmann_nodes(
            target, kT, torch.cartesian_prod(*(torch.from_numpy(line),) * 3)[:, None]
        )

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

        return torch.from_numpy(rejection(along, edges, 3 * n, rng)).reshape(n, 1, 3)

    def quadrature(refine):
        line = torch.arange(28 * refine, dtype=torch.float64) * (2.0 / (28 * refine))
        return boltzmann_nodes(target, kT, torch.cartesian_prod(line, line, line)[:, None])

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
        flat = rejection(plane, edges, n, rng)
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
