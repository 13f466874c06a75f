"""``diffmd``: a thin shell over the package. Units are in the help of every option."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["app", "main"]

app = typer.Typer(
    name="diffmd",
    help="Dynamics from equilibrium snapshots: train a score, sample, run, report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


def main() -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    try:
        app()
    except (ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; what was written can be restarted with --restart")
        sys.exit(130)


# ------------------------------------------------------------------ configuration


def _read_config(context: typer.Context, value: Path | None) -> Path | None:
    """``--config file.yml``: defaults for this command, below what the flags say."""
    if value is None:
        return value
    import yaml

    try:
        loaded = yaml.safe_load(value.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {value}: {error}") from error
    if not isinstance(loaded, dict):
        raise typer.BadParameter(f"{value} must hold a mapping of option names to values")
    known = [p.name for p in context.command.params if p.name and p.name != "config"]
    found = {}
    for key, entry in loaded.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0].replace('_', '-')!r}? " if near else ""
            options = ", ".join(n.replace("_", "-") for n in known)
            raise typer.BadParameter(f"{value}: unknown key {key!r}; {hint}known: {options}")
        found[name] = str(entry) if isinstance(entry, Path) else entry
    context.default_map = {**(context.default_map or {}), **found}
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with values for these options; flags win",
        callback=_read_config,
        is_eager=True,
    ),
]
Seed = Annotated[int, typer.Option(help="seed of all randomness")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Progress = Annotated[bool, typer.Option(help="show progress")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Model = Annotated[str, typer.Argument(help="model file, or name of a shipped model")]
Temperature = Annotated[float | None, typer.Option(help="temperature, K")]


def _save_resolved(context: typer.Context, path: Path) -> None:
    import yaml

    values = {
        k.replace("_", "-"): str(v) if isinstance(v, Path) else v
        for k, v in context.params.items()
        if k not in ("config", "restart", "progress", "as_json") and v is not None
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def _bar(show: bool):
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not show,
    )


# ----------------------------------------------------------------------- commands


@app.command()
def train(
    context: typer.Context,
    snapshots: Annotated[str, typer.Argument(help="anything ASE reads, .npz, or a shipped set")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model file")] = Path(
        "model.safetensors"
    ),
    temperature: Temperature = None,
    network: Annotated[str, typer.Option(help="auto, pair or equivariant")] = "auto",
    sigma_min: Annotated[float | None, typer.Option(help="smallest noise, Å")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="largest noise, Å")] = None,
    steps: Annotated[int | None, typer.Option(help="optimiser steps")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="training time at most, min")] = None,
    batch_size: Annotated[int | None, typer.Option(help="snapshots per step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of Adam")] = None,
    width: Annotated[int | None, typer.Option(help="hidden units of the pair network")] = None,
    channels: Annotated[int | None, typer.Option(help="of the equivariant network")] = None,
    cutoff: Annotated[float | None, typer.Option(help="message radius, Å")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help="snapshots held out")] = None,
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
    """Learn the score of equilibrium snapshots (default: two cores, under 6 minutes)."""
    from .score.snapshots import Snapshots
    from .score.training import TrainConfig
    from .score.training import train as fit

    _writable(output)
    chosen = {k: v for k, v in context.params.items() if k in TrainConfig.model_fields}
    settings = TrainConfig(**{k: v for k, v in chosen.items() if v is not None})
    data = Snapshots.read(snapshots, temperature_K=temperature)
    console.print(f"{len(data)} snapshots of {data.system.formula} at {data.temperature_K:g} K")
    model = fit(
        data, config=settings, seed=seed, device=device, progress=progress, directory=directory
    )
    model.save(output)
    _save_resolved(context, output.with_suffix(".yml"))
    result = {"model": str(output), **_facts(model)}
    _show(result, as_json, f"wrote {output}")


@app.command()
def sample(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="any format ASE writes, or .npz")],
    n: Annotated[int, typer.Option("--number", "-n", help="samples")] = 1000,
    levels: Annotated[int, typer.Option(help="noise levels")] = 150,
    corrector_steps: Annotated[int, typer.Option(help="Langevin steps at each level")] = 1,
    relax_steps: Annotated[int, typer.Option(help="steps of dynamics at the end")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    config: Config = None,
) -> None:
    """Independent samples by ordinary reverse diffusion."""
    import numpy as np

    from .noise import Noise
    from .sampling.iid import sample as draw
    from .score.model import ScoreModel

    _threads()
    _writable(output)
    loaded = ScoreModel.load(model)
    with _bar(progress) as bars:
        task = bars.add_task("sampling", total=1.0, note="")
        x = draw(
            loaded,
            n,
            noise=Noise(seed),
            levels=levels,
            corrector_steps=corrector_steps,
            relax_steps=relax_steps,
            device=device,
            progress=lambda done: bars.update(task, completed=done),
        )
    positions = x.double().cpu().numpy()
    if output.suffix == ".npz":
        numbers, kelvin = loaded.system.numbers, loaded.card.temperature_K
        np.savez(output, positions=positions, numbers=numbers, temperature_K=kelvin)
    else:
        import ase.io

        ase.io.write(output, [loaded.system.to_atoms(p) for p in positions])
    _save_resolved(context, output.with_suffix(".yml"))
    console.print(f"wrote {n} samples to {output}")


@app.command()
def run(
    context: typer.Context,
    model: Model,
    start: Annotated[
        str | None, typer.Option(help="starting frames: anything ASE reads, .npz, shipped set")
    ] = None,
    steps: Annotated[int, typer.Option(help="steps in all")] = 100_000,
    walkers: Annotated[int, typer.Option(help="copies run as one batch")] = 1,
    first_walker: Annotated[
        int, typer.Option(help="id of the first walker, to share a batch between processes")
    ] = 0,
    temperature: Temperature = None,
    timestep: Annotated[float | None, typer.Option(help="time step, fs (with friction)")] = None,
    friction: Annotated[float | None, typer.Option(help="friction, 1/fs: sets the clock")] = None,
    spring: Annotated[float | None, typer.Option(help="spring to the last frame, 1/Å²")] = None,
    step_size: Annotated[float | None, typer.Option(help="h = D·Δt, Å² (default 0.2/λ)")] = None,
    every: Annotated[int, typer.Option(help="steps between frames")] = 100,
    prefix: Annotated[str, typer.Option(help="PREFIX.h5, .restart, .json, .extxyz, .yml")] = "md",
    restart: Annotated[bool, typer.Option(help="go on from PREFIX.restart")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    dry_run: Annotated[bool, typer.Option(help="print the settings and stop")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Trajectories by harmonic-coupled reverse steps; restartable at any moment."""
    import torch
    from ase import units as ase_units

    from .dynamics_step import card_stiffness, check_step, choose_step
    from .sampling.kernels import EulerMaruyama
    from .score.model import ScoreModel, resolve_device
    from .simulation import Files, simulate
    from .storage import RunInfo
    from .units import kT_from_temperature, spring_from_h

    _threads()
    files = Files(prefix)
    _writable(files.trajectory)
    loaded = ScoreModel.load(model)
    card, system = loaded.card, loaded.system
    kelvin = card.temperature_K if temperature is None else temperature
    kT = kT_from_temperature(kelvin)
    if step_size is not None:
        if spring is not None:
            raise ValueError(f"{step_size=} and {spring=}: give one of them, spring = 1/(2h)")
        spring = spring_from_h(step_size)
    potential = loaded.potential(device=device)
    stiffness = card_stiffness(potential, kT)
    chosen = choose_step(
        kT=kT,
        masses=system.masses,
        timestep=None if timestep is None else timestep * ase_units.fs,
        friction=None if friction is None else friction / ase_units.fs,
        mobility=None,
        spring=spring,
        stiffness=lambda: (stiffness, "from the model card"),
    )
    import numpy as np

    check_step(chosen, stiffness, np.ones(len(system), bool))
    kernel = EulerMaruyama(
        potential, kT=kT, h=torch.as_tensor(chosen.h), mean_free=not system.periodic
    )
    h = float(np.max(chosen.h))
    settings = {
        "model": model,
        "h_A2": h,
        "h_from": chosen.source,
        "temperature_K": kelvin,
        "D_t_A2": h * steps,
    }
    if dry_run:
        _show(settings, as_json, "settings")
        return
    place = resolve_device(device)
    x = None
    if not restart:
        x = _starting_positions(loaded, start, walkers, first_walker, seed).to(place)
    info = RunInfo(
        seed=seed,
        kT=kT,
        h=h,
        kinetics_valid=True,
        timestep_fs=chosen.timestep / ase_units.fs if chosen.physical else None,
        model_sha256=_sha256(model),
        extra=settings,
    )
    _save_resolved(context, Path(f"{prefix}.yml"))
    with _bar(progress) as bars:
        task = bars.add_task("run", total=steps, note="")

        def report(done: int, alive: int) -> None:
            note = f"step {done}  D·t {done * h:.3g} Å²  walkers {alive}"
            bars.update(task, completed=done, note=note)

        summary = simulate(
            kernel,
            system,
            x,
            steps,
            files=files,
            info=info,
            every=every,
            walkers=torch.arange(first_walker, first_walker + walkers),
            restart=restart,
            progress=report,
        )
    _show(summary, as_json, f"wrote {files.trajectory}")


