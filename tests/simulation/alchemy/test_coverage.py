"""Whether intervals of 95 % hold the exact ΔF as often: 200 repeats of each protocol at once."""

import numpy as np
import pytest
import torch

from diffmd_ase.analysis.alchemy.works import from_works
from diffmd_ase.independent.smc import smc
from diffmd_ase.independent.switching import switch
from diffmd_ase.independent.weights import Weighted
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.alchemical import Alchemical
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
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
