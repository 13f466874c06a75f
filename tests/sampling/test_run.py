"""The loop: restarts, batches, divergence, and potentials that learn."""

import pytest
import torch
from messages import names

from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic, MuellerBrown, PeriodicWell
from diffmd_ase.potentials.base import Potential, Wrapped
from diffmd_ase.potentials.biases.recorded import Frozen
from diffmd_ase.potentials.ladder import Ladder
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.kernels import DivergedError
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation

KT = 0.025


def kernel_of(potential, h=1e-4):
    return EulerMaruyama(potential, kT=KT, h=h)


def start(walkers=None, atoms=5, seed=1):
    shape = (atoms, 3) if walkers is None else (walkers, atoms, 3)
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(iterator):
    *_, (state, _) = iterator
    return state


class TestLoop:
    def test_every_and_count(self):
        kernel = kernel_of(Harmonic(1.0))
        states = [s for s, _ in run(kernel, start(), 10, noise=Noise(0), every=3)]
        assert [s.step for s in states] == [3, 6, 9]
        assert list(run(kernel, start(), 0, noise=Noise(0))) == []
        whole = [s for s, _ in run(kernel, start(), 10, noise=Noise(0))]
        assert torch.equal(whole[8].x, states[2].x)

    def test_every_counts_from_the_start_of_this_run(self):
        kernel = kernel_of(Harmonic(1.0))
        state = last(run(kernel, start(), 4, noise=Noise(0)))
        assert [s.step for s, _ in run(kernel, state, 7, noise=Noise(0), every=3)] == [7, 10]

    def test_it_is_lazy(self):
        """A generator: what is not asked for is not computed."""
        states = run(kernel_of(Harmonic(1.0)), start(), 10**12, noise=Noise(0))
        assert next(states)[0].step == 1

    def test_state_is_consistent(self):
        potential = MuellerBrown(scale=1e-3)
        state = last(run(kernel_of(potential), start(3), 5, noise=Noise(0)))
        value = potential(state.x)
        assert torch.equal(value.energy, state.energy)
        assert torch.equal(value.forces, state.forces)

    @pytest.mark.parametrize("n_steps, every", [(-1, 1), (5, 0)])
    def test_bad_counts(self, n_steps, every):
        with pytest.raises(ValueError, match=names(f"n_steps={n_steps}", f"every={every}")):
            next(run(kernel_of(Harmonic(1.0)), start(), n_steps, noise=Noise(0), every=every))

    def test_no_energy(self):
        class Curl(Potential):
            conservative = False

            def __call__(self, x):
                return Evaluation(None, x.flip(-1))

        assert last(run(kernel_of(Curl()), start(2), 3, noise=Noise(0))).energy is None


class TestReproducibility:
    def test_restart_is_the_uninterrupted_chain(self):
        """Bit by bit, and without a generator state."""
        kernel = kernel_of(MuellerBrown(scale=1e-3))
        whole = [s.x for s, _ in run(kernel, start(4), 30, noise=Noise(5))]
        half = last(run(kernel, start(4), 13, noise=Noise(5)))
        rest = [s for s, _ in run(kernel, half, 17, noise=Noise(5))]
        assert rest[-1].step == 30
        assert all(torch.equal(a.x, b) for a, b in zip(rest, whole[13:], strict=True))

    @pytest.mark.parametrize("potential", [Harmonic(1.0), PeriodicWell(barrier=0.1, period=2.0)])
    def test_walker_alone_is_the_walker_in_a_batch(self, potential):
        """Elementwise potentials: not only the noise, the chain is the same bit by bit."""
        x = start(64)
        whole = last(run(kernel_of(potential), x, 40, noise=Noise(6)))
        alone = last(run(kernel_of(potential), x[0], 40, noise=Noise(6)))
        assert torch.equal(alone.x, whole.x[0])
        ids = torch.tensor([40, 3])
        kernel = kernel_of(potential)
        state = kernel.init(x[ids], walkers=ids)
        some = last(run(kernel, state, 40, noise=Noise(6)))
        assert torch.equal(some.x, whole.x[ids])
        assert torch.equal(some.walkers, ids)

    def test_seeds_differ(self):
        a, b = (last(run(kernel_of(Harmonic(1.0)), start(), 3, noise=Noise(s))).x for s in (1, 2))
        assert not torch.equal(a, b)


