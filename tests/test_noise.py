"""Randomness by address: published vectors, independence of batch and order, moments."""

import math

import pytest
import torch
from messages import names
from scipy import stats

from diffmd_ase.noise import Noise, philox4x32

# Random123 (Salmon et al. 2011), kat_vectors, philox4x32 with 10 rounds
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(word.item() for word in words) == expected


@pytest.mark.usefixtures("float64")
def test_address_to_counter():
    """Block, walker, low step, stream and high step; key low and high; Box–Muller."""
    seed, walker, step, stream = 0x0123456789ABCDEF, 7, (5 << 32) + 9, 3
    counter = (1, walker, 9, (stream << 16) | 5)
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), (0x89ABCDEF, 0x01234567))
    u = [(word.item() + 0.5) / 2**32 for word in words]
    radius = math.sqrt(-2 * math.log(u[2]))
    expected = radius * math.sin(2 * math.pi * u[3])  # last of the four numbers of block 1
    numbers = Noise(seed).normal(step, torch.zeros(4, 3), walkers=[walker], stream=stream)
    assert numbers.reshape(-1)[7].item() == pytest.approx(expected, rel=1e-14)
    a, b = (word.item() for word in words[2:])
    uniform = Noise(seed).uniform(step, torch.zeros(()), walkers=[walker], stream=stream)
    first = philox4x32(
        tuple(torch.tensor([c]) for c in (0, *counter[1:])), (0x89ABCDEF, 0x01234567)
    )
    a, b = first[0].item(), first[1].item()
    assert uniform.item() == (((a << 21) | (b >> 11)) + 1) * 2.0**-53


@pytest.mark.parametrize("atoms", [1, 2, 5, 22])
def test_walker_does_not_depend_on_its_batch(atoms):
    whole = Noise(1).normal(3, torch.zeros(64, atoms, 3))
    for walker in (0, 17, 63):
        alone = Noise(1).normal(3, torch.zeros(1, atoms, 3), walkers=torch.tensor([walker]))
        assert torch.equal(alone[0], whole[walker])
    assert torch.equal(Noise(1).normal(3, torch.zeros(atoms, 3)), whole[0])
    some = Noise(1).normal(3, torch.zeros(2, atoms, 3), walkers=[40, 5])
    assert torch.equal(some, whole[[40, 5]])
    uniform = Noise(1).uniform(3, torch.zeros(64))
    assert torch.equal(Noise(1).uniform(3, torch.zeros(1), walkers=[9])[0], uniform[9])
    assert torch.equal(Noise(1).uniform(3, torch.zeros(())), uniform[0])


def test_blocks_are_singles_in_any_order():
    like, steps = torch.zeros(3, 5, 3), torch.arange(40)
    block = Noise(2).normal(steps, torch.zeros(40, 3, 5, 3))
    forward, backward, mixed = Noise(2), Noise(2), Noise(2)
    for step in range(40):  # draws ahead
        assert torch.equal(forward.normal(step, like), block[step])
        mixed.uniform(step, torch.zeros(3))
        mixed.normal(step, torch.zeros(2, 5, 3))
        assert torch.equal(mixed.normal(step, like), block[step])
    for step in reversed(range(40)):
        assert torch.equal(backward.normal(step, like), block[step])
    uniform = Noise(2).uniform(steps, torch.zeros(40, 3))
    assert torch.equal(uniform[11], forward.uniform(11, torch.zeros(3)))


def test_writing_into_the_numbers_is_harmless():
    noise, like = Noise(3), torch.zeros(4, 3)
    first = noise.normal(0, like)
    kept = first.clone()
    first.zero_()
    assert torch.equal(noise.normal(0, like), kept)


def test_long_runs():
    """Steps beyond 2³² (six months at 270 steps/s) are new numbers, also across the border."""
    like, border = torch.zeros(5, 3), 1 << 32
    noise = Noise(4)
    steps = range(border - 3, border + 3)
    singles = [noise.normal(step, like) for step in steps]
    for step, single in zip(steps, singles, strict=True):
        assert torch.equal(single, Noise(4).normal(step, like))
        wrapped = Noise(4).normal(step % border, like)
        assert torch.equal(single, wrapped) is (step < border)
    block = Noise(4).normal(torch.tensor(list(steps)), torch.zeros(6, 5, 3))
    assert torch.equal(block, torch.stack(singles))


