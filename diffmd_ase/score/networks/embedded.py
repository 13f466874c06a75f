"""The energy of metals and noble gases: atoms in the density of their neighbours.

    E(x) = Σ_{i<j} V(r_ij) + Σ_i Σ_{a,p} w_ap [(ρ_ia + δ)^p - δ^p]        in kT
    ρ_ia = Σ_j exp[-α_a (r_ij/r₀ - 1)] c(r_ij/r_c) / ⟨ρ_a⟩

the embedded-atom form (Daw & Baskes, Phys. Rev. B 29, 6443 (1984); p = ½: Finnis & Sinclair,
Phil. Mag. A 50, 45 (1984)). V is a cubic spline for each pair of elements that ends at the
cutoff r_c with two continuous derivatives, c a smooth envelope, w a table for each element.
The energy is linear in the values of V and in w, which `embedded_fit` finds.

Where bonds have directions, the energies of `angular` are added.

With several elements S there are densities of all neighbours and of those of each element, since
an atom may prefer its like (A = 3 or 3(1 + S) densities).
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..neighbours import Pairs, edges, envelope, find_pairs
from .angular import Around, angular_energy, angular_slopes
from .splines import END, splines, splines_apart, wall

__all__ = [
    "DECAYS",
    "POWERS",
    "EmbeddedConfig",
    "EmbeddedEnergy",
    "EmbeddedNetwork",
]


class EmbeddedConfig(BaseModel):
    """Hyper-parameters of `EmbeddedNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["embedded"] = "embedded"
    cutoff: float = Field(5.5, gt=0, description="radius of pairs and densities, Å")
    functions: int = Field(24, ge=4, description="splines of each pair of elements")
    angular: float = Field(0.0, ge=0, description="radius of angular terms, Å; 0: none")


class EmbeddedNetwork(nn.Module):
    """`EmbeddedEnergy`: the closed-form solution of `fit_embedded`, for one noise level.

    ``config``: its hyper-parameters; ``tables``: those of `EmbeddedEnergy`.
    """

    def __init__(self, config: EmbeddedConfig, tables: dict[str, Tensor]):
        super().__init__()
        self.config = config
        self.energy = EmbeddedEnergy(config.cutoff, tables, angular=config.angular)

    def forward(
        self, x: Tensor, sigma: Tensor, *, numbers: Tensor, cell=None, pbc=(False,) * 3, pairs=None
    ) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3); arguments as of `EquivariantNetwork`."""
        return self.energy(x, numbers, cell, pbc, pairs)


DECAYS = (2.0, 5.0, 8.0)  # α: how fast the densities fall, about and beyond exponents of metals
POWERS = (0.5, 2.0)  # with the linear term, which V holds, the curvature of both signs
_DELTA = 0.05  # of the mean density: the root is smooth where an atom is alone


class EmbeddedEnergy(nn.Module):
    """The energy of this module's equation, in kT, with forces by automatic differentiation.

    Parameters
    ----------
    cutoff : r_c in Å
    tables : ``elements`` (S,) atomic numbers; ``inner`` () or (S(S+1)/2,): where V becomes a
        line, Å; ``nearest`` (): r₀, Å; ``density`` (A,) mean densities; ``pair``
        (S(S+1)/2, K + 3) coefficients of the splines, the last three zero; ``embedding``
        (S, A, P) the weights w; ``angular``: those of `angular_energy`, where there are any;
        ``spread``: of `uncertainty`, where it is known
    angular : radius of these in Å, 0: none
    """

    elements: Tensor
    inner: Tensor
    nearest: Tensor
    density: Tensor
    pair: Tensor
    embedding: Tensor
    angular: Tensor
    spread: Tensor  # of `uncertainty`
    kinds: Tensor

    def __init__(self, cutoff: float, tables: dict[str, Tensor], *, angular: float = 0.0):
        super().__init__()
        self.cutoff, self.radius = cutoff, angular if "angular" in tables else 0.0
        self.known = "spread" in tables
        for name, value in tables.items():
            self.register_buffer(name, value)
        kinds = torch.zeros(len(self.elements), len(self.elements), dtype=torch.long)
        for n, (a, b) in enumerate(combinations_with_replacement(range(len(self.elements)), 2)):
            kinds[a, b] = kinds[b, a] = n
        self.register_buffer("kinds", kinds, persistent=False)

    def forward(self, x: Tensor, numbers: Tensor, cell, pbc, pairs: Pairs | None = None) -> Tensor:
        """Energy (B,) of x (B, N, 3); ``numbers`` (N,), ``cell`` (3, 3), (B, 3, 3) or None."""
        n_batch, n_atoms = x.shape[:2]
        source, target, vectors = edges(x, self.cutoff, cell, pbc, pairs)
        r = (vectors.square().sum(-1) + 1e-12).sqrt()
        element = self.species(numbers).repeat(n_batch)
        # the two directions of a pair carry half of it each
        energy = x.new_zeros(n_batch * n_atoms)
        energy = energy.index_add(0, target, 0.5 * self.pair_energy(r, element, source, target))
        rho = self.densities(r, element, source, target) + _DELTA
        # sqrt and square: a power of any exponent takes longer than all else of an atom
        powers = torch.stack((rho.sqrt() - _DELTA**0.5, rho.square() - _DELTA**2), dim=-1)
        energy = energy + (powers * self.embedding[element]).sum((1, 2))
        if self.radius:
            around = self.around(vectors, element, source, target)
            energy = energy + angular_energy(around, self.angular)
        return energy.reshape(n_batch, n_atoms).sum(-1)

    def around(self, vectors: Tensor, element: Tensor, source, target) -> Around:
        """Neighbours of the angular terms, from edges."""
        begin = self.inner.min()
        return Around(vectors, source, target, element, len(self.elements), begin, self.radius)

    @property
    def plain(self) -> int:
        """How many parameters V and w have, which come before those of `angular`."""
        return self.pair[:, :-END].numel() + self.embedding.numel()

    def species(self, numbers: Tensor) -> Tensor:
        """Row of each atom (N,) in the tables."""
        return (numbers[:, None] == self.elements).to(torch.int8).argmax(-1)

    def pair_energy(self, r: Tensor, element, source, target) -> Tensor:
        """V (E,) at distances r (E,), the line and the wall inside of the data included."""
        kind = self.kind(element, source, target)
        begin, width = self.begin(kind), self.pair.shape[1]
        near = r.clamp(max=self.cutoff)
        first, values = splines_apart(near, begin, self.cutoff, width - END)
        first, table, energy = first + kind * width, self.pair.flatten(), wall(r, begin)
        for n, value in enumerate(values):  # apart: what is side by side is not vectorised
            energy = energy + table[first + n] * value
        return energy

    def kind(self, element: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Which pair of elements the edges from ``source`` to ``target`` are (E,)."""
        if len(self.elements) == 1:
            return torch.zeros_like(target)
        return self.kinds[element[target], element[source]]

    def begin(self, kind: Tensor) -> Tensor:
        """Where the data of these kinds of pairs (E,) begin, Å."""
        if len(self.pair) == 1:
            return self.inner.expand(len(kind))
        return self.inner.expand(len(self.pair))[kind]

    def spline(self, r: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """The four cubic B-splines that are not zero at r (E,): the first one's number (E,),
        their values (E, 4)."""
        return splines(r, self.begin(kind), self.cutoff, self.pair.shape[1] - END)

    def radial(self, r: Tensor, kind: Tensor) -> list[Tensor]:
        """What a neighbour at r (E,) adds to the densities of each decay, each (E,)."""
        inside = torch.maximum(r, self.begin(kind))
        once, ends = torch.exp(1 - inside / self.nearest), envelope(r / self.cutoff)
        return [once**decay * ends / self.density[n] for n, decay in enumerate(DECAYS)]

    def channels(self, element: Tensor) -> Tensor:
        """Which densities neighbours of these elements (E,) belong to (E, A/3): 1 or 0."""
        every = element.new_ones(len(element), 1)
        if len(self.density) == len(DECAYS):
            return every
        return torch.cat([every, nn.functional.one_hot(element, len(self.elements))], dim=1)

    def densities(self, r: Tensor, element, source, target) -> Tensor:
        """ρ (B·N, A) from edges."""
        falls = self.radial(r, self.kind(element, source, target))
        if len(self.density) > len(DECAYS):
            channels = self.channels(element[source]).to(r).unbind(1)
            falls = [channel * fall for channel in channels for fall in falls]
        zero = r.new_zeros(len(element))
        return torch.stack([zero.index_add(0, target, fall) for fall in falls], dim=-1)

    def jacobian(self, x: Tensor, numbers: Tensor, cell, pbc) -> Tensor:
        """∂f/∂x (F, B, 3N) of the features: splines of each pair of elements, powers of each
        density of each element, then those of `angular`; N fastest, as of `linear_form`."""
        n_batch, n_atoms = x.shape[:2]
        source, target, vectors = edges(
            x, self.cutoff, cell, pbc, find_pairs(x, self.cutoff, cell, pbc)
        )
        total, (n_kinds, n_splines) = n_batch * n_atoms, self.pair.shape
        n_pair, n_embedding = self.pair.numel(), self.embedding.numel()
        length = vectors.norm(dim=-1)
        element = self.species(numbers).repeat(n_batch)
        kind = self.kinds[element[target], element[source]]
        # each distance has its own functions: one sum gives all derivatives
        r = length.detach().requires_grad_()
        with torch.enable_grad():
            first, values = self.spline(r, kind)
            falls = self.radial(r, kind)
            slopes = [
                torch.autograd.grad(values[:, k].sum(), r, retain_graph=True)[0] for k in range(4)
            ]
            falling = [
                torch.autograd.grad(falls[a].sum(), r, retain_graph=True)[0]
                for a in range(len(DECAYS))
            ]
        # moving the target by d changes r by -d·u
        unit = -(vectors / length[:, None]).detach()
        out = x.new_zeros((n_pair + n_embedding) * total, 3)
        for k, slope in enumerate(slopes):
            feature = kind * n_splines + first + k
            out.index_add_(0, feature * total + target, slope[:, None] * unit)
        rho = self.densities(length.detach(), element, source, target) + _DELTA
        n_densities = len(self.density)
        # of the target's own energy, by its neighbour, and of the neighbour's, by the target
        for atom, other in ((target, source), (source, target)):
            channels = self.channels(element[other])
            for a in range(n_densities):
                channel, decay = divmod(a, len(DECAYS))
                near = channels[:, channel].nonzero()[:, 0]
                fall, mine, at = falling[decay][near], atom[near], target[near]
                for p, power in enumerate(POWERS):
                    change = power * rho[mine, a] ** (power - 1) * fall
                    feature = (element[mine] * n_densities + a) * len(POWERS) + p + n_pair
                    out.index_add_(0, feature * total + at, change[:, None] * unit[near])
        out = out.reshape(-1, n_batch, 3 * n_atoms)
        free = out[:n_pair].unflatten(0, (n_kinds, n_splines))[:, :-END].flatten(0, 1)
        rows = [free, out[n_pair:]]
        if self.radius:
            angles = angular_slopes(self.around(vectors, element, source, target))
            rows.append(angles.reshape(-1, n_batch, 3 * n_atoms))
        return torch.cat(rows).unflatten(-1, (n_atoms, 3)).transpose(-1, -2).flatten(2)
