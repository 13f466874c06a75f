"""What all collective variables share: the interface, joining, vectors between images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...geometry import Lattice, shortest
from ...system import System
from ..base import common_system

__all__ = ["CV", "Domain", "Vectors", "check_atoms", "join", "names_of", "rows_of"]

Pullback = Callable[[Tensor], Tensor]
Domain = tuple[float, float] | None


class CV(ABC):
    """``d`` functions of the positions of one system.

    Attributes
    ----------
    system : atoms, cell and pbc
    names : d names, columns of files
    domains : (min, max) of each periodic variable, None for the others
    plumed_units : d factors from the units here to those of PLUMED
    compiles : as of `Potential`

    Raises
    ------
    ValueError : positions whose shape is not that of the system
    """

    system: System
    names: tuple[str, ...]
    domains: tuple[Domain, ...]
    plumed_units: tuple[float, ...]
    compiles: bool = False

    @abstractmethod
    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Values s (*batch, d) at x, and the map ``g -> Σ_i g_i ds_i/dx``,
        (*batch, d) to (*batch, N, 3); both float64, without a graph."""

    def __call__(self, x: Tensor) -> Tensor:
        """Values (*batch, d), float64."""
        return self.vjp(x)[0]

    def __len__(self) -> int:
        return len(self.names)

    def checked(self, x: Tensor) -> Tensor:
        """``x`` in float64, if its shape is that of the system."""
        if x.shape[-2:] != (len(self.system), 3):
            raise ValueError(
                f"positions {tuple(x.shape)} do not fit the {len(self.system)} atoms of the "
                f"variables {', '.join(self.names)}: expected (*batch, {len(self.system)}, 3)"
            )
        return x.detach().double()

    @cached_property
    def _periods(self) -> Tensor:
        widths = [math.inf if d is None else d[1] - d[0] for d in self.domains]
        return torch.tensor(widths, dtype=torch.float64)

    def wrap(self, s: Tensor) -> Tensor:
        """``s`` (*batch, d) with periodic variables in their domains."""
        lows = [0.0 if domain is None else domain[0] for domain in self.domains]
        low, periods = torch.tensor(lows, dtype=torch.float64).to(s), self._periods.to(s)
        return s - ((s - low) / periods).floor() * periods.nan_to_num(posinf=0.0)

    def difference(self, s: Tensor, origin: Tensor) -> Tensor:
        """``s - origin``, along the shortest way for periodic variables."""
        return shortest(s - origin, self._periods)


def join(cvs: CV | Sequence[CV]) -> CV:
    """One `CV` of ``cvs``, one or several; its values are theirs, one after the other.

    Raises ``ValueError`` for none, for different systems, and for a name used twice.
    """
    parts = (cvs,) if isinstance(cvs, CV) else tuple(cvs)
    if not parts:
        raise ValueError("no collective variable was given: give at least one")
    if len(parts) == 1:
        return parts[0]
    return _Joined(parts)


class _Joined(CV):
    def __init__(self, parts: tuple[CV, ...]):
        common_system(parts, "the collective variables are")
        self.parts, self.system = parts, parts[0].system
        self.names = sum((p.names for p in parts), ())
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two variables have one name in {self.names}: give name= to each")
        self.domains = sum((p.domains for p in parts), ())
        self.plumed_units = sum((p.plumed_units for p in parts), ())
        self.compiles = all(p.compiles for p in parts)

    def vjp(self, x):
        values, pulls = zip(*(part.vjp(x) for part in self.parts), strict=True)
        widths = [len(part) for part in self.parts]

        def back(g):
            return sum(pull(part) for pull, part in zip(pulls, g.split(widths, -1), strict=True))

        return torch.cat(values, -1), back


class Vectors:
    """Shortest vectors ``x[heads] - x[tails]`` (*batch, n, 3) in Å, and forces on them taken back.

    ``tails`` and ``heads`` are n atoms of ``system`` each, whose cell and pbc say what is shortest.
    """

    def __init__(self, system: System, tails, heads):
        self._ends = torch.from_numpy(np.concatenate((heads, tails)).astype(int))
        self._n = len(tails)
        self._lattice = Lattice(system) if system.periodic else None

    def __call__(self, x: Tensor) -> Tensor:
        ends = x.index_select(-2, self._ends.to(x.device))
        r = ends[..., : self._n, :] - ends[..., self._n :, :]
        return r if self._lattice is None else self._lattice.nearest(r)

    def back(self, f: Tensor, x: Tensor) -> Tensor:
        """Derivatives ``f`` with respect to the vectors, as derivatives at the atoms."""
        both = torch.cat((f, -f), -2)
        return torch.zeros_like(x).index_add_(-2, self._ends.to(x.device), both)


def check_atoms(system: System, atoms) -> list[int]:
    """``atoms`` as integers; ``ValueError`` for those that are not in the system."""
    chosen = [int(a) for a in atoms]
    wrong = [a for a in chosen if not 0 <= a < len(system)]
    if wrong:
        raise ValueError(
            f"atoms {wrong} are not in the system: expected 0 to {len(system) - 1} (they count "
            "from 0, PLUMED's from 1)"
        )
    return chosen


def rows_of(system: System, atoms, width: int) -> np.ndarray:
    """``atoms`` (``width``,) or (n, ``width``) as (n, ``width``) integers.

    Raises ``ValueError`` for another shape, for atoms that are not in the ``system``, and for
    one that is twice in a row.
    """
    rows = np.atleast_2d(np.asarray(atoms, dtype=int))
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise ValueError(f"atoms {np.shape(atoms)} must be ({width},) or (n, {width})")
    check_atoms(system, rows.ravel())
    if any(len(set(row)) < width for row in rows.tolist()):
        raise ValueError(f"atoms {rows.tolist()} must be different within a row")
    return rows


def names_of(letter: str, rows: np.ndarray, name) -> tuple[str, ...]:
    """Names of the variables of ``rows`` (n, atoms): ``name``, or the ``letter`` and the atoms.

    Raises ``ValueError`` unless ``name`` is one for each row, or None.
    """
    if name is None:
        return tuple("_".join(map(str, (letter, *row))) for row in rows.tolist())
    names = (name,) if isinstance(name, str) else tuple(name)
    if len(names) != len(rows):
        raise ValueError(f"{name=} must be {len(rows)} names")
    return names
