"""Collective variables: batched, differentiable, in torch, on any device.

A `CV` maps positions (*batch, N, 3) in Å to ``d`` numbers (*batch, d), computed in float64
whatever the precision of the positions, and takes derivatives with respect to those numbers
back to forces. Distances are shortest vectors between periodic images of the `System`'s cell.
Values are those of the PLUMED actions of the same names (Tribello et al., Comput. Phys. Commun.
185, 604 (2014)) but for the unit of length, Å here and nm there: ``plumed_units`` converts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...geometry import angle, dihedral
from ...system import System
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

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 2)
        self.names = names_of("d", self._atoms, name)
        self.domains, self.plumed_units = (None,) * len(self.names), (NM,) * len(self.names)
        self._bonds = Vectors(system, self._atoms[:, 0], self._atoms[:, 1])

    def vjp(self, x):
        x = self.checked(x)
        r = self._bonds(x)
        s = r.norm(dim=-1)
        return s, lambda g: self._bonds.back(r * (g / s)[..., None], x)


class Angle(CV):
    """Angle in rad at the middle one of three atoms, ``cos s = u·v/(|u||v|)``.

    u and v go from the middle. ``atoms`` (3,) or (n, 3), and ``name``, as of `Distance`.
    """

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 3)
        self.names = names_of("a", self._atoms, name)
        self.domains, self.plumed_units = (None,) * len(self.names), (1.0,) * len(self.names)
        middle = np.tile(self._atoms[:, 1], 2)
        self._arms = Vectors(system, middle, self._atoms[:, [0, 2]].T.ravel())

    def vjp(self, x):
        x = self.checked(x)
        u, v = self._arms(x).unflatten(-2, (2, -1)).unbind(-3)

        def back(g):
            # ds/du = (u (u·v)/u² - v)/|u × v|
            uv = (u * v).sum(-1, keepdim=True)
            scale = g[..., None] / torch.linalg.cross(u, v).norm(dim=-1, keepdim=True)
            du = scale * (u * uv / (u * u).sum(-1, keepdim=True) - v)
            dv = scale * (v * uv / (v * v).sum(-1, keepdim=True) - u)
            return self._arms.back(torch.cat((du, dv), -2), x)

        return angle(u, v), back


class Torsion(CV):
    """Dihedral angle in rad of four atoms, in (-π, π], IUPAC sign.

    With the bonds F = r_1 - r_0, G = r_2 - r_1, H = r_3 - r_2 and A = F×G, B = G×H (Blondel &
    Karplus, J. Comput. Chem. 17, 1132 (1996), whose F and G point the other way),

        ds/dF = A|G|/A²,  ds/dH = B|G|/B²,  ds/dG = -(F·G) A/(A²|G|) - (H·G) B/(B²|G|)

    ``atoms`` (4,) or (n, 4), and ``name``, as of `Distance`.
    """

    def __init__(self, system: System, atoms, *, name: str | Sequence[str] | None = None):
        self.system, self._atoms = system, rows_of(system, atoms, 4)
        self.names = names_of("t", self._atoms, name)
        self.domains = ((-math.pi, math.pi),) * len(self.names)
        self.plumed_units = (1.0,) * len(self.names)
        self._bonds = Vectors(system, self._atoms[:, :3].T.ravel(), self._atoms[:, 1:].T.ravel())

    def vjp(self, x):
        x = self.checked(x)
        F, G, H = self._bonds(x).unflatten(-2, (3, -1)).unbind(-3)

        def back(g):
            A, B = torch.linalg.cross(F, G), torch.linalg.cross(G, H)
            a = A * (g / (A * A).sum(-1))[..., None]
            b = B * (g / (B * B).sum(-1))[..., None]
            length = G.norm(dim=-1, keepdim=True)
            fg, hg = ((v * G).sum(-1, keepdim=True) / length for v in (F, H))
            return self._bonds.back(torch.cat((length * a, -fg * a - hg * b, length * b), -2), x)

        return dihedral(F, G, H), back


class Coordination(CV):
    """Number of contacts between two groups, or within one, with a rational switch.

        s = Σ_pairs f(r),   f(r) = (1 - y^nn)/(1 - y^mm),  y = (r - d_0)/r_0,  f = 1 for r ≤ d_0

    Parameters
    ----------
    group_a, group_b : atoms; without ``group_b`` the pairs within ``group_a``
    r_0, d_0 : in Å
    nn, mm : powers, ``mm`` defaults to 2 nn
    name : of the variable

    Raises ``ValueError`` for numbers out of range, atoms not in the system, and no pair.
    """

    def __init__(
        self,
        system: System,
        group_a: Sequence[int],
        group_b: Sequence[int] | None = None,
        *,
        r_0: float,
        d_0: float = 0.0,
        nn: int = 6,
        mm: int | None = None,
        name: str = "coordination",
    ):
        mm = 2 * nn if mm is None else mm
        if not (r_0 > 0 and d_0 >= 0 and 0 < nn < mm):
            raise ValueError(f"{r_0=} must be positive, {d_0=} not negative, and 0 < {nn=} < {mm=}")
        self.system, self.names, self.domains, self.plumed_units = system, (name,), (None,), (1.0,)
        self.r_0, self.d_0, self.nn, self.mm = r_0, d_0, nn, mm
        a, b = check_atoms(system, group_a), check_atoms(system, group_b or group_a)
        pairs = [(i, j) for k, i in enumerate(a) for j in (b if group_b else a[k + 1 :]) if i != j]
        if not pairs:
            raise ValueError(f"no pair of different atoms between {group_a} and {group_b}")
        self._pairs = Vectors(system, *np.array(pairs).T)

    def vjp(self, x):
        x = self.checked(x)
        r = self._pairs(x)
        distance = r.norm(dim=-1)
        y = ((distance - self.d_0) / self.r_0).clamp(min=0.0)
        n, m = self.nn, self.mm
        near = (y - 1.0).abs() < 1e-4  # 0/0 at y = 1: the series about it
        safe = torch.where(near, 2.0, y)
        top, bottom = 1.0 - safe**n, 1.0 - safe**m
        f, first = top / bottom, n * (n - m) / (2.0 * m)
        second = n * (n - m) * (2.0 * n - m - 3.0) / (6.0 * m)
        f = torch.where(near, n / m + (y - 1.0) * (first + 0.5 * second * (y - 1.0)), f)

        def back(g):
            slope = (m * safe ** (m - 1) * top - n * safe ** (n - 1) * bottom) / bottom**2
            slope = torch.where(near, first + second * (y - 1.0), slope)
            slope = torch.where(y > 0.0, slope, 0.0) / (self.r_0 * distance)
            return self._pairs.back(r * (g * slope)[..., None], x)

        return f.sum(-1, keepdim=True), back


class NativeContacts(CV):
    """Fraction of native contacts (Best, Hummer & Eaton, PNAS 110, 17874 (2013), eq. 1).

        s = (1/n) Σ_pairs 1/(1 + exp[β (r - λ r⁰)])

    Parameters
    ----------
    pairs : (n, 2) atoms in contact
    reference : (n,) distances r⁰ in Å, or positions (N, 3) to take them from
    beta : β in 1/Å
    lam : λ
    name : of the variable

    Raises ``ValueError`` for other shapes, atoms not in the system, numbers not positive.
    """

    def __init__(
        self,
        system: System,
        pairs,
        reference,
        *,
        beta: float = 5.0,
        lam: float = 1.8,
        name: str = "q",
    ):
        rows = rows_of(system, pairs, 2)
        self.system, self.names, self.domains, self.plumed_units = system, (name,), (None,), (1.0,)
        self._pairs = Vectors(system, rows[:, 0], rows[:, 1])
        reference = torch.as_tensor(reference, dtype=torch.float64)
        if reference.shape == (len(system), 3):
            reference = self._pairs(reference).norm(dim=-1)
        if reference.shape != (len(rows),) or not (reference > 0).all():
            raise ValueError(
                f"reference {tuple(reference.shape)} must be {len(rows)} positive distances (Å) "
                f"or positions ({len(system)}, 3)"
            )
        if not (beta > 0 and lam > 0):
            raise ValueError(f"{beta=} (1/Å) and {lam=} must be positive")
        self.beta, self.lam, self._reference = beta, lam, reference

    def vjp(self, x):
        x = self.checked(x)
        r = self._pairs(x)
        distance = r.norm(dim=-1)
        f = torch.sigmoid(-self.beta * (distance - self.lam * self._reference.to(x)))

        def back(g):
            slope = -self.beta / f.shape[-1] * g * f * (1.0 - f) / distance
            return self._pairs.back(r * slope[..., None], x)

        return f.mean(-1, keepdim=True), back


class RMSD(CV):
    """Root-mean-square deviation in Å from a reference after the best rotation and shift.

        s² = min_{R,t} Σ_i w_i |x_i - R y_i - t|²,   Σ w_i = 1

    R from the quaternion of the largest eigenvalue (Kearsley, Acta Cryst. A45, 208 (1989));
    R and t are optimal, so the derivative is ``w_i (x_i - R y_i - t)/s``. In periodic systems
    the molecule is first made whole, each atom next to the one before it.

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
        s = (w * away.square()).sum((-2, -1)).sqrt()

        def back(g):
            forces = torch.zeros_like(x)
            pull = w * away * (g[..., 0] / s)[..., None, None]
            return forces.index_add_(-2, self._atoms.to(x.device), pull)

        return s[..., None], back


class Function(CV):
    """Any differentiable function of positions, derivatives by autograd.

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
        leaf = self.checked(x).requires_grad_()
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
            return torch.autograd.grad(s, leaf, g, retain_graph=True)[0]

        return s.detach().double(), back


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
