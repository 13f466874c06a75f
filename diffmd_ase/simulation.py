"""A run that leaves files: trajectory, checkpoint, summary; restartable at any moment.

PREFIX.h5         H5MD trajectory of all walkers (`storage.Trajectory`)
PREFIX.restart    checkpoint: positions, step count and seed
PREFIX.json       summary: settings, versions, lost walkers, timings
PREFIX.extxyz     the last frame of every walker
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import units as ase_units
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint
from .dynamics_step import Step, card_stiffness, check_step, check_temperature, choose_step
from .h5md import replacing
from .noise import Noise
from .potentials.base import Potential
from .sampling.adaptation import adapt
from .sampling.iid import sample
from .sampling.kernels import DivergedError, EulerMaruyama, Kernel
from .sampling.metropolis import Metropolis
from .sampling.run import advance
from .sampling.tally import Tally
from .score.model import ScoreModel
from .score.snapshots import Snapshots
from .signals import Deferred
from .storage import RunInfo, Trajectory, TrajectoryWriter
from .system import State, System
from .targets import find_target
from .units import kT_from_temperature, spring_from_h

__all__ = [
    "Files",
    "coupled_kernel",
    "frame_writer",
    "read_frames",
    "read_sets",
    "simulate",
    "starting_positions",
    "states_temperature",
]

_CHECKPOINT_SECONDS = 30.0
_ACCEPTANCE = "acceptance"  # the column
_BLOCK = 1000  # steps between looks at the clock, at most


@dataclass(frozen=True)
class Files:
    """The files of one run."""

    prefix: str

    @property
    def trajectory(self) -> Path:
        return Path(f"{self.prefix}.h5")

    @property
    def restart(self) -> Path:
        return Path(f"{self.prefix}.restart")

    @property
    def summary(self) -> Path:
        return Path(f"{self.prefix}.json")

    @property
    def final(self) -> Path:
        return Path(f"{self.prefix}.extxyz")

    def check_free(self) -> None:
        """Raise ``FileExistsError`` where another run left its files."""
        for path in (self.trajectory, self.restart):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists: restart that run, remove it, or choose another prefix"
                )


# ------------------------------------------------------------------ before the run


def coupled_kernel(
    potential: Potential,
    *,
    temperature_K: float,
    timestep_fs: float | None = None,
    friction_per_fs: float | None = None,
    spring: float | None = None,
    h: float | None = None,
    target: str | Potential | None = None,
    proposal_steps: int = 1,
    moving: np.ndarray | None = None,
) -> tuple[EulerMaruyama | Metropolis, Step]:
    """The harmonic-coupled step in a user's words, judged by the stiffness on the card.

    Isolated molecules lose no mean: drift and noise are projected. With a ``target`` ("model"
    or as in `targets.find_target`) ``proposal_steps`` steps are accepted or rejected, and a
    step that is too large is rejected instead of refused. Atoms outside of ``moving`` (N,) are
    held: their h is 0.

    Raises
    ------
    ValueError : contradictory words, a step beyond the limit of stability, or none where
        the card knows no stiffness
    """
    if h is not None and (spring is not None or timestep_fs is not None):
        raise ValueError(f"step size {h} Å² and a spring or time step: give one, each sets h")
    if timestep_fs is not None and friction_per_fs is None:
        raise ValueError(
            f"time step {timestep_fs} fs needs a friction (1/fs): only together they make a step "
            "h; give neither for the default"
        )
    if h is not None and not h > 0:
        raise ValueError(f"step size {h} Å² must be positive")
    kT = kT_from_temperature(temperature_K)
    moving = np.ones(len(potential.system), bool) if moving is None else moving
    stiffness = card_stiffness(potential, kT)
    if target in (None, "model"):  # another reference has the last word
        check_temperature(potential, temperature_K)

    def known() -> tuple[float, str]:
        if stiffness is None:
            raise ValueError("the model card holds no stiffness to choose a step by: give one")
        return stiffness, "from the model card"

    step = choose_step(
        kT=kT,
        masses=potential.system.masses,
        timestep=None if timestep_fs is None else timestep_fs * ase_units.fs,
        friction=None if friction_per_fs is None else friction_per_fs / ase_units.fs,
        mobility=None,
        spring=spring if h is None else spring_from_h(h),
        stiffness=known,
    )
    if stiffness is not None and target is None:
        # its words are those of this call: fs
        in_fs = replace(step, timestep=step.timestep / ase_units.fs)
        check_step(in_fs, stiffness, moving)
    mean_free = not potential.system.periodic
    size = torch.as_tensor(step.h if moving.all() else step.h * moving)
    proposal = EulerMaruyama(potential, kT=kT, h=size, mean_free=mean_free)
    if target is None:
        if proposal_steps != 1:
            raise ValueError(f"{proposal_steps=} without a target: nothing is proposed")
        return proposal, step
    return Metropolis(proposal, find_target(target, potential.system), proposal_steps), step


def states_temperature(source: str | Path) -> bool:
    """Whether snapshots say their temperature themselves: shipped sets, most ``.npz``."""
    path = Path(source)
    if not path.exists():
        return True
    if path.suffix != ".npz":
        return False
    try:
        with np.load(path) as archive:
            return bool({"temperature", "temperature_K"} & set(archive.files))
    except (OSError, ValueError, zipfile.BadZipFile):
        return True  # to be refused, with better words, by who reads it


def read_sets(sources: Sequence[str | Path], temperatures: Sequence[float]) -> list[Snapshots]:
    """Sets of snapshots to train on, and their temperatures: none, one for all, or one for each.

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


