"""``diffmd info`` and ``diffmd doctor``: what a model holds, and what this machine offers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import AsJson, Model
from .output import show, show_verdicts

__all__ = ["doctor", "info", "model_facts"]


_Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="read all of a model, trajectory (.h5), checkpoint (.restart), .npz or folder of a "
        "training, and compare it with its checksums; exit code 1 where it is not sound",
    ),
]


def info(model: Model, verify: _Verify = False, as_json: AsJson = False) -> None:
    """What a model file holds (--json: its whole card); ``verify``: is the file sound?"""
    if verify:
        _tell_whether_sound(model, as_json)
        return
    from ..score.model import ScoreModel

    loaded = ScoreModel.load(model)
    show(model_facts(loaded), as_json, full=loaded.card.model_dump(mode="json"))


def _tell_whether_sound(path: str, as_json: bool) -> None:
    from ..simulation.verify import verify_file

    parts = verify_file(path)
    if as_json:
        show({"parts": [part._asdict() for part in parts]}, True)
    else:
        show_verdicts([{"good": p.good, "text": f"{p.name}: {p.text}"} for p in parts])
    if any(part.good is False for part in parts):
        raise typer.Exit(1)


def doctor(as_json: AsJson = False) -> None:
    """Device, versions, plugins, and whether a PLUMED kernel is found."""
    from .doctor import examine

    show(examine(), as_json)


def model_facts(model) -> dict[str, Any]:
    """What a person wants to know of a ``model`` (`ScoreModel`), by name with units."""
    from ..sampling.step_size import DEFAULT_H_LAMBDA
    from ..score.networks.build import parameter_count

    card = model.card
    step = None if not card.lambda_max else round(DEFAULT_H_LAMBDA / card.lambda_max, 8)
    corrections = {
        f"{e.name}_network": e.correction for e in card.experts if e.correction is not None
    }
    return {
        "formula": card.formula,
        "temperature_K": card.temperature_K,
        "trained_on": "; ".join(_of_set(system) for system in card.systems),
        "noise_levels_A": f"{card.sigma_min:g} to {card.sigma_max:g}",
        "baseline": None if card.baseline is None else card.baseline.name,
        "networks": ", ".join(f"{e.name} ({e.network.kind})" for e in card.experts),
        # fitted in closed form or by gradients
        "parameters": sum(map(parameter_count, model.networks)),
        **corrections,
        "force_error": _force_error(card),
        "lambda_max_1/A2": None if card.lambda_max is None else round(card.lambda_max, 1),
        "default_step_A2": step,
        "snapshots": card.data["snapshots"],
        "source": card.data["source"],
        "training_seconds": card.training.get("seconds"),
        "training_memory_MB": card.training.get("peak_memory_MB"),
        "schema_version": card.schema_version,
    }


def _force_error(card) -> str | None:
    """Relative, as far as it is known."""
    known = card.force_error
    if known is None:
        return None
    told = f"{known.statistical:.1%} by the number of snapshots"
    if known.found is None:
        return f"{told}; that of the form comes on top"
    return f"{told}; {known.found:.1%} found, where these have forces"


def _of_set(system) -> str:
    """One set of snapshots, and what the forces of the model say of its temperature."""
    kelvin = system.configurational_temperature_K
    by_forces = "" if kelvin is None else f" (by forces {kelvin:.0f} K)"
    held = f", {len(system.held)} atoms of it held" if system.held else ""
    return f"{system.snapshots} of {system.formula} at {system.temperature_K:g} K{by_forces}{held}"
