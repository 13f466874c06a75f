"""Units of whoever calls PLUMED, as multiples of PLUMED's own: nm, kJ/mol, ps, u, e.

They say how positions, energies, kT and time steps are *passed*. The units of what is
written in an input and of HILLS and COLVAR are PLUMED's, unless the input has a UNITS line.
"""

from __future__ import annotations

from dataclasses import dataclass

from ase import units

__all__ = ["ASE_UNITS", "PLUMED_UNITS", "Units"]


@dataclass(frozen=True)
class Units:
    """One unit each of ``length`` in nm, energy in kJ/mol, time in ps, mass in u, charge in e.

    Raises ``ValueError`` for what is not positive.
    """

    length: float
    energy: float
    time: float
    mass: float = 1.0
    charge: float = 1.0

    def __post_init__(self):
        if not min(self.length, self.energy, self.time, self.mass, self.charge) > 0.0:
            raise ValueError(f"{self} must be positive numbers")


#: Å, eV, ASE time
ASE_UNITS = Units(length=1.0 / units.nm, energy=units.mol / units.kJ, time=1e-3 / units.fs)
#: nm, kJ/mol, ps
PLUMED_UNITS = Units(length=1.0, energy=1.0, time=1.0)
