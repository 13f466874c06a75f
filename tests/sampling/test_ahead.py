"""Steps handed out one by one: what begins anew, what is lost, and when it pays."""

import pytest
import torch

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.base import Potential, Wrapped
from diffmd_ase.sampling.ahead import Ahead, predictability, worth_it
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run, survive
from diffmd_ase.state import Evaluation
from diffmd_ase.testing.fields import BeadChain

KERNEL = EulerMaruyama(BeadChain(10), kT=1.0, h=4e-4)


def follow(step, kernel, state, n_steps, noise):
    lost, states = [], []
    for _ in range(n_steps):
        kernel, state, info = step(kernel, state, noise, lost.append)
        states.append((state, info))
    return states, lost


@pytest.mark.parametrize("kernel", [KERNEL, Metropolis(KERNEL)])
def test_the_steps_of_survive(kernel):
    start = kernel.init(BeadChain(10).start())
    ahead = Ahead(window=16)
    one, _ = follow(survive, kernel, start, 60, Noise(1))
    many, _ = follow(ahead.advance, kernel, start, 60, Noise(1))
    for (a, _), (b, _) in zip(one, many, strict=True):
        assert a.step == b.step
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-10)
    told = sum(info.drift_evaluations for _, info in many)
    assert ahead.count.steps == 60 and ahead.count.rounds < 30
    # of the rounds whose steps were handed out, and of those that only the next ones need
    assert 0 < told <= ahead.count.evaluations + ahead.count.hessian_evaluations


def test_a_state_of_somebody_else_begins_anew():
    start = KERNEL.init(BeadChain(10).start())
    ahead = Ahead()
    follow(ahead.advance, KERNEL, start, 5, Noise(1))
    moved = KERNEL.init(BeadChain(10).start() + 0.01)
    states, _ = follow(ahead.advance, KERNEL, moved, 20, Noise(1))
    expected = [s.x for s, _ in run(KERNEL, moved, 20, noise=Noise(1))]
    torch.testing.assert_close(states[-1][0].x, expected[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("speculative", [False, True])
def test_after_cooling_it_is_a_restart(speculative):
    start = KERNEL.init(BeadChain(10).start())
    ahead = Ahead(speculative=speculative)
    states, _ = follow(ahead.advance, KERNEL, start, 37, Noise(1))
    ahead.cool()
    on, _ = follow(ahead.advance, KERNEL, states[-1][0], 50, Noise(1))
    restart = Ahead(speculative=speculative)
    again, _ = follow(restart.advance, KERNEL, states[-1][0], 50, Noise(1))
    assert all(torch.equal(a.x, b.x) for (a, _), (b, _) in zip(on, again, strict=True))


def test_walkers_are_lost_as_one_by_one():
    class Cliff(Potential):
        def __call__(self, x, *, stress=False):
            value = Harmonic(1.0)(x)
            over = (x[..., 0] > 1.5).any(-1)
            return Evaluation(
                torch.where(over, torch.nan, value.energy),
                torch.where(over[..., None, None], torch.nan, value.forces),
            )

    h = torch.tensor([[0.01], [0.05], [0.01]]).double()
    kernel = EulerMaruyama(Cliff(), kT=1.0, h=h)
    start = kernel.init(torch.zeros(3, 1, 3).double(), walkers=torch.arange(3))
    (one, lost), (many, also) = (
        follow(step, kernel, start, 120, Noise(2)) for step in (survive, Ahead().advance)
    )
    assert lost and [(e.step, e.walkers) for e in lost] == [(e.step, e.walkers) for e in also]
    torch.testing.assert_close(one[-1][0].x, many[-1][0].x, rtol=0, atol=1e-9)


def test_what_pays_is_measured_and_said():
    class Slow(Wrapped):
        """Each structure costs the same, however many there are."""

        def __call__(self, x, **options):
            total = sum(torch.linalg.svdvals(torch.ones(60, 60)).sum() for _ in x.flatten(0, -3))
            energy, forces, _ = self.inner(x)
            return Evaluation(energy + 0.0 * total, forces)

    state = KERNEL.init(BeadChain(10).start())
    chosen, words = worth_it(EulerMaruyama(Slow(BeadChain(10)), kT=1.0, h=4e-4), state)
    assert not chosen and "one by one" in words and "walkers" in words
    chosen, words = worth_it(KERNEL, state)
    assert chosen and "together" in words


def test_predictability():
    kernel = EulerMaruyama(Harmonic(2.0), kT=1.0, h=0.1)
    x = torch.ones(2, 3).double()
    told = predictability(kernel, x, noise=Noise(0), n_steps=40)
    assert told.exponent == pytest.approx(torch.tensor(0.8).log().item(), abs=1e-6)
    assert told.gain == 40 / 2
    with pytest.raises(ValueError, match="one walker"):
        predictability(kernel, x[None], noise=Noise(0))
    apart = EulerMaruyama(Hill(), kT=1.0, h=0.01)
    assert predictability(apart, 0.1 * x, noise=Noise(0), n_steps=40).exponent > 0


class Hill(Potential):
    """Nothing comes together on top of it."""

    def __call__(self, x, *, stress=False):
        return Evaluation(-0.5 * x.square().sum((-2, -1)), x)
