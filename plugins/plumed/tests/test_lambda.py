"""λ under PLUMED: OPES_EXPANDED over ECV_LINEAR of U_B - U_A, against ΔF in closed form."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.units import kJ, mol
from diffmd_plumed import PlumedCVPotential

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.alchemical import Gap
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.biases.recorded import Frozen
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System

KT, WALKERS = 0.1, 16
SYSTEM = System.from_atoms(Atoms("Ar"))
WELLS = Harmonic(1.0, system=SYSTEM), Harmonic(3.0, centre=[0.5, 0, 0], system=SYSTEM)
EXACT = 1.5 * np.log(3.0)
INPUT = [
    "ecv: ECV_LINEAR ARG=gap LAMBDA_MAX=1 LAMBDA_STEPS=6",
    "opes: OPES_EXPANDED ARG=ecv.* PACE=5 OBSERVATION_STEPS=1 PRINT_STRIDE=50",
]


@pytest.mark.slow
def test_opes_expanded_finds_the_free_energy(tmp_path):
    gap = Gap(*WELLS)
    opes = PlumedCVPotential(gap, INPUT, kT=KT, timestep=1.0, directory=tmp_path)

    def kernel(bias):
        return Metropolis(EulerMaruyama(WELLS[0] + bias, kT=KT, h=0.03))

    *_, (learned, _) = run(kernel(opes), torch.zeros(WALKERS, 1, 3).double(), 200, noise=Noise(1))
    frozen, gaps, weights = Frozen(opes), [], []
    for state, _ in run(kernel(frozen), learned.x, 300, noise=Noise(2), every=10):
        gaps.append(gap(state.x)[:, 0] / KT)
        weights.append(frozen(state.x).energy / KT)
    opes.finalize()
    # weights of the bias take averages to A; walkers are independent, and give the error
    u, v = (torch.stack(those[5:]).numpy() for those in (gaps, weights))

    def free(rows, v):
        w = np.exp(v[:, rows] - v.max())
        return -np.log((w * np.exp(-u[:, rows])).sum() / w.sum())

    left = [free(np.arange(WALKERS) != out, v) for out in range(WALKERS)]
    error = np.std(left) * (WALKERS - 1) ** 0.5
    value = free(np.arange(WALKERS), v)
    assert abs(value - EXACT) < 4 * error < 0.8, (value, EXACT, error)
    assert abs(free(np.arange(WALKERS), 0 * v) - EXACT) > 4 * error  # without weights
    table = np.loadtxt(next(tmp_path.glob("DELTAFS*")))
    told = table[-1, -1] * kJ / mol / KT  # of λ = 1, by OPES itself
    assert told == pytest.approx(EXACT, abs=0.5)


def test_the_gap_is_a_variable():
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    gap = Gap(*WELLS, constant=0.25)
    values, pull = gap.vjp(x)
    torch.testing.assert_close(values[:, 0], WELLS[1](x).energy - WELLS[0](x).energy - 0.25)
    torch.testing.assert_close(
        pull(torch.ones(2, 1).double()), WELLS[0](x).forces - WELLS[1](x).forces
    )
    with pytest.raises(ValueError, match="of no atoms"):
        Gap(Harmonic(1.0), Harmonic(2.0))
