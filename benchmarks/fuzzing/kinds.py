"""Kinds of malformed input: each writes spoiled files to a folder, and says how they are used.

A kind is called with random numbers, the folder and the sound files; it gives the words of a call
and what was spoiled. Checksums are made anew where there are any: what is behind them is tried.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from diffmd_ase.io.tensors import save_tensors

from .materials import Materials
from .spoil import STEPS, spoiled, spoiled_array, spoiled_bytes, spoiled_text

Kind = Callable[[np.random.Generator, Path, Materials], tuple[str, str]]

_MODELS = ("m.safetensors", "e.safetensors", "copper", "alanine")


def _load(path: Path) -> tuple[dict[str, torch.Tensor], str, dict]:
    with safe_open(path, framework="pt") as file:
        ((key, text),) = file.metadata().items()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = json.loads(text)
    header.pop("sha256", None)
    return tensors, key, header


def _model(rng, base: Materials) -> tuple[Path, str]:
    """A sound model, and a start for it."""
    name = _MODELS[rng.choice(4, p=[0.5, 0.2, 0.2, 0.1])]
    start = {"copper": base["copper.extxyz"], "alanine": "alanine-dipeptide"}
    if name in start:
        shipped = {"copper": "copper-vacancy", "alanine": "alanine-dipeptide"}[name]
        import diffmd_ase

        folder = Path(diffmd_ase.__file__).parent / "models"
        return folder / f"{shipped}.safetensors", str(start[name])
    return base[name], str(base["data.npz"])


def _with_model(rng, start: str) -> str:
    uses = [
        "info bad.safetensors",
        f"run bad.safetensors --start {start} {STEPS}",
        f"run bad.safetensors --start {start} --target model {STEPS}",
        "sample bad.safetensors -o o.npz -n 2 --levels 3 --relax-steps 2",
        f"report bad.safetensors --snapshots {start}",
    ]
    return uses[rng.choice(len(uses), p=[0.1, 0.45, 0.2, 0.2, 0.05])]


def card(rng, place, base) -> tuple[str, str]:
    """A field of a model's card, with a right digest."""
    path, start = _model(rng, base)
    tensors, key, header = _load(path)
    header, told = spoiled(header, rng)
    save_tensors(place / "bad.safetensors", tensors, key, header)
    return _with_model(rng, start), told


def weights(rng, place, base) -> tuple[str, str]:
    """Tensors of a model of another shape or kind, missing or added, with a right digest."""
    path, start = _model(rng, base)
    tensors, key, header = _load(path)
    told = _spoil_tensor(tensors, rng)
    save_tensors(place / "bad.safetensors", tensors, key, header)
    return _with_model(rng, start), told


def _spoil_tensor(tensors: dict, rng) -> str:
    names = sorted(tensors)
    name = names[rng.integers(len(names))]
    how = rng.integers(8)
    if how == 0:
        del tensors[name]
        return f"{name} missing"
    if how == 1:
        tensors["surplus"] = torch.zeros(3)
        return "a tensor more"
    if how == 2:
        tensors[name] = torch.full((1,), torch.nan)
        return f"{name}: one NaN"
    while True:
        values, told = spoiled_array(tensors[name].numpy(), rng)
        if values.dtype.kind in "fiub" and values.dtype.itemsize <= 8:
            tensors[name] = torch.as_tensor(np.array(values))
            return f"{name}: {told}"


def safetensors(rng, place, base) -> tuple[str, str]:
    """Bytes of a model file; headers of impossible length and depth."""
    path, start = _model(rng, base)
    how = rng.integers(4)
    if how:
        content, told = spoiled_bytes(path.read_bytes(), rng)
    else:
        length = int(rng.choice([2**63 - 1, 10**9, 2**31, 99_999_999]))
        deep = b'{"a":' * 100_000
        content, told = struct.pack("<Q", length) + deep, f"a header of {length} bytes"
        if rng.integers(2):
            content, told = struct.pack("<Q", len(deep)) + deep, "a header 100 000 levels deep"
        if rng.integers(2):
            text = (
                '{"x":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4000000000000]}}'
            )
            content, told = struct.pack("<Q", len(text)) + text.encode(), "a tensor of 4 TB"
    (place / "bad.safetensors").write_bytes(content)
    return _with_model(rng, start), told


