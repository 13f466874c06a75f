"""Absolute free energies of crystals from an ideal one: Einstein's, or the harmonic crystal.

Atoms bound to their sites by ``½ k |r_i - c_i|²``, with the centre r̄ = Σ r_i/N held, are coupled to
the crystal (D. Frenkel & A. J. C. Ladd, J. Chem. Phys. 81, 3188 (1984); J. M. Polson, E. Trizac,
S. Pronk & D. Frenkel, J. Chem. Phys. 112, 5339 (2000)). With Å as the unit of length

    Z_E = ∫ dr δ(r̄) exp(-U_E/kT) = (2π kT/k)^(3(N-1)/2) N^(3/2)
    F/kT = -ln Z_E + ΔF/kT - ln(V/n) + 3N ln Λ_i

where ΔF is that of the coupling with the centre held, V/n the room of the centre in a periodic
crystal (n of its shifts are permutations of its atoms: N where one atom makes the lattice), and
Λ_i = h/sqrt(2π m_i kT). From the harmonic crystal, with κ the 3N-3 eigenvalues of its Hessian that
are not zero, Z_E is ``Π_i (2π kT/κ_i)^(1/2) N^(3/2)`` and the rest is the same.
What is left depends on the number of atoms as ln N/N and 1/N; run two sizes to extrapolate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units
from ase.units import _hplanck
from scipy.spatial import cKDTree

from ...geometry import minimum_image
from ...system import System
from ..statistics import Estimate

__all__ = [
    "CrystalFreeEnergy",
    "crystal_free_energy",
    "einstein_log_z",
    "harmonic_log_z",
    "lattice_shifts",
]

_NEAR = 0.2  # of the smallest distance, root mean square: crystals melt at 0.15


@dataclass(frozen=True)
class CrystalFreeEnergy:
    """Parts of the free energy of a crystal, in eV for all of its ``atoms``."""

    einstein: float  # -kT ln Z_E of the ideal crystal, with the centre held
    coupling: Estimate  # ΔF from there to the crystal, held likewise
    centre: float  # -kT ln(V/n): the centre let go
    kinetic: float  # 3N kT ln Λ
    atoms: int

    @property
    def configurational(self) -> float:
        """F without the momenta, in eV with Å as the unit of length."""
        return self.einstein + self.coupling.value + self.centre

    @property
    def total(self) -> float:
        """Helmholtz free energy in eV."""
        return self.configurational + self.kinetic


def einstein_log_z(stiffness: float, kT: float, atoms: int) -> float:
    """``ln Z_E`` of ``atoms`` bound by ``stiffness`` k in eV/Å², their centre held (Å).

    Raises ``ValueError`` unless k and kT (eV) are positive and there are two atoms.
    """
    if not (stiffness > 0 and kT > 0 and atoms > 1):
        raise ValueError(f"{stiffness=} and {kT=} must be positive, and {atoms=} at least 2")
    return 1.5 * (atoms - 1) * np.log(2 * np.pi * kT / stiffness) + 1.5 * np.log(atoms)


def harmonic_log_z(eigenvalues, kT: float, atoms: int) -> float:
    """``ln Z`` of a harmonic crystal with its centre held (Å): the 3N-3 largest eigenvalues count.

        Σ_i ½ ln(2π kT/κ_i) + (3/2) ln N

    Parameters
    ----------
    eigenvalues : (3N,) or (3N-3,) of the Hessian, in eV/Å²
    kT : in eV
    atoms : N

    Raises
    ------
    ValueError : an eigenvalue that is not positive
    """
    kappa = np.sort(np.asarray(eigenvalues, dtype=float))[-3 * (atoms - 1) :]
    # a direction that costs nothing has an eigenvalue of rounding, of either sign
    if len(kappa) != 3 * (atoms - 1) or not kappa.min() > 1e-6 * kappa.max():
        raise ValueError(
            f"{len(kappa)} eigenvalues from {kappa.min():.3g} eV/Å² for {atoms} atoms: expected "
            f"{3 * (atoms - 1)}, all positive; relax the crystal"
        )
    return float(0.5 * np.log(2 * np.pi * kT / kappa).sum() + 1.5 * np.log(atoms))


def lattice_shifts(x, system: System) -> int:
    """n, how many shifts of the crystal at ``x`` (N, 3) in Å put like atoms in each other's places.

    N for fcc copper, N/2 for rock salt or diamond, 1 with one impurity; atoms may be displaced by
    their thermal motion. Raises ``ValueError`` unless it is periodic in three directions.
    """
    if not system.pbc.all():
        raise ValueError(f"pbc={system.pbc}: shifts are those of a crystal, periodic everywhere")
    x = np.asarray(x, dtype=float)
    kinds, counts = np.unique(system.numbers, return_counts=True)
    rare = np.flatnonzero(system.numbers == kinds[counts.argmin()])
    if len(rare) == 1:
        return 1
    apart = np.linalg.norm(minimum_image(x[rare, None] - x, system), axis=-1)
    smallest = apart[apart > 0].min()
    inverse = np.linalg.inv(system.cell)
    tree = cKDTree((x @ inverse) % 1.0 % 1.0, boxsize=1.0)
    found = 0
    for shift in x[rare] - x[rare[0]]:
        nearest = tree.query(((x + shift) @ inverse) % 1.0 % 1.0)[1]
        left = minimum_image(x + shift - x[nearest], system)
        left = float((left - left.mean(0)).std() * 3**0.5)
        alike = (system.numbers[nearest] == system.numbers).all()
        found += bool(alike and len(np.unique(nearest)) == len(x) and left < _NEAR * smallest)
    return max(found, 1)


def crystal_free_energy(
    coupling: Estimate,
    *,
    stiffness,
    kT: float,
    masses,
    volume: float,
    shifts: int | None = None,
) -> CrystalFreeEnergy:
    """The free energy of a crystal from ``coupling``, ΔF in eV from its ideal crystal.

    Parameters
    ----------
    stiffness : k of the Einstein crystal in eV/Å²; or the eigenvalues (3N,) of the Hessian of the
        harmonic one, whose energy at rest is zero
    kT : in eV
    masses : (N,) in u
    volume : V of the cell in Å³
    shifts : n of `lattice_shifts`; None: N

    Raises
    ------
    ValueError : as `einstein_log_z` or `harmonic_log_z`; a volume that is not positive, shifts that
        are none
    """
    masses = np.asarray(masses, dtype=float)
    if not volume > 0:
        raise ValueError(f"{volume=} must be positive (Å³): Frenkel-Ladd is for periodic crystals")
    atoms = len(masses)
    n = atoms if shifts is None else shifts
    if not 1 <= n <= atoms:
        raise ValueError(f"{shifts=}: expected 1 to {atoms}, one for each atom at most")
    planck = _hplanck * units.J * units.second
    lengths = planck / np.sqrt(2 * np.pi * masses * kT)
    log_z = harmonic_log_z if np.ndim(stiffness) else einstein_log_z
    return CrystalFreeEnergy(
        einstein=-kT * log_z(stiffness, kT, atoms),
        coupling=coupling,
        centre=-kT * float(np.log(volume / n)),
        kinetic=3 * kT * float(np.log(lengths).sum()),
        atoms=atoms,
    )
