"""The energy of molecular liquids, solutions and crystals: force fields of molecules, and pairs.

    E(x) = Σ_molecules E_kind(x of the molecule) + Σ_{i<j} V_ab(r_ij)        in kT

with the force field of each kind of molecule, `force_field.MechanicsPrior`, one for all of its
copies, and a cubic spline V_ab for each pair of types of atoms that are in different molecules
(or in images of one), which ends smoothly at the cutoff r_c. Atoms that the symmetry of a molecule
exchanges are of one type. The energy is linear in its parameters, which `liquid_fit` finds.

Charges act through the splines, up to the cutoff.
"""

from __future__ import annotations

import copy
from itertools import combinations_with_replacement
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..force_field import MechanicsPrior
from ..molecules import arrange, tree
from ..neighbours import Pairs, edges
from .splines import END, splines, wall

__all__ = ["LiquidConfig", "LiquidNetwork"]

_SAME = 0.1  # Å: a vector within a molecule is this near to the one that bonds give


class LiquidConfig(BaseModel):
    """Hyper-parameters of `LiquidNetwork`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["liquid"] = "liquid"
    cutoff: float = Field(6.0, gt=0, description="radius of pairs of molecules, Å")
    functions: int = Field(30, ge=4, description="splines of each pair of types")


class _Tables(nn.Module):
    """What a `LiquidNetwork` knows besides the force fields of its molecules."""

    inner: Tensor
    pair: Tensor
    spread: Tensor  # of `uncertainty`
    label_weight: Tensor  # of the fit, where it was chosen

    def __init__(self, tables: dict[str, Tensor]):
        super().__init__()
        for name, value in tables.items():
            self.register_buffer(name, value)

    @property
    def known(self) -> bool:
        """Whether there is a ``spread``."""
        return "spread" in dict(self.named_buffers())


class LiquidNetwork(nn.Module):
    """The energy of this module's equation, for one noise level.

    Parameters
    ----------
    config : its hyper-parameters
    molecules : tables of the `MechanicsPrior` of each kind
    tables : ``inner`` (K,): where each V becomes a line, Å; ``pair`` (K, F + 3) coefficients of the
        splines, the last three zero; and of each kind n of molecules ``numbers_n`` (n,) atomic
        numbers, ``types_n`` (n,) types of atoms, ``atoms_n`` (M, n) where its copies are

    Raises ``ValueError`` for tables that do not fit each other, and where it is called with another
    number of atoms.
    """

    types: Tensor
    molecule: Tensor
    kinds: Tensor

    def __init__(
        self, config: LiquidConfig, molecules: list[dict[str, Tensor]], tables: dict[str, Tensor]
    ):
        super().__init__()
        self.config = config
        self.species = nn.ModuleList(MechanicsPrior(molecule) for molecule in molecules)
        self.energy = _Tables(tables)
        for n, prior in enumerate(self.priors):
            self._hang(n, prior)
        types = 1 + max(int(self.table("types", n).max()) for n in range(len(molecules)))
        kinds = torch.zeros(types, types, dtype=torch.long)
        for n, (a, b) in enumerate(combinations_with_replacement(range(types), 2)):
            kinds[a, b] = kinds[b, a] = n
        if len(self.energy.pair) != int(kinds.max()) + 1:
            raise ValueError(f"{len(self.energy.pair)} pair energies of {types} types of atoms")
        self.register_buffer("kinds", kinds, persistent=False)
        self._place()

    @property
    def priors(self) -> list[MechanicsPrior]:
        """The force field of each kind of molecules."""
        return list(self.species)  # type: ignore[arg-type]

    def table(self, name: str, kind: int) -> Tensor:
        """One of the tables of a kind of molecules, by its ``name`` and the number of the kind."""
        return getattr(self.energy, f"{name}_{kind}")

    def _hang(self, kind: int, prior: MechanicsPrior) -> None:
        """Which atom each hangs on (n,), and which bonds (n, n) lead to it from the first."""
        count = len(self.table("numbers", kind))
        hangs, paths = torch.arange(count), torch.zeros(count, count)
        for atom, parent in tree(count, prior.bonds.numpy()):
            hangs[atom] = parent
            paths[atom] = paths[parent]
            paths[atom, atom] = 1.0
        self.register_buffer(f"hangs_{kind}", hangs, persistent=False)
        self.register_buffer(f"paths_{kind}", paths, persistent=False)

    def _place(self) -> None:
        """Type and molecule of each atom of the system."""
        atoms = [self.table("atoms", n) for n in range(len(self.species))]
        every = torch.cat([a.flatten() for a in atoms])
        count = len(every)
        if not torch.equal(every.sort().values.cpu(), torch.arange(count)):
            raise ValueError(f"molecules hold {count} atoms, but not each of 0 to {count - 1} once")
        types, molecule, first = every.clone(), every.clone(), 0
        for n, table in enumerate(atoms):
            types[table] = self.table("types", n).to(table.device)
            own = torch.arange(first, first + len(table), device=table.device)
            molecule[table] = own[:, None].expand_as(table)
            first += len(table)
        self.register_buffer("types", types, persistent=False)
        self.register_buffer("molecule", molecule, persistent=False)

    def arranged(self, numbers: np.ndarray) -> LiquidNetwork:
        """This energy for another system, ``numbers`` (N,), that lists molecule after molecule.

        Raises ``ValueError`` where that is not what it lists.
        """
        kinds = [self.table("numbers", n) for n in range(len(self.species))]
        if np.array_equal(self.numbers, numbers):
            return self
        places = arrange([kind.cpu().numpy() for kind in kinds], np.asarray(numbers))
        other = copy.deepcopy(self)
        for n, place in enumerate(places):
            table = torch.as_tensor(place, device=self.types.device)
            setattr(other.energy, f"atoms_{n}", table)
        other._place()
        return other

    @property
    def numbers(self) -> np.ndarray:
        """(N,) atomic numbers of the system."""
        numbers = torch.zeros_like(self.types)
        for n in range(len(self.species)):
            numbers[self.table("atoms", n)] = self.table("numbers", n)
        return numbers.cpu().numpy()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        numbers=None,
        cell: Tensor | None = None,
        pbc=(False,) * 3,
        pairs: Pairs | None = None,
    ) -> Tensor:
        """Energy (B,) in kT of x (B, N, 3); arguments as of `EquivariantNetwork`."""
        n_batch, n_atoms = x.shape[:2]
        if n_atoms != len(self.types):
            raise ValueError(f"{n_atoms} atoms, but this network is of {len(self.types)}")
        whole = torch.zeros_like(x)
        energy = x.new_zeros(n_batch)
        for n, prior in enumerate(self.priors):
            atoms = self.table("atoms", n)
            if not len(atoms):
                continue
            made = self.whole(n, x, cell, pbc)
            whole = whole.index_copy(1, atoms.flatten(), made.flatten(1, 2))
            if len(prior.theta):
                own = prior(self.planes(made))
                energy = energy + own.reshape(n_batch, -1).sum(-1)
        source, target, vectors = edges(x, self.config.cutoff, cell, pbc, pairs)
        r = (vectors.square().sum(-1) + 1e-12).sqrt()
        kind = self.kinds[self.types[target % n_atoms], self.types[source % n_atoms]]
        first, weights = self.spline(r, kind)
        index = first[:, None] + torch.arange(4, device=r.device)
        v = (self.energy.pair[kind].gather(1, index) * weights).sum(-1)
        v = v + wall(r, self.energy.inner[kind])
        v = torch.where(self.between(whole, source, target, vectors), v, 0.0)
        # the two directions of a pair carry half of it each
        of_atoms = x.new_zeros(n_batch * n_atoms).index_add(0, target, 0.5 * v)
        return energy + of_atoms.reshape(n_batch, n_atoms).sum(-1)

    def whole(self, kind: int, x: Tensor, cell: Tensor | None, pbc) -> Tensor:
        """The molecules of a ``kind`` (B, M, n, 3) at x (B, N, 3), in one piece, near the origin.

        ``cell`` and ``pbc`` are as of `neighbours.edges`.
        """
        made = x[:, self.table("atoms", kind)]
        if cell is None or not any(pbc):
            return made - made[:, :, :1]
        hangs, paths = getattr(self, f"hangs_{kind}"), getattr(self, f"paths_{kind}")
        cells = cell.expand(len(x), 3, 3)[:, None]
        with torch.no_grad():  # how many cells each bond crosses
            arms = made - made[:, :, hangs]
            shift = -(arms @ torch.linalg.inv(cells)).round() * arms.new_tensor(pbc)
            shift = torch.einsum("ab,zmbc->zmac", paths.to(shift), shift)
        made = made + shift @ cells
        return made - made[:, :, :1]

    @staticmethod
    def planes(made: Tensor) -> Tensor:
        """Molecules (B, M, n, 3) as a `MechanicsPrior` takes them, (B·M, 3, n)."""
        return made.flatten(0, 1).transpose(-1, -2).contiguous()

    def between(self, whole: Tensor, source: Tensor, target: Tensor, vectors: Tensor) -> Tensor:
        """(E,) bool: edges from one molecule to another, or to an image of its own.

        ``whole`` (B, N, 3): the molecules in one piece; edges as of `neighbours.edges`.
        """
        flat, count = whole.detach().flatten(0, 1), whole.shape[1]
        same = self.molecule[source % count] == self.molecule[target % count]
        within = flat[source] - flat[target]
        near = (within - vectors.detach()).square().sum(-1) < _SAME**2
        return ~(same & near)

    def spline(self, r: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """`embedded.splines` of pairs at r (E,) of kinds (E,)."""
        size = self.energy.pair.shape[1] - END
        return splines(r, self.energy.inner[kind], self.config.cutoff, size)

    @torch.no_grad()
    def pairs(self, x: Tensor, cell: Tensor | None, pbc) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Distances (E,) in Å between molecules at x (B, N, 3), their kinds, targets and sources.

        ``cell``, ``pbc`` and numbers of atoms are as of `neighbours.edges`.
        """
        source, target, vectors, kind = self._edges(x, cell, pbc)
        return vectors.norm(dim=-1), kind, target, source

    def _edges(self, x: Tensor, cell: Tensor | None, pbc) -> tuple[Tensor, ...]:
        """Sources, targets, vectors and kinds of the edges between molecules."""
        n_atoms = x.shape[1]
        source, target, vectors = edges(x, self.config.cutoff, cell, pbc)
        whole = torch.zeros_like(x)
        for n in range(len(self.species)):
            made = self.whole(n, x, cell, pbc).flatten(1, 2)
            whole = whole.index_copy(1, self.table("atoms", n).flatten(), made)
        here = self.between(whole, source, target, vectors)
        source, target, vectors = source[here], target[here], vectors[here]
        kind = self.kinds[self.types[target % n_atoms], self.types[source % n_atoms]]
        return source, target, vectors, kind

    def jacobian(self, x: Tensor, cell: Tensor | None, pbc) -> Tensor:
        """∂f/∂x (F, B, 3N) of the features by the parameters at x (B, N, 3); as planes.

        Those of each kind of molecules, by the table ``parameter`` of its force field, and the
        splines. ``cell`` and ``pbc`` are as of `neighbours.edges`.
        """
        rows = []
        for n, prior in enumerate(self.priors):
            atoms = self.table("atoms", n)
            if not len(prior.parameter):
                continue
            size = int(prior.parameter.max()) + 1
            of_all = x.new_zeros(size, len(x), 3, x.shape[1])
            if len(atoms):
                planes = self.planes(self.whole(n, x, cell, pbc))
                own = prior.jacobian(planes, prior.parameter, size)
                # (size, B·M, 3n) -> (size, B, 3, M, n): each molecule where its atoms are
                own = own.reshape(size, len(x), len(atoms), 3, -1).transpose(2, 3)
                of_all[..., atoms.flatten()] = own.flatten(3)
            rows.append(of_all.flatten(2))
        rows.append(self.pair_slopes(x, cell, pbc))
        return torch.cat(rows)

    def along(self, x: Tensor, arrows: Tensor, cell: Tensor | None, pbc) -> Tensor:
        """J v (F, B) of vectors v, the ``arrows`` (B, N, 3), with J of `jacobian`.

        Other parameters are as for `jacobian`.
        """
        rows = []
        for n, prior in enumerate(self.priors):
            atoms = self.table("atoms", n)
            if not len(prior.parameter):
                continue
            size = int(prior.parameter.max()) + 1
            planes, turns = self.planes(self.whole(n, x, cell, pbc)), self.planes(arrows[:, atoms])
            own = prior.along(planes, turns, prior.parameter, size)
            rows.append(own.reshape(size, len(x), len(atoms)).sum(-1))
        target, unit, features = self._pair_slopes(x, cell, pbc)
        turned = (arrows.flatten(0, 1)[target] * unit).sum(-1)
        out = x.new_zeros(self.energy.pair.numel() * len(x))
        for feature, slope in features:
            out.index_add_(0, feature * len(x) + target // x.shape[1], slope * turned)
        out = out.reshape(*self.energy.pair.shape, len(x))
        return torch.cat([*rows, out[:, :-END].flatten(0, 1)])

    def pair_slopes(self, x: Tensor, cell: Tensor | None, pbc) -> Tensor:
        """∂f/∂x (K·F, B, 3N) of the splines f of all kinds of pairs at x (B, N, 3); as planes.

        ``cell`` and ``pbc`` are as of `neighbours.edges`.
        """
        n_batch, n_atoms = x.shape[:2]
        target, unit, features = self._pair_slopes(x, cell, pbc)
        n_kinds, n_splines = self.energy.pair.shape
        out = x.new_zeros(n_kinds * n_splines * n_batch * n_atoms, 3)
        for feature, slope in features:
            out.index_add_(0, feature * (n_batch * n_atoms) + target, slope[:, None] * unit)
        out = out.reshape(n_kinds, n_splines, n_batch, n_atoms, 3)[:, :-END]
        return out.flatten(0, 1).transpose(-1, -2).flatten(2)

    @torch.no_grad()
    def _pair_slopes(self, x: Tensor, cell: Tensor | None, pbc) -> tuple[Tensor, Tensor, list]:
        """Targets (E,) of edges, ∂r/∂target (E, 3), and splines (E,) with slopes (E,) of each."""
        _, target, vectors, kind = self._edges(x, cell, pbc)
        length = vectors.norm(dim=-1)
        r = length.requires_grad_()
        with torch.enable_grad():
            first, values = self.spline(r, kind)
            slopes = [
                torch.autograd.grad(values[:, k].sum(), r, retain_graph=True)[0] for k in range(4)
            ]
        first = first + kind * self.energy.pair.shape[1]
        # moving the target by d changes r by -d·u
        return (
            target,
            -vectors / length.detach()[:, None],
            [(first + k, s) for k, s in enumerate(slopes)],
        )
