"""`verify_file`: sound files are, and one flipped bit is not, in every kind."""

import shutil

import numpy as np
import pytest
import torch
from peroxide import peroxide
from typer.testing import CliRunner

from diffmd_ase.cli.main import app
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.io.tensors import load_tensors, save_tensors
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.score.job import read_job, write_job
from diffmd_ase.score.settings import TrainConfig
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import train
from diffmd_ase.score.training_state import load_best
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate
from diffmd_ase.simulation.verify import verify_file
from diffmd_ase.system import System


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run, snapshots, a training and its model."""
    folder = tmp_path_factory.mktemp("sound")
    x = peroxide(200, np.random.default_rng(1))
    system = System(np.array([1, 8, 8, 1]), np.array([1.0, 16.0, 16.0, 1.0]))
    np.savez(folder / "data.npz", positions=x, numbers=system.numbers, temperature_K=300.0)
    config = TrainConfig(steps=4, batch_size=16, width=4, processes=1)
    model = train(Snapshots(system, x, 300.0), config=config, directory=folder / "training")
    model.save(folder / "m.safetensors")
    kernel = EulerMaruyama(Harmonic(1.0), kT=0.025, h=1e-3)
    info = RunInfo(seed=7, kT=0.025, h=1e-3, kinetics_valid=True)
    start = torch.as_tensor(x[:3])
    simulate(kernel, system, start, 40, files=Files(str(folder / "md")), info=info, every=2)
    return folder


KINDS = ["m.safetensors", "md.h5", "md.restart", "data.npz", "training/fine.safetensors"]
KINDS += ["training/job.npz"]


@pytest.mark.parametrize("name", KINDS)
def test_sound_and_not(sound, tmp_path, name):
    shutil.copytree(sound, tmp_path / "copy")
    path = tmp_path / "copy" / name
    whole = path.parent if "/" in name else path
    parts = verify_file(whole)
    assert all(part.good is True for part in parts), parts
    content = bytearray(path.read_bytes())
    good = 0
    # most of HDF5 is room that nobody reads
    places = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    for place in np.random.default_rng(0).choice(places, 12, replace=False):
        content[place] ^= 16
        path.write_bytes(content)
        good += all(part.good is True for part in verify_file(whole))
        content[place] ^= 16
    assert good <= (6 if path.suffix in (".h5", ".npz") else 0)  # of headers that nobody reads


def test_trainings_with_right_digests(sound, tmp_path):
    """Their JSON and tensors may still be anything: refused before a step is taken."""
    shutil.copytree(sound / "training", tmp_path / "t")
    path = tmp_path / "t/fine.safetensors"
    sets, job = read_job(tmp_path / "t")
    tensors, header = load_tensors(path, "progress")
    del header["sha256"]
    name = next(n for n in tensors if n.startswith("network.") and n.endswith("weight"))
    (expert,) = [e for e in job.experts if e.name == "fine"]
    for bad, facts in [
        (tensors | {name: torch.zeros(3)}, header),
        ({n: t for n, t in tensors.items() if n != name}, header),
        (tensors | {"adam.x.y": torch.zeros(1)}, header),
        (tensors, header | {"step": "many"}),
        (tensors, header | {"history": 3}),
    ]:
        save_tensors(path, bad, "progress", facts)
        with pytest.raises(ValueError, match="fine.safetensors"):
            job.fit(expert, sets, tmp_path / "t", lambda *told: None)
    bests = {n: t for n, t in tensors.items() if n != "best.prior.bonds"}
    save_tensors(path, bests, "progress", header)
    with pytest.raises(ValueError, match="fine.safetensors does not fit"):
        load_best(tmp_path / "t", expert)
    for text in ("", "[]", "[" * 100_000, '{"data": 1}', '{"seed": {}}'):
        (tmp_path / "t/job.json").write_text(text)
        with pytest.raises(ValueError, match="job.json|another data"):
            write_job(tmp_path / "t", sets, job)


def test_shipped_models_of_all_schemas():
    (part,) = verify_file("alanine-dipeptide")
    assert part.good is not False


def test_exit_codes(sound, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["info", str(sound / "md.h5"), "--verify"])
    assert done.exit_code == 0
    damaged = tmp_path / "m.safetensors"
    content = bytearray((sound / "m.safetensors").read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    done = runner.invoke(app, ["info", str(damaged), "--verify", "--json"])
    assert done.exit_code == 1 and '"good": false' in done.stdout
    for name in ("absent.h5", "absent.restart", "absent"):
        with pytest.raises(FileNotFoundError):
            verify_file(tmp_path / name)
    (tmp_path / "COLVAR").write_text("#! FIELDS time\n")
    with pytest.raises(ValueError, match="no checksums"):
        verify_file(tmp_path / "COLVAR")
