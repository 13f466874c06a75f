"""``diffmd path``: the likeliest way between two structures, and where on it the fate is open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .config import Config, save_resolved
from .options import AsJson, Device, Model, Seed, check_output, one_thread
from .output import say, show, show_table

if TYPE_CHECKING:
    from ..analysis.kinetics.transition_paths import TransitionPath

__all__ = ["path"]

_Range = Annotated[
    str | None, typer.Option(help="values of --cv in that state, low:high (Å, degrees)")
]


def path(
    context: typer.Context,
    model: Model,
    start: Annotated[Path, typer.Argument(help="structure of one state; anything ASE reads")],
    end: Annotated[Path, typer.Argument(help="structure of the other")],
    images: Annotated[int, typer.Option(min=5, help="of the path, ends included")] = 31,
    evaluations: Annotated[
        int, typer.Option(min=1, help="of all images, in each of up to 8 minimisations")
    ] = 2000,
    temperature: Annotated[
        float | None, typer.Option(help="K (default: that of the snapshots)")
    ] = None,
    cv: Annotated[
        str | None, typer.Option(help="for shooting: phi=torsion:4,6,8,14, d=distance:0,5")
    ] = None,
    start_range: _Range = None,
    end_range: _Range = None,
    shots: Annotated[int, typer.Option(min=0, help="plain runs from each image; 0: none")] = 0,
    step_size: Annotated[float | None, typer.Option(help="h of these, Å² (default 0.2/λ)")] = None,
    most: Annotated[int, typer.Option(min=1, help="steps of each of these")] = 20_000,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON; .extxyz and .png go beside it")
    ] = Path("path.json"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """The path of least Onsager–Machlup action, and the committor along it by shooting.

    The ends are relaxed first. Energies and actions are in kT.
    """
    from ..simulation.way import Way

    one_thread()
    check_output(output, endings=(".json",), reads=[model, start, end])
    way = Way.between(
        model, start, end, temperature_K=temperature, step_size=step_size, device=device
    )
    if shots:
        way.check_states(cv, start_range, end_range)
    found = way.path(images, most=evaluations)
    told: dict[str, Any] = found.to_dict()
    if shots:
        told["committor"] = way.committor(
            found.images, cv, start_range, end_range, shots=shots, most=most, seed=seed
        )
    _written(output, told, found, way.system)
    save_resolved(context, output)
    if as_json:
        show(told, True)
        return
    _shown(told, found)
    say(f"wrote {output}, {output.with_suffix('.extxyz')} and {output.with_suffix('.png')}")


def _shown(told: dict[str, Any], found: TransitionPath) -> None:
    committor = told.get("committor")
    rows = []
    for n, (length, time, energy) in enumerate(zip(found.length, found.times, found.energy)):  # noqa: B905
        row = [str(n), f"{length:.3f}", f"{time:.3g}", f"{energy - found.energy[0]:.3f}"]
        if committor is not None:
            row.append(f"{committor[n]['value']:.3f} ± {committor[n]['error']:.3f}")
        rows.append(row)
    names = ["image", "length (Å)", "D·t (Å²)", "energy (kT)"]
    names += ["committor"] * (committor is not None)
    top = found.energy[found.highest] - found.energy[0]
    state = "converged" if found.converged else "NOT converged: more images, or a better guess"
    title = f"action {found.action:.2f} nats, top {top:.2f} kT at image {found.highest}; {state}"
    show_table(title, names, rows)


def _written(output: Path, told: dict, found: TransitionPath, system) -> None:
    import ase.io

    from ..analysis.kinetics.plots import path_figure
    from ..io.atomic import replacing
    from ..io.json_text import to_json

    with replacing(output) as part:
        part.write_text(to_json(told) + "\n")
    frames = [system.to_atoms(x) for x in found.images]
    for frame, energy in zip(frames, found.energy, strict=True):
        frame.info["energy_kT"] = float(energy)
    ase.io.write(output.with_suffix(".extxyz"), frames)
    path_figure(found, told.get("committor")).savefig(output.with_suffix(".png"), dpi=150)