def test_every_part_of_the_address_counts():
    like = torch.zeros(2, 3)
    base = Noise(5).normal(1, like)
    for other in (
        Noise(6).normal(1, like),
        Noise(5 + (1 << 32)).normal(1, like),
        Noise(5).normal(2, like),
        Noise(5).normal(1, like, stream=1),
        Noise(5).normal(1, like, walkers=[1]),
    ):
        assert not torch.isclose(other, base).any()
    drawn = Noise()
    assert torch.equal(Noise(drawn.seed).normal(1, like), drawn.normal(1, like))
    assert Noise().seed != drawn.seed


def normal_z(x):
    """z-scores of the first four moments of standard normal numbers."""
    n = x.numel()
    return torch.stack(
        [
            x.mean() * math.sqrt(n),
            (x.square().mean() - 1) * math.sqrt(n / 2),
            x.pow(3).mean() * math.sqrt(n / 15),
            (x.pow(4).mean() - 3) * math.sqrt(n / 96),
        ]
    )


def test_normal_numbers():
    x = Noise(7).normal(torch.arange(100), torch.zeros(100, 50, 20, 3))
    assert normal_z(x).abs().max() < 4
    assert normal_z(x * 1.02).abs().max() > 8  # negative control
    assert stats.kstest(x[:20].numpy().ravel(), "norm").pvalue > 1e-4
    # independent along every axis of the address and within it
    n = x.numel()
    for axis in range(4):
        pairs = x.narrow(axis, 0, x.shape[axis] - 1) * x.narrow(axis, 1, x.shape[axis] - 1)
        assert abs(pairs.mean() * math.sqrt(pairs.numel())) < 4
    squares = x.square() - 1
    assert abs((squares[1:] * squares[:-1]).mean() * math.sqrt(n) / 2) < 4
    streams = Noise(7).normal(torch.arange(100), torch.zeros(100, 50, 20, 3), stream=1)
    assert abs((x * streams).mean() * math.sqrt(n)) < 4


def test_uniform_numbers():
    u = Noise(8).uniform(torch.arange(300), torch.zeros(300, 1000))
    assert 0 < u.min() < 1e-4 and 1 - 1e-4 < u.max() <= 1
    assert stats.kstest(u[:30].numpy().ravel(), "uniform").pvalue > 1e-4
    n = u.numel()
    assert abs((u.mean() - 0.5) * math.sqrt(12 * n)) < 4
    assert torch.isfinite(u.log()).all()


def test_single_precision_is_the_rounded_double():
    double = Noise(9).normal(0, torch.zeros(6, 3))
    single = Noise(9).normal(0, torch.zeros(6, 3, dtype=torch.float32))
    assert single.dtype == torch.float32 and torch.equal(single, double.float())


@pytest.mark.gpu
def test_numbers_do_not_depend_on_the_device():
    cpu = Noise(10).normal(0, torch.zeros(64, 22, 3))
    cuda = Noise(10).normal(0, torch.zeros(64, 22, 3, device="cuda")).cpu()
    torch.testing.assert_close(cuda, cpu, rtol=1e-13, atol=1e-13)


def test_bad_addresses():
    like = torch.zeros(2, 4, 3)
    with pytest.raises(TypeError, match="must be an int"):
        Noise(1.5)
    with pytest.raises(TypeError, match="must be an int"):
        Noise(True)
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64"):
            Noise(seed)
    for bad, facts in (
        (lambda n: n.normal(0, like, walkers=[1]), ["1 walker", "2"]),
        (lambda n: n.normal(0, like, walkers=[-1, 0]), ["-1", "2**32"]),
        (lambda n: n.normal(0, like, walkers=[0, 1 << 32]), [1 << 32, "2**32"]),
        (lambda n: n.normal(0, like, stream=1 << 16), ["stream=65536", "2**16"]),
        (lambda n: n.normal(-1, like), ["-1", "2**48"]),
        (lambda n: n.normal(1 << 48, like), [1 << 48, "2**48"]),
        (lambda n: n.normal(torch.arange(3), like), ["(2, 4, 3)", 3]),
        (lambda n: n.normal(0, torch.zeros(2, 2, 4, 3)), ["(2, 2, 4, 3)"]),
        (lambda n: n.normal(0, torch.zeros(3)), ["(3,)"]),
    ):
        with pytest.raises(ValueError, match=names(*facts)):
            bad(Noise(0))
