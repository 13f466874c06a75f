"""``diffmd``: a thin shell over the package. Units are in the help of every option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_analyze import analyze
from .cli_config import Config, save_resolved
from .cli_fes import fes
from .cli_options import AsJson, Device, Model, Progress, Seed, check_output
from .cli_output import bar, execute, say, show, show_verdicts
from .cli_run import run
from .cli_validate import validate

__all__ = ["app", "main"]

app = typer.Typer(
    name="diffmd",
    help="Dynamics from equilibrium snapshots: train a score, sample, run, report.",
    add_completion=True,
    pretty_exceptions_enable=False,
)


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
    force_weight: Annotated[
        float | None,
        typer.Option(help="of forces that the snapshots carry, over score matching's (default: 0)"),
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

    check_output(output)
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
    check_output(output)
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


app.command()(run)


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
    check_output(output)
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
    d_t: Annotated[float, typer.Option(min=0, help="D·t of each walker, Å²")] = 8.0,
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


def _facts(model) -> dict[str, Any]:
    card = model.card
    return {
        "formula": card.formula,
        "temperature_K": card.temperature_K,
        "trained_on": "; ".join(_words(system) for system in card.systems),
        "noise_levels_A": f"{card.sigma_min:g} to {card.sigma_max:g}",
        "networks": ", ".join(f"{e.name} ({e.network.kind})" for e in card.experts),
        # fitted in closed form or by gradients
        "parameters": sum(v.numel() for n in model.networks for v in n.state_dict().values()),
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
    held = f", {len(system.held)} atoms of it held" if system.held else ""
    return f"{system.snapshots} of {system.formula} at {system.temperature_K:g} K{by_forces}{held}"
