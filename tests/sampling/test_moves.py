"""Moves by energy alone: exact detailed balance, exact laws, an alloy against enumeration."""

import math
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from messages import names

from diffmd_ase.geometry import dihedrals
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.ase_calculator import AsePotential
from diffmd_ase.potentials.base import Potential
from diffmd_ase.sampling.combine import Sequence
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.moves import (
    AtomSwap,
    Displacement,
    SingleDisplacement,
    TorsionRotation,
    VacancyHop,
)
from diffmd_ase.sampling.run import run
from diffmd_ase.state import Evaluation
from diffmd_ase.system import System
from diffmd_ase.testing import (
    assert_zscore,
    check_detailed_balance,
    check_kernel,
    check_kernel_exact,
    enumerate_moves,
    mutants,
    targets,
    zscores,
)

DT = torch.float64
CHOICE = "choose"  # stream of the uniform number that chooses
COSINE = torch.tensor([1.5, -0.8], dtype=DT)


class Lattice(Potential):
    """Atoms on the integer sites of a line: energies of elements at sites and next to each other.

    No energy outside of ``length`` sites, or where two atoms share one; with ``wrap`` a ring.
    """

    def __init__(self, numbers, length, *, wrap=False, seed=0):
        cell = np.diag([length, 20.0, 20.0]) if wrap else None
        self.system = System.from_atoms(Atoms(numbers, cell=cell, pbc=[wrap, False, False]))
        kinds = sorted(set(numbers))
        self.kind = torch.tensor([kinds.index(n) for n in numbers])
        generator = torch.Generator().manual_seed(seed)
        self.site = torch.randn(len(kinds), length, generator=generator, dtype=DT)
        pair = torch.randn(len(kinds), len(kinds), generator=generator, dtype=DT)
        self.pair, self.length, self.wrap = pair + pair.T, length, wrap

    def __call__(self, x, *, stress=False):
        places = x[..., 0].round().long()
        if self.wrap:
            places = places % self.length
        inside = ((places >= 0) & (places < self.length)).all(-1)
        places = places.clamp(0, self.length - 1)
        energy = self.site[self.kind.expand(places.shape), places].sum(-1)
        apart = (places[..., :, None] - places[..., None, :]).abs()
        if self.wrap:
            apart = torch.minimum(apart, self.length - apart)
        i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1)
        energy = energy + ((apart == 1) * self.pair[self.kind[:, None], self.kind])[..., i, j].sum(
            -1
        )
        shared = (apart[..., i, j] == 0).any(-1)
        energy = torch.where(inside & ~shared, energy, torch.nan)
        return Evaluation(energy.to(x), torch.zeros_like(x))


def sites(rows):
    """Positions (S, N, 3) of atoms at the integer sites of each row."""
    x = torch.zeros(*np.shape(rows), 3, dtype=DT)
    x[..., 0] = torch.as_tensor(np.array(rows), dtype=DT)
    return x


@dataclass(frozen=True)
class NoCount(VacancyHop):
    """The number of possible jumps is left out."""

    def propose(self, x, step, walkers, noise):
        y, log_q = super().propose(x, step, walkers, noise)
        return y, torch.where(torch.isfinite(log_q), 0.0, log_q)


@dataclass(frozen=True)
class Biased(AtomSwap):
    """Swaps only where the first atom is on the right."""

    def propose(self, x, step, walkers, noise):
        y, _ = super().propose(x, step, walkers, noise)
        right = (x[..., 0, 0] > 2)[..., None, None]
        return torch.where(right, y, x), 0.0


def test_swaps_of_an_alloy_are_enumerated_exactly():
    target = Lattice([29, 29, 79, 79, 47], 5)
    states = sites(list(permutations(range(5))))
    swap = AtomSwap(target, 0.7)
    pairs = len(swap._pairs)
    assert pairs == 8  # ten, but for the two pairs of one element
    P = enumerate_moves(swap, states, {CHOICE: pairs})
    logs = -target(states).energy / 0.7
    check_detailed_balance(P, logs)
    # and every state is reached
    assert (torch.linalg.matrix_power(P, 60) > 0).all()
    with pytest.raises(AssertionError, match="differ by"):
        check_detailed_balance(P, -target(states).energy / 0.8)
    with pytest.raises(AssertionError, match="differ by"):
        check_detailed_balance(enumerate_moves(Biased(target, 0.7), states, {CHOICE: pairs}), logs)


