"""``diffmd alchemy``: the free-energy difference of two potentials, and whether to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..simulation.alchemy.settings import AlchemyFiles, AlchemySettings
from .config import Config, save_resolved
from .options import AsJson, Progress, check_output, one_thread, options_of
from .output import bars, say, show, show_verdicts

__all__ = ["alchemy"]


@options_of(AlchemySettings)
def alchemy(
    context: typer.Context,
    settings: AlchemySettings,
    restart: Annotated[
        bool, typer.Option("--restart", help="go on from whatever PREFIX has on disk")
    ] = False,
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Free energy from potential START to END at the atoms of STRUCTURE, F(END) - F(START).

    Models, calculators of ASE, installed potentials and the Einstein crystal couple in any
    mixture. A first pass finds the step and where windows are needed. Writes PREFIX.alchemy.json,
    .csv, .png, and the frames of alchemlyb; PREFIX.h5 has the trajectory.
    """
    from ..simulation.alchemy.course import alchemy as course

    one_thread()
    files = AlchemyFiles(settings.prefix)
    for path in (files.run.trajectory, files.json, files.csv, files.png):
        check_output(path, own=".h5", reads=[settings.structure, settings.end_structure])
    if not restart:
        files.check_free()
        save_resolved(context, Path(settings.prefix))
    with bars(progress and not as_json) as report:
        result = course(settings, restart=restart, progress=report)
    if as_json:
        told = {"verdicts": result.verdicts, "files": [str(f) for f in result.files]}
        show(result.numbers | told, True)
        return
    show(
        {name: value for name, value in result.numbers.items() if not isinstance(value, list)},
        False,
    )
    show_verdicts(result.verdicts)
    say(f"wrote {', '.join(str(f) for f in result.files)}")
