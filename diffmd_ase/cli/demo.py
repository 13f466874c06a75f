"""``diffmd demo``: from snapshots to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Progress, Seed
from .output import say, show_verdicts

__all__ = ["demo"]


def demo(
    directory: Annotated[Path, typer.Option(help="where the results go")] = Path("demo"),
    snapshots: Annotated[
        str, typer.Option(help="frames that state their temperature: shipped set, .npz")
    ] = "alanine-dipeptide",
    minutes: Annotated[float, typer.Option(help="wall clock of training at most, min")] = 2.5,
    walkers: Annotated[int, typer.Option(min=1, help="walkers of the trajectories")] = 64,
    d_t: Annotated[float, typer.Option(min=0, help="D·t of each walker, Å²")] = 8.0,
    samples: Annotated[int, typer.Option(min=1, help="i.i.d. samples")] = 4000,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """From snapshots to a report, in at most 10 minutes on two cores.

    Trains, samples, runs walkers and reports with the commands of this program; finished
    parts are kept, so that it goes on where it was stopped.
    """
    from .demo_parts import run_demo

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
