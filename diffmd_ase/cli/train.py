"""``diffmd train``: snapshots to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import Config, save_resolved
from .info import model_facts
from .options import AsJson, Device, Progress, Seed, check_output, checked
from .output import bars, say, show

__all__ = ["train"]

# what TrainConfig has under the same names; the defaults are there
_Network = Annotated[str, typer.Option(help="auto, pair, embedded or equivariant")]
_SigmaMin = Annotated[float | None, typer.Option(help="smallest noise, Å")]
_SigmaMax = Annotated[float | None, typer.Option(help="largest noise, Å")]
_Steps = Annotated[int | None, typer.Option(help="optimiser steps of each network")]
_Minutes = Annotated[
    float | None, typer.Option(help="wall clock of the training loop at most, min")
]
_Batch = Annotated[int | None, typer.Option(help="snapshots per step")]
_Rate = Annotated[float | None, typer.Option(help="of Adam")]
_Width = Annotated[int | None, typer.Option(help="hidden units of the pair network")]
_Channels = Annotated[int | None, typer.Option(help="of the equivariant network")]
_Cutoff = Annotated[
    float | None, typer.Option(help="radius of neighbours in networks of materials, Å")
]
_HeldOut = Annotated[float | None, typer.Option(help="fraction of the snapshots held out")]
_ForceWeight = Annotated[
    float | None,
    typer.Option(help="of forces that the snapshots carry, over score matching's (default: 0)"),
]
_Processes = Annotated[int | None, typer.Option(help="networks trained at a time")]

_Snapshots = Annotated[
    list[str],
    typer.Argument(
        help="frames: anything ASE reads, .npz, or a shipped set; several files are other sizes, "
        "compositions or temperatures of one energy"
    ),
]
_Output = Annotated[Path, typer.Option("--output", "-o", help="model file")]
_Temperature = Annotated[
    list[float] | None,
    typer.Option(
        help="of the snapshots, K; needed unless they state it; one for all files, or repeat for "
        "each"
    ),
]
_Directory = Annotated[Path | None, typer.Option(help="keeps checkpoints; run again to go on")]


def train(
    context: typer.Context,
    snapshots: _Snapshots,
    output: _Output = Path("model.safetensors"),
    temperature: _Temperature = None,
    network: _Network = "auto",
    sigma_min: _SigmaMin = None,
    sigma_max: _SigmaMax = None,
    steps: _Steps = None,
    max_minutes: _Minutes = None,
    batch_size: _Batch = None,
    learning_rate: _Rate = None,
    width: _Width = None,
    channels: _Channels = None,
    cutoff: _Cutoff = None,
    validation_fraction: _HeldOut = None,
    force_weight: _ForceWeight = None,
    processes: _Processes = None,
    directory: _Directory = None,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Learn the score of equilibrium snapshots (default: two cores, about six minutes).

    Writes the model, and the options used to MODEL.yml.
    """
    from ..score.plan import TrainConfig
    from ..score.training import train as fit
    from ..simulation.frames import read_sets

    check_output(output)
    chosen = {k: v for k, v in context.params.items() if k in TrainConfig.model_fields}
    settings = checked(TrainConfig, {k: v for k, v in chosen.items() if v is not None})
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
