"""How a run goes on from its checkpoint, and what it says of itself at the end."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..io.checkpoint import load_checkpoint
from ..io.run_info import RunInfo
from ..io.trajectory import Trajectory, TrajectoryWriter
from ..sampling.acceptance import Tally
from ..sampling.kernels import Kernel
from ..state import State
from .settings import Files

__all__ = ["adapted", "read_checkpoint", "summary"]


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
) -> tuple[State, TrajectoryWriter, dict]:
    """State, open trajectory and facts of the checkpoint, if it is one of this run.

    ``files``, ``n_steps``, ``every``, ``walkers`` and ``warm_up`` are those of `simulate.simulate`;
    the step size of ``info`` is that before any adaptation.

    Raises
    ------
    ValueError : a setting that differs, with what it was; more steps than asked for in all
    """
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
    writer = TrajectoryWriter.resume(files.trajectory, step=saved.state.step)
    return saved.state, writer, saved.parameters


def _short(value) -> str:
    if isinstance(value, list):
        return f"{value[0]}…{value[-1]} ({len(value)})" if len(value) > 4 else str(value)
    return value[:12] if isinstance(value, str) else str(value)


def summary(kernel: Kernel, info: RunInfo, state: State, facts: dict) -> dict:
    """What the file of a finished run says of it; JSON values.

    ``kernel``, ``info`` and ``state`` are those at its end, ``facts`` of `course.Course.facts`.
    """
    tally = Tally.from_dict(facts["tally"])
    judged = {}
    if tally.judged.any():
        judged = {
            "acceptance": tally.acceptance,
            "divergent": int(tally.divergent.sum()),
            "target_evaluations": int(tally.target),
            "adaptation": facts.get("adaptation"),
        }
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
