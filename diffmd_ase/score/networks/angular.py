"""What an atom makes of the angles between its neighbours: the power spectrum of their density.

    A_i,a,lm = Σ_j φ_a(r_ij) Y_lm(r̂_ij)        a: an element and one of `RADIALS` splines
    p_i,ab,l = Σ_m A_i,a,lm A_i,b,lm           l = 0 … `DEGREES`
    E = Σ_i Σ_l Σ_ab C_l,ab p_i,ab,l           C symmetric, a table for each element of i, in kT

All three-body energies of neighbours within a radius (Bartók, Kondor & Csányi, Phys. Rev. B 87,
184115 (2013); the second order of Drautz, Phys. Rev. B 99, 014104 (2019)), linear in C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .splines import END, splines

__all__ = ["DEGREES", "RADIALS", "Around", "angular_energy", "angular_slopes", "pairs_of_channels"]

DEGREES = 4  # l at most: angles of a tetrahedron and of an octahedron differ in it
RADIALS = 4  # splines φ from the shortest distance of the data to the radius


class Around(NamedTuple):
    """Neighbours of the atoms of a batch, of any radius.

    Attributes
    ----------
    vectors : (E, 3) in Å, from target to source
    source, target : (E,) into the flattened atoms
    element : (B·N,) row of each atom in the tables
    elements : S
    begin : shortest distance of the data, Å (); nearer φ stay as they are
    radius : Å
    """

    vectors: Tensor
    source: Tensor
    target: Tensor
    element: Tensor
    elements: int
    begin: Tensor
    radius: float

    @property
    def channels(self) -> int:
        """How many a there are."""
        return self.elements * RADIALS

    def near(self) -> Around:
        """Those within the radius."""
        inside = self.vectors.detach().square().sum(-1) < self.radius**2
        return self._replace(
            vectors=self.vectors[inside], source=self.source[inside], target=self.target[inside]
        )

    def radial(self, vectors: Tensor) -> Tensor:
        """φ (E, RADIALS) of ``vectors`` (E, 3); zero beyond the radius."""
        r = (vectors.square().sum(-1) + 1e-12).sqrt()
        r = torch.maximum(r, self.begin).clamp(max=self.radius)
        first, values = splines(r, self.begin, self.radius, RADIALS)
        every = r.new_zeros(len(r), RADIALS + END)
        return every.scatter(1, first[:, None] + torch.arange(4, device=r.device), values)[
            :, :RADIALS
        ]

    def density(self, falls: Tensor, harmonics: Tensor) -> Tensor:
        """A (B·N, S·RADIALS, M) of φ (E, RADIALS) and Y (E, M)."""
        row = self.target * self.elements + self.element[self.source]
        total = falls.new_zeros(len(self.element) * self.elements, RADIALS, harmonics.shape[1])
        total = total.index_add(0, row, falls[:, :, None] * harmonics[:, None, :])
        return total.reshape(len(self.element), self.channels, -1)


def harmonics(vectors: Tensor) -> Tensor:
    """Y (E, M) of directions (E, 3), l after l, whose squares have the sum one for each l."""
    from e3nn import o3  # takes seconds

    degrees = list(range(DEGREES + 1))
    unit = vectors / (vectors.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return o3.spherical_harmonics(degrees, unit, normalize=False, normalization="norm")


def pairs_of_channels(channels: int, device=None) -> Tensor:
    """(2, P) the pairs a ≤ b of so many ``channels``."""
    return torch.triu_indices(channels, channels, device=device)


def angular_energy(around: Around, table: Tensor) -> Tensor:
    """Energy (B·N,) of each atom in kT; ``table`` (S, DEGREES + 1, P): of each pair a ≤ b."""
    density = around.density(around.radial(around.vectors), harmonics(around.vectors))
    a, b = pairs_of_channels(around.channels, table.device)
    energy = density.new_zeros(len(density))
    for degree in range(DEGREES + 1):
        own = density[:, :, degree**2 : (degree + 1) ** 2]
        # the matrix of each element: half of C in each of its triangles
        matrix = table.new_zeros(around.elements, around.channels, around.channels)
        matrix[:, a, b] = 0.5 * table[:, degree]
        matrix = matrix + matrix.transpose(1, 2)
        energy = energy + ((matrix[around.element] @ own) * own).sum((1, 2))
    return energy


def angular_slopes(around: Around) -> Tensor:
    """∂f/∂x (S·(DEGREES + 1)·P, B·N, 3) of the features p, in the order of the table."""
    around = around.near()
    v = around.vectors.detach().requires_grad_()
    with torch.enable_grad():
        falls, directions = around.radial(v), harmonics(v)
        # each vector has its own functions: one sum gives all derivatives
        falling = [_slope(falls[:, n], v) for n in range(RADIALS)]
        turning = [_slope(directions[:, m], v) for m in range(1, directions.shape[1])]
    of_falls = torch.stack(falling, dim=1)  # (E, RADIALS, 3)
    of_directions = torch.stack([torch.zeros_like(v), *turning], dim=1)  # (E, M, 3)
    falls, directions = falls.detach(), directions.detach()
    density = around.density(falls, directions)
    change = of_falls[:, :, None] * directions[:, None, :, None]
    change = change + falls[:, :, None, None] * of_directions[:, None]  # (E, RADIALS, M, 3)
    a, b = pairs_of_channels(around.channels, v.device)
    count, every = len(v), torch.arange(len(v), device=v.device)
    rows = []
    for degree in range(DEGREES + 1):
        part = slice(degree**2, (degree + 1) ** 2)
        own = density[around.target][:, :, part]
        product = torch.einsum("enmx,ebm->enbx", change[:, :, part], own)
        full = v.new_zeros(count, around.elements, RADIALS, around.channels, 3)
        full[every, around.element[around.source]] = product
        full = full.reshape(count, around.channels, around.channels, 3)
        rows.append((full + full.transpose(1, 2))[:, a, b])
    slopes = torch.stack(rows, dim=1).flatten(1, 2)  # (E, (DEGREES + 1)·P, 3)
    total = v.new_zeros(around.elements, len(around.element), slopes.shape[1], 3)
    for element in range(around.elements):
        mine = torch.nonzero(around.element[around.target] == element)[:, 0]
        total[element].index_add_(0, around.source[mine], slopes[mine])
        total[element].index_add_(0, around.target[mine], -slopes[mine])
    return total.transpose(1, 2).flatten(0, 1)


def _slope(values: Tensor, vectors: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), vectors, retain_graph=True)[0]
