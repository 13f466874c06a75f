"""Files that are not what a command needs: one line that names the file, never a traceback."""

import copy
import io
import os
import zipfile

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from peroxide import peroxide

from diffmd_ase.io.tensors import load_tensors, save_tensors

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


TEXTS = ["a: [", "[1, 2]", "hello", "nope: 3", "steps: many", "steps: {a: 1}", "\x00\x01"]
TEXTS += ["steps: 1\nsteps: 2", "first_walker: 1\nfirst-walker: 1", "steps: &a [*a]", "[" * 5000]
TEXTS += ["a: &a [x]\nstart: [*a, *a]", "steps: !!python/name:os.system"]


@pytest.mark.parametrize("text", TEXTS)
def test_options_in_a_file(diffmd, tmp_path, model, text):
    (tmp_path / "o.yml").write_text(text)
    code, _, err = diffmd("run", model, "--config", "o.yml")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "o.yml" in err or "--steps" in err


@pytest.fixture
def refused(diffmd):
    """Call ``diffmd``: one line that holds these words, an exit code, and no traceback."""

    def call(words, *arguments):
        code, out, err = diffmd(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code in (1, 2) and len(errors) == 1, (code, err)
        assert words in errors[0], errors
        assert "DIFFMD_DEBUG" not in err and "Traceback" not in err + out, err
        assert "https://" not in errors[0] and "pydantic" not in errors[0]

    return call


SIZES = [
    ("run", "--walkers", 10**12, "would need"),
    ("sample", "--number", 10**12, "would need"),
    ("sample", "--levels", 10**12, "would need"),
    ("train", "--batch-size", 10**12, "would need"),
    ("train", "--width", 10**7, "would need"),
]


@pytest.mark.parametrize("command,flag,value,words", SIZES)
def test_sizes_beyond_memory(refused, folder, model, command, flag, value, words):
    rest = {
        "run": [model, "--start", folder / "data.npz", "--steps", 1],
        "sample": [model, "-o", "o.npz"],
        "train": [folder / "data.npz", "-o", "o.safetensors", "--steps", 1, "--no-progress"],
    }
    refused(words, command, *rest[command], flag, value)


@pytest.mark.parametrize("scale,unit", [(1 / 0.529177, "Bohr"), (0.529177, "Bohr"), (10, "nm")])
def test_starts_that_are_not_in_angstrom(refused, folder, model, tmp_path, scale, unit):
    arrays = dict(np.load(folder / "data.npz"))
    np.savez(tmp_path / "far.npz", **arrays | {"positions": scale * arrays["positions"]})
    refused(unit, "run", model, "--start", "far.npz", "--steps", 1)


@pytest.mark.parametrize(
    "numbers,words",
    [([0, 8, 8, 1], "no elements"), ([1.5, 8, 8, 1], "whole"), ([1, 8, 8, 119], "no elements")],
)
def test_numbers_of_no_elements(refused, folder, tmp_path, numbers, words):
    arrays = dict(np.load(folder / "data.npz"))
    np.savez(tmp_path / "bad.npz", **arrays | {"numbers": np.array(numbers)})
    refused(words, "train", "bad.npz", "-o", "o.safetensors")


def test_snapshots_without_heat(refused, folder, tmp_path):
    arrays = dict(np.load(folder / "data.npz"))
    np.savez(tmp_path / "bad.npz", **arrays | {"temperature_K": 1e-9})
    refused("1e-09 K", "train", "bad.npz", "-o", "o.safetensors")


def test_a_bomb_in_an_archive(refused, folder, tmp_path):
    """300 MB of zeros in 0.3 MB."""
    content = io.BytesIO()
    np.save(content, np.zeros((3_200_000, 4, 3)))
    with zipfile.ZipFile(tmp_path / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("positions.npy", content.getvalue())
        content = io.BytesIO()
        np.save(content, np.array([1, 8, 8, 1]))
        archive.writestr("numbers.npy", content.getvalue())
    refused("declares 0.307 GB", "train", "bad.npz", "-o", "o.safetensors", "--temperature", 300)


@pytest.mark.parametrize("shape", [(10**9, 4, 3), (2**62,), (10**5, 10**5)])
def test_arrays_that_promise_more(refused, folder, tmp_path, shape):
    content = io.BytesIO()
    told = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, told)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("positions.npy", content.getvalue() + bytes(96))
        content = io.BytesIO()
        np.save(content, np.array([1, 8, 8, 1]))
        archive.writestr("numbers.npy", content.getvalue())
    refused("has 96 bytes", "train", "bad.npz", "-o", "o.safetensors", "--temperature", 300)


@pytest.mark.parametrize("count", ["1000000000", "-4"])
def test_atoms_that_are_not_there(refused, model, tmp_path, count):
    write(tmp_path / "bad.extxyz", [Atoms("HOOH", positions=x) for x in peroxide(3, RNG)])
    text = (tmp_path / "bad.extxyz").read_text()
    (tmp_path / "bad.extxyz").write_text(text.replace("4\n", f"{count}\n", 1))
    refused("bad.extxyz: frame 0 says", "run", model, "--start", "bad.extxyz", "--steps", 1)


@pytest.mark.parametrize("columns", ["pos:R:99999999", "pos:R:0", "pos:R:-3"])
def test_columns_that_are_not_there(refused, model, tmp_path, columns):
    write(tmp_path / "bad.extxyz", [Atoms("HOOH", positions=x) for x in peroxide(3, RNG)])
    text = (tmp_path / "bad.extxyz").read_text()
    (tmp_path / "bad.extxyz").write_text(text.replace("pos:R:3", columns, 2))
    refused("columns", "analyze", "bad.extxyz")


@pytest.mark.skipif(os.name != "posix", reason="pipes in folders")
@pytest.mark.parametrize("ending", ["npz", "h5", "extxyz", "safetensors", "yml", "restart"])
def test_pipes(refused, model, tmp_path, ending):
    """Opened for reading they would wait for ever."""
    os.mkfifo(tmp_path / f"pipe.{ending}")
    pipe = f"pipe.{ending}"
    calls = {"safetensors": ["info", pipe], "yml": ["run", model, "--config", pipe]}
    calls["restart"] = ["info", pipe, "--verify"]
    start = ["run", model, "--start", pipe, "--steps", 1]
    refused("pipe", *calls.get(ending, start))


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_nothing_is_written_through_links(refused, folder, model, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for name in ("o.npz", "md.h5", "md.lost.extxyz"):
        (tmp_path / name).symlink_to("mine")
    refused("is a link to mine", "sample", model, "-o", "o.npz", "-n", 1)
    start = ["run", model, "--start", folder / "data.npz", "--steps", 1]
    refused("is a link to mine", *start)
    (tmp_path / "md.h5").unlink()
    refused("is a link to mine", *start)
    assert (tmp_path / "mine").read_text() == "precious"


RNG = np.random.default_rng(3)
HEADERS = [("step", "x"), ("step", -1), ("seed", None), ("records", {}), ("records", ["Nope"])]
HEADERS += [("parameters", []), ("parameters.every", 0), ("parameters.every", None)]
HEADERS += [("parameters.lost", [1]), ("parameters.lost", {"x": 1}), ("parameters.seconds", "s")]
HEADERS += [("parameters.tally", "x"), ("parameters.tally_of_frame", {"steps": [1.0]})]
HEADERS += [("parameters.tally.steps", [1.0] * 7), ("parameters.together", {"rounds": "x"})]
HEADERS += [("parameters.adaptation", {"factor": 0.0, "first": 0, "steps": 1})]
HEADERS += [("parameters.outside", {"collect": "mine"})]  # a file to write to


def test_checkpoints_with_right_digests(diffmd, refused, start, tmp_path):
    """Their JSON and their tensors may still be anything."""
    assert diffmd(*start, "--steps", 20)[0] == 0
    tensors, header = load_tensors(tmp_path / "md.restart", "diffmd_ase")
    del header["sha256"]
    (tmp_path / "md.restart.prev").unlink(missing_ok=True)
    again = [*start, "--steps", 40, "--restart"]

    def spoil(tensors, header):
        save_tensors(tmp_path / "md.restart", tensors, "diffmd_ase", header)
        (tmp_path / "md.restart.prev").unlink(missing_ok=True)
        refused("md.restart", *again)

    for place, value in HEADERS:
        bad = copy.deepcopy(header)
        part = bad
        *above, name = place.split(".")
        for key in above:
            part = part[key]
        part[name] = value
        spoil(tensors, bad)
    x = tensors["x"]
    for name, value in {
        "forces": x[:1],
        "x": x[..., :2],
        "walkers": tensors["walkers"].float(),
        "energy": tensors.get("energy", x)[None],
        "momenta": x.long(),
    }.items():
        spoil(tensors | {name: value.contiguous()}, header)
    spoil({"forces": tensors["forces"]}, header)
    spoil({name: t for name, t in tensors.items() if name != "walkers"}, header)
    spoil(tensors | {"walkers": tensors["walkers"] + 7}, header)


def test_weights_with_right_digests(refused, model, tmp_path):
    """Of other shapes, kinds or values than the card and the atoms need."""
    tensors, card = load_tensors(model, "diffmd_card")
    del card["sha256"]
    spoils = {
        "missing": lambda t: None,
        "short": lambda t: t[..., :-1],
        "axis": lambda t: t[None],
        "nan": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
        "far": lambda t: t if t.is_floating_point() else t + 1000,
    }
    bad = tmp_path / "bad.safetensors"
    tables = ("bonds", "bond_mean", "parameter", "spread")
    for name in (*(f"fine.prior.{table}" for table in tables), "broad.internal.pairs"):
        for spoil in spoils.values():
            if (value := spoil(tensors[name])) is tensors[name]:
                continue
            some = {n: t for n, t in tensors.items() if n != name}
            if value is not None:
                some[name] = value.contiguous()
            save_tensors(bad, some, "diffmd_card", card)
            refused("bad.safetensors: weights do not fit", "info", bad)
    wide = copy.deepcopy(card)
    wide["experts"][-1]["network"]["width"] = 10**9
    save_tensors(bad, tensors, "diffmd_card", wide)
    refused("bad.safetensors: weights do not fit", "info", bad)
