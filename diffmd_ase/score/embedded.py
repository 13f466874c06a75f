"""Atoms in the density of their neighbours: an energy for metals, fitted in closed form.

    E(x) = Σ_{i<j} V(r_ij) + Σ_i Σ_{a,p} w_ap [(ρ_ia + δ)^p - δ^p]        in kT
    ρ_ia = Σ_j exp[-α_a (r_ij/r₀ - 1)] c(r_ij/r_c) / ⟨ρ_a⟩

the embedded-atom form (Daw & Baskes, Phys. Rev. B 29, 6443 (1984); p = ½: Finnis & Sinclair,
Phil. Mag. A 50, 45 (1984)). V is a cubic spline for each pair of elements that ends at the
cutoff r_c with two continuous derivatives, c a smooth envelope, w a table for each element.
The energy is linear in the values of V and in w, so that score matching of snapshots is linear
least squares (Hyvärinen, JMLR 6, 695 (2005), section 3): with J = ∂f/∂x at x ± σε,

    G θ = b        G = ⟨J₊J₊ᵀ + J₋J₋ᵀ⟩        b = ⟨(J₊ - J₋) ε⟩/σ

Nothing of it knows the number of atoms: fitted to small cells, it runs on large ones.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from .neighbours import Pairs, edges, envelope, find_pairs

__all__ = ["EmbeddedEnergy", "fit_embedded"]

_DECAYS = (2.0, 5.0, 8.0)  # α: how fast the densities fall, about and beyond exponents of metals
_POWERS = (0.5, 2.0)  # with the linear term, which V holds, the curvature of both signs
_DELTA = 0.05  # of the mean density: the root is smooth where an atom is alone
_INSIDE = 0.95  # of the shortest distance of the data, where V goes on as a straight line
_WALL = 0.05  # Å: and a wall of this width is added
_END = 3  # splines that reach over the cutoff: without them V ends smoothly
_SPARE = 1e-5  # relative mean square of the score that a smoother fit may lose
_FRAMES = 16  # in one matrix product


class EmbeddedEnergy(nn.Module):
    """The energy of this module's equation, in kT, with forces by automatic differentiation.

    Parameters
    ----------
    cutoff : r_c in Å
    tables : ``elements`` (S,) atomic numbers; ``inner``, ``nearest`` (): where V becomes a
        line, and r₀, Å; ``density`` (A,) mean densities; ``pair`` (S(S+1)/2, K + 3)
        coefficients of the splines, the last three zero; ``embedding`` (S, A, P) the weights w
    """

    def __init__(self, cutoff: float, tables: dict[str, Tensor]):
        super().__init__()
        self.cutoff = cutoff
        for name, value in tables.items():
            self.register_buffer(name, value)
        self.register_buffer("decays", torch.tensor(_DECAYS), persistent=False)
        self.register_buffer("powers", torch.tensor(_POWERS), persistent=False)
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
        rho = self.densities(r, target, len(energy))[:, :, None] + _DELTA
        embedded = (rho**self.powers - _DELTA**self.powers) * self.embedding[element]
        return (energy + embedded.sum((1, 2))).reshape(n_batch, n_atoms).sum(-1)

    def species(self, numbers: Tensor) -> Tensor:
        """Row of each atom (N,) in the tables."""
        return (numbers[:, None] == self.elements).to(torch.int8).argmax(-1)

    def pair_energy(self, r: Tensor, element, source, target) -> Tensor:
        """V (E,) at distances r (E,), the line and the wall inside of the data included."""
        first, weights = self.spline(r)
        coefficients = self.pair[self.kinds[element[target], element[source]]]
        index = first[:, None] + torch.arange(4, device=r.device)
        wall = 0.5 * (torch.relu(self.inner - r) / _WALL).square()
        return (coefficients.gather(1, index) * weights).sum(-1) + wall

    def spline(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """The four cubic B-splines that are not zero at r (E,): the first one's number (E,),
        their values (E, 4)."""
        size = self.pair.shape[1] - _END
        t = (r - self.inner) * (size / (self.cutoff - self.inner))
        first = t.detach().floor().clamp(0, size - 1).long()
        u = t - first
        line, u = u.clamp(max=0.0), u.clamp(min=0.0)
        v = 1 - u
        values = [
            v**3 / 6 - 0.5 * line,
            2 / 3 - u**2 + u**3 / 2,
            2 / 3 - v**2 + v**3 / 2 + 0.5 * line,
            u**3 / 6,
        ]
        return first, torch.stack(values, dim=-1)

    def radial(self, r: Tensor) -> Tensor:
        """What a neighbour at r (E,) adds to the densities (E, A)."""
        inside = torch.maximum(r, self.inner)[:, None]
        fall = torch.exp(-self.decays * (inside / self.nearest - 1)) / self.density
        return fall * envelope(r / self.cutoff)[:, None]

    def densities(self, r: Tensor, target: Tensor, n_atoms: int) -> Tensor:
        """ρ (n_atoms, A) from edges."""
        return r.new_zeros(n_atoms, len(_DECAYS)).index_add(0, target, self.radial(r))

    def jacobian(self, x: Tensor, numbers: Tensor, cell, pbc) -> Tensor:
        """∂f/∂x (F, B, 3N) of the features: splines of each pair of elements, then
        powers of each density of each element."""
        n_batch, n_atoms = x.shape[:2]
        source, target, vectors = edges(
            x, self.cutoff, cell, pbc, find_pairs(x, self.cutoff, cell, pbc)
        )
        total, (n_kinds, n_splines) = n_batch * n_atoms, self.pair.shape
        n_pair, n_embedding = self.pair.numel(), self.embedding.numel()
        length = vectors.norm(dim=-1)
        # each distance has its own functions: one sum gives all derivatives
        r = length.detach().requires_grad_()
        with torch.enable_grad():
            first, values = self.spline(r)
            falls = self.radial(r)
            slopes = [
                torch.autograd.grad(values[:, k].sum(), r, retain_graph=True)[0] for k in range(4)
            ]
            falling = [
                torch.autograd.grad(falls[:, a].sum(), r, retain_graph=True)[0]
                for a in range(len(_DECAYS))
            ]
        element = self.species(numbers).repeat(n_batch)
        # moving the target by d changes r by -d·u
        unit = -(vectors / length[:, None]).detach()
        out = x.new_zeros((n_pair + n_embedding) * total, 3)
        kind = self.kinds[element[target], element[source]]
        for k, slope in enumerate(slopes):
            feature = kind * n_splines + first + k
            out.index_add_(0, feature * total + target, slope[:, None] * unit)
        rho = self.densities(length.detach(), target, total) + _DELTA
        for a, fall in enumerate(falling):
            for p, power in enumerate(_POWERS):
                change = power * rho[:, a] ** (power - 1)
                for atom in (target, source):  # of the target's own energy, and its neighbour's
                    feature = (element[atom] * len(_DECAYS) + a) * len(_POWERS) + p + n_pair
                    out.index_add_(
                        0, feature * total + target, (change[atom] * fall)[:, None] * unit
                    )
        out = out.reshape(-1, n_batch, 3 * n_atoms)
        free = out[:n_pair].unflatten(0, (n_kinds, n_splines))[:, :-_END].flatten(0, 1)
        return torch.cat([free, out[n_pair:]])


def fit_embedded(
    snapshots,
    *,
    cutoff: float,
    functions: int,
    sigma: float,
    frames: int = 20_000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Tables of an `EmbeddedEnergy` from snapshots, by the score matching of this module.

    Parameters
    ----------
    functions : splines of each pair of elements
    sigma : noise in Å

    The ridge that keeps undetermined combinations at zero is chosen on held-out frames.
    """
    x = torch.as_tensor(snapshots.positions, dtype=torch.float64)
    system = snapshots.system
    numbers = torch.as_tensor(system.numbers)
    cell = None if system.cell is None else torch.as_tensor(system.cell)
    pbc = tuple(bool(p) for p in system.pbc)
    energy = EmbeddedEnergy(cutoff, _empty(x, numbers, cell, pbc, cutoff, functions))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)[:frames]
    held_out = max(1, len(order) // 5)
    parts = (order[:held_out], order[held_out:])
    (gram_out, drive_out), (gram, drive) = (
        _moments(energy, x[part], numbers, cell, pbc, sigma, generator) for part in parts
    )
    unit = gram.diagonal().clamp_min(1e-20).rsqrt()
    gram, gram_out = (unit[:, None] * g * unit for g in (gram, gram_out))
    drive, drive_out = unit * drive, unit * drive_out
    eye = torch.eye(len(gram), dtype=gram.dtype)
    candidates = {}
    for ridge in torch.logspace(-7, -1, 13, dtype=torch.float64).tolist():
        theta = torch.linalg.solve(gram + ridge * eye, drive)
        candidates[ridge] = float(0.5 * theta @ gram_out @ theta - theta @ drive_out)
    # the largest that costs next to nothing: terms that cancel lose digits in single precision
    best = min(candidates.values())
    ridge = max(r for r, loss in candidates.items() if loss <= best + _SPARE * abs(best))
    share = held_out / len(order)
    gram, drive = (1 - share) * gram + share * gram_out, (1 - share) * drive + share * drive_out
    theta = unit * torch.linalg.solve(gram + ridge * eye, drive)
    pair, embedding = theta.split([len(theta) - energy.embedding.numel(), energy.embedding.numel()])
    pair = nn.functional.pad(pair.reshape(len(energy.pair), functions), (0, _END))
    embedding = embedding.reshape(energy.embedding.shape)
    return {**energy.state_dict(), "pair": pair, "embedding": embedding}


def _empty(x, numbers, cell, pbc, cutoff, functions) -> dict[str, Tensor]:
    """Tables with the scales of the data and no energy yet."""
    some = x[:: max(1, len(x) // 500)]
    lengths = [edges(part, cutoff, cell, pbc)[2].norm(dim=-1) for part in some.split(_FRAMES)]
    r = torch.cat(lengths)
    if not len(r):
        raise ValueError(f"no two atoms are closer than {cutoff=} Å: give a larger cutoff")
    closest = float(r.min())
    counts, places = torch.histc(r, 100, closest, cutoff), torch.linspace(closest, cutoff, 101)
    # the first shell: the highest peak of the radial distribution
    near = places[:-1] + 0.5 * places.diff()
    nearest = float(near[(counts.to(near) / near**2).argmax()])
    elements = torch.unique(numbers)
    n = len(elements)
    tables = {
        "elements": elements,
        "inner": torch.tensor(_INSIDE * closest, dtype=x.dtype),
        "nearest": torch.tensor(nearest, dtype=x.dtype),
        "density": torch.ones(len(_DECAYS), dtype=x.dtype),
        "pair": torch.zeros(n * (n + 1) // 2, functions + _END, dtype=x.dtype),
        "embedding": torch.zeros(n, len(_DECAYS), len(_POWERS), dtype=x.dtype),
    }
    total = EmbeddedEnergy(cutoff, tables).radial(r).sum(0)
    return {**tables, "density": total / (some.shape[0] * some.shape[1])}


def _moments(energy, positions, numbers, cell, pbc, sigma, generator) -> tuple[Tensor, Tensor]:
    """G and b over some frames."""
    size = energy.pair[:, :-_END].numel() + energy.embedding.numel()
    gram, drive = positions.new_zeros(size, size), positions.new_zeros(size)
    for x in positions.split(_FRAMES):
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        plus, minus = (
            energy.jacobian(x + sign * sigma * epsilon, numbers, cell, pbc) for sign in (1, -1)
        )
        drive += ((plus - minus) * epsilon.flatten(1)).sum((1, 2)) / sigma
        for j in (plus, minus):
            flat = j.flatten(1)
            gram += flat @ flat.T
    return gram / len(positions), drive / len(positions)