@pytest.mark.parametrize("clearance", [0.0, 0.5])
def test_vacancy_hops_are_enumerated_exactly(clearance):
    """Three different atoms on six sites; jumps to neighbours and by two sites."""
    target, kT = Lattice([29, 79, 47], 6), 0.9
    states = sites(list(permutations(range(6), 3)))
    vectors = [[1.0, 0, 0], [2.0, 0, 0]]
    hop = VacancyHop(target, kT, vectors, clearance)
    values = 12 if clearance == 0 else math.lcm(*range(1, 13))
    if clearance:
        counts = hop._possible(states).sum((-2, -1)).unique()
        assert len(counts) > 2  # the ratio of counts matters
        values = math.lcm(*counts.tolist())
    P = enumerate_moves(hop, states, {CHOICE: values})
    check_detailed_balance(P, -target(states).energy / kT)
    assert (torch.linalg.matrix_power(P, 60) > 0).all()
    if clearance:
        wrong = enumerate_moves(NoCount(target, kT, vectors, clearance), states, {CHOICE: values})
        with pytest.raises(AssertionError, match="differ by"):
            check_detailed_balance(wrong, -target(states).energy / kT)


def ring(kernel_class=VacancyHop, n=10_000, steps=5):
    """z of the populations of a ring of six sites after hops from exact draws."""
    target, kT = Lattice([29, 79, 79], 6, wrap=True), 0.9
    states = sites(list(permutations(range(6), 3)))
    p = torch.softmax(-target(states).energy / kT, 0)
    kernel = kernel_class(target, kT, [[1.0, 0, 0]], 0.5)
    draw = np.random.default_rng(0).choice(len(p), size=n, p=p.numpy())
    [(state, _)] = run(kernel, states[draw], steps, noise=Noise(0), every=steps)
    assert float(state.x[..., 0].max()) > 6  # over the boundary
    places = state.x[..., 0].round().long() % 6
    number = (places * torch.tensor([36, 6, 1])).sum(-1)
    known = (states[..., 0].long() * torch.tensor([36, 6, 1])).sum(-1)
    found = (number[:, None] == known).double().mean(0)
    changed = float((state.x != states[draw]).any(-1).any(-1).double().mean())
    return ((found - p) / (p * (1 - p) / n).sqrt()).numpy(), changed


def test_hops_over_a_periodic_boundary_keep_the_populations():
    z, changed = ring()
    assert changed > 0.5
    assert_zscore(z, 0.0, 1.0, limit=4.5)
    assert np.abs(ring(NoCount)[0]).max() > 8


def test_a_place_is_taken_by_the_image_of_an_atom():
    hop = VacancyHop(Lattice([29, 79], 6, wrap=True), 1.0, [[1.0, 0, 0]], 0.5)
    possible = hop._possible(sites([[5, 0], [11, 0], [2, 0], [-1, 6]]))
    right, left = possible.unbind(-1)  # jumps of each atom
    assert right.tolist() == [[False, True], [False, True], [True, True], [False, True]]
    assert left.tolist() == [[True, False], [True, False], [True, True], [True, False]]


def test_a_jump_that_could_not_be_undone_is_not_made():
    """From a place that another atom is too close to."""
    hop = VacancyHop(Lattice([29, 79], 6), 1.0, [[1.0, 0, 0]], 0.5)
    x = sites([[2.0, 2.3]] * 50)
    y, log_q = hop.propose(x, 0, None, Noise(0))
    assert (y != x).any() and (log_q == -torch.inf).all()
    _, log_q = hop.propose(sites([[2.0, 2.7]] * 50), 0, None, Noise(0))
    assert torch.isfinite(log_q).all()


@pytest.mark.parametrize("make", [targets.double_well, targets.dimer])
@pytest.mark.parametrize("kind", [Displacement, SingleDisplacement])
def test_displacements_keep_exact_laws(make, kind):
    case = make()
    move = kind(case.target, case.kT, size=0.3)
    check_kernel_exact(move, case, n=8_000)
    unadjusted = zscores(mutants.Unadjusted(move), case, n=8_000)
    stale = zscores(mutants.StaleEnergy(move), case, n=8_000, steps=8)
    assert np.abs(unadjusted).max() > 5 and np.abs(stale).max() > 5


def test_single_displacement_moves_one_atom_that_may_move():
    x = torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(0), dtype=DT)
    move = SingleDisplacement(Harmonic(1.0), 1e6, size=torch.tensor([0.1, 0.0, 0.1, 0.1, 0.1]))
    y, _ = move.propose(x, 0, None, Noise(0))
    moved = (y != x).any(-1)
    assert (moved.sum(-1) == 1).all() and set(moved.nonzero()[:, 1].tolist()) == {0, 2, 3, 4}


