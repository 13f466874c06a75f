"""Alanine dipeptide from amber14 to GFN2-xTB, in vacuum at 300 K: the quantum correction.

    pip install tblite
    python benchmarks/alchemy_xtb.py [--prefix FOLDER] [--blocks 8] [--seed 0]

amber14 is sampled at length, which costs nothing; xTB is asked at the ends of long chains only:

* at λ = 0 the gap is evaluated on frames of amber14 that are far apart;
* at λ > 0 steps are Metropolis steps in two stages (delayed acceptance): `INNER` steps with
  amber14 alone make a proposal, which the coupling at λ accepts or rejects, so that one
  evaluation of xTB stands for as many steps;
* windows at λ along the path exchange nothing and run side by side.

Printed are ΔF from MBAR, from the first half of the path upwards and the second downwards, the
calls of xTB, the effective samples for each call, and the same for windows run on the coupling
itself, with one call for each step. A second call goes on from the files in FOLDER.
"""

from __future__ import annotations

from ase.units import kB

KT = 300.0 * kB
H = 1e-4  # Å²
