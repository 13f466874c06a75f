"""Speculative steps: the law of the kernel, and what a draft may not know."""

import math
import multiprocessing

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.cluster import Octahedron
from messages import names
from scipy import stats

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic, PeriodicWell
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Wrapped
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.sampling.drafts import Draft, Surrogate
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.sampling.linear import Linear
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.parallel import followed
from diffmd_ase.sampling.rounds import Count
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.speculative import Coupled, Speculative, couple
from diffmd_ase.sampling.window import Points, Window
from diffmd_ase.state import State
from diffmd_ase.system import System
from diffmd_ase.testing.fields import BeadChain, Scaled, WrongDrift

WELL = PeriodicWell(barrier=1.8, period=2.0)  # no step is unstable, and all drafts are wrong
STEPS = 4
H = torch.tensor([0.1], dtype=torch.float64)


def start(count):
    """All walkers on the side of a barrier: drifts change much from step to step."""
    return torch.tensor([0.4, 0.5, -0.5], dtype=torch.float64).expand(count, 1, 3).clone()


def features(path: torch.Tensor) -> torch.Tensor:
    """Functions of successive states (T, B, 1, 3), (B, K): means, squares, products in time."""
    x = path[..., 0, :]
    columns = [*x.unbind(0), *x.square().unbind(0)]
    columns += [x[n] * x[n - 1] for n in range(1, len(x))] + [x[-1] * x[0]]
    columns += [(x[-1] - x[-2]).square(), torch.tanh(4.0 * x[-1]), x[-1] ** 3]
    return torch.cat(columns, -1)


def worst(path: torch.Tensor, other: torch.Tensor) -> float:
    """The largest |z| between the features of two sets of chains, and of a KS test."""
    a, b = features(path), features(other)
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / len(a)).sqrt()
    zs = [float(z[torch.isfinite(z)].abs().max())]
    for place in (-2, -1):
        for axis in (0, 1):
            one, two = (p[place, :, 0, axis].numpy() for p in (path, other))
            zs.append(float(stats.norm.isf(stats.ks_2samp(one, two, method="asymp").pvalue / 2)))
    return max(zs)


def reference(kernel, x, seed=99):
    return torch.stack([s.x for s, _ in run(kernel, x, STEPS, noise=Noise(seed))])


class TestCoupling:
    @pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
    def test_least_rejection_and_normal_noise(self, size):
        count = 200_000
        like = torch.empty(count, 2, 3, dtype=torch.float64)
        xi = Noise(1).normal(0, like)
        delta = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, 0.3]], dtype=torch.float64)
        delta = size * delta / delta.norm()
        log_u = Noise(1).uniform(0, like[:, 0, 0], stream="couple").log()
        zeta, stays = couple(xi, delta.expand_as(xi), log_u)
        rejected = math.erf(size / math.sqrt(8.0))
        z = (float((~stays).double().mean()) - rejected) / math.sqrt(
            rejected * (1 - rejected) / count
        )
        assert abs(z) < 3
        along = (zeta * delta).sum((-2, -1)) / size
        for part in (along, zeta[:, 0, 0], zeta[:, 1, 2]):
            assert stats.kstest(part.numpy(), "norm").pvalue > 1e-4
        moved = xi + delta
        torch.testing.assert_close(zeta[stays], moved[stays])
        torch.testing.assert_close(zeta.square().sum((-2, -1))[~stays],
                                   xi.square().sum((-2, -1))[~stays])  # fmt: skip

    def test_the_same_means_are_never_rejected(self):
        xi = Noise(1).normal(0, torch.empty(50, 2, 3))
        zeta, stays = couple(xi, 0.0 * xi, torch.zeros(50))
        assert stays.all() and torch.equal(zeta, xi)


KERNELS = {
    "plain": EulerMaruyama(WELL, kT=0.7, h=H),
    # a drift that is no gradient
    "accepted": Metropolis(
        EulerMaruyama(WrongDrift(WELL, spin=(0.1, 0.0, 0.2)), kT=0.7, h=1.5 * H), WELL
    ),
}