# a chain of five atoms: two torsions, the second nested in the first
CHAIN = torch.tensor([[0.2, 1.4, 0.3], [0, 0, 0], [1.5, 0, 0.1], [2.0, 1.3, 0.6], [3.4, 1.4, -0.2]],
                     dtype=DT)  # fmt: skip
ROTORS = [(1, 2), (2, 3)]
MOVED = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
DISJOINT = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
QUADRUPLES = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])


class Torsions(Potential):
    """``U = Σ c_k cos φ_k + sin(φ_1 - 2 φ_2)``."""

    def __call__(self, x, *, stress=False):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.of(dihedrals(x, QUADRUPLES))
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return Evaluation(energy.detach(), -gradient)

    @staticmethod
    def of(phi):
        return (COSINE * torch.cos(phi)).sum(-1) + torch.sin(phi[..., 0] - 2 * phi[..., 1])


@pytest.mark.parametrize("moved", [MOVED, DISJOINT], ids=["nested", "disjoint"])
@pytest.mark.parametrize("size", [math.pi, 0.8])
def test_torsions_get_their_exact_law(moved, size):
    """Angles are drawn from the law of U on a grid, and put into the chain by rotations."""
    kT, target = 0.8, Torsions()
    grid = (torch.arange(120, dtype=DT) + 0.5) * (2 * math.pi / 120) - math.pi
    angles = torch.cartesian_prod(grid, grid)
    p = torch.softmax(-Torsions.of(angles) / kT, 0)
    rng = np.random.default_rng(0)
    draw = angles[rng.choice(len(p), size=8_000, p=p.numpy())]
    draw = draw + torch.as_tensor(rng.uniform(-1, 1, draw.shape)) * math.pi / 120
    kernel = TorsionRotation(target, kT, ROTORS, moved, size)
    x = CHAIN.expand(len(draw), 5, 3)
    turn = draw - dihedrals(x, QUADRUPLES)
    sign = torch.where(moved[:, 0], -1.0, 1.0)  # atom 0 turns instead of atom 3
    x = turned(kernel, x, turn * sign)
    torch.testing.assert_close(torch.cos(dihedrals(x, QUADRUPLES)), torch.cos(draw))
    [(state, _)] = run(kernel, x, 5, noise=Noise(1), every=5)
    assert float((state.x != x).flatten(1).any(-1).double().mean()) > 0.6

    def observables(phi):
        a, b = phi.unbind(-1)
        return torch.stack((a.cos(), a.sin(), b.cos(), b.sin(), (a - 2 * b).sin(), (a * 2).cos(),
                            (a - b).cos(), (a + b).cos()), -1)  # fmt: skip

    f = observables(dihedrals(state.x, QUADRUPLES))
    z = (f.mean(0) - p @ observables(angles)) / (f.std(0) / len(f) ** 0.5)
    assert_zscore(z.numpy(), 0.0, 1.0, limit=4.0)
    # bonds and angles are as they were
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (1, 3), (2, 4)):
        before, after = ((y[:, i] - y[:, j]).norm(dim=-1) for y in (x, state.x))
        torch.testing.assert_close(before, after)
    free = TorsionRotation(targets.Scaled(target, 0.7), kT, ROTORS, moved, size)
    [(state, _)] = run(free, x, 20, noise=Noise(1), every=20)
    f = observables(dihedrals(state.x, QUADRUPLES))
    assert ((f.mean(0) - p @ observables(angles)) / (f.std(0) / len(f) ** 0.5)).abs().max() > 6


def turned(kernel, x, angles):
    """The proposal of ``kernel`` by given angles (B, 2)."""

    class Angles(Noise):
        def uniform(self, step, like, *, walkers=None, stream="accept"):
            return (angles[..., stream[1]] / kernel.size + 1) / 2

    return kernel.propose(x, 0, None, Angles(0))[0]


@pytest.mark.parametrize("mean_free", [False, True])
def test_rotations_are_reversible_and_keep_volume(mean_free):
    kernel = TorsionRotation(Torsions(), 1.0, ROTORS, MOVED, mean_free=mean_free)
    angles = torch.tensor([2.1, -1.3], dtype=DT)
    y = turned(kernel, CHAIN, angles)
    torch.testing.assert_close(turned(kernel, y, -angles), CHAIN)
    jacobian = torch.autograd.functional.jacobian(lambda x: turned(kernel, x, angles), CHAIN)
    assert float(torch.linalg.det(jacobian.reshape(15, 15))) == pytest.approx(1.0, abs=1e-10)
    assert bool(torch.isclose(y.mean(0), CHAIN.mean(0)).all()) is mean_free


