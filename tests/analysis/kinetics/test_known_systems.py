"""Passage times by quadrature, and the data systems of deeptime with their exact numbers."""

import numpy as np
import pytest
import torch

from diffmd_ase.analysis.kinetics.markov import markov_model
from diffmd_ase.analysis.kinetics.passages import passages
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

BETWEEN = 0.5826  # -ζ(1/2)/sqrt(2π): Broadie, Glasserman & Kou, Math. Finance 7, 325 (1997)


def quadrature(barrier: float, kT: float, start: float, end: float) -> float:
    """``∫ dy e^{U(y)} ∫_{-∞}^y e^{-U}`` from start to end, D = 1, U in kT."""
    x = np.linspace(-3.0, end, 40_001)
    u = barrier / kT * (x**2 - 1) ** 2
    step = x[1] - x[0]
    inner = np.cumsum(np.exp(-u)) * step
    return float((np.exp(u) * inner)[x >= start].sum() * step)


def test_double_well_passages_are_those_of_quadrature():
    """Between steps a visit is not seen: the ends are, as it were, 0.58 sqrt(2h) further out."""
    barrier, kT, h, walkers = 1.0, 0.5, 0.01, 1000
    kernel = EulerMaruyama(DoubleWell(barrier=barrier, a=1.0, k=1.0), kT=kT, h=h)
    x = torch.zeros(walkers, 1, 3, dtype=torch.float64)
    x[:, 0, 0] = torch.linspace(-1, 1, walkers, dtype=torch.float64).sign()
    noise = Noise(5)
    *_, (state, _) = run(kernel, x, 100, noise=noise)
    seen = np.array([s.x[:, 0, 0].numpy() for s, _ in run(kernel, state, 1000, noise=noise)])
    found = passages(seen <= -1, seen >= 1, h)
    end = 1.0 + BETWEEN * np.sqrt(2 * h)
    exact = quadrature(barrier, kT, -end, end)
    for told in (found.to_b, found.to_a):
        assert abs(told.value - exact) < 4 * told.error < 0.2 * exact
        assert abs(told.value - 2 * exact) > 4 * told.error  # twice the D


def simulated(p: np.ndarray, first: np.ndarray, steps: int, *, seed: int) -> np.ndarray:
    """States (steps + 1, W) of the chain with the transition matrix p."""
    cumulative, states = np.asarray(p).cumsum(1), [first]
    cumulative[:, -1] = 1.0
    for u in np.random.default_rng(seed).random((steps, len(first))):
        states.append((u[:, None] > cumulative[states[-1]]).sum(1))
    return np.array(states)


@pytest.fixture(scope="module")
def data():
    return pytest.importorskip("deeptime.data", reason="the systems are deeptime's")


def test_birth_death_chain_of_deeptime(data):
    """Passage times, committors and fluxes against the closed forms of the chain."""
    exact = data.birth_death_chain([0.0, 0.1, 0.1, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1, 0.0])
    states = simulated(exact.transition_matrix, np.arange(40) % 5, 3000, seed=2)
    found = markov_model(states, 1, 1.0)
    for start, end in (([0], [4]), ([3, 4], [0])):
        told, known = found.mfpt(start, end), exact.msm.mfpt(start, end)
        assert abs(told.value - known) < 4 * told.error < 0.3 * known
    committor = found.committor([0], [4])
    for told, known in zip(committor[1:4], exact.committor_forward(0, 4)[1:4], strict=True):
        assert abs(told.value - known) < 4 * told.error < 0.3 * known
    flux, known = found.flux([0], [4]), exact.totalflux(0, 4)
    assert abs(flux.value - known) < 4 * flux.error < 0.3 * known
    assert abs(2 * flux.value - known) > 4 * flux.error
    direct = passages(states == 0, states == 4, 1.0).to_b
    assert abs(direct.value - exact.msm.mfpt([0], [4])) < 4 * direct.error


@pytest.mark.slow
def test_double_well_of_deeptime(data):
    """The slowest timescale of 100 states, seen in six."""
    system = data.double_well_discrete()
    exact = system.analytic_msm.timescales()[0]
    law = system.analytic_msm.stationary_distribution
    first = np.random.default_rng(3).choice(len(law), 40, p=law)
    walkers = simulated(system.transition_matrix, first, 8000, seed=4)
    states = np.searchsorted([40, 45, 50, 55, 60], walkers, side="right")
    found = markov_model(states, 100, 1.0, posterior=20)
    told = found.timescales[0]
    assert abs(told.value - exact) < 4 * told.error < exact
    blurred = markov_model((states > 4).astype(int), 1, 1.0, posterior=2).timescales[0]
    assert abs(blurred.value - exact) > 4 * blurred.error
