"""A training run on disk, for checkpoints and for child processes.

The folder holds the job, and for each expert a checkpoint (see `training_state`). Children are
told all that was decided, the plan and the structure of the molecules included, and decide
nothing anew: ``python -m diffmd_ase.score.job FOLDER EXPERT``.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from ..io.atomic import replacing
from ..io.ranks import Ranks
from ..io.schema import json_object
from ..processes import Command, run_side_by_side
from ..progress import Report
from ..system import System
from .baseline import BaselineValues
from .fit import fit
from .networks.build import below
from .plan import Expert, TrainConfig
from .sets import Sets, joint_hash
from .snapshots import Snapshots
from .topology import Topology

__all__ = ["Job", "fit_here", "fit_in_processes", "read_job", "write_job"]

_SYSTEM = ("numbers", "masses", "cell", "pbc")  # what atoms carry besides is nothing to a score


class Job(BaseModel):
    """What is trained and how, but for the snapshots."""

    model_config = ConfigDict(frozen=True)
    experts: tuple[Expert, ...]  # in the order of the model
    config: TrainConfig  # what the user chose
    baseline: str | None = None  # the name and the options of what it corrects
    seed: int
    device: str

    def fit(
        self,
        expert: Expert,
        sets: Sets,
        folder: Path,
        report: Report,
        ranks: Ranks | None = None,
    ) -> None:
        """Train one of the experts; its checkpoint is in ``folder``. See `fit.fit`."""
        fit(
            expert,
            sets,
            self.config,
            seed=self.seed,
            device=self.device,
            folder=folder,
            report=report,
            ranks=ranks,
        )


def fit_here(
    job: Job, sets: Sets, folder: Path, report: Report, ranks: Ranks | None = None
) -> None:
    """Train all experts of a ``job``, one after the other, on one thread as processes do.

    ``sets``: the snapshots; ``folder``: where checkpoints are; ``report``, ``ranks``: as of `fit`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for expert in job.experts:
            job.fit(expert, sets, folder, report, ranks)
    finally:
        torch.set_num_threads(threads)


def fit_in_processes(job: Job, folder: Path, at_once: int, report: Report) -> None:
    """Train the experts of a job that was written, ``at_once`` side by side.

    ``folder``: where `write_job` wrote it, and where checkpoints are; ``report``: as of `fit`.

    Raises
    ------
    RuntimeError : a process failed; with its last words
    """

    program = [sys.executable, "-m", __name__, str(folder)]

    def hear(told: list | str) -> None:
        if isinstance(told, str):
            warnings.warn(told, stacklevel=2)
        else:
            report(*told)

    commands = [Command([*program, expert.name], "training", hear) for expert in job.experts]
    run_side_by_side(commands, at_once=at_once)


def write_job(folder: Path, sets: Sets, job: Job) -> None:
    """Leave all that a training process needs of ``job`` and its snapshots ``sets`` in ``folder``.

    Raises
    ------
    ValueError : the folder holds a run with other snapshots, config or seed
    """
    facts = {"data": joint_hash(sets), **job.model_dump(mode="json")}
    facts["sets"] = [
        {key: getattr(part, key) for key in ("source", "temperature_K", "correlation")}
        for part in sets
    ]
    path = folder / "job.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = json_object(path.read_text(errors="replace"), path, "text")
        known = ("data", "config", "baseline", "seed")
        changed = [k for k in known if before.get(k) != facts[k]]
        if changed:
            raise ValueError(
                f"{folder} holds a training run with another {' and '.join(changed)}; give "
                "another directory, or remove it to start afresh"
            )
    arrays: dict[str, Any] = {}
    for n, part in enumerate(sets):
        values = {"positions": part.positions, "moving": part.moving}
        of_system = {name: getattr(part.system, name) for name in _SYSTEM}
        values |= {f"system.{k}": v for k, v in of_system.items() if v is not None}
        if job.config.force_weight and part.forces is not None:
            values["forces"] = part.forces
        if part.baseline is not None:
            values |= {f"baseline.{k}": v for k, v in part.baseline.arrays().items()}
        if not part.system.periodic:
            values |= {f"topology.{k}": v for k, v in asdict(part.topology).items()}
        arrays |= {f"{n}.{k}": v for k, v in values.items()}
    np.savez(folder / "job.npz", **arrays)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))


def read_job(folder: Path) -> tuple[Sets, Job]:
    """What `write_job` left in ``folder``."""
    facts = json.loads((folder / "job.json").read_text())
    with np.load(folder / "job.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    sets = Sets(_set(below(arrays, f"{n}."), labels) for n, labels in enumerate(facts["sets"]))
    return sets, Job(**{name: facts[name] for name in Job.model_fields})


def _set(arrays: dict[str, np.ndarray], labels: dict[str, Any]) -> Snapshots:
    system = System(**below(arrays, "system."))
    positions, forces = arrays["positions"], arrays.get("forces")
    known = below(arrays, "baseline.")
    baseline = BaselineValues(**known) if known else None
    frames = Snapshots(system, positions, forces=forces, baseline=baseline, checked=True, **labels)
    topology = None
    if not system.periodic:
        tables = below(arrays, "topology.")
        topology = Topology(**{**tables, "chiral": bool(tables["chiral"])})
    return frames.with_structure(topology, arrays["moving"])


def _tell(what: Any) -> None:
    print(json.dumps(what), flush=True)


def _main(folder: str, name: str) -> None:
    torch.set_num_threads(1)
    try:
        sets, job = read_job(Path(folder))
        expert = next(e for e in job.experts if e.name == name)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _tell(str(message))
            job.fit(expert, sets, Path(folder), lambda *told: _tell(told))
    except (ValueError, OSError) as error:  # what was said for users, without where
        sys.exit(f"{error}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
