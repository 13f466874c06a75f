"""Files that are not what a command needs: one line that names the file, never a traceback."""

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from peroxide import peroxide

KINDS = [
    "empty.npz",
    "noise.npz",
    "half.npz",
    "objects.npz",
    "no-numbers.npz",
    "text.npz",
    "noise.extxyz",
    "word.extxyz",
    "mixed.extxyz",
    "half.extxyz",
    "text.traj",
    "noise.h5",
    "foreign.h5",
    "empty.safetensors",
    "noise.safetensors",
    "unknown.kind",
    "folder.npz",
    "absent.npz",
]
COMMANDS = {
    "train": "train FILE --temperature 300 -o o.safetensors --steps 1 --no-progress",
    "start": "run MODEL --start FILE --steps 1 --no-progress",
    "model": "run FILE --steps 1 --no-progress",
    "target": "run MODEL --start DATA --target FILE --steps 1 --no-progress",
    "sample": "sample FILE -o o.npz --no-progress",
    "report": "report MODEL --snapshots DATA --samples FILE",
    "trajectory": "report MODEL --snapshots DATA --trajectory FILE",
    "fes": "fes FILE --temperature 300 --cv d=distance:0,1 --no-progress",
    "analyze": "analyze FILE",
    "validate": "validate MODEL FILE --no-progress",
    "info": "info FILE",
}


@pytest.fixture(scope="module")
def malformed(tmp_path_factory, folder):
    place = tmp_path_factory.mktemp("malformed")
    rng = np.random.default_rng(5)
    noise, x = rng.bytes(2000), peroxide(30, rng)
    for name in KINDS:
        kind = name.split(".")[0]
        path = place / name
        if kind == "noise":
            path.write_bytes(noise)
        elif kind in ("text", "unknown"):
            path.write_text("one line\nand another\n")
        elif kind == "empty":
            path.touch()
    (place / "folder.npz").mkdir()
    (place / "half.npz").write_bytes((folder / "data.npz").read_bytes()[:5000])
    np.savez(place / "objects.npz", positions=np.array([{}], object), numbers=[1, 8, 8, 1])
    np.savez(place / "no-numbers.npz", positions=x, temperature_K=300.0)
    frames = [Atoms("HOOH", positions=one) for one in x]
    write(place / "half.extxyz", frames)
    words = (place / "half.extxyz").read_text()
    (place / "half.extxyz").write_text(words[:-100])
    (place / "word.extxyz").write_text(words.replace("H ", "Hx ", 1))
    write(place / "mixed.extxyz", [frames[0], Atoms("HO", positions=x[1, :2])])
    with h5py.File(place / "foreign.h5", "w") as file:
        file["coordinates"] = x
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_that_names_the_file(diffmd, folder, model, malformed, command):
    for name in KINDS:
        path = malformed / name
        known = {"MODEL": model, "DATA": folder / "data.npz", "FILE": path}
        code, out, err = diffmd(*(known.get(word, word) for word in COMMANDS[command].split()))
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code in (1, 2) and len(errors) == 1, (name, code, err)
        assert name in errors[0], (name, errors)
        assert "DIFFMD_DEBUG" not in err and "Traceback" not in err + out, (name, err)


@pytest.mark.parametrize(
    "text", ["a: [", "[1, 2]", "hello", "nope: 3", "steps: many", "steps: {a: 1}", "\x00\x01"]
)
def test_options_in_a_file(diffmd, tmp_path, model, text):
    (tmp_path / "o.yml").write_text(text)
    code, _, err = diffmd("run", model, "--config", "o.yml")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "o.yml" in err or "--steps" in err
