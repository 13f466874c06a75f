"""``diffmd train``: snapshots to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .config import Config, save_resolved
from .info import model_facts
from .options import AsJson, Device, Progress, Seed, check_output
from .output import bars, say, show

__all__ = ["train"]


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
    from ..score.training import TrainConfig
    from ..score.training import train as fit
    from ..simulation.frames import read_sets

    check_output(output)
    chosen = {k: v for k, v in context.params.items() if k in TrainConfig.model_fields}
    settings = _checked(TrainConfig, {k: v for k, v in chosen.items() if v is not None})
    data = read_sets(snapshots, temperature or [])
    for part in data:
        say(f"{len(part)} snapshots of {part.system.formula} at {part.temperature_K:g} K")
    with bars(progress and not as_json) as report:
        model = fit(
            data, config=settings, seed=seed, device=device, progress=report, directory=directory
        )
    model.save(output)
    save_resolved(context, output)
    show({"model": str(output), **model_facts(model)}, as_json)


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
