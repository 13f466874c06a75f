"""``diffmd``: a thin shell over the package. Units are in the help of every option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_analyze import analyze
from .cli_config import Config, resolved, save_resolved
from .cli_fes import fes
from .cli_output import bar, execute, say, show, show_verdicts
from .cli_validate import validate

__all__ = ["app", "main"]

app = typer.Typer(
    name="diffmd",
    help="Dynamics from equilibrium snapshots: train a score, sample, run, report.",
    add_completion=True,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(min=0, help="seed of all randomness")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Progress = Annotated[bool, typer.Option(help="show progress")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Model = Annotated[str, typer.Argument(help="model file, or name of a shipped model")]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    sys.exit(execute(app, sys.argv[1:] if arguments is None else arguments))


@app.command()
def train(
    context: typer.Context,
    snapshots: Annotated[
        list[str],
        typer.Argument(
            help="frames: anything ASE reads, .npz, or a shipped set; several files are other "
            "sizes, compositions or temperatures of one energy"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file")] = Path(
        "model.safetensors"
    ),
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="of the snapshots, K; needed unless they state it; one for all files, or repeat "
            "for each"
        ),
    ] = None,
    network: Annotated[str, typer.Option(help="auto, pair, embedded or equivariant")] = "auto",
    sigma_min: Annotated[float | None, typer.Option(help="smallest noise, Å")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="largest noise, Å")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps of each network")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="wall clock of the training loop at most, min")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="snapshots per step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of Adam")] = None,
    width: Annotated[int | None, typer.Option(help="hidden units of the pair network")] = None,
    channels: Annotated[int | None, typer.Option(help="of the equivariant network")] = None,
    cutoff: Annotated[
        float | None, typer.Option(help="radius of neighbours in networks of materials, Å")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="fraction of the snapshots held out")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="networks trained at a time")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="keeps checkpoints; run again to go on")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Learn the score of equilibrium snapshots (default: two cores, about six minutes).

    Writes the model, and the options used to MODEL.yml.
    """
    from .score.training import TrainConfig
    from .score.training import train as fit
    from .simulation import read_sets

    _writable(output)
    chosen = {k: v for k, v in context.params.items() if k in TrainConfig.model_fields}
    settings = _checked(TrainConfig, {k: v for k, v in chosen.items() if v is not None})
    data = read_sets(snapshots, temperature or [])
    for part in data:
        say(f"{len(part)} snapshots of {part.system.formula} at {part.temperature_K:g} K")
    model = fit(
        data,
        config=settings,
        seed=seed,
        device=device,
        progress=progress and not as_json,  # its bars are on standard output
        directory=directory,
    )
    model.save(output)
    save_resolved(context, output)
    show({"model": str(output), **_facts(model)}, as_json)


@app.command()
def sample(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="any format ASE writes, or .npz")],
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="samples")] = 1000,
    levels: Annotated[int, typer.Option(min=2, help="noise levels")] = 150,
    corrector_steps: Annotated[
        int, typer.Option(min=0, help="Langevin steps at each noise level")
    ] = 1,
    relax_steps: Annotated[int, typer.Option(min=0, help="steps of dynamics at the end")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    config: Config = None,
) -> None:
    """Independent samples of a molecule, by ordinary reverse diffusion.

    Writes the samples, and the options used to OUTPUT.yml.
    """
    from .noise import Noise
    from .sampling.iid import sample as draw
    from .score.model import ScoreModel
    from .simulation import frame_writer

    _one_thread()
    _writable(output)
    loaded = ScoreModel.load(model)
    write = frame_writer(output)
    with bar("sampling", 1.0, progress) as update:
        x = draw(
            loaded,
            n,
            noise=Noise(seed),
            levels=levels,
            corrector_steps=corrector_steps,
            relax_steps=relax_steps,
            device=device,
            progress=update,
        )
        update(1.0)
    write(loaded.system, x.double().cpu().numpy(), loaded.card.temperature_K)
    save_resolved(context, output)
    say(f"wrote {n} samples to {output}")


@app.command()
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

    from .plugins import load_potential
    from .potentials.base import Potential
    from .score.model import ScoreModel, resolve_device
    from .simulation import Files, coupled_kernel, read_frames, simulate, starting_positions
    from .storage import RunInfo, Trajectory
    from .targets import named_target

    _one_thread()
    if target is None and (adapt or target_options is not None):
        raise ValueError("--adapt and --target-options are for accepted steps: give --target")
    if adapt > steps:
        raise ValueError(f"--adapt {adapt} of --steps {steps}: it is the first part of the run")
    files = Files(prefix)
    _writable(files.trajectory)
    if not (restart or dry_run):
        files.check_free()
    loaded = ScoreModel.load(model)
    frames = None if start is None or restart else read_frames(start, loaded)
    if restart:
        system = Trajectory(files.trajectory).system
    else:
        system = loaded.system if frames is None else frames.system
    kelvin = loaded.card.temperature_K if temperature is None else temperature
    reference = None if target is None else named_target(target, system, _json(target_options))
    words: dict[str, Any] = {
        "temperature_K": kelvin,
        "timestep_fs": timestep,
        "friction_per_fs": friction,
        "spring": spring,
        "h": step_size,
        "proposal_steps": proposal_steps,
    }
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
    show({**summary, "trajectory": str(files.trajectory)}, as_json)


