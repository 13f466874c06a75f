"""``diffmd run``: trajectories by harmonic-coupled reverse steps, plain, accepted or biased."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from .config import Config, resolved, save_resolved
from .options import AsJson, Device, Model, Progress, Seed, check_output, json_object, one_thread
from .output import bar, show

__all__ = ["run"]


def run(
    context: typer.Context,
    model: Model,
    start: Annotated[
        str | None,
        typer.Option(
            help="starting frames: anything ASE reads, .npz, shipped set; default: i.i.d. "
            "samples (molecules)"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="steps in all")] = 100_000,
    walkers: Annotated[int, typer.Option(min=1, help="copies run as one batch")] = 1,
    first_walker: Annotated[
        int, typer.Option(min=0, help="id of the first walker, to share a batch between processes")
    ] = 0,
    temperature: Annotated[
        float | None, typer.Option(help="of the run, K (default: that of the snapshots)")
    ] = None,
    timestep: Annotated[float | None, typer.Option(help="time step, fs (with friction)")] = None,
    friction: Annotated[float | None, typer.Option(help="friction, 1/fs: sets the clock")] = None,
    spring: Annotated[
        float | None, typer.Option(help="spring to the frame before, k = 1/(2h), 1/Å²")
    ] = None,
    step_size: Annotated[float | None, typer.Option(help="h = D·Δt, Å² (default: 0.2/λ)")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="accept steps to the Boltzmann law of: model (its own energy), an installed "
            "potential (openmm), or a calculator of ASE (emt); default: plain dynamics"
        ),
    ] = None,
    target_options: Annotated[
        str | None, typer.Option(help="of that potential or calculator, as JSON")
    ] = None,
    proposal_steps: Annotated[
        int, typer.Option(min=1, help="reverse steps of one proposal to the target")
    ] = 1,
    plumed: Annotated[
        Path | None,
        typer.Option(
            help="input of PLUMED: its biases act on all walkers together; its files go on with "
            "--restart (needs the plugin `plumed`)"
        ),
    ] = None,
    adapt: Annotated[
        int,
        typer.Option(
            min=0, help="first steps, in no frame, that adapt h to 57 % acceptance, then freeze it"
        ),
    ] = 0,
    every: Annotated[int, typer.Option(min=1, help="steps between frames")] = 100,
    prefix: Annotated[
        str, typer.Option(help="of the files: PREFIX.h5, .restart, .json, .extxyz, .yml")
    ] = "md",
    restart: Annotated[
        bool, typer.Option("--restart", help="go on from PREFIX.restart to --steps in all")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the settings, write nothing")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Trajectories by harmonic-coupled reverse steps; restartable at any moment.

    The step is one of --step-size, --spring, --timestep with --friction, or a stable default.
    Walkers and steps have noise of their own: batches, shares and restarts change no number.
    With --target each step is accepted or rejected, which removes the error of the step and,
    with a reference, that of the model.
    """
    import numpy as np
    import torch
    from ase import units

    from ..io.trajectory import RunInfo, Trajectory
    from ..plugins import load_potential
    from ..potentials.base import Potential
    from ..potentials.named import named_target
    from ..score.model import ScoreModel, resolve_device
    from ..simulation.frames import read_frames, starting_positions
    from ..simulation.settings import Files, coupled_kernel
    from ..simulation.simulate import simulate

    one_thread()
    if target is None and (adapt or target_options is not None):
        raise ValueError("--adapt and --target-options are for accepted steps: give --target")
    if adapt > steps:
        raise ValueError(f"--adapt {adapt} of --steps {steps}: it is the first part of the run")
    files = Files(prefix)
    check_output(files.trajectory)
    if not (restart or dry_run):
        files.check_free()
    loaded = ScoreModel.load(model)
    frames = None if start is None or restart else read_frames(start, loaded)
    if restart:
        system = Trajectory(files.trajectory).system
    else:
        system = loaded.system if frames is None else frames.system
    kelvin = loaded.card.temperature_K if temperature is None else temperature
    reference = (
        None
        if target is None
        else named_target(target, system, json_object("--target-options", target_options))
    )
    words: dict[str, Any] = {
        "temperature_K": kelvin,
        "timestep_fs": timestep,
        "friction_per_fs": friction,
        "spring": spring,
        "h": step_size,
        "proposal_steps": proposal_steps,
        "moving": loaded.card.moving(system),
    }
    held = int((~words["moving"]).sum())
    said = {"held_atoms": held} if held else {}
    drift = loaded.potential(system, device=device)
    kernel, step = coupled_kernel(drift, target=reference, **words)
    if plumed is not None and not dry_run:
        if adapt:  # PLUMED's times are set before the run
            raise ValueError("--plumed and --adapt: adapt without the bias, then give --step-size")
        bias = load_potential(
            "plumed",
            system,
            input=plumed,
            kT=float(kernel.kT),
            # without a clock PLUMED's times count steps, as femtoseconds
            timestep=step.timestep if step.physical else units.fs,
            restart=restart,
        )
        both = reference + bias if isinstance(reference, Potential) else reference
        kernel, step = coupled_kernel(drift + bias, target=both, **words)
    h = float(np.max(step.h))  # with friction: that of the lightest atom
    timestep_fs = step.timestep / units.fs if step.physical else None
    settings = {
        "model": model,
        "formula": system.formula,
        "temperature_K": kelvin,
        "h_A2": h,
        "h_from": step.source,
        "timestep_fs": timestep_fs,
        "target": target,
        "walkers": walkers,
        **said,
        "steps": steps,
        "D_t_per_walker_A2": h * steps,
        "trajectory": str(files.trajectory),
    }
    if dry_run:
        show(settings, as_json)
        return
    ids = torch.arange(first_walker, first_walker + walkers)
    x = None
    if not restart:
        x = starting_positions(loaded, frames, ids, seed=seed, device=device)
    info = RunInfo(
        seed=seed,
        kT=float(kernel.kT),
        h=h,
        kinetics_valid=target is None and plumed is None,
        timestep_fs=timestep_fs,
        model_sha256=_sha256(model),
        extra=resolved(context),
    )
    if not restart:
        save_resolved(context, Path(prefix))
    with bar("run", steps, progress) as update:
        summary = simulate(
            kernel,
            system,
            x,
            steps,
            files=files,
            info=info,
            every=every,
            walkers=ids,
            restart=restart,
            warm_up=adapt,
            device=resolve_device(device),
            progress=lambda done, alive: update(
                done, f"step {done}  D·t {done * h:.3g} Å²  walkers {alive}"
            ),
        )
    if restart:  # now known to fit; there may be more steps
        save_resolved(context, Path(prefix))
    show({**summary, **said, "trajectory": str(files.trajectory)}, as_json)


def _sha256(model: str) -> str | None:
    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
