"""Energy networks, leaf to root. An energy in units of kT; the score is minus its gradient.

`MechanicsNetwork`  one molecule at its smallest noise: a fitted force field plus a perceptron
`PairNetwork`       one molecule at all noise levels: data-derived springs plus a perceptron
`EmbeddedNetwork`   metals at their smallest noise, any size and cell: a fitted potential
`EquivariantNetwork` any composition and any cell; E(3)-equivariant messages (e3nn)

Both are called as ``network(x, sigma, numbers=…, cell=…, pbc=…) -> (B,)`` and know the noise
level σ they are asked for. Nothing here knows about temperatures, units of energy or ASE.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace
from e3nn.nn import FullyConnectedNet, Gate
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from .embedded import EmbeddedEnergy, fit_embedded
from .mechanics import TINY, MechanicsPrior, along, differences
from .neighbours import edges, envelope
from .prior import fit_prior
from .sets import as_sets
from .topology import signed_volumes

__all__ = [
    "EmbeddedConfig",
    "EmbeddedNetwork",
    "EquivariantConfig",
    "EquivariantNetwork",
    "MechanicsConfig",
    "MechanicsNetwork",
    "PairConfig",
    "PairNetwork",
    "build",
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


class EmbeddedConfig(BaseModel):
    """Hyper-parameters of `EmbeddedNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["embedded"] = "embedded"
    cutoff: float = Field(5.5, gt=0, description="radius of pairs and densities, Å")
    functions: int = Field(24, ge=4, description="splines of each pair of elements")


class EquivariantConfig(BaseModel):
    """Hyper-parameters of `EquivariantNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["equivariant"] = "equivariant"
    channels: int = Field(16, ge=1, description="channels of each degree and parity")
    l_max: int = Field(1, ge=0, le=3, description="highest degree of the messages")
    layers: int = Field(2, ge=1, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, description="radius of messages, Å")
    radial: int = Field(8, ge=2, description="radial basis functions")
    elements: tuple[int, ...] = Field((), description="atomic numbers it was trained on")
    neighbours: float = Field(12.0, gt=0, description="mean number of neighbours in the data")
    chiral: bool = Field(False, description="pseudoscalars enter the energy")

    @model_validator(mode="after")
    def _sees_hands(self) -> EquivariantConfig:
        # a triple product: vectors in the first layer, their cross products in the second
        if self.chiral and (self.layers < 3 or self.l_max < 1):
            raise ValueError("chiral=True needs layers >= 3 and l_max >= 1 to tell hands apart")
        return self


AnyConfig = MechanicsConfig | PairConfig | EmbeddedConfig | EquivariantConfig
NetworkConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def build(config: AnyConfig, source, *, sigma: float = 0.0, force_weight: float = 0.0) -> nn.Module:
    """The network of a configuration, in float32.

    ``source``: the `Snapshots` whose statistics enter the network (a `MechanicsNetwork` fits
    its prior to them at noise level ``sigma``, and to their forces), for networks of any
    composition one set or several; or the state dictionary of a trained one, whose weights are
    about to be loaded.
    """
    # most networks are built to be loaded: the caller's random state is left alone
    with torch.random.fork_rng(devices=[]):
        return _build(config, source, {"sigma": sigma, "force_weight": force_weight}).float()


def _build(config: AnyConfig, source, options: dict[str, float]) -> nn.Module:
    if isinstance(config, EquivariantConfig):
        return EquivariantNetwork(config)
    known = isinstance(source, dict)
    if isinstance(config, EmbeddedConfig):
        if known:
            tables = _below(source, "energy.")
        else:
            tables = fit_embedded(
                source, cutoff=config.cutoff, functions=config.functions, **options
            )
        return EmbeddedNetwork(config, tables)
    if not known:
        (source,) = as_sets(source)
    needs = isinstance(config, PairConfig) or config.depth > 0
    internal = None
    if needs:
        internal = _below(source, "internal.") if known else internal_statistics(source)
    if isinstance(config, PairConfig):
        return PairNetwork(config, internal)
    prior = _below(source, "prior.") if known else fit_prior(source, **options)
    return MechanicsNetwork(config, internal, prior)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# ------------------------------------------------------------------ noise level


