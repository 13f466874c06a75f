"""Atoms that attract each other and a trap: targets whose law is exact by shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..potentials.analytic import Harmonic, LennardJones
from ..potentials.base import Potential
from ..system import System
from .case import Case, gauss_hermite, rejection
from .fields import Scaled, WrongDrift

__all__ = ["dimer", "trimer"]


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
        bond = rejection(radial, r_edges, n, rng) * _directions(rng, n)
        centre = rng.standard_normal((n, 3)) * np.sqrt(kT / (2.0 * _TRAP))
        return torch.from_numpy(np.stack((centre - bond / 2, centre + bond / 2), axis=1))

    def quadrature(refine):
        r = np.linspace(0.5, 6.0, 500 * refine)
        along = np.exp(radial(r[:, None]) - radial(r[:, None]).max())
        axes, sphere = _sphere()
        centres, hermite = gauss_hermite((3, 3, 3))
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
            a, b = (rejection(radial, edges, 4 * n, rng) * _directions(rng, 4 * n) for _ in "ab")
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


def _cluster(count: int) -> Potential:
    system = System(np.full(count, 18), np.ones(count))
    # a cutoff so far that forces have no jump
    pairs = LennardJones(system, epsilon=_EPSILON, sigma=_SIGMA, rc=1e3)
    return pairs + Harmonic(_TRAP)


def _pair(r, trap: float):
    """Lennard-Jones pair with its share of the trap, ``½·2·trap·r²/2``."""
    c6 = (_SIGMA / r) ** 6
    return 4.0 * _EPSILON * (c6 * c6 - c6) + trap * r * r


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
