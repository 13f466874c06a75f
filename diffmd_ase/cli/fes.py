"""``diffmd fes``: a free-energy surface with error bars, and whether to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import Config, save_resolved
from .options import AsJson, Progress, check_output
from .output import bar, say, show, show_verdicts

__all__ = ["fes"]

_Inputs = Annotated[
    list[Path],
    typer.Argument(
        help="COLVAR files (one per walker), with HILLS or KERNELS if there are any, or these "
        "(or STATE) alone; plain or .gz; a folder that holds them; or .h5 of `diffmd run`"
    ),
]
_Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="picture (.png, .pdf, .svg); numbers go to .npz and .csv beside it"
    ),
]
_Variables = Annotated[
    list[str] | None,
    typer.Option(
        help="column, or for .h5 a definition: phi=torsion:4,6,8,14, d=distance:0,5, "
        "a=angle:0,1,2 (atoms from 0, Å, rad); repeat for two; default: those of HILLS"
    ),
]
_Temperature = Annotated[
    float | None, typer.Option(help="of the run, K; needed unless it is a .h5 or the unit is kT")
]
_Unit = Annotated[
    str, typer.Option(help="of the files: kJ/mol, kcal/mol, eV, Ha or kT (see UNITS)")
]
_Reweight = Annotated[
    str,
    typer.Option(
        help="rbias (metadynamics, c(t)), last (final bias), opes, static, none; auto: what the "
        "columns say"
    ),
]
_Basins = Annotated[
    list[str] | None,
    typer.Option(
        help="variable:low:high, by the name of the variable, such as phi:-3:0, or two such joined "
        "by a comma; give two basins for ΔF"
    ),
]
_Bins = Annotated[int | None, typer.Option(min=4, help="of each variable")]
_Range = Annotated[
    list[str] | None,
    typer.Option("--range", help="variable:low:high, such as 'phi:-3.14:3.14'; default: all data"),
]
_Bandwidth = Annotated[
    list[float] | None,
    typer.Option(help="Gaussian kernels of this width instead of bins; one per variable"),
]
_Skip = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.95, help="fraction left out at first; default: 0.2 of a growing bias"
    ),
]
_Blocks = Annotated[
    int | None, typer.Option(min=2, help="for the errors; default: by correlation time")
]
_Independent = Annotated[
    bool,
    typer.Option(
        "--independent",
        help="the walkers are independent: each has a bias, and HILLS, of its own (default: all "
        "HILLS are one bias)",
    ),
]


def fes(
    context: typer.Context,
    inputs: _Inputs,
    output: _Output = Path("fes.png"),
    cv: _Variables = None,
    temperature: _Temperature = None,
    energy_unit: _Unit = "kJ/mol",
    reweight: _Reweight = "auto",
    basin: _Basins = None,
    bins: _Bins = None,
    bounds: _Range = None,
    bandwidth: _Bandwidth = None,
    skip: _Skip = None,
    blocks: _Blocks = None,
    independent: _Independent = False,
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
        independent=independent,
    )
    check_output(output, reads=inputs)
    with bar("free energy", 1.0, progress and not as_json) as update:
        result = analyse(inputs, request, progress=update)
        update(1.0)
    files = result.write(output)
    save_resolved(context, output)
    for note in result.notes:
        say(note)
    if as_json:
        told = {"verdicts": result.verdicts, "files": [str(f) for f in files]}
        show(result.numbers | told, True)
        return
    show_verdicts(result.verdicts)
    say(f"wrote {', '.join(str(f) for f in files)}")
