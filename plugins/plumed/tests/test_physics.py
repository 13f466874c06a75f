"""A double well of 8 kT, U = 8 (x² − 1)² kT, filled by PLUMED: the free energy is known."""

import numpy as np
import pytest
import torch
from diffmd_plumed import ASE_UNITS, PlumedPotential

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell
from diffmd_ase.sampling.moves import Displacement
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System

pytestmark = pytest.mark.slow
KT = 0.0258
KJ = KT * ASE_UNITS.energy
SYSTEM = System([1], [1.0])
WELL = DoubleWell(barrier=8 * KT, a=1.0, k=0.2 * KT, system=SYSTEM)
EDGES = np.linspace(-1.45, 1.45, 30)
S = 0.5 * (EDGES[1:] + EDGES[:-1])
FINE = S[:, None] + np.linspace(-0.05, 0.05, 201)
EXACT = -np.log(np.exp(-8.0 * (FINE**2 - 1) ** 2).mean(1))  # of each bin
INPUT = ["UNITS LENGTH=A", "p: POSITION ATOM=1 NOPBC"]


def simulate(line, weight, walkers, steps, folder, *, size=0.6):
    """Values of x at every fourth step after the first fifth, and of ``weight`` in kT.

    A random walk whose steps are accepted to exp[-(U + V)/kT]: their size leaves no trace, and
    large ones cross a flattened barrier soonest.
    """
    lines = [*INPUT, line, f"PRINT ARG=p.x,{weight} FILE=COLVAR STRIDE=4"]
    bias = PlumedPotential(SYSTEM, lines, kT=KT, timestep=1.0, directory=folder)
    kernel = Displacement(WELL + bias, KT, size)
    start = torch.zeros(walkers, 1, 3, dtype=torch.float64)
    start[:, 0, 0] = -1.0
    for _ in run(kernel, start, steps, noise=Noise(5)):
        pass
    bias.finalize()
    table = np.loadtxt(folder / "COLVAR")
    rows = table[len(table) // 5 :]
    return rows[:, 1], rows[:, 2] / KJ


def check(x, log_weights, rmse):
    """Barrier and ΔF to 0.2 kT, the whole surface below 8 kT to ``rmse``."""
    counts, _ = np.histogram(x, EDGES, weights=np.exp(log_weights - log_weights.max()))
    assert (counts > 0).all()
    fes, near = -np.log(counts), EXACT <= 8.0
    fes -= np.mean((fes - EXACT)[near])
    left, right = (-np.log(np.exp(-fes[side]).sum()) for side in (S < 0, S > 0))

    def barrier(f):
        return f[np.abs(S) < 0.12].mean() - 0.5 * (f[S < -0.5].min() + f[S > 0.5].min())

    found = float(np.sqrt(np.mean((fes - EXACT)[near] ** 2)))
    over = barrier(fes) - barrier(EXACT)
    print(f"barrier {over:+.3f}, ΔF {right - left:+.3f}, rmse {found:.3f} kT")
    assert abs(over) < 0.2
    assert abs(right - left) < 0.2
    assert found <= rmse


# eight walkers deposit as fast as one does in the same number of evaluations
@pytest.mark.parametrize("walkers, steps", [(1, 24_000), (8, 8_000)])
def test_metadynamics(walkers, steps, tmp_path):
    """Frames of all times, w = exp(rbias/kT) with c(t) (Tiwary & Parrinello, JPCB 119, 736, 2015).

    Hills of a single moment are off by a hill or so; the average over the run is not.
    """
    line = (
        f"b: METAD ARG=p.x SIGMA=0.1 HEIGHT={0.2 * KJ / walkers} PACE=20 BIASFACTOR=10 "
        "GRID_MIN=-5 GRID_MAX=5 GRID_BIN=500 CALC_RCT"
    )
    check(*simulate(line, "b.rbias", walkers, steps, tmp_path), 0.25)


@pytest.mark.parametrize("walkers, steps", [(1, 36_000), (8, 9_000)])
def test_opes(walkers, steps, tmp_path):
    """Reweighted histogram, w = exp(V/kT) (Invernizzi & Parrinello, JPCL 11, 2731, 2020)."""
    line = f"b: OPES_METAD ARG=p.x SIGMA=0.1 PACE=20 BARRIER={10 * KJ}"
    check(*simulate(line, "b.bias", walkers, steps, tmp_path), 0.1)


def test_unbiased_does_not_cross(tmp_path):
    """The negative control: without hills nobody leaves the left well in that time."""
    line = "b: RESTRAINT ARG=p.x AT=0 KAPPA=0"
    x, _ = simulate(line, "b.bias", 8, 1_000, tmp_path, size=0.15)
    assert x.max() < 0.5
