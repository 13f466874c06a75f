"""``diffmd train``: snapshots to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..score.settings import TrainConfig
from .config import Config, save_resolved
from .info import model_facts
from .options import AsJson, Device, Progress, Seed, check_output, options_of
from .output import bars, say, show

__all__ = ["train"]

_PATIENCE = 3600.0  # s in which ranks answer each other: one of them fits and validates for all

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
_Baseline = Annotated[
    str | None,
    typer.Option(
        help="learn what is to be added to it: gfn1, gfn2, a calculator of ASE (emt), an installed "
        "potential (openmm), a model file"
    ),
]
_BaselineOptions = Annotated[str | None, typer.Option(help="of the baseline, as JSON")]
_Directory = Annotated[Path | None, typer.Option(help="keeps checkpoints; run again to go on")]


@options_of(TrainConfig)
def train(
    context: typer.Context,
    settings: TrainConfig,
    snapshots: _Snapshots,
    output: _Output = Path("model.safetensors"),
    temperature: _Temperature = None,
    baseline: _Baseline = None,
    baseline_options: _BaselineOptions = None,
    directory: _Directory = None,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Learn the score of equilibrium snapshots (default: two cores, about six minutes).

    Writes the model, and the options used to MODEL.yml. Started by torchrun, its processes share
    the snapshots of each step, and train one network after the other.
    """
    from ..io.ranks import Ranks
    from ..potentials.baseline import find_baseline
    from ..score.training import train as fit
    from ..simulation.frames import read_sets
    from ..simulation.settings import json_object

    options = json_object("--baseline-options", baseline_options)
    check_output(output, own=".safetensors", reads=snapshots)
    with Ranks.started(timeout=_PATIENCE) or Ranks() as ranks:
        data = read_sets(snapshots, temperature or [])
        for part in data if ranks.leads else ():
            labels = f", {part.labelled.sum()} with forces" if part.labelled.any() else ""
            formula, kelvin = part.system.formula, part.temperature_K
            say(f"{len(part)} snapshots of {formula} at {kelvin:g} K{labels}")
        known = None
        if baseline is not None:
            known = find_baseline(baseline, data[0].system, options=options, device=device)
        with bars(progress and not as_json) as report:
            model = fit(
                data,
                config=settings,
                seed=seed,
                device=device,
                progress=report,
                directory=directory,
                baseline=known,
                ranks=ranks,
            )
    if ranks.leads:
        model.save(output)
        save_resolved(context, output)
        show({"model": str(output), **model_facts(model)}, as_json)
