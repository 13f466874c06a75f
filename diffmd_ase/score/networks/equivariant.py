"""An E(3)-equivariant network on neighbours, for any system (e3nn)."""

from __future__ import annotations

import math

import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor, nn
from torch.nn.functional import silu

from ..force_field import TINY
from ..neighbours import edges, envelope
from .equivariant_config import EquivariantConfig
from .inputs import NoiseEmbedding

__all__ = ["EquivariantConfig", "EquivariantNetwork"]


class EquivariantNetwork(nn.Module):
    """E(3)-equivariant message passing; energy = sum of atomic energies.

    Messages are tensor products of neighbour features with spherical harmonics of the bond,
    weighted by a network of distance and noise level (NequIP: Batzner et al., Nat. Commun.
    13, 2453 (2022)). All parities are carried. The energy is built of true scalars, so that
    mirror images have the same; for chiral data pseudoscalars enter as well.

    ``config``: its hyper-parameters, the elements that it knows among them.
    """

    elements: Tensor

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
        """Energy (B,) in kT of x (B, N, 3) at noise level sigma (B,), or (1,) for all.

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
        c = self.embedding(sigma).expand(n_batch, -1)
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
        middle: list = []
        instructions: list = []
        for i, (mul, ir_in) in enumerate(irreps_in):
            for j, (_, ir_edge) in enumerate(harmonics):
                for ir_out in ir_in * ir_edge:
                    if ir_out in hidden:
                        instructions.append((i, j, len(middle), "uvu", True))
                        middle.append((mul, ir_out))
        reached = {ir for _, ir in middle} | {ir for _, ir in irreps_in}
        scalars = o3.Irreps([(n, ir) for n, ir in hidden if ir.l == 0 and ir in reached])
        gated = o3.Irreps([(n, ir) for n, ir in hidden if ir.l > 0 and ir in reached])
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
