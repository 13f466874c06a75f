"""Files with a flipped bit, or cut off: what is read is what was written, or it is refused.

Silent: accepted without a word that the whole file does not cause, and any value differs.
"""

from __future__ import annotations

import json
import signal
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffmd_ase.io.checkpoint import load_checkpoint
from diffmd_ase.io.plumed_tables import read_plumed
from diffmd_ase.io.read_trajectories import read_series
from diffmd_ase.io.trajectory import Trajectory
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.training_state import read_checkpoint

from .kinds import kinds
from .sandbox import Record, ended, fork, words

OURS = ("model", "checkpoint", "trajectory", "training state")
FOREIGN = ("HILLS", "KERNELS", "COLVAR", "extxyz", "traj")
_BLOCK = 25  # files that one child reads
_SAID = (ValueError, OSError, RuntimeError, LookupError)


def _model(path: Path):
    model = ScoreModel.load(path)
    values = [v for network in model.networks for v in network.state_dict().values()]
    return model.card.model_dump_json(), [v.numpy() for v in values]


def _checkpoint(path: Path):
    saved = load_checkpoint(path)
    state = saved.state
    values = [state.x, state.forces, state.energy, state.walkers]
    return (saved.seed, saved.parameters, state.step), [v.numpy() for v in values]


def _trajectory(path: Path):
    t = Trajectory(path)
    names = sorted(t.columns)
    values = [np.asarray(t.positions), t.energies, t.steps, t.Dt, t.walkers]
    return (t.info, t.system, names), [*values, *(t.columns[name] for name in names)]


def _training(path: Path):
    facts, tensors = read_checkpoint(path)
    return facts, [tensors[name].numpy() for name in sorted(tensors)]


def _table(path: Path):
    t = read_plumed(path)
    for note in t.notes:  # as commands do
        warnings.warn(note, stacklevel=1)
    return (t.fields, t.domains, t.constants), [t.values, t.walker]


def _frames(path: Path):
    s = read_series([path])
    names = sorted(s.columns)
    values = [s.positions, *(s.columns[name] for name in names)]
    return (s.system, names, s.left_out), values


READ: dict[str, Callable] = {
    "model": _model,
    "checkpoint": _checkpoint,
    "trajectory": _trajectory,
    "training state": _training,
    "HILLS": _table,
    "KERNELS": _table,
    "COLVAR": _table,
    "extxyz": _frames,
    "traj": _frames,
}


def originals(folder: Path, names: set[str]) -> dict[str, Path]:
    """A whole file of each kind, where its writer is installed; those of other kinds are left."""
    known = kinds(0.3)
    writers = {
        "metadynamics, shared": {"checkpoint": "md.restart", "trajectory": "md.h5"}
        | {"HILLS": "HILLS", "extxyz": "one.extxyz", "traj": "one.traj"},
        "OPES": {"KERNELS": "KERNELS"},
        "PLUMED METAD": {"COLVAR": "COLVAR"},
        "train": {"model": "m.safetensors", "training state": "training"},
    }
    found = {}
    for writer, files in writers.items():
        wanted = {name: file for name, file in files.items() if name in names}
        if not wanted:
            continue
        place = folder / writer
        place.mkdir()
        if ended(fork(lambda writer=writer: known[writer].go(False), place), 600.0):
            print(f"{writer}: {words(place)}")
            continue
        if "md.h5" in files.values():
            for name in ("one.extxyz", "one.traj"):
                Trajectory(place / "md.h5").write(place / name, 0)
        found |= {name: place / file for name, file in wanted.items()}
    if "training state" in found:
        found["training state"] = min(found["training state"].glob("*.safetensors"))
    return found


def read(name: str, path: Path) -> tuple[str, list, list[str]]:
    """What there is in a file: facts as text, numbers, and words (of warnings)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        facts, values = READ[name](path)
    said = sorted({str(w.message).replace(str(path), "") for w in told})
    return repr(facts).replace(str(path), ""), values, said


def verdict(name: str, path: Path, expected) -> tuple[str, str]:
    """``refused``, ``same``, ``told`` or ``silent``; or ``error`` in what nobody expected."""
    try:
        facts, values, said = read(name, path)
    except Exception as error:
        words_of = f"{type(error).__name__}: {error}".replace(str(path), "FILE")[:160]
        return ("refused" if isinstance(error, _SAID) else "error"), words_of
    same = len(values) == len(expected[1]) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(values, expected[1], strict=True)
    )
    if same and facts == expected[0]:
        return "same", ""
    if said != expected[2]:
        return "told", " ".join(said)[:160]
    return "silent", _where(values, expected[1])


def _where(values, expected) -> str:
    if [v.shape for v in values] != [v.shape for v in expected]:
        return "shape"
    with np.errstate(all="ignore"):
        pairs = zip(values, expected, strict=True)
        apart = [np.nanmax(np.abs(a - b), initial=0.0) for a, b in pairs if a.size]
    return f"by {max(map(float, apart), default=0.0):.2g}"


def damaged(good: bytes, how: str, rng: np.random.Generator) -> bytes:
    """A flipped bit, or anything shorter than the whole.

    Every second flip is in a byte that is not zero: most of a short HDF5 file is room for more.
    """
    if how == "cuts":
        return good[: int(rng.integers(0, len(good)))]
    bad = bytearray(good)
    used = np.flatnonzero(np.frombuffer(good, np.uint8)) if rng.integers(2) else len(good)
    bad[int(rng.choice(used))] ^= 1 << int(rng.integers(8))
    return bytes(bad)


def damage_files(names: set[str], counts: dict[str, int], seed: int, record: Record) -> None:
    """``counts`` flips and cuts of a file of each of the kinds ``names``."""
    with tempfile.TemporaryDirectory() as scratch:
        left = {n for n in names if any(len(record.of(how, n)) < counts[how] for how in counts)}
        for name, path in originals(Path(scratch), left).items():
            good, expected = path.read_bytes(), read(name, path)
            for how, count in counts.items():
                missing = list(record.missing(how, name, count))
                while missing:
                    block, missing = missing[:_BLOCK], missing[_BLOCK:]
                    _block(name, path, good, expected, how, block, seed, record)
                    missing = [n for n in missing if n in set(record.missing(how, name, count))]


def _block(name, path: Path, good: bytes, expected, how, block, seed, record: Record) -> None:
    """Some damaged files in a child: what ends it, or takes too long, is named as well."""
    bad = path.with_name(f"damaged{path.suffix}")

    def work():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for n in block:
            bad.write_bytes(damaged(good, how, np.random.default_rng([seed, n])))
            signal.alarm(60)
            found = verdict(name, bad, expected)
            with open("verdicts", "a") as file:
                file.write(json.dumps([n, *found]) + "\n")

    out = path.parent / "verdicts"
    out.unlink(missing_ok=True)
    code = ended(fork(work, path.parent), 600.0)
    found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for n, what, said in found:
        record.add(how, name, n, verdict=what, said=said)
    if code and len(found) < len(block):
        crash = "hang" if code == -signal.SIGALRM else f"crash {code}"
        record.add(how, name, block[len(found)], verdict=crash, said=words(path.parent)[-300:])
        _block(name, path, good, expected, how, block[len(found) + 1 :], seed, record)
