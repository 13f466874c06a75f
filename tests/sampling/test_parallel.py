"""Parallel in time: the chain of the sequential loop, step by step, and what it takes."""

import math

import numpy as np
import pytest
import torch
from ase.build import fcc100
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import DoubleWell, Harmonic, LennardJones
from diffmd_ase.potentials.base import Potential, Wrapped
from diffmd_ase.potentials.biases.cvs import Distance, Torsion
from diffmd_ase.potentials.biases.metadynamics import Metadynamics
from diffmd_ase.potentials.biases.restraints import MovingRestraint
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.hamiltonian import HamiltonianMonteCarlo
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.sampling.linear import Linear
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.parallel import iterate_parallel, run_parallel
from diffmd_ase.sampling.rounds import Count
from diffmd_ase.sampling.run import run
from diffmd_ase.sampling.speculative import Speculative
from diffmd_ase.sampling.window import Window
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing.fields import BeadChain, Scaled, WrongDrift

STEPS = 96


def icosahedron() -> torch.Tensor:
    golden = (1 + 5**0.5) / 2
    corners = [(0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    corners = [c[i:] + c[:i] for c in corners for i in range(3)]
    return 1.08 * torch.tensor([(0.0, 0.0, 0.0), *corners], dtype=torch.float64) / 1.9021


ARGON = LennardJones(System(np.full(13, 18), np.ones(13)), epsilon=1.0, sigma=1.0, rc=1e3)
FREE = torch.ones(4, 3, dtype=torch.float64).cumsum(0) / 3
HELD = torch.tensor([0.0, 0.0, 4e-4, 4e-4, 4e-4, 2e-4, 4e-4, 4e-4, 4e-4, 0.0], dtype=torch.float64)
PLANES = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)).expand(10, 3, 3)

SLAB = fcc100("Ar", (2, 2, 3), a=1.55, vacuum=3.0, periodic=True)
SLAB_LJ = LennardJones(System.from_atoms(SLAB), epsilon=1.0, sigma=1.0, rc=1.5)
SLAB_H = torch.tensor([0.0] * 4 + [4e-5] * 8, dtype=torch.float64)  # FixAtoms of the lowest layer

CASES = {
    "OU": (Harmonic(1.0), FREE, {"kT": 1.0, "h": 0.2}),
    "double well": (DoubleWell(barrier=2.0, a=1.0, k=3.0), FREE, {"kT": 0.7, "h": 0.01}),
    "LJ13": (ARGON, icosahedron(), {"kT": 0.2, "h": 4e-5}),
    "10 beads": (BeadChain(10), BeadChain(10).start(), {"kT": 1.0, "h": 4e-4}),
    "22 beads": (BeadChain(22), BeadChain(22).start(), {"kT": 1.0, "h": 4e-4}),
    "no mean": (BeadChain(10), BeadChain(10).start(), {"kT": 1.0, "h": 4e-4, "mean_free": True}),
    "fixed atoms": (BeadChain(10), BeadChain(10).start(), {"kT": 1.0, "h": HELD}),
    "slab": (SLAB_LJ, torch.as_tensor(SLAB.positions), {"kT": 0.2, "h": SLAB_H}),
    "planes": (BeadChain(10), BeadChain(10).start(), {"kT": 1.0, "h": 4e-4, "directions": PLANES}),
    "no gradient": (WrongDrift(BeadChain(10), spin=(0.3, 0.0, 0.3)), BeadChain(10).start(),
                    {"kT": 1.0, "h": 4e-4}),
}  # fmt: skip


def relaxed(kernel, x):
    """Where a chain is after its first steps, of one walker."""
    *_, (state, _) = run(kernel, x, 100, noise=Noise(8))
    return state.x


def case(name, *, accepted=False):
    potential, x, options = CASES[name]
    kernel = EulerMaruyama(potential, **options)
    x = relaxed(kernel, x.double())
    if accepted:
        kernel = Metropolis(kernel, None if potential.conservative else potential.target)
    return kernel, x


