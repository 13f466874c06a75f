"""Six atoms, two variables, metadynamics: what several test modules bias."""

from pathlib import Path

import numpy as np

from diffmd_ase.system import System

KT = 0.0258
SYSTEM = System([6] * 6, [12.0] * 6)
CVS = ["d: DISTANCE ATOMS=1,2", "t: TORSION ATOMS=3,4,5,6"]
HILLS = "m: METAD ARG=d,t SIGMA=0.05,0.3 HEIGHT=1 PACE=4 BIASFACTOR=8"
COLVAR = "PRINT ARG=d,t,m.bias FILE=COLVAR STRIDE=2"
METAD = [*CVS, HILLS, COLVAR]


def hills(potential, name="HILLS"):
    potential.flush()
    path = Path(potential.directory, name)
    return np.loadtxt(path, ndmin=2) if path.stat().st_size else np.zeros((0, 7))