def test_rotations_that_do_not_commute_are_refused():
    overlap = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    with pytest.raises(ValueError, match=names("rotors 0 and 1", "commute", "Topology")):
        TorsionRotation(Torsions(), 1.0, ROTORS, overlap)  # axis atom 3 turns, atom 4 stays
    with pytest.raises(ValueError, match="must not turn"):
        TorsionRotation(Torsions(), 1.0, [(1, 2)], MOVED[:1] | torch.tensor([0, 0, 1, 0, 0]).bool())
    with pytest.raises(ValueError, match=names("(2, 2)", "(1, 5)", "(K, 2)", "(K, N)")):
        TorsionRotation(Torsions(), 1.0, ROTORS, MOVED[:1])
    with pytest.raises(ValueError, match=names("2 rotors", "size=4.0", "(0, π]")):
        TorsionRotation(Torsions(), 1.0, ROTORS, MOVED, size=4.0)
    with pytest.raises(ValueError, match="periodic"):
        TorsionRotation(Lattice([1, 2, 3], 6, wrap=True), 1.0, [(0, 1)], [[False, False, True]])


def test_conformance():
    x = CHAIN.expand(4, 5, 3) + 0.1 * torch.randn(
        4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=DT
    )
    chain = Torsions()
    alloy, hops = Lattice([29, 29, 79], 6), Lattice([29, 79, 47], 6, wrap=True)
    check_kernel(TorsionRotation(chain, 2.0, ROTORS, MOVED, 0.5), x)
    check_kernel(Displacement(chain, 2.0, size=0.1), x)
    check_kernel(SingleDisplacement(chain, torch.tensor(2.0), size=torch.full((5,), 0.1)), x)
    lattice = sites([[0, 1, 2], [1, 3, 5], [4, 2, 0], [5, 0, 1]])
    check_kernel(AtomSwap(alloy, 5.0), lattice)
    check_kernel(VacancyHop(hops, 5.0, [[1.0, 0, 0]], 0.5), lattice)
    steps = Metropolis(EulerMaruyama(chain, 2.0, 1e-3))
    check_kernel(Sequence([steps, TorsionRotation(chain, 2.0, ROTORS, MOVED)]), x)


def test_one_evaluation_of_the_energy_per_move():
    calls = []

    class Counted(Torsions):
        def __call__(self, x, *, stress=False):
            calls.append(1)
            return super().__call__(x)

    move = TorsionRotation(Counted(), 1.0, ROTORS, MOVED)
    state = move.init(CHAIN[None])
    calls.clear()
    [(_, info)] = run(move, state, 7, noise=Noise(0), every=7)
    assert len(calls) == 7 and (info.drift_evaluations, info.target_evaluations) == (0, 1)


def test_bad_input():
    with pytest.raises(ValueError, match="must know the elements"):
        AtomSwap(Harmonic(1.0), 1.0)
    with pytest.raises(ValueError, match="one element only"):
        AtomSwap(Lattice([29, 29], 4), 1.0)
    with pytest.raises(ValueError, match="kT="):
        AtomSwap(Lattice([29, 79], 4), 0.0)
    with pytest.raises(ValueError, match="no energy"):
        Displacement(targets.gaussian().drift, 1.0)
    for size in (-0.1, float("nan"), 0.0):
        with pytest.raises(ValueError, match="size="):
            Displacement(Harmonic(1.0), 1.0, size=size)
    with pytest.raises(ValueError, match=names("(2,)", "(2, 3, 3)", "(N,)", "(B, N)")):
        move = Displacement(Harmonic(1.0), 1.0, size=torch.tensor([0.1, 0.1]))
        move.propose(torch.zeros(2, 3, 3), 0, None, Noise(0))
    alloy = Lattice([29, 79], 6, wrap=True)
    for vectors in ([1.0, 0, 0], [[0.0, 0, 0]], [[1.0, 0]]):
        shape = str(tuple(np.shape(vectors)))
        with pytest.raises(ValueError, match=names(shape, "(V, 3)", "Å")):
            VacancyHop(alloy, 1.0, vectors)
    with pytest.raises(ValueError, match=names("clearance=3.5", "3 Å")):
        VacancyHop(alloy, 1.0, [[1.0, 0, 0]], clearance=3.5)
    with pytest.raises(ValueError, match=names("walkers [0]", "step 0", "overlapping")):
        VacancyHop(alloy, 1.0, [[1.0, 0, 0]]).init(sites([[2, 2]]))


