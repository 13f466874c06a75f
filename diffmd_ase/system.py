"""What is simulated: atoms, masses and cell, without positions; and what `Atoms` carry besides."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._moved import forward

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["System", "carried_by", "comparable"]

_NO_VOLUME = 1e-10  # Å³
_ELEMENTS = 119
_NOT_CARRIED = ("positions", "momenta")


@dataclass(frozen=True, eq=False)
class System:
    """Atoms without positions: what a potential is bound to.

    Parameters
    ----------
    numbers : (N,) atomic numbers
    masses : (N,) in u
    cell : (3, 3) in Å, rows are lattice vectors, or None. Vectors that are zero, as ASE has them
        for slabs and wires, become unit vectors normal to the others, as ``ase.cell.Cell.complete``
        has it; a cell without volume of what is not periodic counts as none
    pbc : (3,) bool
    carried : the user's `Atoms`, with charges, tags, arrays and ``info``, as calculators of ASE
        are to see them: none, one for all, or one for each walker of a batch. No part of equality

    Raises
    ------
    ValueError : shapes that do not fit, numbers of no elements, masses that are not positive; a
        periodic direction without a vector, or vectors that span no volume
    """

    numbers: np.ndarray
    masses: np.ndarray
    cell: np.ndarray | None = None
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, bool))
    carried: tuple[Atoms, ...] = field(default=(), repr=False)

    def __post_init__(self):
        with np.errstate(invalid="ignore"):  # NaN is refused below
            numbers = np.asarray(self.numbers, dtype=int)
        masses = np.asarray(self.masses, dtype=float)
        pbc = np.broadcast_to(np.asarray(self.pbc, dtype=bool), (3,)).copy()
        cell = None if self.cell is None else np.asarray(self.cell, dtype=float)
        if numbers.ndim != 1 or masses.shape != numbers.shape:
            raise ValueError(f"numbers {numbers.shape} and masses {masses.shape} must both be (N,)")
        if cell is not None and cell.shape != (3, 3):
            raise ValueError(f"cell has shape {cell.shape}, expected (3, 3)")
        _check_atoms(self.numbers, numbers, masses)
        for name, value in zip(
            ("numbers", "masses", "cell", "pbc"),
            (numbers, masses, _complete(cell, pbc), pbc),
            strict=True,
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.numbers)

    def __eq__(self, other) -> bool:
        if not isinstance(other, System):
            return NotImplemented
        return not self.difference(other)

    @property
    def periodic(self) -> bool:
        """Any direction is."""
        return bool(self.pbc.any())

    @property
    def formula(self) -> str:
        """Chemical formula, for messages and cards."""
        return self.to_atoms(np.zeros((len(self), 3))).get_chemical_formula()

    def difference(self, other: System) -> str:
        """What differs from ``other``, in words for messages; "" where they are equal."""
        if len(self) != len(other):
            return f"{self.formula} ({len(self)} atoms) and {other.formula} ({len(other)} atoms)"
        said = []
        if (self.numbers != other.numbers).any():
            said.append(_elements(self, other))
        apart = ~np.isclose(self.masses, other.masses)
        if apart.any():
            i = int(apart.argmax())
            said.append(
                f"the masses of {apart.sum()} atoms ({self.masses[i]:g} and {other.masses[i]:g} u "
                f"of atom {i})"
            )
        if (self.pbc != other.pbc).any():
            said.append(f"pbc ({self.pbc.tolist()} and {other.pbc.tolist()})")
        if not _same_cell(self.cell, other.cell):
            said.append(f"the cell ({_vectors(self.cell)} and {_vectors(other.cell)})")
        return "; ".join(said)

    @classmethod
    def from_atoms(cls, atoms: Atoms) -> System:
        """The system of ``atoms``, an ``ase.Atoms``, carrying a copy of them.

        The cell of 1 × 1 × 1 Å that PDB files of molecules have where there is no crystal is none.
        """
        carried = atoms.copy()
        carried.info = {name: _copied(value) for name, value in atoms.info.items()}
        if _is_dummy(atoms):
            carried.set_cell(np.zeros((3, 3)))
            carried.pbc = False
        numbers, masses = carried.numbers.copy(), carried.get_masses()
        cell = np.array(carried.cell)
        return cls(numbers, masses, cell, carried.pbc.copy(), (carried,))

    @classmethod
    def from_walkers(cls, images: Sequence[Atoms]) -> System:
        """The system of the walkers ``images`` of a batch, which differ at most in what they carry.

        Where they do, row b of positions is to be seen as walker b.
        """
        first = cls.from_atoms(images[0])
        known = {(carried_by(image), _momenta(image)) for image in images}
        if len(known) == 1:
            return first
        return replace(first, carried=sum((cls.from_atoms(i).carried for i in images), ()))

    def carriers(self) -> tuple[Atoms, ...]:
        """New `Atoms` to be moved and given to a calculator: one for all, or for each walker."""
        if not self.carried:
            return (self.to_atoms(np.zeros((len(self), 3))),)
        return tuple(atoms.copy() for atoms in self.carried)

    def to_atoms(self, positions):
        """``ase.Atoms`` at ``positions`` (N, 3), array or tensor; see `carriers` for all else."""
        from ase import Atoms

        if isinstance(positions, Tensor):
            positions = positions.detach().cpu().double().numpy()
        return Atoms(
            numbers=self.numbers,
            positions=np.asarray(positions, dtype=float),
            masses=self.masses,
            # as the user has it, where vectors may be missing
            cell=self.carried[0].cell if self.carried else self.cell,
            pbc=self.pbc,
        )


def _check_atoms(given, numbers: np.ndarray, masses: np.ndarray) -> None:
    fine = (numbers >= 0) & (numbers < _ELEMENTS) & (np.asarray(given) == numbers)
    if not fine.all():
        strange = sorted(set(np.asarray(given)[~fine].tolist()))
        raise ValueError(
            f"atomic numbers {', '.join(map(str, strange[:5]))}: expected those of elements, 1 to "
            f"{_ELEMENTS - 1}, or 0 of ASE's X"
        )
    if not (np.isfinite(masses) & (masses > 0)).all():
        wrong = int((~(np.isfinite(masses) & (masses > 0))).argmax())
        raise ValueError(
            f"atom {wrong} has a mass of {masses[wrong]:g} u: expected positive numbers in u; "
            "to hold an atom, fix it"
        )


def carried_by(atoms: Atoms, *, without: frozenset[str] = frozenset()) -> tuple:
    """Elements, masses, cell, pbc and all else that ``atoms`` carry, as plain values that compare.

    Everything but positions, momenta, constraints, the calculator, and the entries of ``info``
    named in ``without``.
    """
    arrays = tuple(
        (name, comparable(values))
        for name, values in atoms.arrays.items()
        if name not in _NOT_CARRIED
    )
    info = tuple((name, comparable(v)) for name, v in atoms.info.items() if name not in without)
    cell = atoms.cell.array.tobytes(), atoms.pbc.tobytes(), atoms.get_celldisp().tobytes()
    return arrays, info, cell


def comparable(value: Any):
    """``value`` in a form that compares and hashes: numbers as they print, arrays as bytes."""
    if value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        return type(value).__name__, repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return tuple((repr(name), comparable(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(comparable(part) for part in value)
    try:
        return pickle.dumps(value)
    except Exception:  # an object raises what it likes
        return id(value)


def _copied(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # an object raises what it likes
        return value


def _momenta(atoms: Atoms) -> bytes:
    return atoms.arrays["momenta"].tobytes() if atoms.has("momenta") else b""


def _complete(cell: np.ndarray | None, pbc: np.ndarray) -> np.ndarray | None:
    """The ``cell`` with a volume, or None for what is not periodic and has none."""
    vectors = np.zeros((3, 3)) if cell is None else cell
    without = [i for i in range(3) if pbc[i] and not vectors[i].any()]
    if without:
        missing = f"no vector {' and '.join(map(str, without))}" if vectors.any() else "none"
        raise ValueError(
            f"pbc={pbc.tolist()} needs a cell of non-zero volume, but there is {missing}: give it, "
            "or pbc=False in that direction"
        )
    if not pbc.any():
        return cell if abs(np.linalg.det(vectors)) > _NO_VOLUME else None
    from ase.geometry.cell import complete_cell

    with np.errstate(invalid="ignore"):  # parallel vectors have no normal
        full = complete_cell(vectors)
        volume = abs(np.linalg.det(full))
    if not volume > _NO_VOLUME:
        raise ValueError(
            f"pbc={pbc.tolist()} needs a cell of non-zero volume, but the vectors "
            f"{_vectors(vectors)} lie in one plane or on one line"
        )
    return full


def _is_dummy(atoms: Atoms) -> bool:
    """More than one atom in the cell that a PDB file states where there is no crystal."""
    return len(atoms) > 1 and atoms.pbc.all() and np.array_equal(atoms.cell.array, np.eye(3))


def _elements(a: System, b: System) -> str:
    i = int((a.numbers != b.numbers).argmax())
    if a.formula != b.formula:
        return f"the elements ({a.formula} and {b.formula}, at atom {i} first)"
    return f"the order of the atoms (of {a.formula}, at atom {i} first)"


def _same_cell(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.allclose(a, b))


def _vectors(cell: np.ndarray | None) -> str:
    return "none" if cell is None else f"{np.round(cell, 4).tolist()} Å"


__getattr__ = forward(__name__, "state")
