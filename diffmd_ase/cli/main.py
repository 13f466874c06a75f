"""``diffmd``: the commands, thin shells over the package. Units are in the help of every option."""

from __future__ import annotations

import os
import sys

import typer

from .alchemy import alchemy
from .analyze import analyze
from .certify import certify
from .converge import converge
from .demo import demo
from .fes import fes
from .info import doctor, info
from .output import execute
from .path import path
from .plumed import plumed
from .report import report
from .run import run
from .sample import sample
from .train import train
from .validate import validate

__all__ = ["app", "main"]

app = typer.Typer(
    name="diffmd",
    help="Dynamics from equilibrium snapshots: train a score, sample, run, report.",
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (
    train,
    sample,
    run,
    report,
    fes,
    alchemy,
    plumed,
    analyze,
    validate,
    certify,
    converge,
    path,
    info,
    doctor,
    demo,
):
    app.command()(command)


@app.callback()
def _alone(context: typer.Context) -> None:
    """Dynamics from equilibrium snapshots: train a score, sample, run, report."""
    started = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if started and context.invoked_subcommand not in (None, "run", "train"):
        raise ValueError(
            f"`{context.invoked_subcommand}` does not share its work between processes, each would "
            "do all of it: start it without torchrun (`run` and `train` do share)"
        )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line, not a traceback."""
    sys.exit(execute(app, sys.argv[1:] if arguments is None else arguments))