@app.command()
def report(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file")] = Path("report.html"),
    snapshots: Annotated[
        str | None, typer.Option(help="reference snapshots: anything ASE reads, .npz, shipped set")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="i.i.d. samples of `diffmd sample`")] = None,
    trajectory: Annotated[
        list[Path] | None, typer.Option(help=".h5 of `diffmd run`; repeat for shares of a batch")
    ] = None,
    skip: Annotated[float, typer.Option(help="fraction of each trajectory left out")] = 0.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """A self-contained HTML page that compares data, i.i.d. samples and dynamics."""
    from .demo import make_report

    _threads()
    _writable(output)
    summary = make_report(
        model,
        output,
        snapshots=snapshots,
        samples=samples,
        trajectories=trajectory or [],
        skip=skip,
    )
    _show(summary.get("verdicts", summary), as_json, f"wrote {output}", full=summary)


@app.command()
def info(model: Model, as_json: AsJson = False) -> None:
    """What a model file holds."""
    from .score.model import ScoreModel

    loaded = ScoreModel.load(model)
    card = loaded.card.model_dump(mode="json")
    _show(_facts(loaded), as_json, str(loaded), full=card)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Device, versions, plugins, and whether a PLUMED kernel is found."""
    from .doctor import examine

    _show(examine(), as_json, "this machine")


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="where the results go")] = Path("demo"),
    minutes: Annotated[float, typer.Option(help="training time at most, min")] = 5.5,
    walkers: Annotated[int, typer.Option(help="walkers of the trajectories")] = 64,
    d_t: Annotated[float, typer.Option(help="D·t of each walker, Å²")] = 10.0,
    samples: Annotated[int, typer.Option(help="i.i.d. samples")] = 4000,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Alanine dipeptide from snapshots to a report, in at most 15 minutes on two cores."""
    from .demo import run_demo

    summary = run_demo(
        directory,
        minutes=minutes,
        walkers=walkers,
        d_t=d_t,
        samples=samples,
        seed=seed,
        device=device,
        progress=progress,
    )
    _show(summary["verdicts"], False, f"wrote {directory}/summary.json and report.html")