def read_frames(source: str | Path, model: ScoreModel) -> Snapshots:
    """Frames to start from or compare with; the model's temperature stands in for theirs."""
    stated = states_temperature(source)
    return Snapshots.read(source, temperature_K=None if stated else model.card.temperature_K)


def frame_writer(output: Path) -> Callable[[System, np.ndarray, float], None]:
    """``write(system, positions (M, N, 3), temperature_K)`` to ``.npz`` or a format of ASE.

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
        known = ioformats.get(kind)
        if known is None or not known.can_write or known.single:
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
    """Positions (B, N, 3) for the walkers with these global ids.

    Random frames or, without any, i.i.d. draws of the model; those of a walker do not
    depend on the batch it runs in.
    """
    if frames is not None:
        ids = walkers.tolist()
        chosen = [np.random.default_rng([seed, w]).integers(len(frames)) for w in ids]
        return torch.as_tensor(frames.positions[chosen], dtype=torch.float32)
    if model.system.periodic:
        raise ValueError("a periodic system needs frames to start from: give some (--start)")
    first = int(walkers[0])
    return sample(model, len(walkers), noise=Noise(seed), first=first, device=device)


# ------------------------------------------------------------------------- the run


def simulate(
    kernel: Kernel,
    system: System,
    x: Tensor | None,
    n_steps: int,
    *,
    files: Files,
    info: RunInfo,
    every: int,
    walkers: Tensor | None = None,
    restart: bool = False,
    warm_up: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Run ``n_steps`` steps in all, writing every ``every``; returns the summary.

    Frames have the energy of what decides (with its bias), the acceptance since the frame
    before, and what a bias says of itself. Checkpoints hold what potentials with memory need.

    Parameters
    ----------
    x : (B, N, 3) starting positions; None with ``restart``
    info : what the frames mean; its seed is that of the noise
    walkers : (B,) global ids, default 0…B−1; with ``restart`` those of the checkpoint
    restart : go on from the checkpoint to ``n_steps`` in all; the result is that of an
        uninterrupted run
    warm_up : the first steps, in no frame, in which the step size of a Metropolis kernel is
        adapted (`sampling.adaptation`), then frozen; a run killed in them starts anew
    device : where the walkers live
    progress : called with steps done and walkers alive

    Walkers that diverge are dropped, named in the summary, and the others go on.

    Raises
    ------
    FileExistsError : files of a run are there and ``restart`` was not asked for
    ValueError : ``restart`` with settings that are not those of the run
    DivergedError : no walker is left; what there was is on disk
    """
    noise = Noise(info.seed)
    if not 0 <= warm_up <= n_steps:
        raise ValueError(f"{warm_up} steps of adaptation in a run of {n_steps}: the steps in all")
    if restart:
        state, writer, past = _resume(files, info, n_steps, every, walkers, warm_up, device)
        kernel, info = _adapted(kernel, info, past.get("adaptation"))
        if kernel.potential.has_memory:
            kernel.potential.restore(past["potential"], state.x, state.step)
            state = kernel.refresh(state)
    else:
        if x is None:
            raise ValueError("no starting positions and no restart: nothing to run")
        files.check_free()
        x = x.to(device)
        ids = torch.arange(len(x)) if walkers is None else walkers
        state = kernel.init(x, walkers=ids.to(device))
        past = {"lost": {}, "seconds": 0.0, "evaluations": 0, "every": every, "warm_up": warm_up}
        if warm_up:
            _, state, record = adapt(kernel, state, warm_up, noise=noise)
            past["adaptation"] = asdict(record)
            kernel, info = _adapted(kernel, info, past["adaptation"])
        columns = [*kernel.potential.describe(state.x), _ACCEPTANCE]
        writer = TrajectoryWriter.create(
            files.trajectory, system, ids.tolist(), info, columns=columns
        )
        if state.step % every == 0:
            writer.append(state, kernel.potential.describe(state.x))
    lost, evaluations = dict(past["lost"]), past["evaluations"]
    place = {int(walker): n for n, walker in enumerate(writer.walkers)}
    tallies = [
        Tally.from_dict(past[name], state.x.device)
        if name in past
        else Tally.empty(len(place), state.x.device)
        for name in ("tally", "tally_of_frame")
    ]
    began = saved = time.monotonic()

    def facts() -> dict:
        seconds = past["seconds"] + time.monotonic() - began
        now = {"lost": lost, "seconds": seconds, "evaluations": evaluations}
        now["tally"], now["tally_of_frame"] = (tally.to_dict() for tally in tallies)
        return past | now

    def save() -> None:
        writer.flush()
        saved = facts() | {"potential": kernel.potential.checkpoint()}
        save_checkpoint(files.restart, state, seed=info.seed, parameters=saved)

    with Deferred() as signals, writer:
        save()
        try:
            while state.step < n_steps:
                # never past a frame, so that frames stay at multiples of `every`
                block = min(every - state.step % every, n_steps - state.step, _BLOCK)
                columns_of = torch.tensor([place[int(w)] for w in state.walkers])
                columns_of = columns_of.to(state.x.device)
                try:
                    for _ in range(block):
                        state, step_info = advance(kernel, state, noise)
                        evaluations += len(state.x)
                        if step_info.accepted is not None:
                            tallies[0] = tallies[0].add(step_info, columns_of)
                        if signals.pending is not None:
                            break
                except DivergedError as error:
                    lost |= {str(walker): error.step for walker in error.walkers}
                    if error.survivors is None:
                        raise
                    state = error.survivors
                    continue
                if state.step % every == 0:
                    named = kernel.potential.describe(state.x)
                    since = tallies[0] - tallies[1]
                    fraction = since.accepted / since.judged  # 0/0 is NaN: plain dynamics
                    writer.append(state, named | {_ACCEPTANCE: fraction[columns_of]})
                    tallies[1] = tallies[0]
                if progress:
                    progress(state.step, len(state.x))
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
                signals.deliver()
        finally:
            save()
    summary = _summary(kernel, info, state, facts())
    with replacing(files.summary) as part:
        part.write_text(json.dumps(summary, indent=1))
    with replacing(files.final) as part:
        ase.io.write(part, [system.to_atoms(p) for p in state.x.cpu()], format="extxyz")
    return summary