def checkpoint(rng, place, base) -> tuple[str, str]:
    """JSON and tensors of the checkpoint of a run, with a right digest."""
    for name in ("md.h5", "md.restart"):
        shutil.copy(base[name], place / name)
    tensors, key, header = _load(base["md.restart"])
    if rng.integers(3):
        header, told = spoiled(header, rng)
    else:
        told = _spoil_tensor(tensors, rng)
    save_tensors(place / "md.restart", tensors, key, header)
    run = f"run {base['m.safetensors']} --start {base['data.npz']} --steps 60 --every 2"
    return f"{run} --walkers 3 --prefix md --restart", told


def training(rng, place, base) -> tuple[str, str]:
    """Checkpoint and job of a training."""
    shutil.copytree(base["training"], place / "training")
    files = sorted(p for p in (place / "training").iterdir() if p.suffix != ".npz")
    path = files[rng.integers(len(files))]
    if path.suffix == ".json":
        if rng.integers(2):
            facts, told = spoiled(json.loads(path.read_text()), rng)
            path.write_text(json.dumps(facts))
        else:
            content, told = spoiled_bytes(path.read_bytes(), rng)
            path.write_bytes(content)
    else:
        tensors, key, header = _load(path)
        if rng.integers(2):
            header, told = spoiled(header, rng)
        else:
            told = _spoil_tensor(tensors, rng)
        save_tensors(path, tensors, key, header)
    options = "--steps 30 --batch-size 32 --width 8 --channels 2 --processes 1"
    if rng.integers(2):
        options = options.replace("30", "20")
    told = f"{path.name}: {told}"
    return f"train {base['data.npz']} -o o.safetensors --directory training {options}", told


_ZEROS = bytes(2_000_000 * 4 * 3 * 8)  # 2 million frames of four atoms