class NoiseEmbedding(nn.Module):
    """log σ as Fourier features and a small network: (B,) → (B, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequency", 0.45 * torch.arange(1.0, 9.0))
        self.net = nn.Sequential(
            nn.Linear(17, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, sigma: Tensor) -> Tensor:
        t = sigma.log()[:, None]
        phase = t * self.frequency
        return self.net(torch.cat([t / 3, phase.cos(), phase.sin()], dim=-1))


# --------------------------------------------------------- networks of one molecule


def internal_statistics(snapshots) -> dict[str, Tensor]:
    """What the data say of one molecule: pair distances, torsions, signed volumes."""
    x, topology = snapshots.positions, snapshots.topology
    i, j = np.triu_indices(x.shape[1], 1)
    some = x[:: max(1, len(x) // 20_000)]
    r = np.linalg.norm(some[:, i] - some[:, j], axis=-1)
    centres = topology.centres if topology.chiral else topology.centres[:0]
    volume = signed_volumes(some, centres)
    tables = {
        "pairs": np.stack([i, j]),
        "mean": r.mean(0),
        "std": np.maximum(r.std(0), 1e-3),
        "torsions": topology.torsions,
        "centres": centres,
        "volume": volume.mean(0),
        "chiral": np.array(topology.chiral),
    }
    return {name: torch.as_tensor(value) for name, value in tables.items()}


class InternalCoordinates(nn.Module):
    """Pair distances, torsions and signed volumes of one molecule, of order one at every σ.

    With ``m``, ``v`` the mean and variance of a pair distance in the data, its values under
    noise have about the mean ``m_σ = sqrt(m² + 5σ²)`` and variance ``v_σ = v + 1.4σ²``
    (exact for σ → ∞: Maxwell's law).
    """

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
        return torsion_features(*along(planes, self.torsion_arms).chunk(3, dim=-1), s2)

    def hand(self, planes: Tensor) -> Tensor:
        """Signed volumes (B, C) in units of their means; they change sign in a mirror."""
        vectors = along(planes, self.centre_arms).chunk(3, dim=-1)
        return triple_product(*vectors) / self.volume


class MechanicsNetwork(nn.Module):
    """``E(x) = E_prior(x) + MLP(internal coordinates)``: a fitted force field, corrected.

    For one noise level, far below the width of the stiffest bond. The force field is the
    closed-form solution of `fit_prior` and stays; the perceptron begins at zero.
    """

    def __init__(self, config: MechanicsConfig, internal, prior):
        super().__init__()
        self.config = config
        self.prior = MechanicsPrior(prior)
        if not config.depth:
            return
        self.internal = InternalCoordinates(internal)
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
    where the two halves no longer overlap, so that nothing is lost (see ``sampling.iid``).
    """

    STIFF = 0.2  # Å

    def __init__(self, config: PairConfig, internal):
        super().__init__()
        self.config = config
        self.internal = InternalCoordinates(internal)
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
        """Energy (B,) in kT of x (B, N, 3) at noise level sigma (B,)."""
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


def triple_product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·(b×c) of vectors (B, 3, C): (B, C)."""
    return (a * torch.linalg.cross(b, c, dim=-2)).sum(-2)


def torsion_features(b1: Tensor, b2: Tensor, b3: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (B, K) of dihedrals with bond vectors (B, 3, K), smoothed where noise
    makes atoms collinear."""
    n1, n2 = torch.linalg.cross(b1, b2, dim=-2), torch.linalg.cross(b2, b3, dim=-2)
    soft = 4 * (0.1 + s2) ** 2
    norm = (n1.square().sum(-2) * n2.square().sum(-2) + soft).rsqrt()
    length = (b2.square().sum(-2) + 0.1 * s2).rsqrt()
    return (n1 * n2).sum(-2) * norm, triple_product(b2, n1, n2) * norm * length


# ------------------------------------------------- networks of any number of atoms


class EmbeddedNetwork(nn.Module):
    """`EmbeddedEnergy`: the closed-form solution of `fit_embedded`, for one noise level."""

    def __init__(self, config: EmbeddedConfig, tables: dict[str, Tensor]):
        super().__init__()
        self.config = config
        self.energy = EmbeddedEnergy(config.cutoff, tables)

    def forward(
        self, x: Tensor, sigma: Tensor, *, numbers: Tensor, cell=None, pbc=(False,) * 3, pairs=None
    ) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3); arguments as of `EquivariantNetwork`."""
        return self.energy(x, numbers, cell, pbc, pairs)


class EquivariantNetwork(nn.Module):
    """E(3)-equivariant message passing; energy = sum of atomic energies.

    Messages are tensor products of neighbour features with spherical harmonics of the bond,
    weighted by a network of distance and noise level (NequIP: Batzner et al., Nat. Commun.
    13, 2453 (2022)). All parities are carried. The energy is built of true scalars, so that
    mirror images have the same; for chiral data pseudoscalars enter as well.
    """

    def __init__(self, config: EquivariantConfig):
        super().__init__()
        self.config = config
        c, parities = config.channels, ("e", "o")
        hidden = o3.Irreps([(c, f"{n}{p}") for n in range(config.l_max + 1) for p in parities])
        self.register_buffer("elements", torch.as_tensor(config.elements), persistent=False)
        self.embedding = NoiseEmbedding(32)
        self.species = nn.Embedding(len(config.elements), c)
        self.species_noise = nn.Linear(32, c)
        irreps, layers = o3.Irreps(f"{c}x0e"), []
        for _ in range(config.layers):
            layers.append(Interaction(irreps, hidden, config))
            irreps = layers[-1].irreps_out
        self.layers = nn.ModuleList(layers)
        scalars = [(n, ir) for n, ir in irreps if ir.l == 0 and (ir.p == 1 or config.chiral)]
        self.readout = o3.Linear(irreps, o3.Irreps([(c, ir) for _, ir in scalars]))
        self.energy = nn.Sequential(nn.Linear(c * len(scalars), c), nn.SiLU(), nn.Linear(c, 1))

    def forward(
        self, x: Tensor, sigma: Tensor, *, numbers: Tensor, cell=None, pbc=(False,) * 3, pairs=None
    ) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3) at noise level sigma (B,).

        ``numbers`` (N,), ``cell`` (3, 3) or (B, 3, 3) or None, ``pbc`` three bools; ``pairs``
        may hold the neighbours, and more.
        """
        n_batch, n_atoms = x.shape[:2]
        source, target, vectors = edges(x, self.config.cutoff, cell, pbc, pairs)
        length = (vectors.square().sum(-1) + TINY).sqrt()
        harmonics = o3.spherical_harmonics(
            list(range(self.config.l_max + 1)),
            vectors / length[:, None],
            normalize=False,
            normalization="component",
        )
        c = self.embedding(sigma)
        radial = soft_one_hot_linspace(
            length, 0.0, self.config.cutoff, self.config.radial, basis="bessel", cutoff=True
        ) * math.sqrt(self.config.radial)
        weight = torch.cat([radial, c[target // n_atoms]], dim=-1)
        smooth = envelope(length / self.config.cutoff)[:, None]
        index = (numbers[:, None] == self.elements).to(torch.int8).argmax(-1)
        features = (self.species(index)[None] + self.species_noise(c)[:, None]).flatten(0, 1)
        for layer in self.layers:
            features = layer(features, source, target, harmonics, weight, smooth)
        energy = self.energy(self.readout(features))
        return energy.reshape(n_batch, n_atoms).sum(-1)


class Interaction(nn.Module):
    """One round of messages, then a gated nonlinearity."""

    def __init__(self, irreps_in: o3.Irreps, hidden: o3.Irreps, config: EquivariantConfig):
        super().__init__()
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        scalars = o3.Irreps([(n, ir) for n, ir in hidden if ir.l == 0])
        gated = o3.Irreps([(n, ir) for n, ir in hidden if ir.l > 0])
        middle: list = []
        instructions: list = []
        for i, (mul, ir_in) in enumerate(irreps_in):
            for j, (_, ir_edge) in enumerate(harmonics):
                for ir_out in ir_in * ir_edge:
                    if ir_out in hidden:
                        instructions.append((i, j, len(middle), "uvu", True))
                        middle.append((mul, ir_out))
        reached = {ir for _, ir in middle} | {ir for _, ir in irreps_in}
        scalars = o3.Irreps([(n, ir) for n, ir in scalars if ir in reached])
        gated = o3.Irreps([(n, ir) for n, ir in gated if ir in reached])
        gates = o3.Irreps([(gated.num_irreps, "0e")]) if len(gated) else o3.Irreps([])
        self.gate = Gate(
            scalars,
            [silu if ir.p == 1 else torch.tanh for _, ir in scalars],
            gates,
            [torch.sigmoid] * len(gates),
            gated,
        )
        self.irreps_out = self.gate.irreps_out
        self.own = o3.Linear(irreps_in, self.gate.irreps_in)
        self.up = o3.Linear(irreps_in, irreps_in)
        self.product = o3.TensorProduct(
            irreps_in, harmonics, middle, instructions, shared_weights=False, internal_weights=False
        )
        self.radial = FullyConnectedNet(
            [config.radial + 32, 32, self.product.weight_numel], torch.nn.functional.silu
        )
        self.down = o3.Linear(o3.Irreps(middle).simplify(), self.gate.irreps_in)
        self.scale = config.neighbours**-0.5

    def forward(self, features, source, target, harmonics, weight, smooth):
        messages = self.product(self.up(features)[source], harmonics, self.radial(weight))
        gathered = features.new_zeros(len(features), messages.shape[-1])
        gathered = gathered.index_add(0, target, smooth * messages) * self.scale
        return self.gate(self.own(features) + self.down(gathered))
