"""Energy and gradient compiled: the same numbers for any number of structures, or why not."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from diffmd_ase.score.neighbours import find_pairs
from diffmd_ase.score.networks.build import build
from diffmd_ase.score.networks.embedded import EmbeddedConfig
from diffmd_ase.score.networks.equivariant import EquivariantConfig
from diffmd_ase.score.networks.gradients import Compiled, deformed
from diffmd_ase.score.networks.inputs import Inputs
from diffmd_ase.score.networks.molecule import MechanicsConfig, PairConfig
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.system import System

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}


def rattled(atoms, count=40):
    rng = np.random.default_rng(0)
    x = atoms.positions + 0.04 * rng.normal(size=(count, len(atoms), 3))
    return Snapshots(System.from_atoms(atoms), x, 300)


def network_of(config, snapshots, dtype):
    torch.manual_seed(0)
    network = build(config, snapshots, sigma=0.01)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape).to(parameter)
    return network.to(dtype).eval().requires_grad_(False)


def arguments(network, snapshots, count, dtype, *, strained):
    x = torch.as_tensor(snapshots.positions[:count]).to(dtype)
    told = Inputs.of(snapshots.system, dtype=dtype)
    cutoff = getattr(network.config, "cutoff", None)
    pairs = None
    if cutoff is not None:
        pairs = find_pairs(x, cutoff + 0.7, told.cell, told.pbc).closer(cutoff, x, told.cell)
    strain = x.new_zeros(count, 3, 3) if strained else None
    return x, strain, x.new_full((1,), 0.02), told, pairs


def as_written(network, x, strain, sigma, told, pairs):
    inputs = [part.clone().requires_grad_() for part in (x, strain) if part is not None]
    at = inputs[0]
    if strain is not None:
        at, told = deformed(*inputs, told)
    energy = network(at, sigma, **told._asdict(), **({} if pairs is None else {"pairs": pairs}))
    return torch.autograd.grad(energy.sum(), inputs), energy


def assert_same(network, compiled, given):
    (got, energy), (expected, e) = compiled(*given), as_written(network, *given)
    for a, b in zip((*got, energy), (*expected, e), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= CLOSE[b.dtype] * b.abs().max()


@pytest.mark.slow
def test_the_same_numbers_and_nothing_compiled_anew():
    snapshots = rattled(molecule("H2O2"), 400)
    network = network_of(MechanicsConfig(width=8), snapshots, torch.float32)
    compiled = Compiled(network)
    assert_same(network, compiled, arguments(network, snapshots, 6, torch.float32, strained=False))
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (1, 3, 17, 6):
            given = arguments(network, snapshots, count, torch.float32, strained=False)
            assert_same(network, compiled, given)
    assert not compiled.failed


def shifted(at, x, by):
    y = x + by
    return y, *at(y)


@pytest.mark.slow
def test_what_is_moved_before():
    """A move and the network behind it are one function, also of one structure.

    That has one of its own, and whichever is there first is used for it.
    """
    snapshots = rattled(molecule("H2O2"), 400)
    network = network_of(MechanicsConfig(width=8), snapshots, torch.float64)
    compiled, functions = Compiled(network), []
    for count in (5, 1, 3, 0, 1, 1, 4, 1):
        if not count:
            compiled = Compiled(network)
            continue
        x, _, sigma, told, _ = arguments(network, snapshots, count, torch.float64, strained=False)
        by = 0.01 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        y, energy, forces = compiled.within(shifted, (x, by), sigma, told, 0.5)
        (expected,), e = as_written(network, x + by, None, sigma, told, None)
        assert torch.allclose(y, x + by, rtol=1e-14)
        for a, b in ((forces, -0.5 * expected), (energy, 0.5 * e)):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-12 * b.abs().max()
        functions.append(len(compiled._made))
    assert functions == [1, 1, 1, 1, 1, 2, 2]
    assert not compiled.failed


@pytest.mark.slow
@pytest.mark.parametrize("config", [MechanicsConfig(width=32), PairConfig(width=32)])
def test_one_structure_whatever_was_compiled_before(config):
    """The last walker of a run goes on, bit by bit, as it does after a restart, alone at once."""
    snapshots = rattled(molecule("H2O2"), 400)
    network = network_of(config, snapshots, torch.float32)
    x, _, sigma, told, _ = arguments(network, snapshots, 16, torch.float32, strained=False)
    by = torch.full_like(x, 0.01)
    lost, alone = Compiled(network), Compiled(network)
    lost.within(shifted, (x, by), sigma, told)
    for one, move in zip(x[:, None], by[:, None], strict=True):
        pairs = [c.within(shifted, (one, move), sigma, told) for c in (lost, alone)]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    assert len(lost._made) == len(alone._made) == 1 and lost._made.keys() != alone._made.keys()


CONFIGS = {
    "mechanics": MechanicsConfig(width=8),
    "pair": PairConfig(width=8),
    "embedded": EmbeddedConfig(cutoff=4.0, functions=8),
    "equivariant": EquivariantConfig(channels=4, elements=(29,), cutoff=4.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_network(kind):
    """In float64, where rounding hides nothing; with a stress where there is a cell."""
    periodic = kind in ("embedded", "equivariant")
    atoms = bulk("Cu", cubic=True) * (2, 1, 1) if periodic else molecule("H2O2")
    snapshots = rattled(atoms)
    network = network_of(CONFIGS[kind], snapshots, torch.float64)
    compiled = Compiled(network)
    for count in (5, 3):
        given = arguments(network, snapshots, count, torch.float64, strained=periodic)
        assert_same(network, compiled, given)
    assert not compiled.failed


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["a compiler", "a folder"])
def test_where_it_cannot_be_compiled(tmp_path, lacks):
    """One line says what is missing, and the numbers are those of the network as it is."""
    (tmp_path / "file").touch()
    folder = "cache" if lacks == "a compiler" else "file/cache"  # which nobody can make
    surroundings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / folder)}
    if lacks == "a compiler":
        surroundings["CXX"] = str(tmp_path / "no-such-compiler")
    code = """
        import warnings
        import torch
        from diffmd_ase.score.model import ScoreModel
        from diffmd_ase.score.snapshots import Snapshots

        model = ScoreModel.load("alanine-dipeptide")
        x = torch.as_tensor(Snapshots.read("alanine-dipeptide").positions[:2])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            potential = model.potential(device="cpu", compile=True)
            first, second = potential(x), potential(x)
        assert torch.equal(first.forces, model.potential(device="cpu", compile=False)(x).forces)
        words = [str(w.message) for w in said if "cannot be compiled" in str(w.message)]
        assert len(words) == 1, said
        assert "\\n" not in words[0]
        print(words[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for word in ("compiler", "TORCHINDUCTOR_CACHE_DIR"):
        assert word in done.stdout


@pytest.mark.parametrize("angular", [0.0, 3.0])
def test_candidates_beyond_the_cutoff_count_nothing(angular):
    """Of embedded atoms all pairs of a list may be looked at, as compiled potentials do."""
    snapshots = rattled(bulk("NaCl", "rocksalt", a=4.2, cubic=True))
    config = EmbeddedConfig(cutoff=4.0, functions=8, angular=angular)
    network = network_of(config, snapshots, torch.float64)
    x, _, sigma, told, pairs = arguments(network, snapshots, 2, torch.float64, strained=False)
    wide = replace(find_pairs(x, 6.0, told.cell, told.pbc), chosen=True)
    assert len(wide.source) > 2 * len(pairs.source)
    (slope,), energy = as_written(network, x, None, sigma, told, wide)
    (expected,), e = as_written(network, x, None, sigma, told, pairs)
    assert torch.allclose(energy, e, rtol=1e-12)
    assert (slope - expected).abs().max() < 1e-11 * expected.abs().max()