class Knowing(Draft):
    """What no draft may be: its mean lacks a fifth of the kick that is to come."""

    def scan(self, window, begin=0):
        now, points = window.state, []
        for n in range(len(window)):
            y = window.kernel.propose_from(now.x, now.forces, window.kicks[n])
            value = WELL(y)
            forces = value.forces
            if n + 1 < len(window):  # the force whose drift is that
                forces = forces - 0.2 * (0.7 / H) * window.kicks[n + 1]
            now = State(y, value.energy, forces)
            points.append(now)
        parts = (torch.stack([getattr(p, n) for p in points]) for n in ("x", "energy", "forces"))
        x, energy, forces = parts
        return Points(x, energy, forces, forces)


class TestLaw:
    """Of 4 successive states, the last three made of coupled noise."""

    # the slow ones are the same with more chains
    counts = pytest.mark.parametrize(
        "count", [40_000, pytest.param(400_000, marks=pytest.mark.slow)]
    )

    @counts
    @pytest.mark.parametrize("draft", [None, Harmonic(2.0)], ids=["linear", "surrogate"])
    @pytest.mark.parametrize("name", KERNELS)
    def test_is_that_of_the_kernel(self, name, draft, count):
        kernel = KERNELS[name]
        path, report = Speculative(kernel, draft).run(start(count), STEPS, noise=Noise(5))
        assert report.rounds == STEPS and report.evaluations == (1 + 3 + 2 + 1) * count
        assert worst(path, reference(kernel, start(count))) < 4

    def test_noise_of_one_walker(self):
        """It is normal and knows nothing of the forces, although a third of the steps is rejected.

        Of a batch some walker is always rejected; alone, a window ends only where it is.
        """
        kernel, x, n = KERNELS["plain"], start(1), 1200
        path, report = Speculative(kernel, Scaled(WELL, 0.2)).run(x, n, noise=Noise(6))
        assert 1.5 < n / report.rounds < 6
        before = torch.cat((x[None], path[:-1]))
        forces = WELL(before).forces
        zeta = (path - before - H / 0.7 * forces) / (2 * H).sqrt()
        assert stats.kstest(zeta.flatten().numpy(), "norm").pvalue > 1e-4
        for known in (forces, before, forces.roll(1, 0)):
            known = (known - known.mean()) / known.std()
            assert abs(float((zeta * known).mean())) * zeta.numel() ** 0.5 < 4

    @counts
    def test_a_draft_that_knows_its_own_noise_is_found(self, count):
        kernel, x = KERNELS["plain"], start(count)

        def rounds(at):
            return Coupled(Window(kernel, at, Noise(5)), Knowing(), 4, Count())

        steps = followed(kernel, kernel.init(x), STEPS, Noise(5), rounds, Count())
        path = torch.stack([state.x for state, _ in steps])
        assert worst(path, reference(kernel, x)) > 20


def beads(accepted=False, **options):
    chain = BeadChain(10)
    kernel = EulerMaruyama(chain, **({"kT": 1.0, "h": 4e-4} | options))
    *_, (state, _) = run(kernel, chain.start(), 100, noise=Noise(8))
    return (Metropolis(kernel) if accepted else kernel), state.x


