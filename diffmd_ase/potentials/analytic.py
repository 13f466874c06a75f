"""Potentials in closed form: the references that tests and tutorials compare with.

All take positions (*batch, N, 3) in Å and give eV; forces are written out, not traced.
External fields have no stress (None); `LennardJones` has one where there is a cell.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..geometry import Lattice
from ..state import Evaluation
from ..system import System
from .base import Potential

__all__ = [
    "DoubleWell",
    "GaussianMixture",
    "Harmonic",
    "HarmonicCrystal",
    "LennardJones",
    "MuellerBrown",
    "PeriodicWell",
]


class Harmonic(Potential):
    """``U = ½ Σ_i k_i |x_i − c_i|²``.

    Parameters
    ----------
    k : stiffness in eV/Å², scalar or (N,)
    centre : c in Å, broadcastable with (N, 3), default the origin

    Raises
    ------
    ValueError : k of another shape, negative or infinite
    """

    def __init__(self, k, *, centre=0.0, system: System | None = None):
        self.k = torch.as_tensor(k, dtype=torch.float64)
        if self.k.ndim > 1:
            raise ValueError(f"k has shape {tuple(self.k.shape)}, expected a scalar or (N,)")
        if not (torch.isfinite(self.k).all() and (self.k >= 0).all()):
            raise ValueError(f"{k=} must be finite and not negative (eV/Å²)")
        self.k = self.k[:, None] if self.k.ndim else self.k
        self.centre = torch.as_tensor(centre, dtype=torch.float64)
        self.system = system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        away = x - self.centre.to(x)
        forces = -self.k.to(x) * away
        return Evaluation(-0.5 * (forces * away).sum((-2, -1)), forces)


class HarmonicCrystal(Potential):
    """``U = ½ (x − c)ᵀ K (x − c)`` of all atoms together, ``F = −K (x − c)``.

    Parameters
    ----------
    hessian : K (3N, 3N) in eV/Å², its symmetric part counts (see `potentials.curvature.hessian`)
    centre : c (N, 3) in Å

    Raises
    ------
    ValueError : shapes that do not fit, numbers that are not finite
    """

    def __init__(self, hessian, *, centre, system: System | None = None):
        K = torch.as_tensor(hessian, dtype=torch.float64)
        self.centre = torch.as_tensor(centre, dtype=torch.float64)
        if self.centre.shape[-1:] != (3,) or K.shape != (self.centre.numel(),) * 2:
            raise ValueError(
                f"hessian {tuple(K.shape)} and centre {tuple(self.centre.shape)}: expected "
                "(3N, 3N) and (N, 3)"
            )
        if not (torch.isfinite(K).all() and torch.isfinite(self.centre).all()):
            raise ValueError("hessian and centre must be finite (eV/Å², Å)")
        self.hessian, self.system = 0.5 * (K + K.T), system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        away = (x - self.centre.to(x)).flatten(-2)
        forces = -away @ self.hessian.to(x)
        return Evaluation(-0.5 * (forces * away).sum(-1), forces.unflatten(-1, (-1, 3)))


class DoubleWell(Potential):
    """Two wells along x and harmonic across, for each atom:
    ``U = b ((x/a)² − 1)² + ½ k (y² + z²)``.

    Parameters
    ----------
    barrier : b in eV, the barrier between the minima
    a : the minima are at x = ±a (Å)
    k : stiffness along y and z in eV/Å²

    Raises
    ------
    ValueError : barrier or k negative, a not positive
    """

    def __init__(self, *, barrier: float, a: float, k: float, system: System | None = None):
        if not (barrier >= 0 and a > 0 and k >= 0):
            raise ValueError(f"{barrier=} and {k=} must not be negative and {a=} positive")
        self.barrier, self.a, self.k, self.system = barrier, a, k, system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        u, across = x[..., 0] / self.a, x[..., 1:]
        well = u.square() - 1.0
        energy = self.barrier * well.square() + 0.5 * self.k * across.square().sum(-1)
        along = (-4.0 * self.barrier / self.a) * u * well
        forces = torch.cat((along[..., None], -self.k * across), dim=-1)
        return Evaluation(energy.sum(-1), forces)


class MuellerBrown(Potential):
    """The Müller–Brown surface in x and y of each atom, ``½ k z²`` across
    (Müller & Brown, Theor. Chim. Acta 53, 75, 1979).

    ``U = scale Σ_j A_j exp[a_j (x−X_j)² + b_j (x−X_j)(y−Y_j) + c_j (y−Y_j)²] + ½ k z²``
    with A = (−200, −100, −170, 15); minima near (−0.558, 1.442), (0.623, 0.028) and
    (−0.050, 0.467) at −146.70, −108.17 and −80.77 times ``scale``.

    Parameters
    ----------
    scale : eV per unit of the original surface; 0.001 suits 300 K
    k : stiffness along z in eV/Å²

    Raises
    ------
    ValueError : scale not positive, k negative
    """

    _A = (-200.0, -100.0, -170.0, 15.0)
    _a = (-1.0, -1.0, -6.5, 0.7)
    _b = (0.0, 0.0, 11.0, 0.6)
    _c = (-10.0, -10.0, -6.5, 0.7)
    _X = (1.0, 0.0, -0.5, -1.0)
    _Y = (0.0, 0.5, 1.5, 1.0)

    def __init__(self, *, scale: float = 1.0, k: float = 1.0, system: System | None = None):
        if not (scale > 0 and k >= 0):
            raise ValueError(f"{scale=} must be positive and {k=} not negative")
        self.scale, self.k, self.system = scale, k, system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        A, a, b, c, X, Y = (
            torch.tensor(row, dtype=x.dtype, device=x.device)
            for row in (self._A, self._a, self._b, self._c, self._X, self._Y)
        )
        dx, dy, z = x[..., 0, None] - X, x[..., 1, None] - Y, x[..., 2]
        terms = self.scale * A * torch.exp(a * dx * dx + b * dx * dy + c * dy * dy)
        energy = terms.sum(-1) + 0.5 * self.k * z.square()
        fx = -(terms * (2.0 * a * dx + b * dy)).sum(-1)
        fy = -(terms * (b * dx + 2.0 * c * dy)).sum(-1)
        return Evaluation(energy.sum(-1), torch.stack((fx, fy, -self.k * z), dim=-1))


class PeriodicWell(Potential):
    """``U = ½ b Σ_{i,α} [1 − cos(2π x_iα / L)]``: minima every L.

    Parameters
    ----------
    barrier : b in eV, between neighbouring minima
    period : L in Å

    Raises
    ------
    ValueError : barrier negative, period not positive
    """

    def __init__(self, *, barrier: float, period: float, system: System | None = None):
        if not (barrier >= 0 and period > 0):
            raise ValueError(f"{barrier=} must not be negative and {period=} positive")
        self.barrier, self.period, self.system = barrier, period, system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        q = 2.0 * math.pi / self.period
        energy = 0.5 * self.barrier * (1.0 - torch.cos(q * x)).sum((-2, -1))
        return Evaluation(energy, -0.5 * self.barrier * q * torch.sin(q * x))


class GaussianMixture(Potential):
    """``U = −kT log p`` with ``p(x) = Σ_k w_k N(x; m_k, v_k I)``, normalised in 3N dimensions.

    ``at(sigma)`` is the potential of the density smoothed by noise of that standard
    deviation, so that its ``F/kT`` is the exact score at every noise level.

    Parameters
    ----------
    means : (K, N, 3) in Å
    variances : (K,) in Å², per coordinate
    weights : (K,), positive; normalised to sum 1; default equal

    Raises
    ------
    ValueError : shapes that do not fit; variances, weights or kT not positive
    """

    def __init__(self, means, variances, weights=None, *, kT: float, system: System | None = None):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 3 or self.means.shape[-1] != 3:
            raise ValueError(f"means {tuple(self.means.shape)} must have shape (K, N, 3)")
        count = len(self.means)
        self.variances = torch.as_tensor(variances, dtype=torch.float64)
        weights = torch.ones(count) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64)
        for name, value in (("variances", self.variances), ("weights", weights)):
            if value.shape != (count,) or not (torch.isfinite(value) & (value > 0)).all():
                raise ValueError(f"{name} must be {count} positive numbers, got {value.tolist()}")
        if not kT > 0:
            raise ValueError(f"{kT=} must be positive (eV)")
        self.weights, self.kT, self.system = weights / weights.sum(), kT, system

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        means, v = self.means.to(x), self.variances.to(x)
        away = x[..., None, :, :] - means
        d = x.shape[-2] * 3
        logs = (
            self.weights.to(x).log()
            - 0.5 * d * torch.log(2.0 * math.pi * v)
            - 0.5 * away.square().sum((-2, -1)) / v
        )
        pull = (torch.softmax(logs, dim=-1) / v)[..., None, None]
        energy = -self.kT * torch.logsumexp(logs, dim=-1)
        return Evaluation(energy, -self.kT * (pull * away).sum(-3))

    def at(self, sigma: float) -> GaussianMixture:
        """The mixture smoothed by N(0, σ²): ``v_k → v_k + σ²``."""
        v = self.variances + sigma**2
        return GaussianMixture(self.means, v, self.weights, kT=self.kT, system=self.system)

    @property
    def mean(self) -> Tensor:
        """Exact mean (N, 3), ``Σ w_k m_k``."""
        return torch.einsum("k,kna->na", self.weights, self.means)

    @property
    def variance(self) -> Tensor:
        """Exact variance (N, 3) of each coordinate, ``Σ w_k (v_k + (m_k − mean)²)``."""
        spread = self.variances[:, None, None] + (self.means - self.mean).square()
        return torch.einsum("k,kna->na", self.weights, spread)

    def sample(self, n: int, seed: int) -> Tensor:
        """``n`` independent exact samples (n, N, 3), float64, from numpy's generator."""
        rng = np.random.default_rng(seed)
        which = torch.from_numpy(rng.choice(len(self.weights), size=n, p=self.weights.numpy()))
        xi = torch.from_numpy(rng.standard_normal((n, *self.means.shape[1:])))
        return self.means[which] + self.variances[which].sqrt()[:, None, None] * xi


