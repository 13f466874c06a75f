"""Is a file what was written: all of it read, every checksum looked at."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..io.checkpoint import load_checkpoint, previous
from ..io.limits import check_plain_file
from ..io.trajectory import Trajectory
from ..score.job import read_job
from ..score.model import ScoreModel
from ..score.shipped import file_or_shipped
from ..score.snapshot_archives import stated_entries
from ..score.snapshot_files import TRAJECTORIES
from ..score.training_state import read_checkpoint

__all__ = ["Part", "verify_file"]

_OURS = (*TRAJECTORIES, ".restart", ".npz")
_BLOCK = 1 << 24  # numbers read at a time


class Part(NamedTuple):
    """One file of what was asked for."""

    name: str  # of the file
    good: bool | None  # it is sound; None: nobody can tell
    text: str  # the same in words


def verify_file(path: str | Path) -> list[Part]:
    """Read all of a model, trajectory, checkpoint, archive or folder of a training.

    Parameters
    ----------
    path : the file or folder, or the name of a shipped model

    Raises
    ------
    FileNotFoundError : there is none
    ValueError : a kind of file that has no checksums of ours
    """
    path = Path(path)
    check_plain_file(path)
    if path.suffix in _OURS and not (path.exists() or previous(path).exists()):
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir() and (path / "job.json").exists():
        return _training(path)
    if path.suffix in TRAJECTORIES:
        return [_judged(path, _trajectory)]
    if path.name.endswith((".restart", ".restart.prev")):
        return [_judged(one, _checkpoint) for one in (path, previous(path)) if one.exists()]
    if path.suffix == ".npz":
        return [_judged(path, _archive)]
    found = file_or_shipped(path, folder="models", suffix=".safetensors", what="file to verify")
    if found.suffix != ".safetensors":
        raise ValueError(
            f"{path} has no checksums of diffmd: expected a model (.safetensors), a trajectory "
            "(.h5), a checkpoint (.restart), snapshots (.npz) or the folder of a training"
        )
    return [_judged(found, _model)]


def _judged(path: Path, look: Callable[[Path], tuple[bool | None, str]]) -> Part:
    try:
        return Part(path.name, *look(path))
    except (ValueError, OSError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        return Part(path.name, False, str(error))


def _model(path: Path) -> tuple[bool | None, str]:
    model = ScoreModel.load(path)
    count = sum(len(network.state_dict()) for network in model.networks)
    if model.digest is None:
        return None, f"{count} tensors, of an earlier version: no digest to compare with"
    return True, f"card and {count} tensors match their digest {model.digest[:12]}"


def _trajectory(path: Path) -> tuple[bool | None, str]:
    trajectory = Trajectory(path)
    rows = max(1, _BLOCK // int(np.prod(trajectory.positions.shape[1:])))
    for first in range(0, len(trajectory), rows):
        trajectory.positions[first : first + rows]
    told = f"{len(trajectory)} frames of {len(trajectory.walkers)} walkers"
    if not trajectory.has_checksums:
        return None, f"{told}, of an earlier version: no checksums to compare with"
    end = "" if trajectory.closed_cleanly else "; a block is being written, or was cut off"
    return True, f"{told} match their checksums{end}"


def _checkpoint(path: Path) -> tuple[bool | None, str]:
    state = load_checkpoint(path, older=False).state
    return True, f"step {state.step}, {len(state.x)} walkers: matches its digest"


def _archive(path: Path) -> tuple[bool | None, str]:
    entries = stated_entries(path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        return False, f"entry {damaged} differs from its checksum"
    return True, f"{', '.join(sorted(entries)) or 'other arrays'}: match their checksums"


def _training(folder: Path) -> list[Part]:
    parts = [_judged(folder / "job.json", lambda path: (True, _job(path.parent)))]
    for path in sorted(folder.glob("*.safetensors")):
        parts.append(_judged(path, lambda path: (True, _progress(path))))
    return parts


def _job(folder: Path) -> str:
    with zipfile.ZipFile(folder / "job.npz") as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"job.npz is damaged: entry {damaged} differs from its checksum")
    sets, job = read_job(folder)
    return f"{len(job.experts)} networks on {sum(map(len, sets))} snapshots"


def _progress(path: Path) -> str:
    facts, tensors = read_checkpoint(path)
    return f"step {facts.step}, {len(tensors)} tensors: match their digest"
