"""``diffmd plumed``: variables and biases of PLUMED at the frames of a trajectory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from .config import Config
from .options import AsJson, Progress
from .output import bar, show

__all__ = ["plumed"]

_INSTALL = (
    "diffmd plumed needs the plugin diffmd-plumed: `pip install -e plugins/plumed` in a checkout "
    "of diffmd_ase, and `pip install --no-deps hillclimber` for PLUMED itself"
)

_Input = Annotated[
    Path, typer.Argument(help="PLUMED input; relative names in it mean the present folder")
]
_Trajectory = Annotated[
    Path, typer.Argument(help=".h5 of `diffmd run`, or anything ASE reads (.traj, .extxyz, …)")
]
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="folder of the files that PLUMED writes")
]
_Walkers = Annotated[
    list[int] | None, typer.Option("--walker", help="number of a walker, repeat; default: all")
]
_Shared = Annotated[
    bool, typer.Option("--shared", help="one PLUMED for all walkers, as in `diffmd run --plumed`")
]
_Timestep = Annotated[
    float | None, typer.Option(help="of a step, ps; default: as the file says, or 1")
]
_Stride = Annotated[
    int | None, typer.Option(min=1, help="steps between frames; default: as the file says, or 1")
]
_First = Annotated[
    int | None, typer.Option(help="step of the first frame; default: as the file says, or 0")
]
_Kt = Annotated[float | None, typer.Option("--kt", help="kT, kJ/mol; default: as the .h5 says")]
_Temperature = Annotated[float | None, typer.Option(help="in place of --kt, K")]
_Box = Annotated[
    str | None,
    typer.Option(help="3 edges or 9 numbers, Å, with commas; default: the cell of each frame"),
]
_Masses = Annotated[
    Path | None,
    typer.Option("--mc", help="masses and charges, of DUMPMASSCHARGE; default: those of the atoms"),
]
_Load = Annotated[
    bool,
    typer.Option(
        "--allow-load",
        help="let the input run code of files (LOAD, also through INCLUDE): such an input is a "
        "program, with all your rights",
    ),
]


def plumed(
    input: _Input,
    trajectory: _Trajectory,
    output: _Output = Path(),
    walker: _Walkers = None,
    shared: _Shared = False,
    timestep: _Timestep = None,
    stride: _Stride = None,
    initial_step: _First = None,
    kt: _Kt = None,
    temperature: _Temperature = None,
    box: _Box = None,
    mc: _Masses = None,
    allow_load: _Load = False,
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Variables and biases of a PLUMED input at the frames of a trajectory.

    As `plumed driver` does, with the same text in the files: every frame is a step, and the final
    jobs come at the end. One walker: files are in the output folder. Several: each has a PLUMED of
    its own, in walker-0, walker-1, …, or all share one (--shared), in turn at each step.
    """
    try:
        reevaluate = import_module("diffmd_plumed.on_frames").reevaluate
    except ModuleNotFoundError as error:
        raise ImportError(_INSTALL) from error
    with bar("plumed", 1.0, progress and not as_json) as update:
        summary = reevaluate(
            input,
            trajectory,
            directory=output,
            walkers=walker,
            shared=shared,
            timestep_ps=timestep,
            stride=stride,
            initial_step=initial_step,
            kT=kt,
            temperature_K=temperature,
            box=box,
            masses_charges=mc,
            allow_load=allow_load,
            progress=lambda done, total: update(done / total, f"frame {done} of {total}"),
        )
    show(summary, as_json)
