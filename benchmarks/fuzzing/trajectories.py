"""Spoiled trajectories: what is behind the checksums of HDF5 files, and their bytes."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np

from diffmd_ase.io import h5md
from diffmd_ase.io.checksums import row_sums

from .spoil import STEPS, spoiled, spoiled_array, spoiled_bytes


def h5(rng, place, base) -> tuple[str, str]:
    """Metadata and datasets of a trajectory, links, huge shapes; with a right digest."""
    path = place / "bad.h5"
    shutil.copy(base["md.h5"], path)
    with h5py.File(path, "r+", libver="latest") as file:
        told = _H5[rng.integers(len(_H5))](file, rng, base)
        try:
            _sum_up(file)
        except Exception:  # what cannot be summed up
            told += " (old sums)"
    uses = [
        "analyze bad.h5",
        f"report {base['m.safetensors']} --snapshots {base['data.npz']} --trajectory bad.h5",
        f"run {base['m.safetensors']} --start bad.h5 {STEPS}",
        "fes bad.h5 --cv d=distance:0,3",
        "train bad.h5 -o o.safetensors --steps 2 --width 4 --processes 1",
        f"run {base['m.safetensors']} --prefix bad --restart --steps 60 --every 2 --walkers 3 ",
    ]
    use = uses[rng.choice(len(uses), p=[0.25, 0.05, 0.25, 0.1, 0.1, 0.25])]
    if "--prefix bad" in use:
        shutil.copy(base["md.restart"], place / "bad.restart")
    return use, told


def _sum_up(file) -> None:
    """Right checksums of what is there now, unless that is more than there can be."""
    if any(file[name].size > 10**7 for name in _datasets(file) if file[name].chunks):
        return
    names = json.loads(file["diffmd_ase"].attrs["columns"])
    parts = h5md.rest(names, periodic=False)
    file[h5md.CHECK_REST][:] = row_sums(*(file[part][:] for part in parts))
    frames, walkers = file[h5md.CHECK_POSITIONS].shape
    positions = file[h5md.POSITION][:].reshape(frames, walkers, -1, 3)
    file[h5md.CHECK_POSITIONS][:] = h5md.sums_of_positions(positions)
    file[h5md.CHECKS].attrs["header"] = h5md.header_digest(file)


def _metadata(file, rng, base) -> str:
    facts, told = spoiled(json.loads(file["diffmd_ase"].attrs["metadata"]), rng)
    text = json.dumps(facts)
    if len(text) > 60_000:
        text, told = "[" * 50_000, "metadata 50 000 levels deep"
    file["diffmd_ase"].attrs["metadata"] = text
    return f"metadata: {told}"


def _columns(file, rng, base) -> str:
    odd = ['["nope"]', "{", "7", '["../../md"]', "[[1]]", '{"a": 1}', "null", '[""]', "[null]"]
    file["diffmd_ase"].attrs["columns"] = odd[rng.integers(len(odd))]
    return f"columns = {file['diffmd_ase'].attrs['columns']}"


def _datasets(file) -> list[str]:
    names: list[str] = []
    file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
    return names


def _dataset(file, rng, base) -> str:
    names = _datasets(file)
    name = names[rng.integers(len(names))]
    values, told = spoiled_array(np.asarray(file[name][()]), rng)
    if values.dtype.kind in "US":
        values = values.astype("S")
    if values.dtype.kind == "M":
        values = values.astype("S20")
    del file[name]
    file[name] = values
    return f"{name}: {told}"


def _far(file, rng, base) -> str:
    factor = float(rng.choice([1e3, 1e6, 1e12, 1e30, 1e-3, 1e-12, 0, 1.89, np.nan]))
    file[h5md.POSITION][...] = file[h5md.POSITION][:] * factor
    return f"positions times {factor}"


def _missing(file, rng, base) -> str:
    names: list[str] = []
    file.visit(names.append)
    name = names[rng.integers(len(names))]
    del file[name]
    return f"{name} missing"


def _external(file, rng, base) -> str:
    names = _datasets(file)
    name = names[rng.integers(len(names))]
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    how = rng.integers(4)
    if how == 0:
        secret = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(name, shape, dtype="f8" if dtype.hasobject else dtype, external=secret)
        return f"{name}: stored in /etc/passwd"
    if how == 1:
        file[name] = h5py.ExternalLink(str(base["md.h5"]), name)
        return f"{name}: a link to another file"
    if how == 2:
        file[name] = h5py.SoftLink("/particles/trajectory/position/value")
        return f"{name}: a soft link"
    layout = h5py.VirtualLayout(shape, dtype=dtype)
    if shape and not dtype.hasobject:
        layout[...] = h5py.VirtualSource(str(base["md.h5"]), name, shape)
        file.create_virtual_dataset(name, layout)
    return f"{name}: virtual, of another file"


def _huge(file, rng, base) -> str:
    names = [n for n in _datasets(file) if file[n].chunks]
    count = int(rng.choice([10**7, 10**9, 10**12]))
    some = names if rng.integers(2) else [names[rng.integers(len(names))]]
    for name in some:
        file[name].resize(count, axis=0)
    return f"{len(some)} datasets of {count} rows"


def _attribute(file, rng, base) -> str:
    places = ["diffmd_ase", "particles/trajectory/box", h5md.CHECKS, "h5md"]
    place = places[rng.integers(len(places))]
    names = sorted(file[place].attrs)
    name = names[rng.integers(len(names))]
    odd = [7, "text", np.zeros(3), np.array([b"x"]), np.full((3, 3), np.nan), h5py.Empty("f4")]
    value = odd[rng.integers(len(odd))]
    del file[place].attrs[name]
    if rng.integers(4):
        file[place].attrs[name] = value
    return f"{place}@{name} = {value!r}"[:60]


_H5 = [
    _far,
    _metadata,
    _columns,
    _dataset,
    _dataset,
    _missing,
    _external,
    _external,
    _huge,
    _attribute,
]


def h5_bytes(rng, place, base) -> tuple[str, str]:
    """Bytes of a trajectory."""
    content, told = spoiled_bytes(base["md.h5"].read_bytes(), rng)
    (place / "bad.h5").write_bytes(content)
    report = f"report {base['m.safetensors']} --snapshots {base['data.npz']} --trajectory bad.h5"
    return ["analyze bad.h5", report][int(rng.integers(10) == 0)], told