def _adapted(kernel: Kernel, info: RunInfo, record: dict | None) -> tuple[Kernel, RunInfo]:
    """Kernel and clock with the step that an adaptation has found."""
    if record is None:
        return kernel, info
    factor = record["factor"]
    clock = None if info.timestep_fs is None else info.timestep_fs * factor
    return kernel.scaled(factor), replace(info, h=info.h * factor, timestep_fs=clock)


def _resume(
    files: Files,
    info: RunInfo,
    n_steps: int,
    every: int,
    walkers: Tensor | None,
    warm_up: int,
    device,
) -> tuple[State, TrajectoryWriter, dict]:
    """State, open trajectory and facts of the checkpoint, if it is one of this run."""
    saved = load_checkpoint(files.restart, device=device)
    before = Trajectory(files.trajectory).info
    factor = saved.parameters.get("adaptation", {}).get("factor", 1.0)
    pairs = {
        "seed": (info.seed, saved.seed),
        "kT (eV)": (info.kT, before.kT),
        "step size (Å²)": (info.h * factor, before.h),
        "steps of adaptation": (warm_up, saved.parameters.get("warm_up", 0)),
        "steps between frames": (every, saved.parameters["every"]),
        "model": (info.model_sha256, before.model_sha256),
    }
    for name in ("target", "target-options", "proposal-steps"):
        pairs[name] = (info.extra.get(name), before.extra.get(name))
    if walkers is not None:
        ids = saved.state.walkers.tolist() + [int(w) for w in saved.parameters["lost"]]
        pairs["walkers"] = (sorted(walkers.tolist()), sorted(set(ids)))
    for name, (given, had) in pairs.items():
        if given != had:
            raise ValueError(
                f"restart of {files.prefix}: {name} {_short(given)} now, but the run has "
                f"{_short(had)}; repeat its settings, or choose another prefix"
            )
    if saved.state.step > n_steps:
        raise ValueError(
            f"restart of {files.prefix}: {n_steps} steps in all asked for, but the run is at "
            f"step {saved.state.step} already"
        )
    writer = TrajectoryWriter.resume(files.trajectory, step=saved.state.step)
    return saved.state, writer, saved.parameters


def _short(value) -> str:
    if isinstance(value, list):
        return f"{value[0]}…{value[-1]} ({len(value)})" if len(value) > 4 else str(value)
    return value[:12] if isinstance(value, str) else str(value)


def _summary(kernel: Kernel, info: RunInfo, state: State, facts: dict) -> dict:
    tally = Tally.from_dict(facts["tally"])
    judged = {}
    if tally.judged.any():
        judged = {
            "acceptance": tally.acceptance,
            "divergent": int(tally.divergent.sum()),
            "target_evaluations": int(tally.target),
            "adaptation": facts.get("adaptation"),
        }
    return {
        **judged,
        "steps": state.step,
        "every": facts["every"],
        "walkers": len(state.x),
        "lost": facts["lost"],
        "D_t_per_walker_A2": state.step * info.h,
        "h_A2": info.h,
        "seed": info.seed,
        "kT_eV": info.kT,
        "kernel": type(kernel).__name__,
        "kinetics_valid": info.kinetics_valid,
        "model_sha256": info.model_sha256,
        "version": info.package_version,
        "device": str(state.x.device),
        "seconds": round(facts["seconds"], 2),
        "walker_steps_per_second": round(facts["evaluations"] / max(facts["seconds"], 1e-9), 1),
    }
