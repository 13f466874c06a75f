"""``diffmd validate``: do data, independent samples and dynamics of a model agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_config import Config, resolved, save_resolved
from .cli_output import bar, say, show, show_table, show_verdicts

if TYPE_CHECKING:
    from .analysis.scorecard import Entry, Validation

__all__ = ["validate"]


def validate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="model file, or name of a shipped model")],
    snapshots: Annotated[
        str, typer.Argument(help="frames: anything ASE reads, .npz, or a shipped set")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the card (default: MODEL.validation.json)"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="an HTML page of the card, with pictures")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="of the snapshots, K (default: as stated, or the model's)")
    ] = None,
    effort: Annotated[
        float,
        typer.Option(
            help="how much is sampled: 0.1 for a quick look, 1 takes minutes, 4 for goals"
        ),
    ] = 1.0,
    modes: Annotated[
        bool,
        typer.Option(
            "--modes", help="populations of the model's modes by exchange from one of them"
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            help="what made the snapshots, to compare forces with: an installed potential "
            "(openmm) or a calculator of ASE (emt)"
        ),
    ] = None,
    reference_options: Annotated[
        str | None, typer.Option(help="of that potential or calculator, as JSON")
    ] = None,
    committee: Annotated[
        list[str] | None,
        typer.Option(help="further models of the same data: is their spread the error? repeat"),
    ] = None,
    torsion: Annotated[
        list[str] | None,
        typer.Option(help="phi=4,6,8,14 (atoms from 0); repeat; default: all of heavy atoms"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of all randomness")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    progress: Annotated[bool, typer.Option(help="show progress")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on standard output")] = False,
    config: Config = None,
) -> None:
    """Compare snapshots, i.i.d. samples and corrected dynamics; a card with verdicts.

    Every divergence stands beside its sampling floor, every number has an error, and where
    frames are too few the verdict is that it cannot be told.
    """
    import torch

    from .demo import NAMED_TORSIONS
    from .potentials.base import Potential
    from .score.model import ScoreModel
    from .score.snapshots import Snapshots
    from .simulation import read_frames
    from .targets import named_target
    from .validation import Effort
    from .validation import validate as judge

    torch.set_num_threads(1)
    card = output or _beside(model)
    for path in filter(None, (card, report)):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist; make it first")
    if reference is None and reference_options is not None:
        raise ValueError("--reference-options are those of a --reference: name one")
    loaded = ScoreModel.load(model)
    if temperature is None:
        frames = read_frames(snapshots, loaded)
    else:
        frames = Snapshots.read(snapshots, temperature_K=temperature)
    truth = None
    if reference is not None:
        named_potential = named_target(reference, frames.system, _options(reference_options))
        if not isinstance(named_potential, Potential):
            raise ValueError(f"--reference {reference}: expected what made the snapshots")
        truth = named_potential
    named = dict(_torsion(words, len(frames.system)) for words in torsion or [])
    with bar("validate", 1.0, progress) as update:
        found = judge(
            loaded,
            frames,
            effort=Effort().scaled(effort),
            reference=truth,
            committee=[ScoreModel.load(m) for m in committee or []],
            torsions=named or NAMED_TORSIONS.get(Path(snapshots).stem),
            modes=modes,
            seed=seed,
            device=device,
            progress=update,
        )
        update(1.0)
    found.facts["options"] = resolved(context)
    found.save(card)
    save_resolved(context, card)
    if report is not None:
        from .analysis.validation_page import write_page

        write_page(report, found, frames.system)
    if as_json:
        show(found.to_dict(), True)
        return
    _print(found)
    say(f"wrote {card}" + (f" and {report}" if report is not None else ""))


def _print(found: Validation) -> None:
    names = ["", "exact", "off by", "±", "goal", "verdict"]
    title = (
        f"{found.facts['formula']} at {found.facts['temperature_K']:g} K; exact: the sampling "
        "floor, or the value of the data"
    )
    group, rows = "", []
    for line in found.entries:
        if line.group != group:
            group = line.group
            rows.append([group.upper(), *[""] * 5])
        rows.append(_cells(line))
    show_table(title, names, rows)
    bad = [line for line in found.entries if line.good is not True and line.words]
    show_verdicts([{"good": line.good, "text": f"{line.name}: {line.words}"} for line in bad])
    show_verdicts([{"good": good, "text": text} for good, text in found.notes])
    show_verdicts([{"good": None, "text": f"left out: {text}"} for text in found.left_out])
    show_verdicts([{"good": found.good, "text": found.words}])


def _cells(line: Entry) -> list[str]:
    expected = "" if line.expected is None else f"{line.expected:.3g}"
    goal = "" if line.goal is None else f"{line.goal:g}"
    numbers = [expected, f"{line.deviation:+.4f}", f"{line.error:.4f}", goal]
    return [f" {line.name}", *numbers, line.verdict or ""]


def _beside(model: str) -> Path:
    """MODEL.validation.json, of a shipped model in this folder."""
    path = Path(model)
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.validation.json")


def _options(words: str | None) -> dict:
    import json

    try:
        values = {} if words is None else json.loads(words)
    except json.JSONDecodeError as error:
        raise ValueError(f"--reference-options {words!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f'--reference-options {words!r}: expected an object, {{"name": value}}')
    return values


def _torsion(words: str, n_atoms: int) -> tuple[str, tuple[int, int, int, int]]:
    name, _, listed = words.partition("=")
    try:
        i, j, k, m = (int(part) for part in listed.split(","))
    except ValueError as error:
        raise ValueError(f"--torsion {words!r}: expected phi=4,6,8,14") from error
    if len({i, j, k, m}) < 4 or not all(0 <= a < n_atoms for a in (i, j, k, m)):
        raise ValueError(f"--torsion {words!r}: atoms must differ and lie in 0…{n_atoms - 1}")
    return name, (i, j, k, m)
