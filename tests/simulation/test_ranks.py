"""Runs on several ranks: the same numbers as on one, whatever their number, and what goes wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import ranked_run
import torch
from messages import names

from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.ranks import Ranks
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.potentials.biases.recorded import Recorded
from diffmd_ase.sampling.acceptance import Tally
from diffmd_ase.sampling.combine import Mixture
from diffmd_ase.sampling.exchange import ReplicaExchange
from diffmd_ase.simulation.division import Division, default_chunk
from diffmd_ase.simulation.facts import merged, part_of
from diffmd_ase.simulation.planned import PlannedRun
from diffmd_ase.simulation.settings import RunSettings
from diffmd_ase.simulation.shares import Shares
from diffmd_ase.simulation.signals import Deferred
from diffmd_ase.simulation.verify import verify_file

SCRIPT = Path(ranked_run.__file__)
KINDS = ("plain", "metropolis", "exchange", "hills")


def forked(folder, *jobs, **environment):
    """{prefix: exit codes} of runs in processes, and what they said."""
    done = subprocess.run(
        [sys.executable, SCRIPT, " / ".join(jobs)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines())), done.stderr


def fingerprint(path):
    """SHA-256 of the positions of all walkers, in the order of their ids, and of their energies."""
    trajectory = Trajectory(path)
    assert trajectory.walkers.tolist() == list(range(5, 5 + len(trajectory.walkers)))
    parts = trajectory.positions[:], trajectory.energies
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [f"{size} {kind} {kind}{size} 30" for kind in KINDS for size in (1, 4)]
    jobs += ["1 plain other 30 chunk=4", "2 hills parts 12", "4 hills parts 30 restart"]
    jobs += ["4 plain many 10 walkers=3", "2 plain version 10 how=version"]
    jobs += ["2 plain dies 100 how=dies"]
    jobs += [f"{size} plain gone{size} 30 bad=0,1,2,3" for size in (1, 2)]
    codes, said = forked(folder, *jobs)
    return folder, codes, said


@pytest.mark.parametrize("kind", KINDS)
def test_the_chain_is_the_same_on_any_number_of_ranks(runs, kind):
    folder, codes, said = runs
    assert [codes[f"{kind}{size}"] for size in (1, 4)] == [[0], [0] * 4], said
    one, four = (fingerprint(folder / f"{kind}{size}.h5") for size in (1, 4))
    assert one == four
    one, four = (load_checkpoint(folder / f"{kind}{size}.restart") for size in (1, 4))
    assert torch.equal(one.state.x, four.state.x)
    same = "evaluations", "tally", "lost", "potential"
    assert all(one.parameters[name] == four.parameters[name] for name in same)


def test_other_chunks_are_another_chain(runs):
    """The negative control: the potential of these runs does depend on the batch."""
    folder, _, _ = runs
    assert fingerprint(folder / "plain1.h5") != fingerprint(folder / "other.h5")


def test_chunks_do_not_interact(tmp_path):
    """In chunks or all at once: one law, and here, but for what the batch does, one chain."""
    for name, chunk in (("all", None), ("chunks", 2)):
        ranked_run.go("hills", tmp_path / name, 30, chunk=chunk)
    every, chunks = (Trajectory(tmp_path / f"{name}.h5") for name in ("all", "chunks"))
    assert np.allclose(every.positions[:], chunks.positions[:], atol=2e-3)
    assert np.abs(every.positions[:] - chunks.positions[:]).max() > 0


def test_ranks_share_their_hills(runs):
    folder, _, _ = runs
    one, four = (folder / f"hills{size}.HILLS" for size in (1, 4))
    rows = [line for line in one.read_text().splitlines() if line[0] != "#"]
    assert one.read_bytes() == four.read_bytes() and len(rows) == 8 * 6
    assert not list(folder.glob("*HILLS*rank*"))


def test_a_restart_with_other_ranks_is_the_uninterrupted_run(runs):
    folder, codes, said = runs
    assert codes["parts"] == [0, 0, 0, 0], said
    assert fingerprint(folder / "parts.h5") == fingerprint(folder / "hills1.h5")
    assert (folder / "parts.HILLS").read_bytes() == (folder / "hills1.HILLS").read_bytes()
    saved = (load_checkpoint(folder / f"{name}.restart") for name in ("hills1", "parts"))
    whole, parts = (one.parameters for one in saved)
    assert all(whole[name] == parts[name] for name in ("evaluations", "tally", "tally_of_frame"))
    assert sorted(p.name for p in folder.glob("parts.*.h5")) == [
        f"parts.{rank}of4.h5" for rank in range(4)
    ]


def test_one_file_of_each_rank_and_an_index_of_all(runs, monkeypatch):
    folder, _, _ = runs
    whole, index = Trajectory(folder / "plain1.h5"), Trajectory(folder / "plain4.h5")
    parts = [Trajectory(folder / f"plain4.{rank}of4.h5") for rank in range(4)]
    assert [part.walkers.tolist() for part in parts] == [[5, 6], [7, 8], [9, 10], [11, 12]]
    assert index.parts == [part.path for part in parts] and not whole.parts
    x = whole.positions[:]
    for key in (-1, slice(1, 5, 2), (2, 3), (slice(None), -1), (slice(0, 4), [6, 0], 1)):
        assert np.array_equal(index.positions[key], x[key])
    assert np.array_equal(index.to_atoms(3, 9).positions, whole.to_atoms(3, 9).positions)
    assert verify_file(index.path)[0].good
    monkeypatch.chdir("/")  # what other programs read, from anywhere
    with h5py.File(index.path) as file, h5py.File(whole.path) as plain:
        for name in ("position/value", "position/step", "position/time", "id", "species"):
            path = f"particles/trajectory/{name}"
            assert np.array_equal(file[path][:], plain[path][:]), name
        energies = "observables/potential_energy/value"
        assert np.array_equal(file[energies][:], plain[energies][:])


def test_more_ranks_than_walkers(runs):
    folder, codes, said = runs
    assert codes["many"] == [1, 1, 1, 1] and "4 ranks for 3 walkers" in said
    assert not list(folder.glob("many*"))


def test_ranks_of_different_versions(runs):
    folder, codes, said = runs
    assert codes["version"] == [1, 1] and not list(folder.glob("version*"))
    assert names(said, "the same versions: diffmd-ase is", "on rank 0", ".other on rank 1")


def test_a_rank_that_dies_ends_the_run_with_every_file_readable(runs):
    folder, codes, said = runs
    assert codes["dies"] == [1, -9]
    assert names(said, "dies: RankError: rank 0: rank 1: the connection is closed", "--restart")
    trajectory = Trajectory(folder / "dies.h5")
    assert len(trajectory) >= 1 and not np.isnan(trajectory.positions[:]).any()
    assert load_checkpoint(folder / "dies.restart").state.x.shape == (8, 3, 3)
    with h5py.File(folder / "dies.h5") as file:  # no frame that some part has not
        steps = file["particles/trajectory/position/step"][:]
        assert not np.isnan(file["particles/trajectory/position/value"][:]).any()
        assert steps.tolist() == trajectory.steps.tolist()


def test_a_rank_that_loses_all_walkers(runs):
    folder, codes, said = runs
    assert codes["gone2"] == [0, 0], said
    assert fingerprint(folder / "gone2.h5") == fingerprint(folder / "gone1.h5")
    told = json.loads((folder / "gone2.json").read_text())
    assert told["lost"].keys() == set("5678") and told["ranks"] == 2
    assert Trajectory(folder / "gone2.h5").lost.tolist() == [5, 6, 7, 8]


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    """Real processes of the launcher, of the command line, and more kinds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = "run alanine-dipeptide --walkers 8 --steps 60 --every 20 --compile off --target model"
    for size in (1, 2, 4):
        words = ["-m", "diffmd_ase", *command.split(), "--prefix", f"a{size}", "--no-progress"]
        subprocess.run([*torchrun, str(size), *words], cwd=tmp_path, env=environment, check=True)
    trajectories = [Trajectory(tmp_path / f"a{size}.h5") for size in (1, 2, 4)]
    assert len({t.positions[:].tobytes() for t in trajectories}) == 1
    assert trajectories[2].info.extra["chunk"] == 2
    wrong = [*torchrun, "2", "-m", "diffmd_ase", "info", "alanine-dipeptide"]
    done = subprocess.run(wrong, env=environment, capture_output=True, text=True)
    assert done.returncode and "start it without torchrun" in done.stderr