# ------------------------------------------------------------------------ helpers


def _threads() -> None:
    """One thread: small networks wait for each other on more."""
    import torch

    torch.set_num_threads(1)


def _writable(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: folder {path.absolute().parent} does not exist; make it first")


def _starting_positions(model, start: str | None, walkers: int, first: int, seed: int):
    """Random frames of ``start``, the same for a walker id in any share; or i.i.d. draws."""
    import numpy as np
    import torch

    from .noise import Noise
    from .sampling.iid import sample as draw
    from .score.snapshots import Snapshots

    if start is None:
        if model.system.periodic:
            raise ValueError("give --start: frames to begin from (periodic systems need them)")
        return draw(model, walkers, noise=Noise(seed), first=first)
    data = Snapshots.read(start, temperature_K=_stated(start, model))
    if not np.array_equal(data.system.numbers, model.system.numbers):
        raise ValueError(
            f"{start} holds {data.system.formula}, the model knows {model.system.formula}"
        )
    chosen = [
        np.random.default_rng([seed, w]).integers(len(data)) for w in range(first, first + walkers)
    ]
    return torch.as_tensor(data.positions[chosen], dtype=torch.float32)


def _stated(start: str, model) -> float | None:
    """Starting frames need no temperature: that of the model stands in for a missing one."""
    return (
        None
        if str(start).endswith(".npz") or not Path(start).exists()
        else (model.card.temperature_K)
    )


def _sha256(model: str) -> str | None:
    import hashlib

    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _facts(model) -> dict[str, Any]:
    card = model.card
    return {
        "formula": card.formula,
        "temperature_K": card.temperature_K,
        "noise_levels_A": f"{card.sigma_min:g} to {card.sigma_max:g}",
        "networks": ", ".join(f"{e.name} ({e.network.kind})" for e in card.experts),
        "parameters": sum(p.numel() for n in model.networks for p in n.parameters()),
        "lambda_max_1/A2": None if card.lambda_max is None else round(card.lambda_max, 1),
        "default_step_A2": None if not card.lambda_max else round(0.2 / card.lambda_max, 8),
        "snapshots": card.data["snapshots"],
        "source": card.data["source"],
        "training_seconds": card.training.get("seconds"),
        "schema_version": card.schema_version,
    }


def _show(result, as_json: bool, title: str, full: dict | None = None) -> None:
    if as_json:
        print(json.dumps(full if full is not None else result, indent=1, default=str))
        return
    table = Table(title=title, show_header=False, title_justify="left")
    rows = result.items() if isinstance(result, dict) else enumerate(result, start=1)
    for key, value in rows:
        table.add_row(str(key), str(value))
    Console().print(table)
