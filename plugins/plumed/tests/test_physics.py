"""A double well of 8 kT, U = 8 (x² − 1)² kT, filled by PLUMED: the free energy is known."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffmd_plumed import ASE_UNITS, PlumedPotential

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell
from diffmd_ase.sampling.kernels import EulerMaruyama
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System

pytestmark = pytest.mark.slow
KT = 0.0258
SYSTEM = System([1], [1.0])
S = np.linspace(-1.4, 1.4, 141)
EXACT = 8.0 * (S**2 - 1) ** 2
INPUT = ["UNITS LENGTH=A", "p: POSITION ATOM=1 NOPBC"]


def simulate(line, walkers, steps, folder):
    """Values of x at every 10th step after the first fifth, and of the bias in kT."""
    lines = [*INPUT, line, "PRINT ARG=p.x,b.bias FILE=COLVAR STRIDE=10"]
    bias = PlumedPotential(SYSTEM, lines, kT=KT, timestep=1.0, directory=folder)
    well = DoubleWell(barrier=8 * KT, a=1.0, k=20 * KT, system=SYSTEM)
    start = torch.zeros(walkers, 1, 3, dtype=torch.float64)
    start[:, 0, 0] = -1.0
    for _ in run(EulerMaruyama(well + bias, kT=KT, h=2e-3), start, steps, noise=Noise(5)):
        pass
    bias.finalize()
    table = np.loadtxt(folder / "COLVAR")
    rows = table[len(table) // 5 :]
    return rows[:, 1], rows[:, 2] / (KT * ASE_UNITS.energy)


def check(fes, rmse):
    """Barrier and ΔF to 0.2 kT, the whole surface below 8 kT to ``rmse``."""
    fes = fes - np.mean(fes - EXACT)
    left, right = (-np.log(np.exp(-fes[side]).sum()) for side in (S < 0, S > 0))
    barrier = fes[np.abs(S) < 0.1].mean() - 0.5 * (fes[S < -0.5].min() + fes[S > 0.5].min())
    exact_barrier = EXACT[np.abs(S) < 0.1].mean()
    found = float(np.sqrt(np.mean((fes - EXACT)[EXACT <= 8.0] ** 2)))
    print(f"barrier {barrier - exact_barrier:+.3f}, ΔF {right - left:+.3f}, rmse {found:.3f} kT")
    assert abs(barrier - exact_barrier) < 0.2
    assert abs(right - left) < 0.2
    assert found < rmse


# hills of a single moment, not averaged over time: of one walker they are off by more than 0.2 kT
@pytest.mark.parametrize("walkers, height, pace", [(8, 0.0625, 200)])
def test_metadynamics(walkers, height, pace, tmp_path):
    kJ = KT * ASE_UNITS.energy
    line = (
        f"b: METAD ARG=p.x SIGMA=0.1 HEIGHT={height * kJ} PACE={pace // walkers} BIASFACTOR=10 "
        "GRID_MIN=-2.5 GRID_MAX=2.5 GRID_BIN=250"
    )
    simulate(line, walkers, 400_000 // walkers, tmp_path)
    command = [sys.executable, "-c", "import plumed; plumed.cli()", "sum_hills", "--hills", "HILLS"]
    grid = ["--min", "-2.5", "--max", "2.5", "--bin", "500"]
    subprocess.run([*command, *grid], cwd=tmp_path, check=True, capture_output=True)
    table = np.loadtxt(tmp_path / "fes.dat")
    check(np.interp(S, table[:, 0], table[:, 1]) / kJ, 0.25)


@pytest.mark.parametrize("walkers", [1, 8])
def test_opes(walkers, tmp_path):
    """Reweighted histogram, w = exp(V/kT) (Invernizzi & Parrinello, JPCL 11, 2731, 2020)."""
    line = f"b: OPES_METAD ARG=p.x SIGMA=0.1 PACE=200 BARRIER={10 * KT * ASE_UNITS.energy}"
    if walkers > 1:
        line = line.replace("PACE=200", "PACE=50")
    x, v = simulate(line, walkers, 480_000 // walkers, tmp_path)
    width = S[1] - S[0]
    weights = np.exp(v - v.max())
    edges = np.append(S - width / 2, S[-1] + width / 2)
    histogram, _ = np.histogram(x, bins=edges, weights=weights)
    assert (histogram > 0).all()
    fes = np.convolve(-np.log(histogram), np.ones(5) / 5, "same")
    fes[:2], fes[-2:] = -np.log(histogram[:2]), -np.log(histogram[-2:])
    check(fes, 0.1)


def test_unbiased_does_not_cross(tmp_path):
    """The negative control: without hills nobody leaves the left well in that time."""
    x, _ = simulate("b: RESTRAINT ARG=p.x AT=0 KAPPA=0", 1, 20_000, tmp_path)
    assert x.max() < 0.5
