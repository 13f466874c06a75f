"""Free energies that are known, found by the biases: a double well, alanine dipeptide."""

import math

import numpy as np
import pytest
import torch
from alanine_surface import Surface, projected
from ase import units

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic
from diffmd_ase.potentials.biases.cvs import Function, Position
from diffmd_ase.potentials.biases.hills import Grid
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.opes import OPES
from diffmd_ase.potentials.biases.recorded import Frozen, Recorded
from diffmd_ase.potentials.biases.restraints import Restraint
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.system import System
from diffmd_ase.testing import check_potential

KT, KJ = 0.0258, units.mol / units.kJ
SYSTEM = System([1], [1.0])
WELL = DoubleWell(barrier=8 * KT, a=1.0, k=2 * KT, system=SYSTEM)
FREE = Harmonic(0.0, system=SYSTEM)
X = Position(SYSTEM, 0, 0)


def sample(model, bias, start, steps, h, weight, folder):
    """Variables (n, d) in their units and log-weights of the COLVAR after its first fifth.

    A random walk whose steps are accepted to exp[-(U + V)/kT]: their size leaves no trace, and
    in few dimensions large ones cross a flattened barrier soonest.
    """
    recorded = Recorded(bias, folder / "COLVAR", every=4)
    kernel = Metropolis(EulerMaruyama(FREE, kT=KT, h=h), target=model + recorded)
    for _ in run(kernel, start, steps, noise=Noise(5)):
        pass
    table = np.loadtxt(folder / "COLVAR")
    table = table[len(table) // 5 :]
    names = ["time", "walker", *bias.columns]
    s = table[:, 2 : 2 + len(bias.cv)] / bias.cv.plumed_units
    return s, table[:, names.index(weight)] / (KT * KJ)


def histogram(s, log_weights, edges):
    """F in kT at the centres of the bins."""
    counts, _ = np.histogram(s, edges, weights=np.exp(log_weights - log_weights.max()))
    assert (counts > 0).all()
    return -np.log(counts)


def check_well(fes, s, rmse):
    """Barrier and ΔF to 0.2 kT, the surface below 8 kT to ``rmse``."""
    exact = 8.0 * (s**2 - 1.0) ** 2
    fes = fes - np.mean((fes - exact)[exact <= 8.0])
    left, right = (-np.log(np.exp(-fes[side]).sum()) for side in (s < 0, s > 0))

    def barrier(f):
        return f[np.abs(s) < 0.08].mean() - 0.5 * (f[s < -0.5].min() + f[s > 0.5].min())

    found = float(np.sqrt(np.mean((fes - exact)[exact <= 8.0] ** 2)))
    over = barrier(fes) - barrier(exact)
    print(f"barrier {over:+.3f}, ΔF {right - left:+.3f}, rmse {found:.3f} kT")
    assert abs(over) < 0.2
    assert abs(right - left) < 0.2
    assert found <= rmse


EDGES = np.linspace(-1.425, 1.425, 58)
CENTRES = 0.5 * (EDGES[1:] + EDGES[:-1])


def in_the_left_well(walkers):
    start = torch.zeros(walkers, 1, 3)
    start[:, 0, 0] = -1.0
    return start


# eight walkers deposit as fast as one does in the same number of evaluations
@pytest.mark.slow
@pytest.mark.parametrize("walkers, steps", [(1, 32_000), (8, 10_000)])
def test_metadynamics_of_the_double_well(walkers, steps, tmp_path):
    """Reweighted with c(t), and the hills themselves."""
    bias = Metadynamics(
        X,
        kT=KT,
        sigma=0.1,
        height=0.2 * KT / walkers,
        pace=20,
        biasfactor=10,
        grid=Grid([500], [-5.0], [5.0]),
    )
    start = in_the_left_well(walkers)
    s, log_weights = sample(WELL, bias, start, steps, 0.1, "rbias", tmp_path)
    check_well(histogram(s[:, 0], log_weights, EDGES), CENTRES, 0.25)
    # the hills of one moment still wobble by a hill or so: F within 0.3 kT on the whole
    exact = 8.0 * (CENTRES**2 - 1.0) ** 2
    away = bias.free_energy(torch.tensor(CENTRES)[:, None]).numpy() / KT - exact
    assert away[exact <= 8.0].std() < 0.3


@pytest.mark.slow
def test_frozen_bias_is_an_ordinary_potential(tmp_path):
    """Learns nothing; sampling of U + V, weighted with exp(V/kT), is exact."""
    bias = Metadynamics(X, kT=KT, sigma=0.2, height=0.3 * KT, pace=20, grid=Grid([500], [-5], [5]))
    moves = EulerMaruyama(FREE, kT=KT, h=0.1)
    grow = Metropolis(moves, target=WELL + bias)
    *_, (state, _) = run(grow, in_the_left_well(64), 1500, noise=Noise(5))
    x, frozen = state.x, Frozen(bias)
    check_potential(frozen, x[0], translation_invariant=False)
    before = bias(x)
    table = Recorded(frozen, tmp_path / "COLVAR", every=50)
    kernel = Metropolis(moves, target=WELL + table)
    frames = [s.x for s, _ in run(kernel, x, 4000, noise=Noise(6), every=50)][10:]
    assert torch.equal(before.energy, bias(x).energy)  # a bias that learns fails here
    written = np.loadtxt(tmp_path / "COLVAR")
    last = frozen(frames[-1]).energy.numpy()
    assert written[-64:, 3] == pytest.approx(last * KJ, abs=1e-5)
    s = torch.stack(frames)[:, :, 0, 0]
    weights = (frozen(torch.stack(frames)).energy / KT).exp()
    crossed = ((s[1:] > 0) != (s[:-1] > 0)).sum()
    assert crossed > 500  # 8 kT high: without the bias there are hardly any
    near = (s.abs() < 1.0).double()  # exact by quadrature, each walker an estimate
    grid = torch.linspace(-2, 2, 4001)
    p = (-8 * (grid**2 - 1) ** 2).exp()
    for found, exact in (
        ((weights * near).sum(0) / weights.sum(0), p[grid.abs() < 1].sum() / p.sum()),
        ((weights * (s > 0)).sum(0) / weights.sum(0), 0.5),
    ):
        z = (found.mean() - exact) / (found.std() / math.sqrt(len(found)))
        assert abs(z) < 4, f"{found.mean():.3f}, exact {exact:.3f}"
    unweighted = near.mean(0)  # negative control
    assert abs(unweighted.mean() - p[grid.abs() < 1].sum() / p.sum()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("walkers, steps", [(1, 48_000), (8, 12_000)])
def test_opes_of_the_double_well(walkers, steps, tmp_path):
    bias = OPES(X, kT=KT, sigma=0.1, barrier=10 * KT, pace=20)
    start = in_the_left_well(walkers)
    s, log_weights = sample(WELL, bias, start, steps, 0.1, "bias", tmp_path)
    check_well(histogram(s[:, 0], log_weights, EDGES), CENTRES, 0.1)


@pytest.mark.slow
def test_unbiased_does_not_cross(tmp_path):
    """The control: nobody leaves the well without hills."""
    bias = Restraint(X, at=0.0, kappa=0.0)
    s, _ = sample(WELL, bias, in_the_left_well(8), 1_000, 0.01, "bias", tmp_path)
    assert s.max() < 0.5


def wrapped(axis, name):
    def angle(x):
        return torch.remainder(x[..., 0, axis] + math.pi, 2 * math.pi) - math.pi

    return Function(SYSTEM, angle, names=name, domains=[(-math.pi, math.pi)])


PHI, PSI = wrapped(0, "phi"), wrapped(1, "psi")
SURFACE = Surface(SYSTEM, KT)


@pytest.mark.usefixtures("float64")
def test_surface():
    """ΔF of the basin φ in [0, 2.2] and the barrier towards it, by quadrature."""
    check_potential(SURFACE, torch.tensor([[0.4, -1.0, 0.3]]), rtol=1e-6)
    phi = torch.linspace(-math.pi, math.pi, 1201)[:-1]
    f = projected(phi)
    inside = (phi > 0) & (phi < 2.2)
    delta = torch.logsumexp(-f[~inside], 0) - torch.logsumexp(-f[inside], 0)
    assert float(delta) == pytest.approx(3.44, abs=0.01)
    barrier = f[(phi > -0.5) & (phi < 0.5)].max() - f.min()
    assert float(barrier) == pytest.approx(14.5, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["opes", "metadynamics"])
def test_alanine_dipeptide(method, tmp_path):
    """32 walkers, all from one basin over the barrier of 14.5 kT."""
    if method == "opes":
        bias = OPES(PHI, kT=KT, sigma=0.15, barrier=18 * KT, pace=20)
    else:
        bias = Metadynamics(
            [PHI, PSI],
            kT=KT,
            sigma=0.3,
            height=0.1 * KT,
            pace=10,
            biasfactor=15,
            grid=Grid([60, 60]),
        )
    weight = "bias" if method == "opes" else "rbias"
    start = torch.zeros(32, 1, 3)
    start[:, 0, :2] = torch.tensor([-1.4, 1.0])
    s, log_weights = sample(SURFACE, bias, start, 6_000, 0.03, weight, tmp_path)
    phi, weights = s[:, 0], np.exp(log_weights - log_weights.max())
    inside = (phi > 0) & (phi < 2.2)
    delta = math.log(weights[~inside].sum() / weights[inside].sum())
    edges = np.linspace(-math.pi, math.pi, 61)
    centres = 0.5 * (edges[1:] + edges[:-1])
    fes = histogram(phi, log_weights, edges)
    exact = projected(torch.tensor(centres)).numpy()
    near = exact < exact.min() + 12
    away = (fes - exact)[near]
    print(f"{method}: ΔF {delta:.2f}, rmse {away.std():.3f} kT")
    assert delta == pytest.approx(3.44, abs=0.3)
    assert away.std() < 0.35
