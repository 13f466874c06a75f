"""``diffmd converge``: one Brownian path on finer and finer grids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import Config, save_resolved
from .options import AsJson, Device, Model, Seed, check_output, one_thread
from .output import say, show, show_table

__all__ = ["converge"]


def converge(
    context: typer.Context,
    model: Model,
    start: Annotated[
        str | None,
        typer.Option(help="starting frames, as of `diffmd run`; default: i.i.d. samples"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="of the coarsest grid")] = 20,
    levels: Annotated[int, typer.Option(min=3, help="grids, each of half the step")] = 5,
    walkers: Annotated[int, typer.Option(min=2, help="paths")] = 64,
    step_size: Annotated[
        float | None, typer.Option(help="h of the coarsest grid, Å² (default: 0.2/λ)")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="K (default: that of the snapshots)")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON; the picture goes to .png beside it")
    ] = Path("converge.json"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """How plain dynamics comes to its continuous-time limit: strong and weak errors and orders."""
    from ..analysis.kinetics.plots import convergence_figure
    from ..analysis.kinetics.refinement import converge as refine
    from ..io.atomic import replacing
    from ..io.json_text import to_json
    from ..noise import Noise
    from ..simulation.planned import PlannedRun
    from ..simulation.settings import RunSettings

    one_thread()
    check_output(output, endings=(".json",), reads=[model, start])
    settings = RunSettings(
        model=model, start=start, walkers=walkers, steps=steps, step_size=step_size,
        temperature=temperature, seed=seed, device=device,
    )  # fmt: skip
    planned = PlannedRun.of(settings, dry=True)
    found = refine(planned.plain, planned.start(), steps, levels=levels, noise=Noise(seed))
    with replacing(output) as part:
        part.write_text(to_json(found.to_dict()) + "\n")
    convergence_figure(found).savefig(output.with_suffix(".png"), dpi=150)
    save_resolved(context, output)
    if as_json:
        show(found.to_dict(), True)
        return
    rows = [
        [f"{h:.3g}", str(a), str(b)]
        for h, a, b in zip(found.h, found.strong, found.weak["energy"], strict=True)
    ]
    rows.append(["order", str(found.strong_order), str(found.weak_order["energy"])])
    names = ["h (Å²)", "strong (Å)", "weak, energy (eV)"]
    show_table(f"h against h/2 after D·t = {found.span:.3g} Å²", names, rows)
    say(f"wrote {output} and {output.with_suffix('.png')}")
