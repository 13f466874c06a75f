"""Nothing of a file runs: each holds code that would leave a file behind, or a script in a page."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from peroxide import peroxide

from diffmd_ase.io.tensors import load_tensors, save_tensors
from diffmd_ase.report.interactive import script


class Canary:
    def __reduce__(self):
        return os.system, ("touch executed",)


SCRIPT = "<script>document.title='executed'</script>"


@pytest.fixture
def call(diffmd, folder, model, tmp_path):
    """Call ``diffmd``; nothing was executed. The exit code and the line of the error."""

    def run(words):
        known = {"MODEL": model, "DATA": folder / "data.npz"}
        code, out, err = diffmd(*(known.get(word, word) for word in words.split()))
        assert not (tmp_path / "executed").exists()
        assert "Traceback" not in out + err
        return code, err

    return run


def test_the_canary_sings(tmp_path, monkeypatch):
    """Where it is unpickled, the file is there."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Canary()))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["positions", "numbers", "temperature_K", "energies", "cell"])
def test_pickles_in_archives(call, tmp_path, name):
    frames = {"positions": peroxide(30, np.random.default_rng(1)), "numbers": [1, 8, 8, 1]}
    frames |= {name: np.array([Canary(), None], object)}
    np.savez(tmp_path / "bad.npz", temperature_K=300.0, **frames) if name != "temperature_K" else (
        np.savez(tmp_path / "bad.npz", **frames)
    )
    for words in ("run MODEL --start bad.npz --steps 1", "train bad.npz -o o.safetensors"):
        code, err = call(words)
        assert code == 1 and "bad.npz" in err


@pytest.mark.parametrize(
    "name", ["bad.traj", "bad.pckl", "bad.pickle", "bad.db", "bad.json", "bad.py", "bad.h5"]
)
def test_pickles_by_other_names(call, tmp_path, name):
    content = pickle.dumps(Canary())
    if name.endswith(".py"):
        content = b"import os\nos.system('touch executed')\n"
    for head in (b"", b"PickleTrajectory"):  # of the first trajectories of ASE
        (tmp_path / name).write_bytes(head + content)
        for words in (f"analyze {name}", f"run MODEL --start {name} --steps 1"):
            code, err = call(words)
            assert code == 1 and name in err


def test_pickles_as_models(call, tmp_path):
    torch_like = tmp_path / "m.pt"
    with zipfile.ZipFile(torch_like, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(Canary()))
    (tmp_path / "m.safetensors").write_bytes(torch_like.read_bytes())
    for name in ("m.pt", "m.safetensors"):
        code, err = call(f"info {name}")
        assert code == 1 and name in err


@pytest.mark.parametrize(
    "text",
    [
        "steps: !!python/object/apply:os.system ['touch executed']",
        "!!python/object/new:os.system ['touch executed']",
        "start: !!python/name:os.system",
    ],
)
def test_tags_of_yaml(call, tmp_path, text):
    (tmp_path / "o.yml").write_text(text)
    code, err = call("run MODEL --config o.yml")
    assert code == 2 and "o.yml" in err


def test_names_that_are_code(call, tmp_path):
    """In extended XYZ, where ASE parses values of many kinds."""
    one = Atoms("HOOH", positions=peroxide(1, np.random.default_rng(1))[0])
    one.info["key"] = "__import__('os').system('touch executed')"
    write(tmp_path / "bad.extxyz", [one] * 3, format="extxyz")
    text = (tmp_path / "bad.extxyz").read_text()
    code = "value=__import__('os').system('touch executed') "
    (tmp_path / "bad.extxyz").write_text(text.replace("Properties", code + "Properties"))
    call("run MODEL --start bad.extxyz --steps 1")


def test_scripts_in_a_report(call, tmp_path, model, folder):
    """Whatever a card says is text in the page, whose only script is that of the package."""
    tensors, card = load_tensors(model, "diffmd_card")
    del card["sha256"]
    card["name"] = card["formula"] = card["data"]["source"] = SCRIPT
    card["training"] = {"seed": 0, "config": {SCRIPT: [SCRIPT]}, SCRIPT: SCRIPT}
    card["versions"] = {SCRIPT: SCRIPT}
    card["systems"][0]["source"] = f'"><img src=x onerror=alert(1)>{SCRIPT}'
    save_tensors(tmp_path / "bad.safetensors", tensors, "diffmd_card", card)
    code, err = call("report bad.safetensors --snapshots DATA -o page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    ours = f"<script>{script()}</script>"
    assert page.count(ours) == 1 and "<img src=x" not in page
    rest = page.replace(ours, "").replace('<script type="application/json">', "")
    assert "<script" not in rest and "document.title" not in ours
    assert "&lt;script&gt;" in page  # and it is shown as what it is


def test_cards_do_not_command_a_terminal(call, tmp_path, model):
    tensors, card = load_tensors(model, "diffmd_card")
    del card["sha256"]
    card["data"]["source"] = "\x1b]0;owned\x07"
    save_tensors(tmp_path / "bad.safetensors", tensors, "diffmd_card", json.loads(json.dumps(card)))
    code, err = call("info bad.safetensors")
    assert code == 1 and "control characters" in err and "\x1b" not in err