@pytest.mark.slow
def test_a_rank_that_never_comes(tmp_path):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    words = [sys.executable, SCRIPT, "plain", "late", "10", "timeout=1"]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True
    )
    assert done.returncode and not list(tmp_path.iterdir())
    assert names(done.stderr, "rank 0 of 2: not all ranks have come within 1 s")


@pytest.mark.slow
def test_more_kinds_and_more_trouble(tmp_path):
    kinds = (*KINDS, "opes", "adapted", "stop")
    jobs = [f"{size} {kind} {kind}{size} 60" for kind in kinds for size in (1, 2, 4)]
    jobs += ["4 exchange x 15", "1 exchange x 30 restart", "2 exchange x 60 restart"]
    jobs += ["1 exchange y 60", "1 plain whole 100", "2 plain int 100 how=interrupt"]
    jobs += ["2 plain sleeps 100 how=sleeps timeout=2"]
    codes, said = forked(tmp_path, *jobs)
    for kind in kinds:
        one, two, four = (fingerprint(tmp_path / f"{kind}{size}.h5") for size in (1, 2, 4))
        assert one == two == four, said
    told = [json.loads((tmp_path / f"stop{size}.json").read_text()) for size in (1, 2, 4)]
    assert len({json.dumps(one["ended_outside"], sort_keys=True) for one in told}) == 1
    assert 0 < len(told[0]["ended_outside"]) <= 8
    assert len({one["frames_outside"] for one in told}) == 1
    assert fingerprint(tmp_path / "x.h5") == fingerprint(tmp_path / "y.h5")
    assert codes["int"] == [1, 1] and "int: KeyboardInterrupt" in said
    assert load_checkpoint(tmp_path / "int.restart").state.step == 45  # of both, of one step
    assert codes["sleeps"][0] == 1
    assert names(said, "sleeps: RankError: rank 0: rank 1: no answer within 2 s")
    again = [f"2 plain {name} 100 restart" for name in ("int", "sleeps")]
    assert all(code == [0, 0] for code in forked(tmp_path, *again)[0].values())
    for name in ("int", "sleeps"):
        assert fingerprint(tmp_path / f"{name}.h5") == fingerprint(tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("walkers", "chunk", "bounds"),
    [
        (8, 2, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (5, 2, [(0, 2), (2, 5)]),  # none is alone
        (3, 4, [(0, 3)]),
        (1, 2, [(0, 1)]),
    ],
)
def test_chunks_of_at_least_two(walkers, chunk, bounds):
    assert Division.of(walkers, chunk, 1).bounds == bounds


def test_every_walker_has_one_rank():
    for walkers, chunk, size in ((64, 4, 3), (9, 2, 4), (1000, 64, 15)):
        division = Division.of(walkers, chunk, size)
        rows = np.concatenate([np.arange(walkers)[division.rows(rank)] for rank in range(size)])
        assert rows.tolist() == list(range(walkers))
    assert [default_chunk(w) for w in (1, 8, 64, 4096)] == [2, 2, 16, 64]


def test_ranks_without_a_chunk():
    with pytest.raises(ValueError) as error:
        Division.of(6, 2, 4)
    assert names(error.value, "4 ranks, but 6 walkers in chunks of 2 are 3 chunks", "--chunk")


def test_what_one_rank_counts_adds_up():
    tally = Tally(*torch.arange(16.0).reshape(4, 4), 12, 5).to_dict()
    facts = {"lost": {"6": 3}, "evaluations": 100, "tally": tally, "tally_of_frame": tally}
    facts |= {"outside": {"frames": 4, "counted": 9, "ended": {"7": 2}}, "seconds": 1.0}
    parts = [part_of(facts, slice(0, 3), True), part_of(facts, slice(3, 4), False)]
    assert merged(parts) == facts
    assert parts[1]["tally"]["steps"] == [3.0] and parts[1]["evaluations"] == 0


def plain(*terms):
    return ranked_run.kernel("plain", 8, *terms)


def test_what_cannot_be_shared_is_refused(tmp_path):
    def refused(kernel):
        with pytest.raises(ValueError) as error:
            Shares(kernel, torch.arange(8), 2)
        return error.value

    one = plain()
    mixture = Mixture([one, one])
    assert names(refused(mixture), "Mixture does not run in chunks of walkers", "without --chunk")
    recorded = Recorded(ranked_run.bias("opes"), tmp_path / "COLVAR", every=5)
    assert names(refused(plain(recorded)), "Recorded learns from the walkers of one process")
    own = ranked_run.bias("hills", walkers="independent")
    assert names(refused(plain(own)), "independent", "shared")
    learns = ReplicaExchange(plain(ranked_run.bias("hills")), 4)
    assert names(refused(learns), "exchange with a bias that learns")


@pytest.mark.parametrize("more", [{"plumed": "plumed.dat"}, {"parallel": True}])
def test_options_that_are_not_for_ranks(more, tmp_path):
    settings = RunSettings(model="alanine-dipeptide", prefix=str(tmp_path / "md"), chunk=2, **more)
    with pytest.raises(ValueError) as error:
        PlannedRun.of(settings)
    assert names(error.value, f"--{next(iter(more))} on ranks or with --chunk")


def test_a_signal_that_a_launcher_passes_on_is_one():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Deferred(apart=60.0) as signals:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert signals.pending == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_chunk_on_restart(tmp_path):
    ranked_run.go("plain", tmp_path / "a", 10)
    with pytest.raises(ValueError) as error:
        ranked_run.go("plain", tmp_path / "a", 20, restart=True, chunk=4)
    assert names(error.value, "chunk 4 now, but the run has 2")


def test_alone():
    with Ranks() as ranks:
        assert ranks.gather(b"a") == [b"a"] and ranks.first(lambda: 3) == 3 and ranks.leads
        assert ranks.file("HILLS") == Path("HILLS").absolute()
    assert Ranks.started() is None
