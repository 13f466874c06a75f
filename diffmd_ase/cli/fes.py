"""``diffmd fes``: a free-energy surface with error bars, and whether to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .config import Config, save_resolved
from .options import AsJson, Progress, check_output
from .output import bar, say, show, show_verdicts

__all__ = ["fes"]


def fes(
    context: typer.Context,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="COLVAR files (one per walker), with HILLS or KERNELS if there are any; a "
            "folder that holds them; or .h5 of `diffmd run`"
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG; numbers go to .npz and .csv beside it")
    ] = Path("fes.png"),
    cv: Annotated[
        list[str] | None,
        typer.Option(
            help="column, or for .h5 a definition: phi=torsion:4,6,8,14, d=distance:0,5, "
            "a=angle:0,1,2 (atoms from 0, Å, rad); repeat for two; default: those of HILLS"
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="of the run, K; needed unless it is a .h5 or the unit is kT"),
    ] = None,
    energy_unit: Annotated[
        str, typer.Option(help="of the files: kJ/mol, kcal/mol, eV, Ha or kT (see UNITS)")
    ] = "kJ/mol",
    reweight: Annotated[
        str,
        typer.Option(
            help="rbias (metadynamics, c(t)), last (final bias), opes, static, none; auto: "
            "what the columns say"
        ),
    ] = "auto",
    basin: Annotated[
        list[str] | None,
        typer.Option(help="name:low:high, or two such joined by a comma; give two basins for ΔF"),
    ] = None,
    bins: Annotated[int | None, typer.Option(min=4, help="of each variable")] = None,
    bounds: Annotated[
        list[str] | None, typer.Option("--range", help="'phi:-3.14:3.14'; default: all data")
    ] = None,
    bandwidth: Annotated[
        list[float] | None,
        typer.Option(help="Gaussian kernels of this width instead of bins; one per variable"),
    ] = None,
    skip: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.95, help="fraction left out at first; default: 0.2 of a growing bias"
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(min=2, help="for the errors; default: by correlation time")
    ] = None,
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Free energies from biased or plain runs, with error bars and a verdict.

    Writes a picture, the surface as .npz and .csv, and the options used to OUTPUT.yml.
    """
    from ..analysis.free_energy.from_files import Request, analyse

    request = Request(
        cvs=tuple(cv or ()),
        temperature_K=temperature,
        unit=energy_unit,
        reweight=reweight,
        basins=tuple(basin or ()),
        bins=bins,
        ranges=tuple(bounds or ()),
        bandwidth=tuple(bandwidth) if bandwidth else None,
        skip=skip,
        blocks=blocks,
    )
    check_output(output)
    with bar("free energy", 1.0, progress and not as_json) as update:
        result = analyse(inputs, request, progress=update)
        update(1.0)
    files = result.write(output)
    save_resolved(context, output)
    for note in result.notes:
        say(note)
    numbers: dict[str, Any] = {
        **result.numbers,
        "verdicts": result.verdicts,
        "files": [str(f) for f in files],
    }
    if as_json:
        show(numbers, as_json)
        return
    show_verdicts(result.verdicts)
    say(f"wrote {', '.join(str(f) for f in files)}")
