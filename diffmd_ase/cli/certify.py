"""``diffmd certify``: how far a run of a model can be from a reference, in parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .config import Config, save_resolved
from .options import AsJson, Device, Model, Seed, check_output, one_thread
from .output import say, show

if TYPE_CHECKING:
    from ..analysis.kinetics.certificate import Certificate
    from ..simulation.recreate import Recreated

__all__ = ["certify"]

_Trajectory = Annotated[Path, typer.Option("--trajectory", "-t", help=".h5 of `diffmd run`")]
_Reference = Annotated[
    str,
    typer.Option(
        help="the truth: an installed potential (openmm), a calculator of ASE (emt, xtb), or "
        "another model"
    ),
]
_Options = Annotated[str | None, typer.Option(help="of the reference, as JSON")]
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="JSON; the picture goes to .png beside it")
]
_Tolerance = Annotated[
    float, typer.Option(min=1e-6, max=0.999, help="of averages in [0, 1], for the certified lag")
]
_Frames = Annotated[int, typer.Option(min=2, help="structures that the reference evaluates")]
_Settle = Annotated[
    int, typer.Option(min=1, help="accepted steps after each plain frame, before energies count")
]
_Skip = Annotated[float, typer.Option(min=0, max=0.99, help="fraction left out at first")]


def certify(
    context: typer.Context,
    model: Model,
    trajectory: _Trajectory,
    reference: _Reference,
    reference_options: _Options = None,
    output: _Output = Path("certificate.json"),
    tolerance: _Tolerance = 0.1,
    frames: _Frames = 1000,
    settle: _Settle = 100,
    skip: _Skip = 0.1,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """How far averages and time correlations of a run can be from a reference.

    Equilibrium averages from energies, time correlations up to a lag, and the error of the step.
    """
    from ..analysis.kinetics.certificate import certify_frames
    from ..noise import Noise
    from ..potentials.named import find_potential
    from ..simulation.recreate import recreate
    from ..simulation.settings import json_object

    one_thread()
    check_output(output, endings=(".json",), reads=[model, trajectory])
    run = recreate(model, trajectory, frames=frames, skip=skip, device=device)
    options = json_object("--reference-options", reference_options)
    true = find_potential(
        reference, run.system, role="reference", options=options, needs_energy=False, device=device
    )
    found = certify_frames(
        run.kernel,
        run.frames,
        true,
        n_steps=run.n_steps,
        noise=Noise(seed),
        accepted=run.accepted,
        settle=settle,
    )
    result = found.to_dict(tolerance) | {"averages": _averages(found, run)}
    _written(output, result, run, true, seed)
    save_resolved(context, output)
    if as_json:
        show(result, True)
        return
    typer.echo(result["statement"])
    say(f"wrote {output} and {output.with_suffix('.png')}")


def _averages(found: Certificate, run: Recreated) -> dict[str, Any]:
    """What the model's error does to the averages of bonds, angles and torsions of a molecule."""
    from ..analysis.kinetics.averages import shifts_of_molecule

    if found.samples is None or run.system.periodic or len(run.system) < 2:
        return {}
    return shifts_of_molecule(found, run.system)


def _written(output: Path, result: dict, run: Recreated, true, seed: int) -> None:
    from ..analysis.kinetics.path_error import errors_by_step
    from ..analysis.kinetics.plots import error_figure
    from ..io.atomic import replacing
    from ..io.json_text import to_json
    from ..noise import Noise

    x = run.frames.reshape(-1, *run.frames.shape[-2:])[
        :: max(1, run.frames[..., 0, 0].numel() // 256)
    ]
    rows = errors_by_step(run.kernel, x, true, noise=Noise(seed).child("corrected"))
    result["by_step"] = rows.to_dict()
    with replacing(output) as part:
        part.write_text(to_json(result) + "\n")
    figure = error_figure(rows)
    figure.savefig(output.with_suffix(".png"), dpi=150)
