"""Grids that share a Brownian path: orders, exact differences; and steps that keep to a bias."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from messages import names

from diffmd_ase.analysis.kinetics.refinement import converge, refined
from diffmd_ase.analysis.kinetics.step_choice import step_for
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.run import run

WELL = DoubleWell(barrier=1.0, a=1.0, k=2.0)


def start(count: int, seed: int = 0) -> torch.Tensor:
    x = np.random.default_rng(seed).standard_normal((count, 1, 3))
    return torch.from_numpy(np.clip(x, -1.5, 1.5))


def test_the_finest_grid_is_the_chain_of_its_step():
    """And grids of free particles are one path."""
    kernel, x = EulerMaruyama(WELL, kT=1.0, h=0.02), start(8)
    *_, places = refined(kernel, x, 5, levels=3, noise=Noise(7))
    *_, (state, _) = run(kernel.scaled(0.25), x, 20, noise=Noise(7))
    assert torch.allclose(places[-1], state.x, atol=1e-12)
    free = EulerMaruyama(Harmonic(0.0), kT=1.0, h=0.02)
    *_, places = refined(free, x, 5, levels=3, noise=Noise(7))
    assert all(torch.allclose(place, places[0], atol=1e-12) for place in places)


def test_strong_error_of_a_line():
    """Exactly: after one step of h against two of h/2, x_h - x_{h/2} = -(κh/2)(κh x/2 - √h ξ₁)."""
    h, x = 0.1, start(20_000)
    found = converge(
        EulerMaruyama(Harmonic(1.0), kT=1.0, h=h),
        x,
        1,
        levels=3,
        noise=Noise(5),
        observables={"x": lambda x: x[:, 0, 0]},
    )
    # x_h - x_{h/2} = (h/2)(ξ √h - (h/2) x)
    exact = math.sqrt((h / 2) ** 2 * (h + (h / 2) ** 2 * float(x.square().mean())))
    assert abs(found.strong[0].value - exact) < 4 * found.strong[0].error
    mean = -((h / 2) ** 2) * float(x[:, 0, 0].mean())
    assert abs(found.weak["x"][0].value - mean) < 4 * found.weak["x"][0].error


def test_orders():
    """Strong and weak order 1; grids with noise of their own have none."""
    kernel, x = EulerMaruyama(WELL, kT=1.0, h=0.02), start(1500)
    found = converge(kernel, x, 15, levels=4, noise=Noise(1))
    assert abs(found.strong_order.value - 1) < 0.15 and found.strong_order.error < 0.05
    weak = found.weak_order["energy"]
    assert abs(weak.value - 1) < 4 * weak.error < 1
    ends = [list(run(kernel.scaled(0.5**n), x, 15 << n, noise=Noise(n)))[-1][0].x for n in range(3)]
    apart = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
    assert apart[1] > 0.8 * apart[0]  # no path in common: nothing converges
    told = found.to_dict()
    assert len(told["h_A2"]) == 3 and told["strong_order"]["value"] == found.strong_order.value


def test_a_difference_in_the_noise_has_no_order():
    kernel = EulerMaruyama(WELL, kT=1.0, h=0.001)
    found = converge(
        kernel, start(20), 2, levels=3, noise=Noise(0), observables={"z": lambda x: x[:, 0, 2]}
    )
    assert math.isnan(found.weak_order["z"].value)


def test_step_for_a_bias():
    """Energy of three modes, ½·3·(hκ/2)/(1 - hκ/2) in σ = √1.5; that of one by -⟨log α⟩."""
    h, x = 0.2, torch.from_numpy(np.random.default_rng(1).standard_normal((400, 1, 3)))
    kernel = EulerMaruyama(Harmonic(1.0), kT=1.0, h=h)
    found = step_for(kernel, x, bias=0.03, n_steps=250, noise=Noise(3))
    fine = 1 / (1 - h / 4)
    # ⟨f⟩_h - ⟨f⟩_{h/2}, twice, in the σ that was measured, of the finer grid
    exact = 2 * 1.5 * (1 / (1 - h / 2) - fine) / (math.sqrt(1.5) * fine)
    measured = found.measured["energy"]
    assert abs(measured.value - exact) < 4 * measured.error < 0.1 * exact
    modes = found.measured["normal modes, from log alpha"]
    bound = (3 * h**3) ** (1 / 3) / math.sqrt(8)
    assert abs(modes.value - bound) < 4 * modes.error
    assert modes.value > h / math.sqrt(8)  # of each mode
    assert found.h < h and found.measured_at == pytest.approx(h)
    # the step does what was asked
    true = 1.5 * (1 / (1 - found.h / 2) - 1) / math.sqrt(1.5)
    assert true < 0.033 < 3 * true


def test_step_for_a_path():
    """c h span with c = κ²(d/4 + …); what it costs is said."""
    h, span = 0.1, 2.0
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((400, 1, 3)))
    kernel = EulerMaruyama(Harmonic(1.0), kT=1.0, h=h)
    found = step_for(kernel, x, kl=0.05, span=span, n_steps=30, noise=Noise(3))
    exact = h * (0.75 + 3 * h / 12) * span
    measured = found.measured["nats"]
    assert abs(measured.value - exact) < 4 * measured.error + 0.02 * exact
    assert found.h == pytest.approx(0.05 / exact * h, rel=0.05)
    assert "steps" in found.words
    long = step_for(kernel, x, kl=100.0, n_steps=3, noise=Noise(3))
    assert long.h == pytest.approx(2 * h)  # no further than was measured


def test_bad_input():
    kernel, x = EulerMaruyama(WELL, kT=1.0, h=0.02), start(4)
    with pytest.raises(ValueError, match="exactly one"):
        step_for(kernel, x, noise=Noise(0))
    with pytest.raises(ValueError, match="exactly one"):
        step_for(kernel, x, noise=Noise(0), bias=0.1, kl=0.1)
    with pytest.raises(ValueError, match="positive"):
        step_for(kernel, x, noise=Noise(0), bias=-0.1)
    with pytest.raises(ValueError, match=names("levels=2")):
        converge(kernel, x, 3, levels=2, noise=Noise(0))
    with pytest.raises(ValueError, match="two walkers"):
        converge(kernel, x[:1], 3, noise=Noise(0))
    with pytest.raises(ValueError, match=names("n_steps=0")):
        next(refined(kernel, x, 0, levels=2, noise=Noise(0)))
    with pytest.raises(RuntimeError, match="diverged"):
        list(refined(kernel.scaled(100), 3 * x, 60, levels=2, noise=Noise(0)))