class Cliff(Potential):
    """Harmonic, until an atom gets beyond `edge`."""

    def __init__(self, edge, value=float("nan")):
        self.edge, self.value = edge, value

    def __call__(self, x, *, stress=False):
        energy, forces, _ = Harmonic(0.1)(x)
        beyond = (x.abs() > self.edge).flatten(-2).any(-1)
        return Evaluation(energy, torch.where(beyond[..., None, None], self.value, forces))


class TestDivergence:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_survivors_go_on_identically(self, value):
        x, h = 0.1 * start(6), 2e-3
        kernel, noise = kernel_of(Cliff(0.8, value), h), Noise(3)
        lost, done, state = {}, 0, kernel.init(x)
        while True:
            try:
                for state, _ in run(kernel, state, 60 - done, noise=noise):  # noqa: B020
                    done = state.step
                break
            except DivergedError as error:
                for walker in error.walkers:
                    lost[walker] = error.step
                assert f"step {error.step}: walkers {error.walkers}" in str(error)
                assert error.step == done + 1
                if error.survivors is None:
                    break
                state = error.survivors
        assert 1 <= len(lost) <= 5  # the case is a real one
        reference = x.clone()
        harmonic = last(run(kernel_of(Harmonic(0.1), h), reference, 60, noise=Noise(3)))
        assert set(state.walkers.tolist()) == set(range(6)) - set(lost)
        for index, walker in enumerate(state.walkers.tolist()):
            assert torch.equal(state.x[index], harmonic.x[walker])
        for walker, step in lost.items():  # each was lost at its first step beyond the edge
            path = [s.x for s, _ in run(kernel_of(Harmonic(0.1), h), x, step, noise=Noise(3))]
            outside = [bool((p[walker].abs() > 0.8).any()) for p in path]
            assert outside[-1] and not any(outside[:-1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_an_energy_alone(self, value):
        """Outside the grid of a bias: forces may be finite, the walker is lost all the same."""

        class Outside(Potential):
            def __call__(self, x):
                lost = (x.abs() > 0.8).flatten(-2).any(-1)
                return Evaluation(torch.where(lost, value, 0.0), torch.zeros_like(x))

        x = 0.1 * start(4)
        x[2, 0, 0] = 0.9
        with pytest.raises(DivergedError, match=r"walkers \[2\]") as info:
            list(run(kernel_of(Outside()), x, 3, noise=Noise(3)))
        assert info.value.survivors.walkers.tolist() == [0, 1, 3]

    def test_a_single_structure(self):
        x = start()
        x[2, 1] = 5.0
        with pytest.raises(DivergedError, match=r"step 1: walkers \[0\]") as info:
            list(run(kernel_of(Cliff(1.0)), x, 3, noise=Noise(0)))
        assert info.value.survivors is None

    def test_global_ids(self):
        x = 0.1 * start(3)
        x[1] = 5.0
        kernel = kernel_of(Cliff(1.0))
        state = kernel.init(x, walkers=torch.tensor([10, 20, 30]))
        with pytest.raises(DivergedError) as info:
            list(run(kernel, state, 3, noise=Noise(0)))
        assert info.value.walkers == [20]
        assert info.value.survivors.walkers.tolist() == [10, 30]
        assert info.value.survivors.step == 0

    def test_too_large_a_step(self):
        """h λ > 2: the message says what to do."""
        with pytest.raises(DivergedError, match=names("walkers [0, 1]", "smaller step h")):
            list(run(kernel_of(Harmonic(1e3), h=1e-3), start(2), 1000, noise=Noise(0)))

    @pytest.mark.usefixtures("float64")
    def test_large_finite_numbers_are_fine(self):
        class Steep(Potential):
            def __call__(self, x):
                return Evaluation(None, torch.full_like(x, 1e200))

        state = last(run(kernel_of(Steep()), 1e200 + start(2), 2, noise=Noise(0)))
        assert torch.isfinite(state.x).all()


class Counted(Potential):
    """A static potential that counts its evaluations."""

    def __init__(self, potential):
        self.potential, self.calls = potential, 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        return self.potential(x)


class Learner(Potential):
    """A spring that stiffens at every deposition; remembers what it was shown."""

    has_memory = True

    def __init__(self, stride=1, gain=0.5):
        self.stride, self.gain, self.k = stride, gain, 0.0
        self.seen, self.calls = [], 0

    def __call__(self, x, *, stress=False):
        self.calls += 1
        return Harmonic(self.k)(x)

    def update(self, x, step):
        self.seen.append((step, x.clone()))
        if step % self.stride:
            return False
        self.k += self.gain
        return True


class Boost(Potential):
    """½ of the energy of the terms before it; has no memory of its own."""

    needs_base = True

    def __init__(self):
        self.bases = []

    def __call__(self, x, *, base, stress=False):
        self.bases.append(base)
        return Evaluation(0.5 * base.energy, 0.5 * base.forces)


class LearningBoost(Boost):
    has_memory = True

    def __init__(self):
        super().__init__()
        self.updates = 0

    def update(self, x, step):
        self.updates += 1
        return True


class Beginner(Learner):
    """Learns from the start as well."""

    def __init__(self, gain=0.5):
        super().__init__(gain=0.0)
        self.first, self.started, self.finished = gain, [], 0

    def begin(self, x, step):
        if not self.started:
            self.started.append((step, x.clone()))
            self.k += self.first
            return True
        return False

    def finish(self):
        self.finished += 1


class TestMemory:
    def test_begins_before_the_first_step(self):
        """And what it has learned from the start drives that step."""
        beginner, x = Beginner(), start(2)
        states = [s for s, _ in run(kernel_of(Harmonic(1.0) + beginner), x, 3, noise=Noise(1))]
        [(step, seen)] = beginner.started
        assert step == 0 and torch.equal(seen, x) and len(beginner.seen) == 3
        reference = run(kernel_of(Harmonic(1.5)), x, 3, noise=Noise(1))
        for state, (exact, _) in zip(states, reference, strict=True):
            torch.testing.assert_close(state.x, exact.x)

    def test_begin_and_finish_reach_all_terms(self):
        beginners = [Beginner() for _ in range(4)]
        ladder, wrapped, frozen, plain = beginners
        every = Ladder([ladder, Harmonic(1.0)]) + Wrapped(wrapped) + Frozen(frozen) + plain
        x = start(4)
        assert every.begin(x, 3) and not every.begin(x, 3)
        every.finish()
        assert [len(b.started) for b in beginners] == [1, 1, 0, 1]
        assert [b.finished for b in beginners] == [1, 1, 0, 1]
        assert torch.equal(ladder.started[0][1], x[::2]) and plain.started[0][0] == 3

    def test_learns_once_per_step_from_accepted_positions(self):
        learner = Learner(stride=3)
        states = [
            s for s, _ in run(kernel_of(Harmonic(1.0) + learner), start(2), 10, noise=Noise(1))
        ]
        assert [step for step, _ in learner.seen] == list(range(1, 11))
        for state, (_, seen) in zip(states, learner.seen, strict=True):
            assert torch.equal(state.x, seen)

    def test_static_terms_once_per_step(self):
        """The network is evaluated once per step, deposition or not."""
        network, learner = Counted(Harmonic(1.0)), Learner(stride=2)
        list(run(kernel_of(network + learner), start(), 10, noise=Noise(1)))
        assert network.calls == 1 + 10
        assert learner.calls == 1 + 10 + 5  # and once more after each deposition

    def test_the_deposition_counts_from_the_next_step(self):
        """The state after a deposition has the forces of the changed potential."""
        learner = Learner()
        potential = Counted(MuellerBrown(scale=1e-3)) + learner
        for state, _ in run(kernel_of(potential), start(2), 5, noise=Noise(1)):
            value = potential(state.x)
            torch.testing.assert_close(state.forces, value.forces, rtol=0, atol=1e-15)
            torch.testing.assert_close(state.energy, value.energy, rtol=0, atol=1e-15)
        assert learner.k == 2.5

    def test_evaluation_never_learns(self):
        learner = Learner()
        potential = Harmonic(1.0) + learner
        kernel_of(potential).init(start(2))
        for _ in range(3):
            potential(start(2))
        assert learner.seen == [] and learner.k == 0

    def test_a_potential_that_learns_alone(self):
        learner = Learner()
        state = last(run(kernel_of(learner), start(2), 4, noise=Noise(1)))
        assert len(learner.seen) == 4
        torch.testing.assert_close(state.forces, -2.0 * state.x)

    def test_every_term_learns(self):
        """Also after one that has reported a change."""
        a, b = Learner(), Learner(stride=2)
        list(run(kernel_of(a + Harmonic(1.0) + b), start(), 4, noise=Noise(1)))
        assert (a.k, b.k) == (2.0, 1.0) and len(a.seen) == len(b.seen) == 4

    def test_boost_sees_the_terms_before_it(self):
        boost = Boost()
        state = last(run(kernel_of(Harmonic(2.0) + boost), start(), 3, noise=Noise(1)))
        torch.testing.assert_close(boost.bases[-1].energy, Harmonic(2.0)(state.x).energy)
        torch.testing.assert_close(state.forces, -3.0 * state.x)

    @pytest.mark.parametrize(
        "terms",
        [
            lambda: (Harmonic(1.0), Learner(), Boost(), Harmonic(0.3)),
            lambda: (Harmonic(1.0), LearningBoost(), Harmonic(0.3), Learner()),
            lambda: (Learner(), Harmonic(1.0), Boost()),
            lambda: (Harmonic(1.0), Boost(), Learner(), LearningBoost(), Boost()),
        ],
    )
    def test_the_kernel_sums_in_the_order_of_the_sum(self, terms):
        """Static and learning terms in any order: a boost sees what stands before it, in
        the kernel's state as in a plain evaluation, also after a deposition."""
        first, *others = terms()
        potential = first
        for term in others:
            potential = potential + term
        for state, _ in run(kernel_of(potential), start(2), 3, noise=Noise(1)):
            value = potential(state.x)
            torch.testing.assert_close(state.energy, value.energy, rtol=1e-14, atol=0)
            torch.testing.assert_close(state.forces, value.forces, rtol=1e-14, atol=1e-16)

    def test_learning_boost_keeps_the_network_count(self):
        network, boost = Counted(Harmonic(1.0)), LearningBoost()
        list(run(kernel_of(network + boost), start(), 6, noise=Noise(1)))
        assert network.calls == 7 and boost.updates == 6

    def test_survivors_keep_what_a_refresh_needs(self):
        x = 0.1 * start(3)
        x[1] = 5.0
        learner = Learner()
        kernel = kernel_of(Cliff(1.0) + learner)
        with pytest.raises(DivergedError) as info:
            list(run(kernel, x, 3, noise=Noise(0)))
        assert learner.seen == []  # nothing is learned from a failed step
        state = info.value.survivors
        again = kernel.refresh(state)
        assert torch.equal(again.x, state.x) and torch.equal(again.walkers, state.walkers)
        assert torch.equal(again.forces, state.forces) and again.step == state.step
        assert last(run(kernel, state, 2, noise=Noise(0))).x.shape == (2, 5, 3)


def test_user_potential_needs_only_call():
    class Mine(Potential):
        def __call__(self, x):
            return Evaluation(0.5 * x.square().sum((-2, -1)), -x)

    for potential in (Mine(), Mine() + Harmonic(0.0), Mine() + Learner(gain=0.0)):
        state = last(run(kernel_of(potential), start(2), 5, noise=Noise(1)))
        reference = last(run(kernel_of(Harmonic(1.0)), start(2), 5, noise=Noise(1)))
        torch.testing.assert_close(state.x, reference.x)


def test_select():
    kernel = kernel_of(Harmonic(1.0) + Learner())
    state = kernel.init(start(4))
    keep = torch.tensor([True, False, True, True])
    some = state.take(keep)
    assert some.walkers.tolist() == [0, 2, 3]
    assert torch.equal(some.x, state.x[keep]) and torch.equal(some.energy, state.energy[keep])
    assert some.take(torch.tensor([False, True, True])).walkers.tolist() == [2, 3]