def alloy(sites_of_gold, *, vacancy=False):
    """Cu–Au on eight fcc sites with EMT; gold on the sites given."""
    atoms = bulk("Cu", a=3.85, cubic=True) * (2, 1, 1)
    atoms.numbers[sites_of_gold] = 79
    places = torch.as_tensor(atoms.positions)
    if vacancy:
        del atoms[-1]
    return AsePotential(EMT(), System.from_atoms(atoms)), places


def energies_of(target, places, orders):
    return target(torch.stack([places[list(order)] for order in orders])).energy


@pytest.mark.slow
def test_copper_gold_swaps_match_the_enumeration_with_emt():
    """All 70 arrangements of four Cu and four Au on eight sites, from one ordered start."""
    target, places = alloy([0, 1, 2, 3])
    gold = [set(s) for s in combinations(range(8), 4)]
    orders = [[*sorted(s), *sorted(set(range(8)) - s)] for s in gold]
    exact = energies_of(target, places, orders)
    kT = float(exact.std())  # neither ordered nor random
    p = torch.softmax(-exact / kT, 0)
    swap, B, steps, skip = AtomSwap(target, kT), 32, 160, 20
    sums = torch.zeros(B, 2, dtype=DT)
    for state, _ in run(swap, places.expand(B, 8, 3), steps, noise=Noise(0)):
        if state.step > skip:
            sums += torch.stack((state.energy, state.energy.square()), -1) / (steps - skip)
    mean = torch.stack((p @ exact, p @ exact.square()))
    z = (sums.mean(0) - mean) / (sums.std(0) / B**0.5)
    assert_zscore(z.numpy(), 0.0, 1.0, limit=4.0)
    flat = torch.stack((exact.mean(), exact.square().mean()))  # the random alloy is told apart
    assert ((sums.mean(0) - flat) / (sums.std(0) / B**0.5)).abs().max() > 8


@pytest.mark.slow
def test_a_vacancy_meets_gold_in_copper_as_often_as_emt_says():
    """Vacancy hops against the energies of all sites of the vacancy and of gold."""
    target, places = alloy([0], vacancy=True)
    pairs = [(g, v) for g in range(8) for v in range(8) if g != v]
    orders = [[g, *(s for s in range(8) if s not in (g, v))] for g, v in pairs]
    exact = energies_of(target, places, orders)
    kT = 1.2 * float(exact.std())
    p = torch.softmax(-exact / kT, 0)
    step = 3.85 / 2
    vectors = [v for v in (torch.tensor(w, dtype=DT) * step for w in
               ([1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]))]  # fmt: skip
    hop, B, steps, skip = VacancyHop(target, kT, torch.stack(vectors), 1.3), 32, 150, 20
    start = places[orders[0]].expand(B, 7, 3)
    total = torch.zeros(B, dtype=DT)
    acceptance = []
    for state, info in run(hop, start, steps, noise=Noise(0)):
        acceptance.append(float(info.accepted.double().mean()))
        if state.step > skip:
            total += state.energy / (steps - skip)
    assert np.mean(acceptance) > 0.3
    z = (total.mean() - p @ exact) / (total.std() / B**0.5)
    assert_zscore(float(z), 0.0, 1.0, limit=4.0)
    assert abs(float((total.mean() - exact.mean()) / (total.std() / B**0.5))) > 6


def test_noise_of_a_move_does_not_meet_that_of_the_acceptance():
    """The choice of a move is independent of whether it is accepted."""
    target = Lattice([29, 79, 47], 6)
    move = AtomSwap(target, 1.0)
    x = sites([[0, 1, 2]] * 4000)
    y, _ = move.propose(x, 0, None, Noise(0))
    u = Noise(0).uniform(0, torch.zeros(4000, dtype=DT))
    first = (y[:, 0] == x[:, 0]).all(-1).double()
    assert abs(float(torch.corrcoef(torch.stack((first, u)))[0, 1])) < 4 / 4000**0.5


def test_scaled_changes_h_and_not_the_size():
    assert replace(Displacement(Harmonic(1.0), 1.0), size=0.2).scaled(4.0).size == 0.4
    with pytest.raises(TypeError, match=names("AtomSwap", "step size")):
        AtomSwap(Lattice([29, 79], 4), 1.0).scaled(0.5)
