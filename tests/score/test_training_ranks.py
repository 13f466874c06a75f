"""Trainings on several ranks: one set of weights, the gradient of all rows, and what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranked_training
import torch
from ase.io import write
from messages import names

from diffmd_ase.score.fit import batch_sizes, fit, frames_of
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.networks.build import below, build
from diffmd_ase.score.objective import Objective
from diffmd_ase.score.plan import plan
from diffmd_ase.score.sets import as_sets
from diffmd_ase.score.training_state import generator_of, read_checkpoint

SCRIPT = Path(ranked_training.__file__)
JOBS = ["1 train one", "2 train two", "2 train step steps=1"]
JOBS += ["2 train stopped how=stops", "2 train again folder=stopped"]
JOBS += ["2 train dead how=dies", "1 train alone folder=dead"]
JOBS += ["2 train small batch_size=1", "2 train apart how=differs"]


@pytest.fixture(autouse=True)
def _single():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, {prefix: exit codes of ranks}, and what they said."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, SCRIPT, " / ".join(JOBS)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(map(json.loads, done.stdout.splitlines())), done.stderr


def model(folder, name):
    return ScoreModel.load(folder / f"{name}.safetensors")


def weights(folder, name):
    networks = model(folder, name).networks
    return {f"{n}.{k}": v for n, net in enumerate(networks) for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(folder, name):
    return [entry["validation_loss"] for entry in model(folder, name).card.experts[1].history]


def test_all_ranks_have_the_same_weights(trained):
    folder, codes, said = trained
    assert codes["one"] == [0] and codes["two"] == [0, 0], said
    two = weights(folder, "two.0")
    assert same(two, weights(folder, "two.1"))
    assert not same(two, weights(folder, "one.0"))  # of other snapshots and noise
    assert model(folder, "two.0").card.training["ranks"] == 2


def test_two_ranks_learn_what_one_does(trained):
    """12 steps: losses of the same frames and noise, and what was gained of that at the start."""
    folder, _, _ = trained
    one, two = (losses(folder, name) for name in ("one.0", "two.1"))
    assert one[0] == two[0] and len(one) == len(two) == 5
    assert two[0] - two[-1] == pytest.approx(one[0] - one[-1], rel=0.2)


def test_the_gradient_is_that_of_all_rows(trained, tmp_path):
    """After one step Adam has a tenth of it, clipped; here all rows in one process."""
    folder, codes, said = trained
    assert codes["step"] == [0, 0], said
    sets, config = as_sets(ranked_training.peroxide()), ranked_training.config(max_minutes=1e-9)
    expert = plan(sets, config)[1]
    ranked = read_checkpoint(folder / "step" / "broad.safetensors")[1]
    options = {"seed": ranked_training.SEED, "device": "cpu", "report": lambda *told: None}
    fit(expert, sets, config, folder=tmp_path, **options)  # no time for a step
    facts, start = read_checkpoint(tmp_path / "broad.safetensors")
    assert facts.step == 0
    network = build(expert.network, below(start, "network."))
    network.load_state_dict(below(start, "network."))
    training, _ = sets[0].split(config.validation_fraction, seed=ranked_training.SEED)
    x, objective = frames_of(training, False, "cpu"), Objective(expert, sets, "cpu")
    parts = []
    for rank in range(2):
        generator = generator_of(ranked_training.SEED, "broad", 0, rank)
        index = torch.randint(len(x), (8,), generator=generator)
        parts.append(objective(network, [x[index]], generator)["loss"])
    (sum(parts) / 2).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), expert.clip)
    known = {n: p.grad for n, p in enumerate(network.parameters()) if p.grad is not None}
    assert len(known) > 10 and {f"adam.{n}.exp_avg" for n in known} <= ranked.keys()
    for n, gradient in known.items():
        assert torch.allclose(10 * ranked[f"adam.{n}.exp_avg"], gradient, rtol=1e-4, atol=1e-6)


def test_a_restart_is_the_uninterrupted_training(trained):
    folder, codes, said = trained
    assert codes["stopped"] == [1, 1] and codes["again"] == [0, 0], said
    assert names(said, "stopped: ValueError: stopped", "stopped: RankError: rank 1: rank 0")
    assert same(weights(folder, "again.0"), weights(folder, "two.0"))
    assert same(weights(folder, "again.1"), weights(folder, "two.0"))


def test_a_rank_that_dies_ends_it_and_another_number_goes_on(trained):
    folder, codes, said = trained
    assert codes["dead"] == [1, -9] and codes["alone"] == [0], said
    assert names(said, "dead: RankError: rank 0: rank 1: the connection is closed", "--directory")
    steps = [entry["step"] for entry in model(folder, "alone.0").card.experts[0].history]
    assert steps == [0, 3, 6, 9, 12]


def test_ranks_that_cannot_train_together(trained):
    folder, codes, said = trained
    assert codes["small"] == codes["apart"] == [1, 1]
    assert names(said, "2 ranks, but a batch of 1 has 1 snapshot of a set", "--batch-size")
    assert names(said, "ranks must train alike: seed is 3 on rank 0 and 4 on rank 1")
    assert not (folder / "small").exists() and not (folder / "apart").exists()


def test_each_rank_has_an_equal_part_of_each_set():
    data = ranked_training.peroxide()
    sets = as_sets(data)
    assert [batch_sizes(sets, 16, ranks) for ranks in (1, 2, 3)] == [[16], [8], [6]]
    two = (data.take(slice(0, 150)), data.take(slice(150, 200)))
    assert batch_sizes(two, 16) == [12, 4] and batch_sizes(two, 16, 4) == [3, 1]
    with pytest.raises(ValueError) as error:
        batch_sizes(two, 16, 5)
    assert names(error.value, "5 ranks, but a batch of 16 has 4 snapshots", "at most 4 ranks")


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    """Real processes of the launcher, and the command line."""
    data = ranked_training.peroxide()
    frames = [data.system.to_atoms(x) for x in data.positions]
    write(tmp_path / "peroxide.xyz", frames)
    words = "train peroxide.xyz --temperature 300 --steps 5 --batch-size 16 --device cpu"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", "-m", "diffmd_ase", *words.split(), "--no-progress"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("200 snapshots of H2O2") == 1  # rank 0 alone speaks
    assert ScoreModel.load(tmp_path / "model.safetensors").card.training["ranks"] == 2
