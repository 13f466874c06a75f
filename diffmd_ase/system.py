"""What is simulated: atoms, masses and cell, without positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ._moved import forward

__all__ = ["System"]


@dataclass(frozen=True, eq=False)
class System:
    """Atoms without positions: what a potential is bound to.

    Parameters
    ----------
    numbers : (N,) atomic numbers
    masses : (N,) in u
    cell : (3, 3) in Å, rows are lattice vectors, or None
    pbc : (3,) bool

    Raises
    ------
    ValueError : shapes that do not fit; a periodic direction without a cell that has a volume
    """

    numbers: np.ndarray
    masses: np.ndarray
    cell: np.ndarray | None = None
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, bool))

    def __post_init__(self):
        numbers = np.asarray(self.numbers, dtype=int)
        masses = np.asarray(self.masses, dtype=float)
        pbc = np.broadcast_to(np.asarray(self.pbc, dtype=bool), (3,)).copy()
        cell = None if self.cell is None else np.asarray(self.cell, dtype=float)
        if numbers.ndim != 1 or masses.shape != numbers.shape:
            raise ValueError(f"numbers {numbers.shape} and masses {masses.shape} must both be (N,)")
        if cell is not None and cell.shape != (3, 3):
            raise ValueError(f"cell has shape {cell.shape}, expected (3, 3)")
        if pbc.any() and (cell is None or abs(np.linalg.det(cell)) < 1e-10):
            raise ValueError(f"pbc={pbc.tolist()} needs a cell of non-zero volume")
        for name, value in zip(
            ("numbers", "masses", "cell", "pbc"), (numbers, masses, cell, pbc), strict=True
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.numbers)

    def __eq__(self, other) -> bool:
        if not isinstance(other, System):
            return NotImplemented
        same_cell = (self.cell is None) == (other.cell is None) and (
            self.cell is None or np.allclose(self.cell, other.cell)
        )
        return (
            np.array_equal(self.numbers, other.numbers)
            and np.allclose(self.masses, other.masses)
            and np.array_equal(self.pbc, other.pbc)
            and same_cell
        )

    @property
    def periodic(self) -> bool:
        """Any direction is."""
        return bool(self.pbc.any())

    @property
    def formula(self) -> str:
        """Chemical formula, for messages and cards."""
        return self.to_atoms(np.zeros((len(self), 3))).get_chemical_formula()

    @classmethod
    def from_atoms(cls, atoms) -> System:
        """The system of ``atoms``, an ``ase.Atoms``; a cell of zero volume counts as none."""
        cell = np.array(atoms.cell) if atoms.cell.rank == 3 else None
        return cls(atoms.numbers.copy(), atoms.get_masses(), cell, atoms.pbc.copy())

    def to_atoms(self, positions):
        """``ase.Atoms`` at ``positions`` (N, 3), array or tensor."""
        from ase import Atoms

        if isinstance(positions, Tensor):
            positions = positions.detach().cpu().double().numpy()
        return Atoms(
            numbers=self.numbers,
            positions=np.asarray(positions, dtype=float),
            masses=self.masses,
            cell=self.cell,
            pbc=self.pbc,
        )


__getattr__ = forward(__name__, "state")
