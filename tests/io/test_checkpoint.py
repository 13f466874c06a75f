"""Checkpoints of kernels that remember things, and of earlier versions."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffmd_ase.io.checkpoint import load_checkpoint, save_checkpoint
from diffmd_ase.io.tensors import save_tensors
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.delayed import DelayedAcceptance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.sampling.hamiltonian import GeneralizedHMC
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run
from diffmd_ase.state import State

SOFT, STIFF = Harmonic(1.0), Harmonic(1.3)
X = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MALA = Metropolis(EulerMaruyama(SOFT, 0.1, 0.02), STIFF)
GHMC = GeneralizedHMC(SOFT, kT=0.1, timestep=0.2, masses=1.0, friction=0.3, target=STIFF)
KERNELS = {
    "GHMC": GHMC,
    "mixture": Mixture([GHMC, MALA]),
    "delayed": DelayedAcceptance(Mixture([MALA, GHMC]), SOFT, n_inner=2),
    "exchange of mixtures": ReplicaExchange(Mixture([MALA, GHMC]), 2, every=2),
    "exchange of delayed": ReplicaExchange(DelayedAcceptance(MALA, SOFT, n_inner=2), 2, every=1),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_restart_is_the_uninterrupted_chain(tmp_path, name):
    kernel = KERNELS[name]
    whole = [state for state, _ in run(kernel, X, 9, noise=Noise(7))]
    save_checkpoint(tmp_path / "a", whole[4], seed=7)
    saved = load_checkpoint(tmp_path / "a")
    assert type(saved.state.record) is type(whole[4].record)
    [(last, _)] = run(kernel, saved.state, 4, noise=Noise(saved.seed), every=4)
    assert torch.equal(last.x, whole[-1].x) and torch.equal(last.energy, whole[-1].energy)


def digest_of_first_schema(tensors):
    total = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        total.update(f"{name}{t.dtype}{tuple(t.shape)}".encode() + t.numpy().tobytes())
    return total.hexdigest()


def first_schema(path, **extra):
    """A checkpoint as version 0.1.0 of November 2026 wrote it."""
    state = MALA.init(X)
    tensors = {"x": state.x, "forces": state.forces, "energy": state.energy}
    tensors |= {f"extra.{name}": value for name, value in extra.items()}
    header = {
        "format": "diffmd_ase checkpoint",
        "schema_version": 1,
        "step": 3,
        "seed": 7,
        "sha256": digest_of_first_schema(tensors),
        "parameters": {},
    }
    save_file(tensors, path, metadata={"diffmd_ase": json.dumps(header)})
    return state


def test_first_schema_goes_on_where_it_can(tmp_path):
    state = first_schema(tmp_path / "plain")
    loaded = load_checkpoint(tmp_path / "plain").state
    assert loaded.step == 3 and torch.equal(loaded.x, state.x)
    momenta = torch.ones_like(X)
    first_schema(tmp_path / "ghmc", momenta=momenta)
    assert torch.equal(load_checkpoint(tmp_path / "ghmc").state.momenta, momenta)


def test_first_schema_of_an_exchange_is_refused(tmp_path):
    first_schema(tmp_path / "exchange", replica=torch.arange(4))
    with pytest.raises(ValueError, match=r"exchange.*replica.*start a new one"):
        load_checkpoint(tmp_path / "exchange")


def test_a_record_that_nobody_knows(tmp_path):
    header = {
        "format": "diffmd_ase checkpoint",
        "schema_version": 2,
        "step": 3,
        "seed": 7,
        "records": ["Owned"],
        "parameters": {},
    }
    tensors = {"x": X, "forces": -X, "record.0.number": torch.zeros(4)}
    save_tensors(tmp_path / "a", tensors, "diffmd_ase", header)
    with pytest.raises(ValueError, match=r"'Owned'.*import the module"):
        load_checkpoint(tmp_path / "a")


def test_caches_are_left_out(tmp_path):
    state = State(X, None, X, fixed={0: SOFT(X)})
    save_checkpoint(tmp_path / "a", state, seed=0)
    assert load_checkpoint(tmp_path / "a").state.fixed == {}


@pytest.mark.parametrize(
    "change",
    [
        (b'\\"step\\": 400', b'\\"step\\": 100'),
        (b'\\"seed\\": 7', b'\\"seed\\": 8'),
        (b"0.25", b"0.35"),
        (b'"momenta"', b'"momentu"'),
    ],
)
def test_every_value_of_the_header_is_under_the_checksum(tmp_path, change):
    state = State(X, None, X, step=400, momenta=X)
    save_checkpoint(tmp_path / "a", state, seed=7, parameters={"h": 0.25})
    content = (tmp_path / "a").read_bytes()
    assert content.count(change[0]) == 1
    (tmp_path / "a").write_bytes(content.replace(*change))
    with pytest.raises(ValueError, match="checksum|truncated"):
        load_checkpoint(tmp_path / "a")


def test_flips_are_noticed(tmp_path):
    """No flipped bit gives another state, seed or parameters."""
    state = State(X, X.sum((-1, -2)), -X, step=400, momenta=X)
    save_checkpoint(tmp_path / "a", state, seed=7, parameters={"h": 0.25, "name": "x"})
    content, good = (tmp_path / "a").read_bytes(), load_checkpoint(tmp_path / "a")
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        place = int(rng.integers(len(content)))
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "b").write_bytes(changed)
        try:
            read = load_checkpoint(tmp_path / "b")
        except ValueError:
            continue
        assert read.seed == good.seed and read.parameters == good.parameters, place
        assert read.state.step == 400, place
        for name in ("x", "energy", "forces", "momenta"):
            assert torch.equal(getattr(read.state, name), getattr(good.state, name)), place
