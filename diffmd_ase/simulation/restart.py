"""How a run goes on from its checkpoint, and what it says of itself at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..io.checkpoint import load_checkpoint
from ..io.run_info import RunInfo
from ..io.schema import validated
from ..io.trajectory import Trajectory
from ..sampling.acceptance import Tally
from ..sampling.kernels import Kernel
from ..state import State
from .settings import Files

__all__ = ["adapted", "read_checkpoint", "summary"]


_Walker = Annotated[str, Field(pattern=r"^\d+$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Sums(BaseModel):
    """A `Tally`, of each walker."""

    model_config = ConfigDict(extra="forbid")
    steps: list[_Finite]
    accepted: list[_Finite]
    divergent: list[_Finite]
    judged: list[_Finite]
    drift: _Finite = 0
    target: _Finite = 0

    @property
    def lengths(self) -> set[int]:
        return {*map(len, (self.steps, self.accepted, self.divergent, self.judged))}


class _Outside(BaseModel):
    """What `simulation.outside` has counted."""

    model_config = ConfigDict(extra="forbid")
    frames: Annotated[int, Field(ge=0)] = 0
    counted: Annotated[int, Field(ge=0)] = 0
    ended: dict[_Walker, int] = {}


class _Adapted(BaseModel):
    """What an adaptation has found (`sampling.adaptation.Adaptation`)."""

    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    first: int
    steps: int


class _Past(BaseModel):
    """What a run keeps in its checkpoint beside the state, as far as it is read here."""

    model_config = ConfigDict(extra="allow")
    every: Annotated[int, Field(ge=1)]
    warm_up: Annotated[int, Field(ge=0)] = 0
    lost: dict[_Walker, int]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    evaluations: Annotated[int, Field(ge=0)]
    adaptation: _Adapted | None = None
    tally: _Sums | None = None
    tally_of_frame: _Sums | None = None
    outside: _Outside | None = None
    together: dict[str, _Finite] = {}


def adapted(kernel: Kernel, info: RunInfo, record: dict | None) -> tuple[Kernel, RunInfo]:
    """``kernel`` and ``info`` with the step that an adaptation has found.

    ``record`` is the `sampling.adaptation.Adaptation` as a dict; None: there was none, and both
    stay. Step size and time step are multiplied by its ``factor``.
    """
    if record is None:
        return kernel, info
    factor = record["factor"]
    clock = None if info.timestep_fs is None else info.timestep_fs * factor
    return kernel.scaled(factor), replace(info, h=info.h * factor, timestep_fs=clock)


def read_checkpoint(
    files: Files,
    info: RunInfo,
    n_steps: int,
    every: int,
    walkers: Tensor | None,
    warm_up: int,
    device,
) -> tuple[State, Trajectory, dict]:
    """State, trajectory and facts of the checkpoint, if it is one of this run.

    ``files``, ``n_steps``, ``every``, ``walkers`` and ``warm_up`` are those of `simulate.simulate`;
    the step size of ``info`` is that before any adaptation.

    Raises
    ------
    ValueError : a setting that differs, with what it was; more steps than asked for in all
    """
    saved = load_checkpoint(files.restart, device=device)
    past = validated(_Past, saved.parameters, files.restart, "header")
    trajectory = Trajectory(files.trajectory)
    before, ids = trajectory.info, saved.state.walkers
    if ids is None or not set(ids.tolist()) <= set(trajectory.walkers.tolist()):
        raise ValueError(
            f"{files.restart} is damaged: its walkers are not those of {files.trajectory}"
        )
    factor = 1.0 if past.adaptation is None else past.adaptation.factor
    pairs = {
        "seed": (info.seed, saved.seed),
        "kT (eV)": (info.kT, before.kT),
        "step size (Å²)": (info.h * factor, before.h),
        "steps of adaptation": (warm_up, past.warm_up),
        "steps between frames": (every, past.every),
        "model": (info.model_sha256, before.model_sha256),
    }
    for name in ("target", "target-options", "proposal-steps", "chunk"):
        pairs[name] = (info.extra.get(name), before.extra.get(name))
    if walkers is not None:
        gone = [*past.lost, *({} if past.outside is None else past.outside.ended)]
        every_one = {*ids.tolist(), *map(int, gone)}
        pairs["walkers"] = (sorted(walkers.tolist()), sorted(every_one))
    for name in ("parallel", "draft", *(["window"] if info.extra.get("draft") else [])):
        # earlier runs have none of them
        pairs[name] = (info.extra.get(name) or None, before.extra.get(name) or None)
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
    walker_count = len(trajectory.walkers)
    for sums in (past.tally, past.tally_of_frame):
        if sums is not None and sums.lengths != {walker_count}:
            raise ValueError(
                f"{files.restart} is damaged: sums of {sorted(sums.lengths)} walkers, but the "
                f"trajectory has {walker_count}"
            )
    return saved.state, trajectory, saved.parameters


def _short(value) -> str:
    if isinstance(value, list):
        return f"{value[0]}…{value[-1]} ({len(value)})" if len(value) > 4 else str(value)
    return value[:12] if isinstance(value, str) else str(value)


def summary(kernel: Kernel, info: RunInfo, state: State, facts: dict) -> dict:
    """What the file of a finished run says of it; JSON values.

    ``kernel``, ``info`` and ``state`` are those at its end, ``facts`` of `course.Course.facts`.
    """
    tally = Tally.from_dict(facts["tally"])
    judged: dict = {}
    if tally.judged.any():
        judged = {
            "acceptance": tally.acceptance,
            "divergent": int(tally.divergent.sum()),
            "target_evaluations": int(tally.target),
            "adaptation": facts.get("adaptation"),
        }
    beyond = facts.get("outside", {})
    if beyond.get("counted"):
        judged |= {"frames_outside": f"{beyond['frames']} of {beyond['counted']}"}
    if beyond.get("ended"):
        judged |= {"ended_outside": beyond["ended"]}
    if "together" in facts:
        judged["together"] = facts["together"]
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
