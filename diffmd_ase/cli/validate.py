"""``diffmd validate``: do data, independent samples and dynamics of a model agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..simulation.settings import json_object
from .config import Config, save_resolved
from .options import (
    COMPILE,
    AsJson,
    Compile,
    Device,
    Model,
    Progress,
    Seed,
    check_output,
    one_thread,
)
from .output import bar, say, show, show_table, show_verdicts

if TYPE_CHECKING:
    from ..potentials.base import Potential
    from ..score.snapshots import Snapshots
    from ..validation.scorecard import Line, Validation

__all__ = ["validate"]

_Snapshots = Annotated[
    str, typer.Argument(help="frames: anything ASE reads, .npz, or a shipped set")
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="the card (default: MODEL.validation.json)")
]
_Plot = Annotated[
    Path | None, typer.Option(help="a picture of all deviations and goals (.png, .pdf, .svg)")
]
_Temperature = Annotated[
    float | None, typer.Option(help="of the snapshots, K (default: as stated, or the model's)")
]
_Effort = Annotated[
    float,
    typer.Option(
        help="how much is sampled: 0.1 for a quick look, 4 where an error is to be halved; "
        "at 1, a small molecule takes minutes, 64 periodic atoms half an hour"
    ),
]
_Modes = Annotated[
    bool,
    typer.Option("--modes", help="populations of the model's modes by exchange from one of them"),
]
_Reference = Annotated[
    str | None,
    typer.Option(
        help="what made the snapshots, to compare forces with: an installed potential (openmm), "
        "a calculator of ASE (emt), or another model"
    ),
]
_ReferenceOptions = Annotated[
    str | None, typer.Option(help="of that potential or calculator, as JSON")
]
_Committee = Annotated[
    list[str] | None,
    typer.Option(help="further models of the same data: is their spread the error? repeat"),
]
_Torsion = Annotated[
    list[str] | None,
    typer.Option(help="phi=4,6,8,14 (atoms from 0); repeat; default: all of heavy atoms"),
]


def validate(
    context: typer.Context,
    model: Model,
    snapshots: _Snapshots,
    output: _Output = None,
    plot: _Plot = None,
    temperature: _Temperature = None,
    effort: _Effort = 1.0,
    modes: _Modes = False,
    reference: _Reference = None,
    reference_options: _ReferenceOptions = None,
    committee: _Committee = None,
    torsion: _Torsion = None,
    seed: Seed = 0,
    device: Device = "auto",
    compile: Compile = "auto",
    progress: Progress = True,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Do snapshots, i.i.d. samples and Metropolis-corrected dynamics of a model agree?

    Takes some minutes. Prints numbers beside their goals, each with its standard error and a
    verdict: pass, fail, or cannot be told where frames are too few. Divergences stand beside
    their sampling floor, what exact draws would have. Writes the card as JSON, and the options
    used to CARD.yml.
    """
    from ..analysis.observables import Coordinate
    from ..report.make import NAMED_TORSIONS
    from ..score.model import ScoreModel
    from ..simulation.frames import read_frames
    from ..validation.bench import Effort
    from ..validation.validate import validate as judge

    one_thread()
    card = output or _beside(model)
    _check_outputs(card, plot, [model, snapshots, reference, *(committee or [])])
    loaded = ScoreModel.load(model)
    frames = read_frames(snapshots, loaded, temperature_K=temperature)
    truth = _potential(reference, reference_options, frames, device)
    count = len(frames.system)
    parsed = [Coordinate.parse(text, count, kinds=("torsion",)) for text in torsion or []]
    with bar("validate", 1.0, progress) as update:
        result = judge(
            loaded,
            frames,
            effort=Effort().scaled(effort),
            reference=truth,
            committee=[ScoreModel.load(m) for m in committee or []],
            torsions={c.name: c.atoms for c in parsed} or NAMED_TORSIONS.get(Path(snapshots).stem),
            modes=modes,
            seed=seed,
            device=device,
            compile=COMPILE[compile],
            progress=update,
        )
        update(1.0)
    result.save(card)
    save_resolved(context, card)
    _tell(result, card, plot, as_json)


def _potential(
    name: str | None, options: str | None, frames: Snapshots, device: str
) -> Potential | None:
    """What made the snapshots, if somebody named it."""
    from ..potentials.named import find_potential

    if name is None:
        if options is not None:
            raise ValueError("--reference-options are those of a --reference: name one")
        return None
    settings = json_object("--reference-options", options)
    return find_potential(name, frames.system, role="reference", options=settings, device=device)


def _tell(result: Validation, card: Path, plot: Path | None, as_json: bool) -> None:
    if plot is not None:
        from ..validation.plots import deviations

        deviations(result).savefig(plot, dpi=150)
    if as_json:
        show(result.to_dict(), True)
        return
    _print(result)
    say(f"wrote {card}" + (f" and {plot}" if plot is not None else ""))


def _print(result: Validation) -> None:
    names = ["", "value", "off by", "goal", "verdict"]
    kelvin, group, rows = result.facts["temperature_K"], "", []
    for one in result.lines:
        if one.group != group:
            group = one.group
            rows.append([group.upper(), *[""] * 4])
        rows.append(_cells(one))
    show_table(f"{result.facts['formula']} at {kelvin:g} K", names, rows)
    bad = [one for one in result.lines if one.good is not True and one.words]
    show_verdicts([{"good": one.good, "text": f"{one.name}: {one.words}"} for one in bad])
    show_verdicts([{"good": good, "text": text} for good, text in result.notes])
    show_verdicts([{"good": result.good, "text": result.words}])


def _cells(one: Line) -> list[str]:
    digits = 4 if abs(one.error) < 0.01 else 3
    off = f"{one.deviation:+.{digits}f}±{one.error:.{digits}f}"
    return [
        one.name,
        f"{one.value:.{digits}f}",
        off,
        "" if one.goal is None else f"{one.goal:g}",
        one.verdict or "",
    ]


def _check_outputs(card: Path, plot: Path | None, reads: list[str | Path | None]) -> None:
    check_output(card, reads=reads)
    if plot is not None:
        check_output(plot, endings=(".png", ".pdf", ".svg"), reads=reads)


def _beside(model: str) -> Path:
    """MODEL.validation.json, of a shipped model in this folder."""
    path = Path(model)
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.validation.json")