def sigma(kernel) -> float:
    h = torch.as_tensor(getattr(kernel, "proposal", kernel).h)
    return float((2 * h[h > 0].min()).sqrt())


def sequence(kernel, x, n_steps=STEPS, seed=3):
    states, infos = zip(*run(kernel, x, n_steps, noise=Noise(seed)), strict=True)
    taken = [torch.tensor(True) if i.accepted is None else i.accepted for i in infos]
    return states, torch.stack(taken)


def check_same(kernel, x, *, within=1e-9, n_steps=STEPS, **options):
    """The parallel chain is the sequential one; the report of it."""
    states, taken = sequence(kernel, x, n_steps)
    path, report = run_parallel(kernel, x, n_steps, noise=Noise(3), **options)
    away = (path - torch.stack([s.x for s in states])).abs().max() / sigma(kernel)
    assert float(away) < within
    taken = taken.reshape(n_steps, *[-1] * (taken.ndim - 1) or [1] * (path.ndim - 3))
    assert torch.equal(report.accepted, taken.expand_as(report.accepted))
    end = states[-1]
    near = {"rtol": 1e-5, "atol": max(1e-5, 10.0 * within)}
    torch.testing.assert_close(report.state.forces, end.forces, **near)
    if end.energy is not None:
        torch.testing.assert_close(report.state.energy, end.energy, rtol=1e-6, atol=1e-6)
    assert report.state.step == end.step
    assert report.rounds + report.sequential <= n_steps
    return report


class TestSameChain:
    @pytest.mark.parametrize("name", CASES)
    def test_plain(self, name):
        report = check_same(*case(name))
        assert report.sequential == 0 and report.rounds < STEPS / 3

    @pytest.mark.parametrize("name", [n for n in CASES if n != "OU"])
    def test_accepted(self, name):
        report = check_same(*case(name, accepted=True))
        assert report.sequential == 0 and report.rounds < STEPS / 2

    def test_many_rejections(self):
        kernel, x = case("10 beads", accepted=True)
        report = check_same(kernel.scaled(6.0), x, n_steps=60, window=12)
        assert 0.3 < report.accepted.double().mean() < 0.8

    def test_another_target(self):
        """Drift and target apart: the target's slope corrects its energy, not that of the drift."""
        kernel, x = case("10 beads")
        report = check_same(Metropolis(kernel, Scaled(BeadChain(10), 0.9)), x)
        assert not report.accepted.all()

    @pytest.mark.parametrize("accepted", [False, True])
    def test_walkers(self, accepted):
        kernel, x = case("10 beads", accepted=accepted)
        x = x + 0.02 * torch.randn(8, 10, 3, generator=torch.Generator().manual_seed(1)).double()
        step = getattr(kernel, "proposal", kernel)
        kT = torch.linspace(0.8, 1.2, 8, dtype=torch.float64)
        h = 4e-4 * torch.linspace(0.5, 1.0, 8, dtype=torch.float64)[:, None].expand(8, 10)
        step = EulerMaruyama(step.potential, kT=kT, h=h)
        kernel = Metropolis(step) if accepted else step
        start = kernel.init(x, walkers=torch.tensor([5, 0, 1, 2, 3, 4, 8, 9]))
        check_same(kernel, start)

    def test_one_walker_of_a_batch_of_one(self):
        kernel, x = case("10 beads", accepted=True)
        alone, _ = run_parallel(kernel, x, 20, noise=Noise(3))
        batch, report = run_parallel(kernel, x[None], 20, noise=Noise(3))
        assert report.accepted.shape == (20, 1)
        torch.testing.assert_close(batch[:, 0], alone, rtol=0, atol=1e-11)

    def test_float32(self):
        """Its floor is that of a batch, 3e-7 of the forces: no tolerance of 1e-9 can be met."""
        kernel, x = case("10 beads")
        report = check_same(kernel, x.float(), within=1e-4)
        assert report.rounds < STEPS / 4

    def test_a_potential_that_rounds(self):
        """Positions in float64, forces in float32, as those of a network: found by looking."""

        class Rounded(Wrapped):
            def __call__(self, x, **options):
                return Evaluation(*(p if p is None else p.double() for p in self.inner(x.float())))

        kernel, x = case("10 beads")
        kernel = EulerMaruyama(Rounded(BeadChain(10)), kT=1.0, h=4e-4)
        report = check_same(kernel, x, within=1e-4)
        assert report.rounds < STEPS / 4

    def test_restart_in_the_middle_of_a_window(self):
        kernel, x = case("10 beads", accepted=True)
        steps = iterate_parallel(kernel, x, STEPS, noise=Noise(3))
        first = [next(steps)[0] for _ in range(37)]
        rest, _ = run_parallel(kernel, first[-1], STEPS - 37, noise=Noise(3))
        whole, _ = run_parallel(kernel, x, STEPS, noise=Noise(3))
        assert float((rest - whole[37:]).abs().max()) < 1e-9 * sigma(kernel)

    def test_residuals_do_not_add_up(self):
        """A tolerance of 0.01: what is final is corrected, so that the end is nearer than that."""
        kernel, x = case("10 beads")
        steps = iterate_parallel(kernel, x, 400, noise=Noise(3), tolerance=0.01)
        path = torch.stack([state.x for state, _ in steps])
        away = (path - torch.stack([s.x for s in sequence(kernel, x, 400)[0]])).abs()
        assert 1e-9 < float(away.max()) / sigma(kernel) < 0.01

    def test_a_choice_on_the_edge_waits(self):
        """Until its proposal is exact: that of the first step of a round."""
        kernel, x = case("10 beads", accepted=True)
        _, info = list(run(kernel, x, 21, noise=Noise(3)))[20]
        assert bool(info.accepted)
        edge = float(info.log_ratio) - 1e-12

        class Edge(Metropolis):
            def log_u(self, steps, like, **options):
                log_u = super().log_u(steps, like, **options)
                return torch.where(torch.as_tensor(steps) == 20, edge, log_u)

        kernel = Edge(kernel.proposal)
        _, taken = sequence(kernel, x, 32)
        infos = [info for _, info in iterate_parallel(kernel, x, 32, noise=Noise(3))]
        assert torch.equal(torch.stack([info.accepted for info in infos]), taken)
        assert infos[20].drift_evaluations > 0  # which has those of the round


