"""A training run on disk and in processes: the job's folder, children, progress bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..system import System
from .plan import TrainConfig
from .sets import joint_hash
from .snapshots import Snapshots

__all__ = ["read_job", "write_job"]


def write_job(folder: Path, sets: tuple[Snapshots, ...], config: TrainConfig, seed, device) -> None:
    """Leave all that a training process needs in ``folder``; refuse one of another job."""
    job = {
        "data": joint_hash(sets),
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "device": device,
        "sets": [
            {key: getattr(part, key) for key in ("source", "temperature_K", "correlation")}
            for part in sets
        ],
    }
    path = folder / "job.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = json.loads(path.read_text())
        changed = [k for k in ("data", "config", "seed") if before[k] != job[k]]
        if changed:
            raise ValueError(
                f"{folder} holds a training run with another {' and '.join(changed)}; give "
                "another directory, or remove it to start afresh"
            )
    arrays: dict[str, Any] = {}
    for n, part in enumerate(sets):
        system = part.system
        arrays |= {f"{n}.{key}": getattr(system, key) for key in ("numbers", "masses", "pbc")}
        arrays[f"{n}.positions"] = part.positions
        if config.force_weight:
            arrays[f"{n}.forces"] = part.forces
        if system.cell is not None:
            arrays[f"{n}.cell"] = system.cell
    np.savez(folder / "job.npz", **arrays)
    path.write_text(json.dumps(job, indent=1))


def read_job(folder: Path) -> tuple[tuple[Snapshots, ...], TrainConfig, dict]:
    """What `write_job` left: sets of snapshots, config, and the rest."""
    job = json.loads((folder / "job.json").read_text())
    sets = []
    with np.load(folder / "job.npz") as raw:
        for n, facts in enumerate(job["sets"]):
            cell = raw[f"{n}.cell"] if f"{n}.cell" in raw.files else None
            numbers, masses, pbc = (raw[f"{n}.{key}"] for key in ("numbers", "masses", "pbc"))
            system = System(numbers, masses, cell, pbc)
            forces = raw[f"{n}.forces"] if f"{n}.forces" in raw.files else None
            sets.append(Snapshots(system, raw[f"{n}.positions"], forces=forces, **facts))
    return tuple(sets), TrainConfig(**job["config"]), job