class TestRun:
    @pytest.mark.parametrize("accepted", [False, True])
    def test_steps_in_a_round(self, accepted):
        kernel, x = beads(accepted)
        path, report = Speculative(kernel).run(x, 256, noise=Noise(2))
        assert len(path) == 256 and report.state.step == 256
        assert 256 / report.rounds > 7
        value = kernel.potential(report.state.x)
        torch.testing.assert_close(report.state.energy, value.energy)
        torch.testing.assert_close(report.state.forces, value.forces)

    def test_every_step_is_a_step(self):
        """Noise recovered from each pair of successive states is normal, along all that moves."""
        h = torch.full((10,), 4e-4, dtype=torch.float64)
        h[:2] = 0.0
        kernel, x = beads(h=h)
        path, _ = Speculative(kernel).run(x, 400, noise=Noise(2))
        before = torch.cat((x[None], path[:-1]))
        forces = BeadChain(10)(before).forces
        zeta = (path - before - h[:, None] * forces)[:, 2:] / math.sqrt(8e-4)
        assert torch.equal(path[:, :2], x[:2].expand(400, 2, 3))
        assert stats.kstest(zeta.flatten().numpy(), "norm").pvalue > 1e-4
        z = (float(zeta.square().mean()) - 1) / math.sqrt(2 / zeta.numel())
        assert abs(z) < 4

    def test_no_mean_with_steps_of_their_own(self):
        """The metric P diag(h) P, which the coupling needs no inverse of."""
        h = 4e-4 * torch.linspace(0.3, 1.0, 10, dtype=torch.float64)
        kernel, x = beads(h=h, mean_free=True)
        path, report = Speculative(kernel).run(x, 200, noise=Noise(2))
        assert float((path.mean(-2) - x.mean(-2)).abs().max()) < 1e-12
        assert report.rounds < 100

    def test_perfect_draft(self):
        kernel, x = beads()
        _, report = Speculative(kernel, BeadChain(10)).run(x, 129, noise=Noise(2))
        assert report.rounds == 1 + 2

    def test_the_error_of_a_draft_is_corrected(self):
        kernel, x = beads()
        tilted = WrongDrift(BeadChain(10), scale=1.0, tilt=(30.0, -20.0, 10.0))
        _, report = Speculative(kernel, tilted).run(x, 129, noise=Noise(2))
        assert report.rounds == 1 + 2  # a constant force is known after one evaluation

    def test_a_calculator_of_ase_as_draft(self):
        system, x = octahedron()
        emt = AsePotential(EMT(), system)
        kernel = EulerMaruyama(Scaled(emt, 1.02), kT=0.03, h=1e-4, mean_free=True)
        _, report = Speculative(kernel, emt).run(x, 60, noise=Noise(2), window=32)
        assert report.rounds < 20

    def test_restart_is_that_of_a_run_that_begins_there(self):
        kernel, x = beads()
        steps = Speculative(kernel).iterate(x, 60, noise=Noise(2))
        states = [state for state, _ in steps]
        path, _ = Speculative(kernel).run(states[29], 30, noise=Noise(2))
        again, _ = Speculative(kernel).run(states[29], 30, noise=Noise(2))
        assert torch.equal(path, again) and not torch.equal(path[-1], states[-1].x)

    def test_bias_that_learns(self):
        chain = BeadChain(10)
        chain.system = System(np.full(10, 18), np.ones(10))
        variable = Distance(chain.system, [[0, 9]], name="d")
        bias = Metadynamics(variable, kT=1.0, sigma=0.1, height=0.4, pace=20, biasfactor=6)
        kernel = EulerMaruyama(chain + bias, kT=1.0, h=4e-4)
        *_, (state, _) = Speculative(kernel).iterate(beads()[1], 100, noise=Noise(2))
        value = (chain + bias)(state.x)
        torch.testing.assert_close(state.forces, value.forces)
        assert float(bias(state.x).energy) > 0.3

    def test_float32(self):
        kernel, x = beads()
        path, report = Speculative(kernel).run(x.float(), 128, noise=Noise(2))
        assert path.dtype == torch.float32 and report.rounds < 32


def octahedron():
    atoms = Octahedron("Cu", 2)
    return System.from_atoms(atoms), torch.as_tensor(atoms.positions)