class TestRounds:
    def test_linear_drift_takes_one_round_beyond_the_first(self):
        kernel, x = case("OU")
        _, report = run_parallel(kernel, x, 65, noise=Noise(3))
        assert report.rounds == 2 and report.evaluations == 65
        assert report.hessian_evaluations == 12 * 5  # of the first step, and of four blocks

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "least"), [("10 beads", 12.0), ("LJ13", 11.0)])
    def test_steps_in_a_round_with_all_jacobians(self, name, least):
        kernel, x = case(name)
        count = Count()
        list(iterate_parallel(kernel, x, 512, noise=Noise(4), block=1, count=count))
        assert count.gain > least

    @pytest.mark.slow
    @pytest.mark.parametrize(("factor", "acceptance", "most"), [(1.5, 0.95, 6), (3.5, 0.80, 8)])
    def test_accepted_steps_in_a_round(self, factor, acceptance, most):
        """64 steps of MALA take 6 rounds at an acceptance of .95, and 8 at .80."""
        kernel, x = case("10 beads", accepted=True)
        kernel, count = kernel.scaled(factor), Count()
        steps = iterate_parallel(kernel, x, 384, noise=Noise(4), block=1, count=count)
        taken = torch.stack([info.accepted for _, info in steps])
        assert torch.equal(taken, sequence(kernel, x, 384, seed=4)[1])
        assert float(taken.double().mean()) == pytest.approx(acceptance, abs=0.03)
        assert count.rounds <= 6 * most

    def test_blocks_are_halved_where_rounds_are_many(self):
        kernel, x = case("10 beads", accepted=True)
        kernel = kernel.scaled(4.0)
        known = [
            sum(1 for _ in iterate_parallel(kernel, x, 192, noise=Noise(3), block=b, count=c))
            and (c.rounds, c.hessian_evaluations)
            for b, c in ((None, Count()), (16, Count()))
        ]
        (rounds, displaced), (more_rounds, fewer) = known
        assert rounds < more_rounds and displaced > fewer

    def test_picard_takes_more(self):
        kernel, x = case("10 beads")
        newton, picard = (
            check_same(kernel, x, method=method).rounds for method in ("newton", "picard")
        )
        assert picard > 2 * newton
        _, report = run_parallel(kernel, x, 8, noise=Noise(3), method="picard")
        assert report.hessian_evaluations == 0

    def test_never_more_rounds_than_steps(self):
        """Where the next drift has nothing to do with this one."""

        class Wild(Potential):
            conservative = False

            def __call__(self, x, *, stress=False):
                return Evaluation(None, torch.sin(1e7 * x))

        kernel = EulerMaruyama(Wild(), kT=1.0, h=0.1)
        report = check_same(kernel, FREE, n_steps=24, within=1e-4)
        assert report.rounds + report.sequential <= 24

    def test_counts(self):
        kernel, x = case("10 beads")
        calls = []

        class Counted(Wrapped):
            def __call__(self, x, **options):
                calls.append(x[..., 0, 0].numel())
                return self.inner(x, **options)

        kernel = EulerMaruyama(Counted(BeadChain(10)), kT=1.0, h=4e-4)
        state = kernel.init(x)
        calls.clear()
        _, report = run_parallel(kernel, state, STEPS, noise=Noise(3))
        looked, *rounds = calls  # at the precision of forces
        assert looked == 3 and len(rounds) == report.rounds
        assert sum(rounds) == report.evaluations + report.hessian_evaluations