class LennardJones(Potential):
    """``U = Σ_{i<j} 4ε [(σ/r)¹² − (σ/r)⁶] − U(r_c)`` for r < r_c, all pairs and images.

    Equal to ``ase.calculators.lj.LennardJones`` with the same parameters (shifted, not
    smoothed: forces jump at the cutoff). Dense, for small systems: memory grows as N²
    times the images within the cutoff.

    Parameters
    ----------
    epsilon : ε in eV
    sigma : σ in Å
    rc : cutoff in Å, default 3σ

    Raises
    ------
    ValueError : sigma or rc not positive
    """

    def __init__(self, system: System, *, epsilon: float, sigma: float, rc: float | None = None):
        rc = 3.0 * sigma if rc is None else rc
        if not (sigma > 0 and rc > 0):
            raise ValueError(f"{sigma=} and {rc=} must be positive (Å)")
        self.system, self.epsilon, self.sigma, self.rc = system, epsilon, sigma, rc
        self._shift = 4.0 * epsilon * ((sigma / rc) ** 12 - (sigma / rc) ** 6)
        self._cell = None if system.cell is None else torch.from_numpy(system.cell.copy())
        self._lattice, images = None, np.zeros((1, 3))
        if system.periodic:
            self._lattice = Lattice(system)
            # a wrapped pair is at most half a cell away along each periodic direction
            images = self._lattice.images(np.floor(rc / self._lattice.widths + 0.5).astype(int))
        self._images = torch.from_numpy(images)
        self._itself = torch.zeros(len(system), len(system), len(images), dtype=torch.bool)
        self._itself[..., 0] = torch.eye(len(system), dtype=torch.bool)

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        apart = x[..., None, :, :] - x[..., :, None, :]  # towards the neighbour
        if self._lattice is not None:
            apart = self._lattice.wrap(apart)
        apart = apart[..., None, :] + self._images.to(x)
        r2 = apart.square().sum(-1)
        near = (r2 <= self.rc**2) & ~self._itself.to(x.device)
        c6 = torch.where(near, self.sigma**2 / torch.where(near, r2, 1.0), 0.0) ** 3
        pair = 4.0 * self.epsilon * (c6 * c6 - c6) - self._shift * near.to(x)
        slope = -24.0 * self.epsilon * (2.0 * c6 * c6 - c6) / torch.where(near, r2, 1.0)
        pulls = slope[..., None] * apart
        virial = None
        if stress and self._cell is not None:
            volume = torch.linalg.det(self._cell).abs().to(x)
            full = 0.5 * torch.einsum("...ijma,...ijmb->...ab", pulls, apart) / volume
            virial = full[..., (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
        return Evaluation(0.5 * pair.sum((-3, -2, -1)), pulls.sum((-3, -2)), virial)