class TestMishaps:
    def test_memory_that_does_not_suffice(self):
        class Small(Wrapped):
            def __call__(self, x, **options):
                if x[..., 0, 0].numel() > 20:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return self.inner(x, **options)

        _, x = beads()
        kernel = EulerMaruyama(Small(BeadChain(10)), kT=1.0, h=4e-4)
        with pytest.warns(RuntimeWarning, match="does not fit into memory"):
            path, report = Speculative(kernel, BeadChain(10)).run(x, 60, noise=Noise(2))
        # a perfect draft: the chain of the noise
        expected = torch.stack([s.x for s, _ in run(kernel, x, 60, noise=Noise(2))])
        torch.testing.assert_close(path, expected, rtol=0, atol=1e-12)
        assert report.rounds == 1 + 5  # 59 steps by 14

    @pytest.mark.slow
    def test_a_worker_that_dies(self):
        """Its batch is evaluated again: the chain is that of a run in which none did."""
        system, x = octahedron()
        paths = []
        for killed in (False, True):
            pool = AsePotential(EMT(), system, processes=2)
            kernel = EulerMaruyama(pool, kT=0.03, h=1e-4, mean_free=True)
            steps = Speculative(kernel, Scaled(AsePotential(EMT(), system), 0.9)).iterate(
                x, 30, noise=Noise(2), window=8
            )
            try:
                states = [next(steps)[0] for _ in range(10)]
                if killed:
                    worker = multiprocessing.active_children()[-1]
                    worker.kill()
                    worker.join()
                    with pytest.warns(UserWarning, match="evaluated again"):
                        states += [state for state, _ in steps]
                else:
                    states += [state for state, _ in steps]
            finally:
                pool.close()
            paths.append(torch.stack([state.x for state in states]))
        assert torch.equal(*paths)


class TestRefused:
    def test_drafts(self):
        kernel, _ = beads(accepted=True)
        with pytest.raises(ValueError, match=names("WrongDrift", "no energy", "plain dynamics")):
            Speculative(kernel, WrongDrift(BeadChain(10)))
        copper = System.from_atoms(Octahedron("Cu", 2))
        other = BeadChain(10)
        other.system = System(np.full(10, 18), np.ones(10))
        emt = AsePotential(EMT(), copper)
        with pytest.raises(ValueError, match=names("draft", "target", "different systems")):
            Speculative(EulerMaruyama(other, kT=1.0, h=1e-4), emt)
        variable = Distance(other.system, [[0, 9]], name="d")
        bias = Metadynamics(variable, kT=1.0, sigma=0.1, height=0.4, pace=20)
        with pytest.raises(ValueError, match=names("Metadynamics", "memory")):
            Speculative(EulerMaruyama(other, kT=1.0, h=1e-4), bias)

    def test_kernels_and_options(self):
        hmc = HamiltonianMonteCarlo(
            Harmonic(1.0), kT=1.0, timestep=0.1, n_leapfrog=3, masses=torch.ones(4)
        )
        with pytest.raises(TypeError, match="one proposal"):
            Speculative(hmc)
        kernel, x = beads()
        with pytest.raises(ValueError, match="window"):
            Speculative(kernel).run(x, 3, noise=Noise(0), window=0)


def test_a_surrogate_proposes_what_the_kernel_does():
    kernel, x = beads()
    window = Window(kernel, kernel.init(x), Noise(2))
    window.fill(5)
    points = Surrogate(kernel, BeadChain(10)).scan(window)
    states = [s for s, _ in run(kernel, x, 5, noise=Noise(2))]
    torch.testing.assert_close(points.x, torch.stack([s.x for s in states]))
    assert isinstance(states[0], State)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("place", "lost"), [(8, False), (2, True)])
def test_what_is_drafted_knows_no_later_evaluation(causal, place, lost):
    """Other noise from a step on: its mean is the same, if Jacobians are causal.

    Also where the first Jacobian is lost, so that the next one is that of step 4.
    """
    kernel, x = beads()
    drafts = []
    for factor in (1.0, 3.0):
        window = Window(kernel, kernel.init(x), Noise(2))
        window.fill(12)
        draft, kicks = Linear(kernel, window.state, block=4, causal=causal), window.kicks.clone()
        window.kicks[place:] *= factor
        drafted = draft.scan(window).x
        points, extra = Points.evaluated(kernel.field, drafted, draft.asks(window, drafted))
        if lost:
            extra[: draft.size] = torch.inf
        draft.learn(window, points, extra)
        window.kicks.copy_(kicks)
        drafts.append(draft.scan(window).x[: place + 1])
    assert (float((drafts[0] - drafts[1]).abs().max()) < 1e-12) == causal