@pytest.fixture(scope="module")
def made():
    model, frames = ScoreModel.load("alanine-dipeptide"), Snapshots.read("alanine-dipeptide")
    potential = model.potential(frames.system, device="cpu", dtype=torch.float64)
    kernel = EulerMaruyama(
        potential, kT=model.card.kT, h=0.2 / model.card.lambda_max, mean_free=True
    )
    return kernel, torch.as_tensor(frames.positions[0].astype(float))


class TestAlanine:
    """The shipped model, its network in float64, at the default step."""

    @pytest.mark.parametrize("accepted", [False, True])
    def test_same_chain(self, made, accepted):
        kernel, x = made
        report = check_same(Metropolis(kernel) if accepted else kernel, x, n_steps=64)
        assert report.rounds < 16

    def test_biased(self, made):
        kernel, x = made
        paths = []
        for way in (run, iterate_parallel):
            torsion = Torsion(kernel.potential.system, [[4, 6, 8, 14]], name="phi")
            bias = Metadynamics(torsion, kT=kernel.kT, sigma=0.3, height=0.05, pace=30)
            biased = EulerMaruyama(
                kernel.potential + bias, kT=kernel.kT, h=kernel.h, mean_free=True
            )
            paths.append(torch.stack([s.x for s, _ in way(biased, x, 70, noise=Noise(3))]))
        assert float((paths[0] - paths[1]).abs().max()) < 1e-9 * sigma(kernel)

    @pytest.mark.slow
    @pytest.mark.parametrize(("window", "newton", "drafted"), [(64, 9.0, 25.0), (128, 15.0, 40.0)])
    def test_steps_in_a_round(self, made, window, newton, drafted):
        kernel, x = made
        report = check_same(kernel, x, n_steps=512, window=window)
        assert 512 / report.rounds > newton
        _, report = Speculative(kernel).run(x, 512, noise=Noise(3), window=window)
        assert 512 / report.rounds > drafted


