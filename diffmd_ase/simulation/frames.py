"""Frames in and out: snapshots to train on or to start from, samples to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from torch import Tensor

from ..independent.draws import sample
from ..io.atomic import replacing
from ..noise import Noise
from ..score.model import ScoreModel
from ..score.shipped import file_or_shipped
from ..score.snapshot_archives import stated_entries
from ..score.snapshot_files import TRAJECTORIES
from ..score.snapshots import Snapshots
from ..state import State
from ..system import System

__all__ = [
    "frame_writer",
    "read_frames",
    "read_sets",
    "starting_positions",
    "states_temperature",
    "write_lost",
]


def states_temperature(source: str | Path) -> bool:
    """Whether ``source`` says its temperature: shipped sets, trajectories, most ``.npz``."""
    try:
        path = file_or_shipped(source, folder="data", suffix=".npz")
    except FileNotFoundError:
        return True  # to be refused by who reads it
    if path.suffix in TRAJECTORIES or path.is_dir():
        return True
    if path.suffix != ".npz":
        return False
    try:
        return "temperature_K" in stated_entries(path)
    except ValueError:
        return True  # to be refused by who reads it


def read_sets(sources: Sequence[str | Path], temperatures: Sequence[float]) -> list[Snapshots]:
    """Sets of snapshots to train on.

    Parameters
    ----------
    sources : files, or names of shipped sets
    temperatures : in K: none, one for all, or one for each

    Raises
    ------
    ValueError : a set without a temperature, or with two that differ
    """
    if len(temperatures) not in (0, 1, len(sources)):
        raise ValueError(
            f"{len(temperatures)} temperatures for {len(sources)} files of snapshots: give one "
            "for all or one for each, in their order"
        )
    for source in sources if not temperatures else ():
        if not states_temperature(source):
            raise ValueError(
                f"{source} states no temperature: give --temperature in kelvin, a score is the "
                "force divided by kT and means nothing without it"
            )
    each = list(temperatures) * (len(sources) // max(1, len(temperatures)))
    return [
        Snapshots.read(source, temperature_K=kelvin)
        for source, kelvin in zip(sources, each or [None] * len(sources), strict=True)
    ]


def read_frames(
    source: str | Path, model: ScoreModel, *, temperature_K: float | None = None
) -> Snapshots:
    """Frames to start from or compare with: those of ``source``, a file or a shipped set.

    Their temperature is ``temperature_K``, or what they state, or else that of the ``model``.
    Raises ``ValueError`` for atoms that the model does not know, and positions that are not in Å.
    """
    if temperature_K is None and not states_temperature(source):
        temperature_K = model.card.temperature_K
    frames = Snapshots.read(source, temperature_K=temperature_K)
    try:
        potential = model.potential(frames.system, device="cpu")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if wrong := potential.scale_doubt(frames.positions):
        raise ValueError(f"{source}: {wrong}")
    return frames


def frame_writer(output: Path) -> Callable[[System, np.ndarray, float], None]:
    """``write(system, positions (M, N, 3) in Å, temperature_K)`` to ``output``, .npz or of ASE.

    Raises ``ValueError`` at once for a name that ASE knows no format for. The file appears
    when it is whole.
    """
    kind = "npz"
    if output.suffix != ".npz":
        try:
            kind = filetype(str(output), read=False)
        except UnknownFileTypeError:
            kind = "unknown"
    if kind != "npz":
        form = ioformats.get(kind)
        if form is None or not form.can_write or form.single:
            raise ValueError(f"{output}: ASE writes no frames so; use .extxyz, .traj or .npz")

    def write(system: System, positions: np.ndarray, temperature_K: float) -> None:
        with replacing(output) as part:
            if kind == "npz":
                numbers = system.numbers
                with part.open("wb") as file:
                    np.savez(
                        file, positions=positions, numbers=numbers, temperature_K=temperature_K
                    )
            else:
                ase.io.write(part, [system.to_atoms(p) for p in positions], format=kind)

    return write


def starting_positions(
    model: ScoreModel, frames: Snapshots | None, walkers: Tensor, *, seed: int, device: str
) -> Tensor:
    """Positions (B, N, 3) in Å for the walkers with the global ids ``walkers`` (B,).

    Random ``frames`` or, without any, i.i.d. draws of the ``model``, whose ids are consecutive;
    those of a walker depend on ``seed`` and its id, not on the batch it runs in. ``device`` is
    where draws are computed.

    Raises
    ------
    ValueError : no frames of a periodic system
    """
    if frames is not None:
        ids = walkers.tolist()
        chosen = [np.random.default_rng([seed, w]).integers(len(frames)) for w in ids]
        return torch.as_tensor(frames.positions[chosen], dtype=torch.float32)
    if model.system.periodic:
        raise ValueError("a periodic system needs frames to start from: give some (--start)")
    first = int(walkers[0])
    return sample(model, len(walkers), noise=Noise(seed), first=first, device=device)


def write_lost(path: Path, system: System, before: State, after: State) -> None:
    """Add walkers that diverged to an extended XYZ file, so that one can see why.

    Two frames of each: the last one that was finite, and what the step made of it; ``info`` says
    ``step`` and ``walker``, the array ``forces_of_drift`` the forces that it followed, eV/Å.

    Parameters
    ----------
    path : new, or with those that were lost before
    before, after : the state of the lost walkers, x (B, N, 3)
    """
    frames = []
    for walker in range(len(before.x)):
        for state in (before, after):
            atoms = system.to_atoms(state.x[walker])
            ids = range(len(state.x)) if state.walkers is None else state.walkers.tolist()
            atoms.info.update(step=int(state.step), walker=int(ids[walker]))
            atoms.arrays["forces_of_drift"] = state.forces[walker].detach().cpu().double().numpy()
            frames.append(atoms)
    ase.io.write(path, frames, format="extxyz", append=True)