@app.command()
def report(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file")] = Path("report.html"),
    snapshots: Annotated[
        str | None,
        typer.Option(
            help="reference: anything ASE reads, .npz, shipped set; default: the shipped set "
            "that the model was trained on"
        ),
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="samples of `diffmd sample`")] = None,
    trajectory: Annotated[
        list[Path] | None, typer.Option(help=".h5 of `diffmd run`; repeat for shares of a batch")
    ] = None,
    skip: Annotated[
        float, typer.Option(min=0, max=0.99, help="fraction of each trajectory left out at first")
    ] = 0.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """A self-contained HTML page that compares data, i.i.d. samples and dynamics."""
    from .demo import make_report

    _one_thread()
    _writable(output)
    summary = make_report(
        model,
        output,
        snapshots=snapshots,
        samples=samples,
        trajectories=trajectory or [],
        skip=skip,
    )
    save_resolved(context, output)
    if as_json:
        show(summary, as_json)
        return
    show_verdicts(summary["verdicts"])
    say(f"wrote {output}")


app.command()(fes)
app.command()(analyze)
app.command()(validate)


@app.command()
def info(model: Model, as_json: AsJson = False) -> None:
    """What a model file holds (--json: its whole card)."""
    from .score.model import ScoreModel

    loaded = ScoreModel.load(model)
    show(_facts(loaded), as_json, full=loaded.card.model_dump(mode="json"))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Device, versions, plugins, and whether a PLUMED kernel is found."""
    from .doctor import examine

    show(examine(), as_json)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="where the results go")] = Path("demo"),
    snapshots: Annotated[
        str, typer.Option(help="frames that state their temperature: shipped set, .npz")
    ] = "alanine-dipeptide",
    minutes: Annotated[float, typer.Option(help="wall clock of training at most, min")] = 5.0,
    walkers: Annotated[int, typer.Option(min=1, help="walkers of the trajectories")] = 64,
    d_t: Annotated[float, typer.Option(min=0, help="D·t of each walker, Å²")] = 10.0,
    samples: Annotated[int, typer.Option(min=1, help="i.i.d. samples")] = 4000,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """From snapshots to a report, in at most 15 minutes on two cores.

    Trains, samples, runs walkers and reports with the commands of this program; finished
    parts are kept, so that it goes on where it was stopped.
    """
    from .demo import run_demo

    summary = run_demo(
        directory,
        snapshots=snapshots,
        minutes=minutes,
        walkers=walkers,
        d_t=d_t,
        samples=samples,
        seed=seed,
        device=device,
        progress=progress,
    )
    show_verdicts(summary["verdicts"])
    say(f"\nreport:  {(directory / 'report.html').absolute()}")
    say(f"numbers: {(directory / 'summary.json').absolute()}")


# ------------------------------------------------------------------------ helpers


def _one_thread() -> None:
    """Small networks wait for each other on more."""
    import torch

    torch.set_num_threads(1)


def _writable(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: folder {folder} does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")


def _checked(kind, values: dict[str, Any]):
    """The pydantic model with these options; what is wrong, in the words of the flags."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        wrong = [
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
        raise ValueError("; ".join(wrong)) from error


def _json(options: str | None) -> dict[str, Any]:
    import json

    try:
        values = {} if options is None else json.loads(options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--target-options {options!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f'--target-options {options!r}: expected an object, {{"name": value}}')
    return values


def _sha256(model: str) -> str | None:
    import hashlib

    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _facts(model) -> dict[str, Any]:
    card = model.card
    return {
        "formula": card.formula,
        "temperature_K": card.temperature_K,
        "trained_on": "; ".join(_words(system) for system in card.systems),
        "noise_levels_A": f"{card.sigma_min:g} to {card.sigma_max:g}",
        "networks": ", ".join(f"{e.name} ({e.network.kind})" for e in card.experts),
        "parameters": sum(p.numel() for n in model.networks for p in n.parameters()),
        "lambda_max_1/A2": None if card.lambda_max is None else round(card.lambda_max, 1),
        "default_step_A2": None if not card.lambda_max else round(0.2 / card.lambda_max, 8),
        "snapshots": card.data["snapshots"],
        "source": card.data["source"],
        "training_seconds": card.training.get("seconds"),
        "training_memory_MB": card.training.get("peak_memory_MB"),
        "schema_version": card.schema_version,
    }


def _words(system) -> str:
    """One set of snapshots, and what the forces of the model say of its temperature."""
    found = system.configurational_temperature_K
    by_forces = "" if found is None else f" (by forces {found:.0f} K)"
    return f"{system.snapshots} of {system.formula} at {system.temperature_K:g} K{by_forces}"