class TestMemory:
    def biased(self, accepted=False):
        chain = BeadChain(10)
        chain.system = System(np.full(10, 18), np.ones(10))
        variable = Distance(chain.system, [[0, 9]], name="d")
        bias = Metadynamics(variable, kT=1.0, sigma=0.1, height=0.4, pace=25, biasfactor=6)
        step = EulerMaruyama(chain + bias, kT=1.0, h=4e-4)
        return (Metropolis(step) if accepted else step), bias

    @pytest.mark.parametrize("accepted", [False, True])
    def test_windows_end_where_a_bias_learns(self, accepted):
        (one, first), (other, second) = self.biased(accepted), self.biased(accepted)
        x = case("10 beads")[1]
        states, _ = sequence(one, x, 120)
        path, report = run_parallel(other, x, 120, noise=Noise(3))
        away = (path - torch.stack([s.x for s in states])).abs().max()
        assert float(away) < 1e-9 * sigma(one)
        assert first.cv.names == second.cv.names
        a, b = first(states[-1].x), second(states[-1].x)
        torch.testing.assert_close(a.energy, b.energy, rtol=1e-9, atol=1e-12)
        assert float(a.energy) > 0.5 and report.sequential == 0

    def test_what_may_change_after_every_step_is_stepped_through(self):
        x = case("10 beads")[1]
        chains = []
        for way in (run, iterate_parallel):
            chain = BeadChain(10)
            chain.system = System(np.full(10, 18), np.ones(10))
            variable = Distance(chain.system, [[0, 9]], name="d")
            pull = MovingRestraint(variable, steps=[0, 30], at=[6.0, 7.0], kappa=50.0)
            kernel = EulerMaruyama(chain + pull, kT=1.0, h=4e-4)
            if way is run:
                chains.append([s.x for s, _ in run(kernel, x, 30, noise=Noise(3))])
            else:
                with pytest.warns(RuntimeWarning, match="one by one"):
                    steps = list(iterate_parallel(kernel, x, 30, noise=Noise(3)))
                chains.append([s.x for s, _ in steps])
        assert torch.equal(torch.stack(chains[0]), torch.stack(chains[1]))

    def test_a_change_that_nobody_announced(self):
        """What was evaluated beyond it is thrown away."""

        class Sudden(Wrapped):
            def __init__(self, inner):
                super().__init__(inner)
                self.has_memory, self.factor = True, 1.0

            def next_change(self, step):
                return math.inf

            def update(self, x, step):
                self.factor = 1.0 + 0.1 * (step >= 17)
                return step == 17

            def __call__(self, x, **options):
                energy, forces, _ = self.inner(x, **options)
                return Evaluation(self.factor * energy, self.factor * forces)

        x = case("10 beads")[1]
        plain, ahead = (EulerMaruyama(Sudden(BeadChain(10)), kT=1.0, h=4e-4) for _ in "ab")
        states, _ = sequence(plain, x, 40)
        path, _ = run_parallel(ahead, x, 40, noise=Noise(3))
        away = (path - torch.stack([s.x for s in states])).abs().max()
        assert float(away) < 1e-9 * sigma(plain)


class Cliff(Potential):
    """Harmonic, and nothing that is finite beyond x = 1 Å."""

    def __call__(self, x, *, stress=False):
        value = Harmonic(1.0)(x)
        over = (x[..., 0] > 1.0).any(-1)
        forces = torch.where(over[..., None, None], torch.nan, value.forces)
        return Evaluation(torch.where(over, torch.nan, value.energy), forces)


