"""The absolute free energy of fcc copper (EMT) by two routes, at 300 and 900 K.

    python benchmarks/crystal_free_energy.py [--steps 4000] [--seed 0] [--prefix FOLDER]

Frenkel and Ladd: from the Einstein crystal to EMT. The other route: the harmonic crystal of EMT's
Hessian, in closed form, and a λ path from there to EMT, which is the anharmonic part. 32 atoms, the
centre of mass held and let go by -kT ln(V/n). Both must agree within 2 meV per atom and |z| < 4.
The same from the Einstein crystal to the harmonic one, whose difference is in closed form, checks
every factor. The last table is the harmonic free energy of larger cells: what 32 atoms lack.
EMT is that of `batched_emt.py`. Files stay in FOLDER, and a second call goes on from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from batched_emt import BatchedEMT

from diffmd_ase.analysis.alchemy.einstein import crystal_free_energy, harmonic_log_z
from diffmd_ase.analysis.statistics import Estimate
from diffmd_ase.potentials.analytic import HarmonicCrystal
from diffmd_ase.potentials.curvature import hessian
from diffmd_ase.simulation.alchemy.course import alchemy
from diffmd_ase.simulation.alchemy.end_states import couple
from diffmd_ase.simulation.alchemy.settings import AlchemySettings
from diffmd_ase.units import kT_from_temperature

KELVIN = 300.0, 900.0
HEAD = "                        F (eV/atom)   error  evaluations  for 0.1 kT"


def absolute(start: str, end, atoms, kelvin: float, options, name: str) -> dict:
    """Numbers of the coupling from an ideal crystal to ``end``, and its verdicts."""
    settings = AlchemySettings(
        start=start,
        end=name,
        structure="copper",
        temperature=kelvin,
        prefix=f"{options.prefix}/{start}-{name}-{kelvin:.0f}",
        walkers=1,
        steps=options.steps,
        every=10,
        first_pass=200,
        seed=options.seed,
    )
    kernels = couple(start, end, atoms, temperature_K=kelvin)
    result = alchemy(settings, kernels=kernels, restart=True)
    numbers = result.numbers
    F, error = numbers["F_configurational_eV_per_atom"], numbers["F_error_eV_per_atom"]
    calls, each = (numbers[f"evaluations_{n}"] for n in ("of_each_end", "for_0.1_kT"))
    print(
        f"{start + ' → ' + name:23} {F:11.5f} {error:7.5f}  {calls:11d}  {each:10.0f}", flush=True
    )
    for verdict in result.verdicts:
        if verdict["good"] is False:
            print("  ✗", verdict["text"])
    return numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", default="crystal_free_energy")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Path(options.prefix).mkdir(exist_ok=True)
    atoms = bulk("Cu", cubic=True).repeat(2)
    emt, N = BatchedEMT(atoms), len(atoms)
    K = hessian(emt, emt.sites)
    kappa = np.linalg.eigvalsh(K.numpy())
    ideal = HarmonicCrystal(K, centre=emt.sites, system=emt.system)
    print(f"{N} atoms; Hessian from {kappa[3]:.2f} to {kappa[-1]:.2f} eV/Å²")
    fine = True
    for kelvin in KELVIN:
        print(f"\n{kelvin:.0f} K {HEAD[6:]}")
        kT = kT_from_temperature(kelvin)
        exact = crystal_free_energy(
            Estimate(0.0, 0.0, 1.0),
            stiffness=kappa,
            kT=kT,
            masses=atoms.get_masses(),
            volume=atoms.get_volume(),
        )
        check = absolute("einstein", ideal, atoms, kelvin, options, "quadratic")
        ladd = absolute("einstein", emt, atoms, kelvin, options, "EMT")
        other = absolute("harmonic", emt, atoms, kelvin, options, "EMT")
        name, wrong = "F_configurational_eV_per_atom", "F_error_eV_per_atom"
        z = (check[name] - exact.configurational / N) / check[wrong]
        print(f"quadratic, exact        {exact.configurational / N:11.5f}  z {z:.1f}")
        apart, error = 1000 * (ladd[name] - other[name]), 1000 * np.hypot(ladd[wrong], other[wrong])
        print(f"the routes differ by {apart:.2f} ± {error:.2f} meV per atom, z {apart / error:.1f}")
        rest = float(emt(emt.sites).energy) / N
        anharmonic = 1000 * (other[name] - rest - exact.configurational / N)
        print(f"of it anharmonic {anharmonic:.2f} ± {1000 * other[wrong]:.2f} meV per atom")
        fine &= abs(apart) < 2.0 and abs(apart) < 4 * error and abs(z) < 4
    print("\natoms   harmonic F - U_0, -kT ln(V/n) included (meV per atom at 300 and 900 K)")
    for n in (2, 3, 4):
        larger = bulk("Cu", cubic=True).repeat(n)
        emt, N = BatchedEMT(larger), len(larger)
        kappa, parts = np.linalg.eigvalsh(hessian(emt, emt.sites).numpy()), []
        for kelvin in KELVIN:
            kT = kT_from_temperature(kelvin)
            whole = harmonic_log_z(kappa, kT, N) + np.log(larger.get_volume() / N)
            parts.append(-1000 * kT * whole / N)
        print(f"{N:5d}   " + "  ".join(f"{part:8.2f}" for part in parts))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
