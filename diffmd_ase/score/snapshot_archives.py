"""NumPy archives of snapshots: their entries by several names and in several shapes.

Nothing is unpickled, and nothing is read that is not asked for. Large entries of archives that are
not compressed stay on disk, as maps of memory.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from ..io.limits import check_declared, check_memory, check_plain_file
from ..system import System

__all__ = ["read_archive", "stated_entries", "warn_of_unread"]

_KEYS = {
    "positions": ("positions", "x", "R", "coords", "coordinates"),
    "numbers": ("numbers", "atomic_numbers", "z", "Z", "nuclear_charges", "species", "symbols"),
    "temperature_K": ("temperature_K", "temperature"),
    "energies": ("energies", "energy", "E"),
    "forces": ("forces", "F"),
    "cell": ("cell",),
    "pbc": ("pbc",),
    "scale": ("scale",),
}
_LARGE = 1 << 26  # bytes: what is smaller is read
_CHUNK = 1 << 24  # bytes, read at once where only the checksum is wanted


def read_archive(path: Path) -> dict[str, Any]:
    """What a ``.npz`` at ``path`` holds, by the names of `Snapshots`, and ``temperature_K``.

    Raises
    ------
    ValueError : damaged, without positions or numbers, of several compositions, cells or
        temperatures, or with shapes that fit no reading
    """
    entries = _Entries(path)
    for field in ("positions", "numbers"):
        if field not in entries.found:
            raise ValueError(
                f"{path.name} has no {field} (looked for {', '.join(_KEYS[field])}; it holds "
                f"{', '.join(sorted(entries.names)) or 'nothing'})"
            )
    for label in ("energies", "forces"):
        if label not in entries.found:
            warn_of_unread(path.name, label, entries.names, ", ".join(_KEYS[label]))
    numbers = _numbers(entries["numbers"], path.name)
    positions = _frames(_real(entries["positions"], "positions", path.name), len(numbers))
    if positions.dtype.kind in "iu":  # fixed point: positions in units of `scale`
        if "scale" not in entries.found:
            raise ValueError(f"{path.name}: integer positions need an entry 'scale' in Å")
        positions = positions * float(np.asarray(entries["scale"]).reshape(-1)[0])
    fields = {
        "system": _system(numbers, entries["cell"], entries["pbc"], len(positions), path.name),
        "positions": positions,
        "energies": _energies(entries["energies"], path.name),
        "forces": _labels(entries["forces"], len(numbers), path.name),
    }
    if "temperature_K" in entries.found:
        fields["temperature_K"] = _temperature(entries["temperature_K"], path.name)
    return fields


def stated_entries(path: Path) -> set[str]:
    """Which of positions, numbers, energies, forces, ``temperature_K``, … a ``.npz`` holds.

    Raises
    ------
    ValueError : a damaged file ``path``
    """
    return set(_Entries(path).found)


def warn_of_unread(source: str, label: str, names, read: str) -> None:
    """Say which of the ``names`` in ``source`` look like a ``label`` that is called otherwise.

    ``label``: "energies" or "forces"; ``read``: by which names it is read.
    """
    stem = {"energies": "energ", "forces": "force"}[label]
    like = [name for name in names if stem in name.lower()]
    if like:
        warnings.warn(
            f"{source}: {', '.join(like)} is not read, whose level of theory and unit are not "
            f"known: {label} in {'eV' if label == 'energies' else 'eV/Å'} must be called {read}; "
            "rename the one that is meant",
            stacklevel=2,
        )


class _Entries:
    """The entries of an archive by field; None where there is none."""

    def __init__(self, path: Path):
        self.path = path
        try:
            check_plain_file(path)
            with zipfile.ZipFile(path) as archive:
                self.names = [n.removesuffix(".npy") for n in archive.namelist()]
        except Exception as error:  # of zipfile or of the system: an unusable file
            raise self._unreadable(error) from error
        self.found = {
            field: next(key for key in keys if key in self.names)
            for field, keys in _KEYS.items()
            if not set(keys).isdisjoint(self.names)
        }

    def __getitem__(self, field: str) -> Any:
        if field not in self.found:
            return None
        name = self.found[field]
        try:
            _check_size(self.path, f"{name}.npy")
            mapped = _mapped(self.path, f"{name}.npy")
            if mapped is not None:
                return mapped
            # opened here: of a damaged archive numpy leaves the file open
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return archive[name]
        except Exception as error:  # zipfile, pickle and OS errors alike
            raise self._unreadable(error, f" (entry {name!r})") from error

    def _unreadable(self, error: Exception, where: str = "") -> ValueError:
        words = f"{self.path.name} is not a readable .npz file{where}: {error}"
        return ValueError(f"{words}; expected an archive of plain arrays, as np.savez writes it")


def _check_size(path: Path, member: str) -> None:
    """``ValueError`` where an entry is a bomb, promises other sizes than it has, or is too large.

    Looks at the directory of the archive and at the header of the entry alone.
    """
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member)
        check_declared(entry.file_size, entry.compress_size, "it")
        with archive.open(entry) as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(stream)
            held = entry.file_size - stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"an array of shape {shape} and kind {dtype} has {held} bytes here")
    if entry.compress_type != zipfile.ZIP_STORED or held < _LARGE:
        check_memory(2.0 * held, "it", "store it with np.savez, which does not compress")


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """A large entry as a map of the file, once its checksum was seen to hold; else None."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < _LARGE:
            return None
        with archive.open(entry) as stream:
            while stream.read(_CHUNK):
                pass
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        head = file.read(30)  # of the entry: it ends in the lengths of its name and of an extra
        file.seek(sum(int.from_bytes(head[n : n + 2], "little") for n in (26, 28)), 1)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            return None
        order: Any = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Atomic numbers (N,), from (M, N) where all rows are one; symbols too."""
    if values.ndim == 2:
        if not len(values) or not (values == values[0]).all():
            raise ValueError(f"{name} mixes compositions; give each a file of its own")
        values = values[0]
    if values.dtype.kind in "SU":
        symbols = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
        if strange := sorted(set(symbols) - set(atomic_numbers)):
            raise ValueError(f"{name}: {', '.join(strange)} among the elements are none")
        return np.array([atomic_numbers[s] for s in symbols])
    whole = values.astype(int) if values.dtype.kind in "fiu" else None
    if values.ndim != 1 or not np.array_equal(values, whole):
        raise ValueError(
            f"{name}: numbers of shape {values.shape} and kind {values.dtype}, expected (N,) whole "
            "atomic numbers"
        )
    if not ((whole > 0) & (whole < len(chemical_symbols))).all():
        raise ValueError(f"{name}: numbers from {whole.min()} to {whole.max()} are of no elements")
    return whole


def _frames(values: np.ndarray, n_atoms: int) -> np.ndarray:
    """(M, N, 3) from (M, 3N), and from (N, 3), which is one frame; what fits neither stays."""
    if values.shape == (n_atoms, 3):
        return values[None]
    if values.ndim == 2 and values.shape[1] == 3 * n_atoms:
        return values.reshape(-1, n_atoms, 3)
    return values


def _labels(values: np.ndarray | None, n_atoms: int, name: str) -> np.ndarray | None:
    return None if values is None else _frames(_real(values, "forces", name), n_atoms)


def _energies(values: np.ndarray | None, name: str) -> np.ndarray | None:
    """(M,) from (M, 1), and from a number, which is that of one frame."""
    if values is None:
        return None
    values = _real(values, "energies", name)
    return values.reshape(-1) if values.ndim == 0 or values.shape[1:] == (1,) else values


def _real(values: np.ndarray, what: str, name: str) -> np.ndarray:
    if values.dtype.kind not in "fiu" or (not values.ndim and what == "positions"):
        raise ValueError(
            f"{name}: {what} of kind {values.dtype} and shape {values.shape}, expected arrays of "
            "real numbers"
        )
    return values


def _temperature(values: np.ndarray, name: str) -> float:
    """One number, from one for all or one for each frame."""
    each = np.asarray(values).reshape(-1)
    if each.dtype.kind not in "fiu" or not len(each):
        raise ValueError(
            f"{name} states the temperature {values!r}: expected a number, in K; store one, such "
            "as temperature_K=300.0"
        )
    if not (each > 0).all():
        raise ValueError(f"{name} states a temperature of {each.min()} K, expected more than 0")
    if not np.allclose(each, each[0], rtol=1e-5, atol=0.0, equal_nan=True):
        raise ValueError(
            f"{name} holds temperatures from {each.min():g} to {each.max():g} K: snapshots have "
            "one; give the frames of each temperature a file of its own"
        )
    # 298.15 in single precision is meant as 298.15
    return float(str(each[0]))


def _system(numbers, cell, pbc, count: int, name: str) -> System:
    if cell is not None:
        cell = _real(cell, "cell", name)
        if not np.isfinite(cell).all():
            raise ValueError(f"{name}: the cell holds NaN or infinity, expected lengths in Å")
        cell = np.repeat(cell, 3) if cell.size == 1 else cell
        cell = _same(cell, 2 if cell.shape[-2:] == (3, 3) else 1, "cell", count, name)
    if pbc is not None:
        of_frames = pbc.shape in ((count,), (count, 1)) and count != 3
        pbc = _same(pbc, 0 if of_frames else min(pbc.ndim, 1), "pbc", count, name)
    if cell is not None and pbc is None and np.any(cell):
        warnings.warn(
            f"{name} has a cell but no pbc: read as not periodic; add pbc=True if it is",
            stacklevel=2,
        )
    pbc = False if pbc is None else np.asarray(pbc, dtype=bool).reshape(-1)
    try:
        return System.from_atoms(Atoms(numbers=numbers, cell=cell, pbc=pbc))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _same(values: np.ndarray, own: int, what: str, count: int, name: str) -> np.ndarray:
    """The one value, of ``own`` dimensions, that all frames have."""
    if values.ndim == own:
        return values
    rows = values.reshape(len(values), *values.shape[values.ndim - own :])
    if len(rows) not in (1, count):
        raise ValueError(f"{name}: {what} of shape {values.shape} for {count} frames")
    if not np.allclose(rows, rows[0], atol=1e-6):
        raise ValueError(f"{name}: the {what} varies; train on snapshots at constant {what}")
    return rows[0]