class TestDivergence:
    def test_the_step_and_the_walkers_of_the_sequential_run(self):
        kernel = EulerMaruyama(Cliff(), kT=1.0, h=0.02)
        x = torch.zeros(3, 2, 3, dtype=torch.float64)
        errors, steps = [], []
        for way in (run, iterate_parallel):
            done = 0
            with pytest.raises(DivergedError) as caught:
                for _ in way(kernel, x, 400, noise=Noise(0)):
                    done += 1
            errors.append(caught.value)
            steps.append(done)
        a, b = errors
        assert steps[0] == steps[1] > 3
        assert (a.step, a.walkers) == (b.step, b.walkers)
        torch.testing.assert_close(a.survivors.x, b.survivors.x, rtol=0, atol=1e-9)

    def test_proposals_without_energy_are_rejected(self):
        kernel = Metropolis(EulerMaruyama(Cliff(), kT=1.0, h=0.02))
        x = torch.zeros(2, 3, dtype=torch.float64)
        check_same(kernel, x, n_steps=200)
        infos = [info for _, info in iterate_parallel(kernel, x, 200, noise=Noise(3))]
        assert any(bool(info.divergent) for info in infos)

    def test_positions_that_are_not_finite(self):
        class Steep(Harmonic):
            def __call__(self, x, *, stress=False):
                value = super().__call__(x)
                return Evaluation(value.energy, torch.where(x.abs() > 0.5, 1e308, value.forces))

        kernel = EulerMaruyama(Steep(1.0), kT=1e-3, h=1e4)
        with pytest.raises(DivergedError, match="step 2"):
            list(iterate_parallel(kernel, torch.zeros(1, 3).double(), 9, noise=Noise(0)))


class TestWindow:
    def test_memory_that_does_not_suffice(self):
        class Small(Wrapped):
            def __call__(self, x, **options):
                if x[..., 0, 0].numel() > 50:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return self.inner(x, **options)

        kernel = EulerMaruyama(Small(BeadChain(10)), kT=1.0, h=4e-4)
        x = case("10 beads")[1]
        with pytest.warns(RuntimeWarning, match="does not fit into memory"):
            path, _ = run_parallel(kernel, x, 60, noise=Noise(3), method="picard")
        states, _ = sequence(kernel, x, 60)
        assert float((path - torch.stack([s.x for s in states])).abs().max()) < 1e-9 * sigma(kernel)

    def test_sources_of_accepted_and_rejected_steps(self):
        kernel, x = case("10 beads", accepted=True)
        window = Window(kernel, kernel.init(x), Noise(0))
        window.fill(4)
        window.taken = torch.tensor([True, False, False, True])
        start, end = window.sources()
        assert start.tolist() == [0, 1, 1, 1] and end.tolist() == [1, 1, 1, 4]

    def test_a_draft_without_evaluations_is_linear_in_the_start(self):
        kernel, x = case("OU")
        window = Window(kernel, kernel.init(x), Noise(0))
        window.fill(3)
        draft = Linear(kernel, window.state, block=0)
        points = draft.scan(window)
        force = window.state.forces
        expected = x + torch.arange(1, 4)[:, None, None] * 0.2 * force + window.kicks.cumsum(0)
        torch.testing.assert_close(points.x, expected)


class TestRefused:
    def test_kernels_of_several_evaluations(self):
        hmc = HamiltonianMonteCarlo(
            Harmonic(1.0), kT=1.0, timestep=0.1, n_leapfrog=3, masses=torch.ones(4)
        )
        facts = names("HamiltonianMonteCarlo", "one proposal", "walkers")
        with pytest.raises(TypeError, match=facts):
            run_parallel(hmc, FREE, 3, noise=Noise(0))
        several = Metropolis(EulerMaruyama(Harmonic(1.0), kT=1.0, h=0.1), n_steps=2)
        with pytest.raises(TypeError, match=names("n_steps=2", "one after the other", "n_steps=1")):
            run_parallel(several, FREE, 3, noise=Noise(0))

    @pytest.mark.parametrize(
        "wrong", [{"window": 0}, {"block": 0}, {"method": "jacobi"}, {"n_steps": -1}]
    )
    def test_options(self, wrong):
        kernel, x = case("OU")
        options = {"n_steps": 3} | wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            iterate_parallel(kernel, x, noise=Noise(0), **options)

    def test_no_steps(self):
        kernel, x = case("OU")
        path, report = run_parallel(kernel, x, 0, noise=Noise(0))
        assert path.shape == (0, 4, 3) and report.accepted.shape == (0,) and report.rounds == 0
        assert torch.equal(report.state.x, x)
