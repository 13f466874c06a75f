"""Absolute free energies of crystals from an Einstein crystal (Frenkel & Ladd 1984).

Atoms bound to their sites by ``½ k |r_i - c_i|²``, with the centre r̄ = Σ r_i/N held, are coupled to
the crystal (D. Frenkel & A. J. C. Ladd, J. Chem. Phys. 81, 3188 (1984); J. M. Polson, E. Trizac,
S. Pronk & D. Frenkel, J. Chem. Phys. 112, 5339 (2000)). With Å as the unit of length

    Z_E = ∫ dr δ(r̄) exp(-U_E/kT) = (2π kT/k)^(3(N-1)/2) N^(3/2)
    F/kT = -ln Z_E + ΔF/kT - ln(V/N) + 3N ln Λ_i

where ΔF is that of the coupling with the centre held, V/N the room of the centre in a periodic
crystal (a shift by a lattice vector is a permutation of its atoms), and Λ_i = h/sqrt(2π m_i kT).
What is left depends on the number of atoms as ln N/N and 1/N; run two sizes to extrapolate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units
from ase.units import _hplanck

from ..statistics import Estimate

__all__ = ["CrystalFreeEnergy", "crystal_free_energy", "einstein_log_z", "harmonic_log_z"]


@dataclass(frozen=True)
class CrystalFreeEnergy:
    """Parts of the free energy of a crystal, in eV for all of its ``atoms``."""

    einstein: float  # -kT ln Z_E, with the centre held
    coupling: Estimate  # ΔF from there to the crystal, held likewise
    centre: float  # -kT ln(V/N): the centre let go
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
    if len(kappa) != 3 * (atoms - 1) or not (kappa > 0).all():
        raise ValueError(
            f"{len(kappa)} eigenvalues from {kappa.min():.3g} eV/Å² for {atoms} atoms: expected "
            f"{3 * (atoms - 1)}, all positive; relax the crystal"
        )
    return float(0.5 * np.log(2 * np.pi * kT / kappa).sum() + 1.5 * np.log(atoms))


def crystal_free_energy(
    coupling: Estimate, *, stiffness: float, kT: float, masses, volume: float
) -> CrystalFreeEnergy:
    """The free energy of a crystal from ``coupling``, ΔF in eV from its Einstein crystal.

    Parameters
    ----------
    stiffness : k of the Einstein crystal in eV/Å²
    kT : in eV
    masses : (N,) in u
    volume : V of the cell in Å³

    Raises
    ------
    ValueError : as `einstein_log_z`; a volume that is not positive
    """
    masses = np.asarray(masses, dtype=float)
    if not volume > 0:
        raise ValueError(f"{volume=} must be positive (Å³): Frenkel-Ladd is for periodic crystals")
    atoms = len(masses)
    planck = _hplanck * units.J * units.second
    lengths = planck / np.sqrt(2 * np.pi * masses * kT)
    return CrystalFreeEnergy(
        einstein=-kT * einstein_log_z(stiffness, kT, atoms),
        coupling=coupling,
        centre=-kT * float(np.log(volume / atoms)),
        kinetic=3 * kT * float(np.log(lengths).sum()),
        atoms=atoms,
    )
