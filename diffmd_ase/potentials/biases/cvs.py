"""Collective variables: batched, differentiable, in torch, on any device.

A `CV` maps positions (*batch, N, 3) in Å to ``d`` numbers (*batch, d), computed in float64
whatever the precision of the positions, and takes derivatives with respect to those numbers
back to forces. Distances are shortest vectors between periodic images of the `System`'s cell.
Values are those of the PLUMED actions of the same names (Tribello et al., Comput. Phys. Commun.
185, 604 (2014)) but for the unit of length, Å here and nm there: ``plumed_units`` converts.

Where a variable has no derivative (two atoms in one place, three in a line, no deviation) it is
zero, the mean over all directions, so that forces are finite wherever a walker is; PLUMED has the
same for ANGLE and COORDINATION, and NaN for DISTANCE, TORSION and RMSD.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...geometry import angle, dihedral, direction, is_straight, norm, quotient, shortest
from ...system import System
from .contacts import Coordination, NativeContacts
from .cv import CV, Domain, Vectors, check_atoms, join, names_of, rows_of

__all__ = [
    "CV",
    "RMSD",
    "Angle",
    "Coordination",
    "Distance",
    "Function",
    "NativeContacts",
    "Position",
    "Torsion",
    "join",
]

NM = 0.1  # nm in an Å
_WIDTH = 1e-5  # Å, of central differences
_AGREE = 1e-3


class Position(CV):
    """A Cartesian component of an atom, ``s = x[atom, axis]`` in Å, not wrapped into the cell.

    ``name`` is by default as ``x0``. Raises ``ValueError`` for another atom or axis than there is.
    """

    def __init__(self, system: System, atom: int, axis: int, *, name: str | None = None):
        check_atoms(system, [atom])
        if axis not in (0, 1, 2):
            raise ValueError(f"{axis=} must be 0, 1 or 2")
        self.system, self.atom, self.axis = system, atom, axis
        self.names = (f"{'xyz'[axis]}{atom}" if name is None else name,)
        self.domains, self.plumed_units = (None,), (NM,)

    def vjp(self, x):
        x = self.checked(x)

        def back(g):
            forces = torch.zeros_like(x)
            forces[..., self.atom, self.axis] = g[..., 0]
            return forces

        return x[..., self.atom, self.axis, None], back


class Distance(CV):
    """``s = |r_b - r_a|`` in Å of one pair ``atoms`` (2,), or of each of n pairs (n, 2).

    ``name`` is one for each, by default a letter and the atoms, ``d_0_5``. Raises ``ValueError``
    for another shape or number of names, and for atoms not in the system or twice in a row.
    """

    compiles = True

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 2)
        self.names = names_of("d", self._atoms, name)
        self.domains, self.plumed_units = (None,) * len(self.names), (NM,) * len(self.names)
        self._bonds = Vectors(system, self._atoms[:, 0], self._atoms[:, 1])

    def vjp(self, x):
        x = self.checked(x)
        r = self._bonds(x)
        s = r.norm(dim=-1)
        return s, lambda g: self._bonds.back(r * quotient(g, s)[..., None], x)


class Angle(CV):
    """Angle in rad at the middle one of three atoms, ``cos s = u·v/(|u||v|)``.

    u and v go from the middle, and with the normal n = u×v

        ds/du = u×n/(u²|n|),  ds/dv = n×v/(v²|n|)

    which is zero in a line. ``atoms`` (3,) or (n, 3), and ``name``, as of `Distance`.
    """

    compiles = True

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 3)
        self.names = names_of("a", self._atoms, name)
        self.domains, self.plumed_units = (None,) * len(self.names), (1.0,) * len(self.names)
        middle = np.tile(self._atoms[:, 1], 2)
        self._arms = Vectors(system, middle, self._atoms[:, [0, 2]].T.ravel())

    def vjp(self, x):
        x = self.checked(x)
        arms = self._arms(x).unflatten(-2, (2, -1))
        u, v = arms.unbind(-3)

        def back(g):
            n = direction(torch.linalg.cross(u, v))
            turn = torch.linalg.cross(direction(arms), torch.stack((n, -n), -3))
            pull = turn * quotient(g[..., None, :], norm(arms))[..., None]
            return self._arms.back(pull.flatten(-3, -2), x)

        return angle(u, v), back


class Torsion(CV):
    """Dihedral angle in rad of four atoms, in (-π, π], IUPAC sign.

    With the bonds F = r_1 - r_0, G = r_2 - r_1, H = r_3 - r_2 and A = F×G, B = G×H (Blondel &
    Karplus, J. Comput. Chem. 17, 1132 (1996), whose F and G point the other way),

        ds/dF = A|G|/A²,  ds/dH = B|G|/B²,  ds/dG = -(F·G) A/(A²|G|) - (H·G) B/(B²|G|)

    Where F and G, or G and H, are in a line within rounding, all three are zero.
    ``atoms`` (4,) or (n, 4), and ``name``, as of `Distance`.
    """

    compiles = True

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 4)
        self.names = names_of("t", self._atoms, name)
        self.domains = ((-math.pi, math.pi),) * len(self.names)
        self.plumed_units = (1.0,) * len(self.names)
        self._bonds = Vectors(system, self._atoms[:, :3].T.ravel(), self._atoms[:, 1:].T.ravel())

    def vjp(self, x):
        x = self.checked(x)
        bonds = self._bonds(x).unflatten(-2, (3, -1))
        F, G, H = bonds.unbind(-3)

        def back(g):
            normals = torch.linalg.cross(bonds[..., :2, :, :], bonds[..., 1:, :, :])
            n2, b2 = (v.square().sum(-1) for v in (normals, bonds))
            straight = is_straight(n2, b2[..., :2, :], b2[..., 1:, :]).any(-2, keepdim=True)
            slope = torch.where(straight, 0.0, g[..., None, :]) / torch.where(straight, 1.0, n2)
            a, b = (normals * slope[..., None]).unbind(-3)
            length = torch.where(straight.mT, 1.0, G.norm(dim=-1, keepdim=True))
            fg, hg = ((v * G).sum(-1, keepdim=True) / length for v in (F, H))
            return self._bonds.back(torch.cat((length * a, -fg * a - hg * b, length * b), -2), x)

        return dihedral(F, G, H), back


class RMSD(CV):
    """Root-mean-square deviation in Å from a reference after the best rotation and shift.

        s² = min_{R,t} Σ_i w_i |x_i - R y_i - t|²,   Σ w_i = 1

    R from the quaternion of the largest eigenvalue (Kearsley, Acta Cryst. A45, 208 (1989));
    R and t are optimal, so the derivative is ``w_i (x_i - R y_i - t)/s``, and zero at s = 0.
    Where several R are best (molecules in a line, mirror images) it is that of one of them. In
    periodic systems the molecule is first made whole, each atom next to the one before it.

    Parameters
    ----------
    reference : (n, 3) in Å
    atoms : the n atoms, default all
    weights : (n,), default equal; ``system.masses[atoms]`` for a mass-weighted one
    name : of the variable

    Raises ``ValueError`` for other shapes, atoms not in the system, weights negative or all zero.
    """

    def __init__(
        self,
        system: System,
        reference,
        *,
        atoms: Sequence[int] | None = None,
        weights=None,
        name: str = "rmsd",
    ):
        chosen = check_atoms(system, range(len(system)) if atoms is None else atoms)
        self.system, self.names, self.domains, self.plumed_units = system, (name,), (None,), (NM,)
        reference = torch.as_tensor(reference, dtype=torch.float64)
        weights = [1.0] * len(chosen) if weights is None else weights
        w = torch.as_tensor(weights, dtype=torch.float64)
        if reference.shape != (len(chosen), 3) or w.shape != (len(chosen),):
            raise ValueError(
                f"reference {tuple(reference.shape)} and weights {tuple(w.shape)} do not fit "
                f"{len(chosen)} atoms: expected ({len(chosen)}, 3) and ({len(chosen)},)"
            )
        if not (w >= 0).all() or not w.sum() > 0:
            raise ValueError("weights must not be negative, and one must be positive")
        self._atoms, self._w = torch.tensor(chosen), (w / w.sum())[:, None]
        self._reference = reference - (self._w * reference).sum(0)
        self._links = Vectors(system, chosen[:-1], chosen[1:])

    def vjp(self, x):
        x = self.checked(x)
        w, y = self._w.to(x), self._reference.to(x)
        own = x[..., self._atoms.to(x.device), :]
        if self.system.periodic:
            own = torch.cat((own[..., :1, :], self._links(x)), -2).cumsum(-2)
        own = own - (w * own).sum(-2, keepdim=True)
        M = (w * y).mT @ own
        rotated = y @ _best_rotation(M).mT
        away = own - rotated
        s, size = ((w * a.square()).sum((-2, -1)).sqrt() for a in (away, own))
        # rounding of a structure that is the reference has no direction
        s = torch.where(s <= 64 * torch.finfo(s.dtype).eps * size, 0.0, s)

        def back(g):
            forces = torch.zeros_like(x)
            pull = w * away * quotient(g[..., 0], s)[..., None, None]
            return forces.index_add_(-2, self._atoms.to(x.device), pull)

        return s[..., None], back


class Function(CV):
    """Any differentiable function of positions, derivatives by autograd.

    Where autograd gives none that is finite although the value is (a square root of zero, an
    arccos of one, a NaN in the branch of a ``where`` that is not taken), they are central
    differences; zero where those of two widths differ, as at a jump.

    Parameters
    ----------
    function : float64 positions (*batch, N, 3) to (*batch) or (*batch, d), in torch
    names : one name, or d of them
    domains : (min, max) of the periodic ones; default none is periodic
    plumed_units : factors to PLUMED's units in its files, 0.1 for a length in Å

    Raises ``ValueError`` for other numbers of domains or units than of names, and where it is
    evaluated for values of another shape or without a gradient.
    """

    def __init__(
        self,
        system: System,
        function: Callable[[Tensor], Tensor],
        *,
        names: str | Sequence[str] = "f",
        domains: Sequence[Domain] | None = None,
        plumed_units: Sequence[float] | None = None,
    ):
        self.system, self.function = system, function
        self.names = (names,) if isinstance(names, str) else tuple(names)
        d = len(self.names)
        self.domains = (None,) * d if domains is None else tuple(domains)
        self.plumed_units = (1.0,) * d if plumed_units is None else tuple(plumed_units)
        if len(self.domains) != d or len(self.plumed_units) != d:
            raise ValueError(
                f"{domains=} and {plumed_units=} must have one entry for each of {names}"
            )

    def vjp(self, x):
        x = self.checked(x)
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            s = self.function(leaf)
        shape = (*x.shape[:-2], len(self))
        if s.shape == x.shape[:-2] and len(self) == 1:
            s = s[..., None]
        if s.shape != shape or not s.requires_grad:
            raise ValueError(
                f"the function of {', '.join(self.names)} gave {tuple(s.shape)} for positions "
                f"{tuple(x.shape)}: expected {shape}, differentiable in torch"
            )

        def back(g):
            gradient = torch.autograd.grad(s, leaf, g, retain_graph=True)[0]
            lacking = ~torch.isfinite(gradient)
            if lacking.any():
                gradient = gradient.clone()  # what autograd gives may be a view of one number
                given = torch.isfinite(torch.cat((x.flatten(-2), s.detach(), g), -1)).all(-1)
                for walker in (given & lacking.any(-1).any(-1)).nonzero().tolist():
                    at = tuple(walker)
                    gradient[at][lacking[at]] = self._differences(x[at], lacking[at]) @ g[at].to(x)
            return gradient

        return s.detach().double(), back

    def _differences(self, x: Tensor, which: Tensor) -> Tensor:
        """ds/dx (n, d) for the n components of x (N, 3) that are asked for, without autograd."""
        moves = torch.diag(which.flatten().to(x))[which.flatten()].reshape(-1, *x.shape)
        slopes = []
        for width in (_WIDTH, 0.5 * _WIDTH):
            up, down = (self.function(x + sign * width * moves).detach() for sign in (1.0, -1.0))
            change = (up - down).reshape(len(moves), len(self))
            slopes.append(shortest(change, self._periods) / (2.0 * width))
        same = (slopes[0] - slopes[1]).abs() < _AGREE * (1.0 + slopes[1].abs())
        return torch.where(same, slopes[1], 0.0)


def _best_rotation(M: Tensor) -> Tensor:
    """(…, 3, 3) R with largest ``tr(Rᵀ Σ_i w_i x_i y_iᵀ)``, from ``M = Σ_i w_i y_i x_iᵀ``."""
    m = M.flatten(-2).unbind(-1)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = m
    K = torch.stack(
        (
            *(xx + yy + zz, yz - zy, zx - xz, xy - yx),
            *(yz - zy, xx - yy - zz, xy + yx, zx + xz),
            *(zx - xz, xy + yx, yy - xx - zz, yz + zy),
            *(xy - yx, zx + xz, yz + zy, zz - xx - yy),
        ),
        -1,
    ).unflatten(-1, (4, 4))
    finite = torch.isfinite(K)
    q = torch.linalg.eigh(torch.where(finite, K, 0.0)).eigenvectors[..., -1]
    a, b, c, d = q.unbind(-1)
    R = torch.stack(
        (
            *(a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
            *(2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
            *(2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
        ),
        -1,
    ).unflatten(-1, (3, 3))
    return R
