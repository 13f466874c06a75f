"""Every loss is least at the true energy; rotations about bonds are what they say."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from diffmd_ase.score.losses import (
    contrastive_loss,
    denoising_loss,
    force_loss,
    log_uniform,
    score,
    torsional_loss,
)
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.topology import Topology
from diffmd_ase.score.torsion_moves import Moves, TorsionProposals
from diffmd_ase.testing import assert_zscore

WIDTH, LEVEL = 0.5, 0.2  # Å, of the data and of the noise
N = 20_000


@pytest.fixture(scope="module")
def dipeptide():
    return Snapshots.read("alanine-dipeptide").take(slice(0, 3000))


def chain():
    """Four atoms in a row with one rotor; the last one turns."""
    return Topology(
        bonds=np.array([[0, 1], [1, 2], [2, 3]]),
        rotors=np.array([[1, 2]]),
        moved=np.array([[False, False, False, True]]),
        torsions=np.array([[0, 1, 2, 3]]),
        centres=np.zeros((0, 4), int),
        permutations=np.arange(4)[None],
        swaps=np.zeros((0, 4), int),
        chiral=False,
    )


def at_angle(phi):
    """Chains (B, 4, 3) of unit bonds, right angles and torsion phi (B,)."""
    x = torch.zeros(len(phi), 4, 3)
    x[:, 0, 0], x[:, 2, 2], x[:, 3, 2] = 1.0, 1.0, 1.0
    x[:, 3, 0], x[:, 3, 1] = phi.cos(), phi.sin()
    return x


# --------------------------------------------------------------- denoising, in Å


def gaussian_losses(factor, generator, loss):
    """Losses (N,) of ``factor`` times the exact score of noised Gaussian data."""
    x = WIDTH * torch.randn(N, 2, 3, generator=generator)
    epsilon = torch.randn(x.shape, generator=generator)
    sigma = torch.full((N,), LEVEL)

    def s(y):
        return -factor * y / (WIDTH**2 + LEVEL**2)

    return loss(s(x + LEVEL * epsilon), s(x - LEVEL * epsilon), epsilon, sigma)


def test_denoising_loss_is_least_at_the_true_score(generator):
    factor = torch.ones(N, requires_grad=True)
    value = gaussian_losses(factor[:, None, None], generator, denoising_loss)
    (slope,) = torch.autograd.grad(value.sum(), factor)
    assert_zscore(slope.numpy(), 0.0)
    # a score of the clean data, or one 10 % off, is not a minimum
    for wrong in (1.1, (WIDTH**2 + LEVEL**2) / WIDTH**2):
        factor = torch.full((N,), wrong, requires_grad=True)
        value = gaussian_losses(factor[:, None, None], generator, denoising_loss)
        (slope,) = torch.autograd.grad(value.sum(), factor)
        with pytest.raises(AssertionError, match="z = "):
            assert_zscore(slope.numpy(), 0.0)


def test_force_loss_is_least_at_the_score_of_noised_data(generator):
    """∇ log p_σ(y) = E[f(x) | y], at noise as wide as the data; with wrong labels it is not."""
    x = WIDTH * torch.randn(N, 2, 3, generator=generator)
    epsilon, level = torch.randn(x.shape, generator=generator), torch.full((N,), WIDTH)

    def slopes(wrong, labels):
        factor = torch.full((N,), wrong, requires_grad=True)
        s = [
            -factor[:, None, None] * y / (2 * WIDTH**2)
            for y in (x + WIDTH * epsilon, x - WIDTH * epsilon)
        ]
        return torch.autograd.grad(force_loss(*s, labels, level).sum(), factor)[0].numpy()

    assert_zscore(slopes(1.0, -x / WIDTH**2), 0.0)
    for wrong, labels in ((1.1, -x / WIDTH**2), (1.0, -1.1 * x / WIDTH**2), (1.0, x / WIDTH**2)):
        with pytest.raises(AssertionError, match="z = "):
            assert_zscore(slopes(wrong, labels), 0.0)


def test_exact_value_of_the_denoising_loss(generator):
    """At the truth ``-σ² E|s|²``: ``-σ² d/(width² + σ²)``."""
    values = gaussian_losses(1.0, generator, denoising_loss)
    assert_zscore(values.numpy(), -6 * LEVEL**2 / (WIDTH**2 + LEVEL**2))


@pytest.mark.usefixtures("float64")
def test_antithetic_loss_is_plain_denoising_without_its_constant(generator):
    """``½(|σs₊ + ε|² + |σs₋ - ε|²) - d``, term by term and in expectation, with less noise."""

    def plain(plus, minus, epsilon, sigma):
        return (sigma[:, None, None] * plus + epsilon).square().sum((1, 2))

    for factor in (1.0, 0.7):
        ours = gaussian_losses(factor, generator, denoising_loss)
        other = gaussian_losses(factor, generator, plain) - 6
        difference = (ours - other).numpy()
        assert_zscore(difference, 0.0)
        assert ours.var() < other.var()

    def completed(plus, minus, epsilon, sigma):
        s = sigma[:, None, None]
        pair = (s * plus + epsilon).square() + (s * minus - epsilon).square()
        return 0.5 * pair.sum((1, 2)) - epsilon.square().sum((1, 2))

    seed = generator.initial_seed()
    a, b = (
        gaussian_losses(0.7, torch.Generator().manual_seed(seed), f)
        for f in (denoising_loss, completed)
    )
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_variance_does_not_grow_at_small_noise(generator):
    """Where plain denoising has errors d/σ², the antithetic loss divided by σ² has none."""
    spreads = []
    for level in (1e-1, 1e-3):
        x = torch.randn(N, 1, 3, generator=generator)
        epsilon = torch.randn(x.shape, generator=generator)
        sigma = torch.full((N,), level)
        value = denoising_loss(-x - level * epsilon, -x + level * epsilon, epsilon, sigma)
        spreads.append(float((value / level**2).std()))
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


# ------------------------------------------------------------------ along a rotor


KAPPA, DELTA = 2.0, 0.02  # von Mises concentration, angular noise


def von_mises(rng):
    phi = torch.as_tensor(rng.vonmises(0.7, KAPPA, N))
    return phi, at_angle(phi)


def torsion_score(x, factor=1.0):
    """Cartesian score of ``E = -κ cos(φ - 0.7)`` for the chain above."""

    def energy(y, sigma):
        return -factor * KAPPA * torch.cos(torch.atan2(y[:, 3, 1], y[:, 3, 0]) - 0.7)

    return score(energy, x, torch.zeros(len(x)))[1]


@pytest.mark.usefixtures("float64")
def test_angular_score_of_a_von_mises_torsion(rng):
    phi, x = von_mises(rng)
    moves, rotor = Moves(chain()), torch.zeros(N, dtype=torch.long)
    g = moves.angular_score(x, torsion_score(x), rotor)
    assert torch.allclose(g, -KAPPA * torch.sin(phi - 0.7), atol=1e-10)


@pytest.mark.parametrize("factor, least", [(1.0, True), (1.15, False), (0.85, False)])
def test_torsional_loss_is_least_at_the_true_score(rng, generator, factor, least):
    """In closed form in the factor c of the score: slope ``2c⟨g²⟩ + …`` vanishes at c = 1."""
    _, x = von_mises(rng)
    moves, rotor = Moves(chain()), torch.zeros(N, dtype=torch.long)
    xi = torch.randn(N, generator=generator)
    scale = torch.full((N,), factor, requires_grad=True)
    turned = [
        moves.angular_score(y, torsion_score(y), rotor)
        for y in (moves.rotate(x, rotor, sign * DELTA * xi) for sign in (1, -1))
    ]
    value = torsional_loss(scale * turned[0], scale * turned[1], xi, DELTA)
    slope = torch.autograd.grad(value.sum(), scale)[0].numpy()
    if least:
        assert_zscore(slope, 0.0)
    else:
        with pytest.raises(AssertionError, match="z = "):
            assert_zscore(slope, 0.0)


@pytest.mark.usefixtures("float64")
def test_rigid_rotations_keep_distances_and_are_inverted(dipeptide, generator):
    moves, x = Moves(dipeptide.topology), torch.as_tensor(dipeptide.positions[:500])
    rotor = moves.choose(500, generator)
    assert set(rotor.tolist()) == set(range(7))
    angle = 2 * math.pi * torch.rand(500, generator=generator)
    y = moves.rotate(x, rotor, angle)
    before, after = torch.cdist(x, x), torch.cdist(y, y)
    moved = moves.moved[rotor]
    same = moved[:, :, None] == moved[:, None, :]
    assert (before - after)[same].abs().max() < 1e-10
    assert torch.equal(y[~moved], x[~moved])
    # the far end keeps its distance from the axis as well
    axis = moves.axes[rotor]
    for end in (0, 1):
        row = torch.arange(500)
        assert (before[row, axis[:, end]] - after[row, axis[:, end]]).abs().max() < 1e-10
    assert (moves.rotate(y, rotor, -angle) - x).abs().max() < 1e-10
    half = moves.rotate(moves.rotate(x, rotor, angle / 2), rotor, angle / 2)
    assert (half - y).abs().max() < 1e-10
    # the torsion turns by the angle
    proposals = TorsionProposals(dipeptide.topology, x)
    turned = proposals.angles(y) - proposals.angles(x)
    mine = turned[torch.arange(500), rotor] - proposals.sign[rotor] * angle
    assert (torch.remainder(mine + 1, 2 * math.pi) - 1).abs().max() < 1e-8


@pytest.mark.usefixtures("float64")
def test_rotations_keep_volumes(dipeptide):
    x = torch.as_tensor(dipeptide.positions[:1])
    moves, rotor, angle = Moves(dipeptide.topology), torch.tensor([3]), torch.tensor([1.1])
    jacobian = torch.autograd.functional.jacobian(lambda y: moves.rotate(y, rotor, angle), x)
    assert torch.linalg.det(jacobian.reshape(66, 66)) == pytest.approx(1.0, abs=1e-10)


def test_scramble_keeps_bonds_and_hands(dipeptide, generator):
    moves, x = Moves(dipeptide.topology), torch.as_tensor(dipeptide.positions[:300])
    y = moves.scramble(x, 3, generator)
    bonds = torch.as_tensor(dipeptide.topology.bonds)
    assert torch.allclose(
        (y[:, bonds[:, 0]] - y[:, bonds[:, 1]]).norm(dim=-1),
        (x[:, bonds[:, 0]] - x[:, bonds[:, 1]]).norm(dim=-1),
    )
    assert ((x - y).abs().amax((1, 2)) > 1e-3).float().mean() > 0.95


# ------------------------------------------------------------- weights of two modes


@pytest.mark.parametrize("guess, least", [(1.0, True), (0.8, False), (1.2, False)])
def test_contrastive_loss_is_least_at_the_true_log_odds(generator, guess, least):
    """Two states with ΔE = 1 kT and the symmetric move between them."""
    first = torch.rand(N, generator=generator) < 1 / (1 + math.exp(-1.0))
    gap = torch.full((N,), guess, requires_grad=True)
    here, there = torch.where(first, 0.0, gap), torch.where(first, gap, 0.0)
    slope = torch.autograd.grad(contrastive_loss(here, there).sum(), gap)[0].numpy()
    if least:
        assert_zscore(slope, 0.0)
    else:
        with pytest.raises(AssertionError, match="z = "):
            assert_zscore(slope, 0.0)


def test_contrastive_loss_of_a_clash_has_finite_gradients():
    energy = torch.zeros(5, requires_grad=True)
    moved = torch.tensor([0.0, 20.0, 1e4, 1e30, math.inf], requires_grad=True)
    loss = contrastive_loss(energy, moved)
    for gradient in torch.autograd.grad(loss.sum(), (energy, moved)):
        assert torch.isfinite(gradient).all()
        # zero or a normal number of single precision
        assert ((gradient == 0) | (gradient.abs() > 1e-30)).all()
    assert loss[0].item() == pytest.approx(math.log(2)) and 0 <= loss[2:].max() < 1e-12
    # data far above its move are not cut off
    assert contrastive_loss(torch.tensor(500.0), torch.tensor(0.0)) == 500.0


@pytest.mark.usefixtures("float64")
def test_proposals_of_torsions_state_their_density(rng, generator):
    """For a uniform torsion and any table q: E[q(x)/q(y)] over proposals y ~ q is one."""
    phi = torch.as_tensor(rng.vonmises(0.7, KAPPA, 4000))
    proposals = TorsionProposals(chain(), at_angle(phi))
    assert proposals.density.sum(1).allclose(torch.ones(1))
    x = at_angle(torch.as_tensor(rng.uniform(-np.pi, np.pi, N)))
    y, log_ratio = proposals.propose(x, generator)
    assert_zscore(torch.exp(-log_ratio).numpy(), 1.0)
    assert torch.allclose((y[:, 3] - y[:, 2]).norm(dim=-1), torch.ones(N))


def test_proposals_make_the_true_log_odds_least(rng, generator):
    """The logit ``E(x) - E(y) - log q(y)/q(x)`` of a von Mises torsion, scaled by c."""
    phi = torch.as_tensor(rng.vonmises(0.7, KAPPA, N))
    x = at_angle(phi)
    proposals = TorsionProposals(chain(), x)
    y, log_ratio = proposals.propose(x, generator)

    def energy(z):
        return -KAPPA * torch.cos(torch.atan2(z[:, 3, 1], z[:, 3, 0]) - 0.7)

    for factor, least in ((1.0, True), (1.15, False), (0.85, False)):
        c = torch.full((N,), factor, requires_grad=True)
        value = softplus(c * (energy(x) - energy(y)) - log_ratio)
        slope = torch.autograd.grad(value.sum(), c)[0].numpy()
        if least:
            assert_zscore(slope, 0.0)
        else:
            with pytest.raises(AssertionError, match="z = "):
                assert_zscore(slope, 0.0)


# --------------------------------------------------------------------------- small


def test_score_is_minus_the_gradient():
    x, sigma = torch.randn(3, 2, 3), torch.ones(3)
    value, s = score(lambda y, level: (0.5 * y.square()).sum((1, 2)) * level, x, 2 * sigma)
    assert torch.allclose(value, x.square().sum((1, 2))) and torch.allclose(s, -2 * x)
    assert not s.requires_grad and not x.requires_grad
    _, s = score(lambda y, level: y.pow(4).sum((1, 2)), x, sigma, create_graph=True)
    assert s.requires_grad


def test_log_uniform_noise_levels(generator):
    sigma = log_uniform(N, 1e-3, 10.0, generator)
    assert 1e-3 <= sigma.min() and sigma.max() <= 10.0
    assert_zscore(sigma.double().log().numpy(), 0.5 * math.log(1e-2))
    assert log_uniform(4, 0.3, 0.3, generator).tolist() == pytest.approx([0.3] * 4)
