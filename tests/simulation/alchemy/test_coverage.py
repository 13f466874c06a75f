"""Whether intervals of 95 % hold the exact ΔF as often: 200 repeats of each protocol at once."""

import numpy as np
import pytest
import torch

from diffmd_ase.analysis.alchemy import estimates
from diffmd_ase.analysis.alchemy.samples import CoupledSamples
from diffmd_ase.analysis.alchemy.works import from_works
from diffmd_ase.independent.smc import smc
from diffmd_ase.independent.switching import switch
from diffmd_ase.independent.weights import Weighted
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.alchemical import Alchemical
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.expanded import ExpandedEnsemble
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.simulation.alchemy.protocols import of_populations

KT, REPEATS = 0.1, 200
K = 1.0, 3.0
AWAY = torch.tensor([0.5, 0.0, 0.0])
WELLS = Harmonic(K[0]), Harmonic(K[1], centre=AWAY)
EXACT = 1.5 * np.log(K[1] / K[0])


def kernel(lam):
    return Metropolis(EulerMaruyama(Alchemical(*WELLS, lam), kT=KT, h=0.03))


def drawn(lam, n):
    """(n, 1, 3) exact samples at λ, scalar or (n,)."""
    lam = torch.as_tensor(lam, dtype=torch.float64).expand(n)[:, None]
    k = (1 - lam) * K[0] + lam * K[1]
    xi = torch.randn(n, 3, generator=torch.Generator().manual_seed(5)).double()
    return (lam * K[1] / k * AWAY.double() + xi * (KT / k) ** 0.5)[:, None]


def covered(estimates, exact=EXACT):
    return sum(abs(one.value - exact) < 1.96 * one.error for one in estimates)


PATH = [kernel(lam) for lam in torch.linspace(0, 1, 9).tolist()]


@pytest.mark.slow
def test_switching():
    n = REPEATS * 30
    ways = [
        switch(PATH[::way], drawn(end, n), noise=Noise(1), walkers=torch.arange(n) + end * n)[0]
        for way, end in ((1, 0), (-1, 1))
    ]
    forward, backward = (w.reshape(REPEATS, -1).numpy() for w in ways)
    found = [from_works(*both).best for both in zip(forward, backward, strict=True)]
    assert 180 <= covered(found) <= 198
    assert covered([one._replace(error=0.5 * one.error) for one in found]) < 170


@pytest.mark.slow
def test_annealing():
    populations, size = 4, 16
    x = drawn(0.0, REPEATS * populations * size)
    last = smc(PATH, x, noise=Noise(2), populations=REPEATS * populations)
    shares = last.log_weights.reshape(REPEATS, -1)
    places = last.x.reshape(REPEATS, -1, 1, 3)
    found = [
        of_populations(Weighted(a, w, groups=populations), populations)
        for a, w in zip(places, shares, strict=True)
    ]
    assert 180 <= covered(found) <= 198


def chains(kernel, lam, lambdas, frames):
    """Samples of each repeat, its chains correlated in time, begun with exact draws at ``lam``."""
    columns = []
    for state, _ in run(kernel, drawn(lam, len(lam)), 2 * frames, noise=Noise(3), every=2):
        level = state.record
        at = lam if level is None else lambdas[level.number]
        columns.append(torch.stack([*(w(state.x).energy for w in WELLS), at]))
    parts = torch.stack(columns, 1).reshape(3, len(columns), REPEATS, -1).numpy()
    return [CoupledSamples(*parts[:, :, r], KT, states=lambdas.numpy()) for r in range(REPEATS)]


def check(samples, names, monkeypatch):
    """Each estimator's interval holds ΔF in 90 to 99 % of the ``samples``; half of it does not."""
    monkeypatch.setattr(estimates, "_convergence", lambda *_: np.empty((0, 5)))  # half of the time
    found = [estimates.estimate(one).value for one in samples]
    for name in names:
        each = [value[name] for value in found]
        assert 180 <= covered(each) <= 198, (name, covered(each))
        assert covered([one._replace(error=0.5 * one.error) for one in each]) < 170


@pytest.mark.slow
def test_windows(monkeypatch):
    """As many that the quadrature of TI is off by a seventh of its error, 0.016 kT."""
    pytest.importorskip("alchemlyb")
    lambdas = torch.linspace(0, 1, 5, dtype=torch.float64)
    lam = lambdas.repeat(2 * REPEATS)
    samples = chains(kernel(lam), lam, lambdas, 100)
    assert np.mean([one.inefficiency for one in samples]) > 1.5
    check(samples, ("MBAR", "BAR", "TI"), monkeypatch)


@pytest.mark.slow
def test_expanded(monkeypatch):
    """With weights that are off by a fifth of kT, as found ones are."""
    pytest.importorskip("alchemlyb")
    lambdas = torch.linspace(0, 1, 3, dtype=torch.float64)
    k = (1 - lambdas) * K[0] + lambdas * K[1]
    free = 1.5 * k.log() + 0.125 * lambdas * (1 - lambdas) * K[0] * K[1] / k / KT
    weights = free + 0.2 * torch.tensor([1.0, -1.0, 1.0])
    ensemble = ExpandedEnsemble(kernel(0.0), lambdas, weights, every=2)
    lam = lambdas.repeat(3 * REPEATS)
    check(chains(ensemble, lam, lambdas, 150), ("MBAR", "BAR"), monkeypatch)