def _write_zeros(archive: zipfile.ZipFile, name: str, many: int) -> None:
    """Block by block: the fuzzer has no room for all of them."""
    shape = (many * 2_000_000, 4, 3)
    facts = {"descr": "<f8", "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, facts)
        for _ in range(many):
            file.write(_ZEROS)


def npz(rng, place, base) -> tuple[str, str]:
    """Entries of an archive: shapes, kinds, pickles, and headers that promise more."""
    arrays = dict(np.load(base["data.npz"]))
    frames = len(arrays["positions"])
    arrays |= {"energies": np.zeros(frames), "forces": np.zeros_like(arrays["positions"])}
    arrays |= {"cell": 20 * np.eye(3), "pbc": np.array(rng.integers(2, size=3), bool)}
    for name in ("energies", "forces", "cell", "pbc"):
        if rng.integers(2):
            del arrays[name]
    names = sorted(arrays)
    name, how = names[rng.integers(len(names))], rng.integers(8)
    raw: dict[str, bytes] = {}
    zeros, many = "", 0
    if how == 0:
        arrays[name] = np.array([{"a": Canary()}, None], dtype=object)
        told = f"{name}: a pickle"
    elif how == 1:
        shape = [(10**9, 4, 3), (2**62,), (10**5, 10**5), (-1, 4, 3), (10**7, 4, 3)]
        raw[name], told = _promise(shape[rng.integers(len(shape))]), f"{name}: promises too much"
    elif how == 2:
        zeros, many = name, int(rng.integers(1, 15))
        told = f"{name}: {many * len(_ZEROS) / 1e9:.1f} GB of zeros"
    elif how == 3:
        text = ["{'descr': __import__('os'), }", "(" * 5000, "{'descr': '<f8'", "x" * 60_000]
        header = text[rng.integers(4)].encode()
        raw[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        told = f"{name}: a header that is none"
    else:
        arrays[name], told = spoiled_array(arrays[name], rng)
        told = f"{name}: {told}"
    with zipfile.ZipFile(place / "bad.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, values in arrays.items():
            if key == zeros:
                _write_zeros(archive, key, many)
                continue
            content = io.BytesIO()
            np.save(content, values, allow_pickle=True)
            archive.writestr(f"{key}.npy", raw.get(key, content.getvalue()))
    return _with_frames(rng, "bad.npz", base), told


class Canary:
    """Whoever unpickles it leaves a file behind."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def _promise(shape) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return content.getvalue() + bytes(1000)


def _with_frames(rng, name: str, base) -> str:
    model = base["m.safetensors"]
    uses = [
        f"train {name} --temperature 300 -o o.safetensors --steps 2 --width 4 --processes 1 ",
        f"run {model} --start {name} {STEPS}",
        f"validate {model} {name} --effort 0.001",
        f"report {model} --snapshots {base['data.npz']} --samples {name}",
        f"report {model} --snapshots {name}",
    ]
    if not name.endswith(".npz"):
        uses += [f"analyze {name}"] * 2
    # pages with pictures take long
    cost = np.array([0.2 if use.startswith(("report", "validate")) else 1.0 for use in uses])
    return uses[rng.choice(len(uses), p=cost / cost.sum())]


def extxyz(rng, place, base) -> tuple[str, str]:
    """Text of extended XYZ: counts, properties, cells, numbers."""
    text = base["data.extxyz"].read_text()
    how = rng.integers(4)
    if how == 0:
        odd = ["pos:R:99999999", "pos:R:0", "pos:R:-3", "pos:I:3", "pos:S:3", "pos:Q:3", "pos:R:1"]
        word = odd[rng.integers(len(odd))]
        text, told = text.replace("pos:R:3", word), word
    elif how == 1:
        word = ["1000000000", "-4", "4.0", "0", "99999999999999999999"][rng.integers(5)]
        text, told = text.replace("4\n", word + "\n", 1), f"{word} atoms"
    elif how == 2:
        odd = ['Lattice="0 0 0 0 0 0 0 0 0" ', 'Lattice="1e300 0 0 0 1 0 0 0 1" pbc="T T T" ']
        odd += ['pbc="T T T" ', 'Lattice="nan 0 0 0 1 0 0 0 1" pbc="T T T" ', "energy=nan "]
        odd += ['Lattice="1e-6 0 0 0 1e-6 0 0 0 1e-6" pbc="T T T" ', 'forces="1 2" ', "walker=x "]
        odd += ['Lattice="1e-3 0 0 0 1e-3 0 0 0 1e-3" pbc="T T T" ', "walker=1e30 ", '="" = =']
        word = odd[rng.integers(len(odd))]
        text, told = text.replace("Properties", word + "Properties"), word
    else:
        text, told = spoiled_text(text, rng)
    (place / "bad.extxyz").write_bytes(text.encode("latin-1", "replace"))
    return _with_frames(rng, "bad.extxyz", base), told


def ase(rng, place, base) -> tuple[str, str]:
    """Other formats that ASE reads."""
    names = ["data.xyz", "data.pdb", "data.gro", "data.cif", "data.cfg", "POSCAR", "data.traj"]
    names += ["data.json", "data.db"]
    name = names[rng.integers(len(names))]
    content = base[name].read_bytes()
    if name in ("data.traj", "data.db"):
        content, told = spoiled_bytes(content, rng)
    else:
        text, told = spoiled_text(content.decode(), rng)
        content = text.encode("latin-1", "replace")
    bad = name.replace("data", "bad")
    (place / bad).write_bytes(content)
    return _with_frames(rng, bad, base), f"{bad}: {told}"


def plumed(rng, place, base) -> tuple[str, str]:
    """Files of PLUMED."""
    names = ["COLVAR", "HILLS", "KERNELS"]
    bad = names[rng.integers(3)]
    text = base[bad].read_text()
    if rng.integers(5) == 0:
        odd = ["#! SET min_phi 1e400", "#! SET max_phi -pi", "#! SET biasfactor 0", "#! FIELDS"]
        odd += ["#! FIELDS time time", "#! SET kerneltype nope", "#! SET min_phi -1e-300"]
        told = odd[rng.integers(len(odd))]
        text = text.replace("\n", f"\n{told}\n", 1)
    elif rng.integers(4) == 0:
        factor = float(rng.choice([1e-300, 1e300, 1e12, 0, -1]))
        column, lines = int(rng.integers(3)), []
        for line in text.splitlines():
            words = line.split()
            if not line.startswith("#"):
                words[column] = repr(float(words[column]) * factor)
            lines.append(" ".join(words))
        text, told = "\n".join(lines) + "\n", f"column {column} times {factor}"
    else:
        text, told = spoiled_text(text, rng)
    (place / bad).write_bytes(text.encode("latin-1", "replace"))
    for name in ("COLVAR", "HILLS"):
        if rng.integers(2) and not (place / name).exists():
            shutil.copy(base[name], place / name)
    given = " ".join(name for name in names if (place / name).exists())
    return f"fes {given} --temperature 300", f"{bad}: {told}"
