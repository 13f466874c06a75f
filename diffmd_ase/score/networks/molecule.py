"""Networks of one molecule: on its internal coordinates, and on all pairs of its atoms."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import silu

from ...geometry import distances, signed_volumes, triple_product
from ..force_field import MechanicsPrior, along, differences
from ..snapshot_checks import mean_and_std
from .inputs import NoiseEmbedding

__all__ = [
    "MechanicsConfig",
    "MechanicsNetwork",
    "PairConfig",
    "PairNetwork",
    "internal_statistics",
]


class MechanicsConfig(BaseModel):
    """Hyper-parameters of `MechanicsNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["mechanics"] = "mechanics"
    width: int = Field(96, ge=1, description="units of each hidden layer")
    depth: int = Field(2, ge=0, description="hidden layers; 0: the prior alone")


class PairConfig(BaseModel):
    """Hyper-parameters of `PairNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["pair"] = "pair"
    width: int = Field(192, ge=1, description="units of each hidden layer")
    depth: int = Field(3, ge=1, description="hidden layers")


def internal_statistics(snapshots) -> dict[str, Tensor]:
    """What ``snapshots`` say of one molecule: pair distances, torsions, signed volumes.

    Tables by name: ``pairs`` (2, P) with ``mean`` and ``std`` (P,) of their distances in Å;
    ``torsions`` (K, 4); ``centres`` (C, 4) with the mean ``volume`` (C,) in Å³; ``chiral``.
    """
    x, topology = snapshots.positions, snapshots.topology
    pairs = np.stack(np.triu_indices(x.shape[1], 1), axis=-1)
    some = x[:: max(1, len(x) // 20_000)]
    mean, std = mean_and_std(some, lambda part: distances(part, pairs), 9 * len(pairs))
    centres = topology.centres if topology.chiral else topology.centres[:0]
    volume = signed_volumes(some, centres)
    tables = {
        "pairs": pairs.T,
        "mean": mean,
        "std": np.maximum(std, 1e-3),
        "torsions": topology.torsions,
        "centres": centres,
        "volume": volume.mean(0),
        "chiral": np.array(topology.chiral),
    }
    return {name: torch.as_tensor(value) for name, value in tables.items()}


class _InternalCoordinates(nn.Module):
    """Pair distances, torsions and signed volumes of one molecule, of order one at every σ.

    With ``m``, ``v`` the mean and variance of a pair distance in the data, its values under
    noise have about the mean ``m_σ = sqrt(m² + 5σ²)`` and variance ``v_σ = v + 1.4σ²``
    (exact for σ → ∞: Maxwell's law).
    """

    pairs: Tensor
    mean: Tensor
    std: Tensor
    torsions: Tensor
    centres: Tensor
    volume: Tensor
    chiral: Tensor
    pair_arms: Tensor
    torsion_arms: Tensor
    centre_arms: Tensor

    def __init__(self, statistics: dict[str, Tensor]):
        super().__init__()
        for name, value in statistics.items():
            self.register_buffer(name, value.float() if value.is_floating_point() else value)
        self.n_atoms = int(self.pairs.max()) + 1
        i, j, k, l = self.torsions.T  # noqa: E741
        c, p, q, r = self.centres.T
        for name, ends in {
            "pair_arms": [tuple(self.pairs)],
            "torsion_arms": [(i, j), (j, k), (k, l)],
            "centre_arms": [(c, p), (c, q), (c, r)],
        }.items():
            matrix = torch.cat([differences(self.n_atoms, a, b) for a, b in ends], dim=1)
            self.register_buffer(name, matrix, persistent=False)

    def distances(self, planes: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """``u = (r - m_σ)/sqrt(v_σ)`` (B, P) and 1/r on the same scale (B, P).

        ``planes`` (B, 3, N); ``s2`` (B, 1) the squared noise level.
        """
        r2 = along(planes, self.pair_arms).square().sum(1)
        mean, width = (self.mean**2 + 5 * s2).sqrt(), (self.std**2 + 1.4 * s2).rsqrt()
        u = ((r2 + 1e-12).sqrt() - mean) * width
        return u, ((r2 + 2 * s2 + 1e-12).rsqrt() - 1 / mean) * (mean**2 * width)

    def torsion(self, planes: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, K) of the torsions; sines change sign in a mirror."""
        b1, b2, b3 = along(planes, self.torsion_arms).chunk(3, dim=-1)
        return torsion_features(b1, b2, b3, s2)

    def hand(self, planes: Tensor) -> Tensor:
        """Signed volumes (B, C) in units of their means; they change sign in a mirror."""
        a, b, c = along(planes, self.centre_arms).chunk(3, dim=-1)
        return triple_product(a, b, c, axis=-2) / self.volume


class MechanicsNetwork(nn.Module):
    """``E(x) = E_prior(x) + MLP(internal coordinates)``: a fitted force field, corrected.

    For one noise level, far below the width of the stiffest bond. The force field is the
    closed-form solution of `fit_prior` and stays; the perceptron begins at zero.

    Parameters
    ----------
    config : its hyper-parameters
    internal : tables of `internal_statistics`; not used without hidden layers
    prior : tables of `fit_prior`
    """

    def __init__(self, config: MechanicsConfig, internal, prior):
        super().__init__()
        self.config = config
        self.prior = MechanicsPrior(prior)
        if not config.depth:
            return
        self.internal = _InternalCoordinates(internal)
        data = self.internal
        self.odd = bool(data.chiral)
        n_features = 2 * len(data.mean) + len(data.torsions)
        n_features += len(data.torsions) + len(data.centres) if self.odd else 0
        sizes = [n_features] + [config.width] * config.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(config.width, 1)
        nn.init.zeros_(self.out.weight)  # begins as the prior
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, sigma: Tensor, *, numbers=None, cell=None, pbc=None) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3); ``sigma`` (B,) is the level it was trained for."""
        planes = x.transpose(-1, -2).contiguous()  # (B, 3, N): pairs run along the fast axis
        energy = self.prior(planes)
        if not self.config.depth:
            return energy
        data, s2 = self.internal, sigma.square()[:, None]
        cosine, sine = data.torsion(planes, s2)
        # distances and cosines are blind to mirror images; sines and volumes are not
        odd = [sine, data.hand(planes)] if self.odd else []
        h = torch.cat([0.3 * f for f in data.distances(planes, s2)] + [cosine, *odd], dim=-1)
        for layer in self.layers:
            h = silu(layer(h))
        return self.out(h)[:, 0] + energy


class PairNetwork(nn.Module):
    """``E(x, σ) = Σ_pairs [a(σ) u² + b(σ) u] + MLP(u, cos torsions; σ)``.

    ``a`` starts at the harmonic prior: ½ for pairs with a standard deviation below 0.2 Å
    (bonds, 1-3), decaying where σ exceeds bonds. The energy is even under reflection: of
    chiral data it learns ``½[p(x) + p(-x)]``, and the hand is chosen at the smallest noise,
    where the two halves no longer overlap, so that nothing is lost (see `independent.draws`).

    ``config``: its hyper-parameters; ``internal``: tables of `internal_statistics`.
    """

    STIFF = 0.2  # Å

    def __init__(self, config: PairConfig, internal):
        super().__init__()
        self.config = config
        self.internal = _InternalCoordinates(internal)
        width, n_pairs = config.width, len(self.internal.mean)
        sizes = [n_pairs + len(self.internal.torsions)] + [width] * config.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(width, 1)
        self.embedding = NoiseEmbedding(64)
        self.modulate = nn.ModuleList(nn.Linear(64, 2 * width) for _ in self.layers)
        self.springs = nn.Linear(64, 2 * n_pairs)
        nn.init.normal_(self.springs.weight, std=1e-3)
        nn.init.zeros_(self.springs.bias)

    def forward(self, x: Tensor, sigma: Tensor, *, numbers=None, cell=None, pbc=None) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3) at noise level sigma (B,), or (1,) for all."""
        s2, data = sigma.square()[:, None], self.internal
        planes = x.transpose(-1, -2).contiguous()
        u, _ = data.distances(planes, s2)
        h = torch.cat([u, data.torsion(planes, s2)[0]], dim=-1)
        c = self.embedding(sigma)
        for n, (layer, modulate) in enumerate(zip(self.layers, self.modulate, strict=True)):
            gain, shift = modulate(c).chunk(2, dim=-1)
            new = silu(layer(h) * (1 + gain) + shift)
            h = h + new if n else new
        overlap = s2 / (1 + s2)  # atoms have lost their places: many weak springs
        a = 0.5 * (data.std < self.STIFF).to(x.dtype)
        a = a * (data.std**2 + 1.4 * s2) / (data.std**2 + 2 * s2) * (1 - overlap)
        a = a + overlap * (0.5 / data.n_atoms)
        da, b = self.springs(c).chunk(2, dim=-1)
        return self.out(h)[:, 0] + ((a + 0.3 * da) * u * u + b * u).sum(-1)


def torsion_features(b1: Tensor, b2: Tensor, b3: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (B, K) of dihedrals with bond vectors (B, 3, K), smoothed where noise
    makes atoms collinear."""
    n1, n2 = torch.linalg.cross(b1, b2, dim=-2), torch.linalg.cross(b2, b3, dim=-2)
    soft = 4 * (0.1 + s2) ** 2
    norm = (n1.square().sum(-2) * n2.square().sum(-2) + soft).rsqrt()
    length = (b2.square().sum(-2) + 0.1 * s2).rsqrt()
    return (n1 * n2).sum(-2) * norm, triple_product(b2, n1, n2, axis=-2) * norm * length
