"""The terms of classical force fields as functions of positions.

Bond lengths and angles to second order, torsions to fourth order, out-of-plane angles, and
1/r, 1/r⁶, 1/r¹² of every pair three or more bonds apart. `force_field_tables` says which there are,
`force_field_fit` finds the parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .couplings import PARTS, parts

__all__ = [
    "COORDINATES",
    "MEANS",
    "TINY",
    "MechanicsPrior",
    "along",
    "differences",
]

MEANS = {
    "bonds": "bond_mean",
    "angles": "angle_mean",
    "pairs": "pairs_mean",
    "loose": "loose_mean",
}
"""Tables of the means of coordinates that are multiplied with others."""
_ALWAYS = ("bonds", "free")
_LENGTHS = (*_ALWAYS, "pairs", "loose")
_WALL = 0.05  # Å: width of the wall below the shortest distance of a pair
_HAND = 0.1  # width of the wall against the other hand, of the smallest volume in the data


class MechanicsPrior(nn.Module):
    """``E = f(x)·θ + ½ g(x)ᵀ A g(x)`` in kT for positions as planes (B, 3, N).

    The second term are the couplings of `couplings`, ``A_ij = A_ji = c_p`` of products p.

    Below the shortest distance of a pair in the data its features stay constant and a
    harmonic wall takes over: r⁻¹² is never extrapolated, and chains do not fold onto
    themselves where no snapshot says what holds them together. The terms are blind to mirror
    images; a wall where the signed volume of a centre leaves the range of the data keeps the hand.

    ``statistics``: the tables of `force_field_tables`, with θ as ``theta`` (F,) once it is fitted.
    """

    n_atoms: Tensor
    bonds: Tensor
    angles: Tensor
    torsions: Tensor
    impropers: Tensor
    free: Tensor
    pairs: Tensor
    loose: Tensor
    bond_mean: Tensor
    angle_mean: Tensor
    pairs_mean: Tensor
    loose_mean: Tensor
    shortest: Tensor
    centres: Tensor
    least_volume: Tensor
    theta: Tensor
    unit: Tensor
    arms: Tensor
    matrix: Tensor
    products: Tensor
    strengths: Tensor
    width_bonds: Tensor
    width_angles: Tensor
    width_pairs: Tensor
    width_loose: Tensor
    parameter: Tensor  # these and below: of `extrapolation`
    spread: Tensor
    centre: Tensor
    whiten: Tensor
    edge: Tensor
    torsion_gap: Tensor
    label_weight: Tensor  # of the fit, where it was chosen

    def __init__(self, statistics: dict[str, Tensor]):
        super().__init__()
        for name, value in statistics.items():
            self.register_buffer(name, value)
        for name in {"pairs", "loose"} - set(statistics):  # without couplings there are none
            self.register_buffer(name, statistics["free"][:0], persistent=False)
        self.coupled = "products" in statistics
        self.remembers, self.ranged = "whiten" in statistics, "torsion_gap" in statistics
        if self.coupled:
            size = sum(PARTS[kind] * len(getattr(self, kind)) for kind in PARTS)
            matrix = self.theta.new_zeros(size, size)
            for i, j in (self.products.T, self.products.flip(1).T):
                matrix.index_put_((i, j), self.strengths, accumulate=True)
            self.register_buffer("matrix", matrix, persistent=False)
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
        ends = [(kind, *getattr(self, kind).T) for kind in _LENGTHS]
        ends += [("angles", c, a), ("angles", c, b)]
        for k in range(3):
            for kind, table in (("torsions", self.torsions), ("impropers", self.impropers)):
                ends.append((kind, table[:, k], table[:, k + 1]))
        return ends + [("centres", self.centres[:, 0], self.centres[:, k]) for k in (1, 2, 3)]

    def forward(self, planes: Tensor) -> Tensor:
        """Energy (B,) in kT."""
        q, wall = self.coordinates(planes)
        features = torch.cat([f for kind in q for f in self.features(kind, q[kind])], dim=-1)
        energy = (features * self.unit) @ self.theta + wall
        if self.coupled:
            g = self.functions(q)
            energy = energy + 0.5 * ((g @ self.matrix) * g).sum(-1)
        return energy

    def terms(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """All features (B, F), products (B, P) after them, and the energy of the walls (B,)."""
        q, wall = self.coordinates(planes)
        features = [f for kind in q for f in self.features(kind, q[kind])]
        if self.coupled:
            g = self.functions(q)
            features.append(g[:, self.products[:, 0]] * g[:, self.products[:, 1]])
        return torch.cat(features, dim=-1), wall

    def jacobian(self, planes: Tensor, orbits: Tensor, size: int) -> Tensor:
        """∂f/∂x (size, B, 3N): f'(q) times the derivative of each coordinate (Wilson's B).

        Parameters
        ----------
        planes : (B, 3, N) in Å
        orbits : (F,) the parameter of each feature, of which there are ``size``
        """

        def wilson(kind: str, slopes: tuple[Tensor, ...]) -> Tensor:
            # (K, B, 3, N), of one vector after the other
            parts = [
                s.permute(2, 0, 1)[..., None] * self.arms[:, columns].T[:, None, None]
                for s, columns in zip(slopes, self.columns[kind], strict=True)
            ]
            return sum(parts[1:], parts[0]).flatten(2)

        return self._slopes(planes, orbits, size, wilson)

    def along(self, planes: Tensor, arrows: Tensor, orbits: Tensor, size: int) -> Tensor:
        """J v (size, B) of vectors v, the ``arrows`` (B, 3, N), with J of `jacobian`.

        Other parameters are as for `jacobian`.
        """

        def turned(kind: str, slopes: tuple[Tensor, ...]) -> Tensor:
            pairs = zip(slopes, self.vectors(kind, arrows), strict=True)
            return torch.stack([(s * v).sum(1) for s, v in pairs]).sum(0).T[..., None]

        return self._slopes(planes, orbits, size, turned)[..., 0]

    def _slopes(self, planes: Tensor, orbits: Tensor, size: int, chain: Callable) -> Tensor:
        """f'(q) (size, B, D) times what ``chain`` makes, (K, B, D), of ∂q/∂vectors of a kind."""
        rows, values, slopes_of_parts, first = None, [], [], 0
        for kind, coordinate in COORDINATES.items():
            vectors = [v.requires_grad_() for v in self.vectors(kind, planes)]
            with torch.enable_grad():
                q = coordinate(*vectors)
                # each coordinate depends on its own vectors only: one sum gives all derivatives
                slopes = torch.autograd.grad(q.sum(), vectors)
                q = q.detach().requires_grad_()
                features, parts = self.features(kind, q), self.parts(kind, q)
                functions = [
                    torch.autograd.grad(f.sum(), q, retain_graph=True)[0]
                    for f in (*features, *parts)
                ]
            change = chain(kind, slopes)
            if rows is None:
                rows = change.new_empty(len(orbits), *change.shape[1:])
            count = q.shape[-1]
            for f in functions[: len(features)]:
                torch.mul(f.T[:, :, None], change, out=rows[first : first + count])
                first += count
            slopes_of_parts += [f.T[:, :, None] * change for f in functions[len(features) :]]
            values += [g.detach().T for g in parts]
        if self.coupled:
            g, slope = torch.cat(values), torch.cat(slopes_of_parts)
            i, j = self.products.T
            torch.add(g[i, :, None] * slope[j], g[j, :, None] * slope[i], out=rows[first:])
        # as rows of one matrix, which is the fast case of index_add
        total = rows.new_zeros(size, rows[0].numel()).index_add_(0, orbits, rows.flatten(1))
        return total.unflatten(1, rows.shape[1:])

    def functions(self, q: dict[str, Tensor]) -> Tensor:
        """The g (B, G) of `couplings`."""
        kinds = [kind for kind in PARTS if kind in q]
        return torch.cat([g for kind in kinds for g in self.parts(kind, q[kind])], dim=-1)

    def parts(self, kind: str, q: Tensor) -> list[Tensor]:
        """Those of one kind of coordinates q (B, K)."""
        if not self.coupled or kind not in PARTS:
            return []
        if kind == "torsions":
            return parts(kind, q, q, q)
        if not len(getattr(self, kind)):  # files written before there were any know no mean
            return [q] * PARTS[kind]
        mean = getattr(self, MEANS[kind])
        return parts(kind, q, mean, getattr(self, f"width_{kind}"))

    def coordinates(self, planes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The coordinates (B, K) of each kind, and the energy of the walls (B,)."""
        counts = {kind: len(getattr(self, kind)) for kind in (*COORDINATES, "centres")}
        # of each kind there is: the gradient of an empty part costs as much as that of any
        lengths = {kind: counts[kind] for kind in _LENGTHS if counts[kind] or kind in _ALWAYS}
        dihedrals = [counts["torsions"], counts["impropers"]]
        # split, not slices: the gradient of each slice is as large as what it was cut from
        sizes = [sum(lengths.values()), *[counts["angles"]] * 2, *[sum(dihedrals)] * 3]
        arms = along(planes, self.arms).split([*sizes, *[counts["centres"]] * 3], dim=-1)
        q = dict(zip(lengths, _length(arms[0]).split([*lengths.values()], dim=-1), strict=True))
        torsions, impropers = _cosine(*arms[3:6]).split(dihedrals, dim=-1)
        angles, centres = _angle(*arms[1:3]), arms[6:]
        q |= {"angles": angles, "torsions": torsions, "impropers": impropers}
        q = {kind: q[kind] for kind in COORDINATES if kind in q}  # in the order of θ
        wall = 0.5 * (torch.relu(self.shortest - q["free"]) / _WALL).square().sum(-1)
        if len(self.centres):
            a, b, c = centres  # `geometry.triple_product`, without another file in every step
            volume = (a * torch.linalg.cross(b, c, dim=-2)).sum(-2)
            excess = torch.relu(1 - volume / self.least_volume)
            wall = wall + 0.5 * (excess / _HAND).square().sum(-1)
        return q, wall

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
        if kind in ("pairs", "loose"):
            return []
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


COORDINATES: dict[str, Callable[..., Tensor]] = {
    "bonds": _length,
    "angles": _angle,
    "torsions": _cosine,
    "impropers": _cosine,
    "free": _length,
    "pairs": _length,
    "loose": _length,
}


def differences(n_atoms: int, tail: Tensor, head: Tensor) -> Tensor:
    """(N, P) matrix D with ``planes @ D`` = position of ``head`` - position of ``tail``, (P,) each.

    Of ``n_atoms``, N. Gathers are slow to differentiate; products are not.
    """
    column = torch.arange(len(tail))
    matrix = torch.zeros(n_atoms, len(tail), dtype=torch.float32)
    matrix[tail, column], matrix[head, column] = -1.0, 1.0
    return matrix


def along(planes: Tensor, matrix: Tensor) -> Tensor:
    """``planes @ matrix`` (B, 3, P) as one product; torch would make one for each structure."""
    return (planes.reshape(-1, planes.shape[-1]) @ matrix).reshape(*planes.shape[:-1], -1)
