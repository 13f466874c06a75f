"""``diffmd report``: data, independent samples and dynamics on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import Config, save_resolved
from .options import AsJson, Model, check_output, one_thread
from .output import say, show, show_verdicts

__all__ = ["report"]


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
    from ..report.make import make_report

    one_thread()
    check_output(output, reads=[model, snapshots, samples, *(trajectory or [])])
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
