"""The report of a model: files in, one page out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.trajectory import RunInfo, Trajectory
from ..potentials.learned import ScorePotential
from ..score.model import ScoreModel
from ..simulation.frames import read_frames
from .report import write_report

__all__ = ["make_report", "NAMED_TORSIONS"]


# backbone torsions of the shipped set
NAMED_TORSIONS = {"alanine-dipeptide": {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}}


_MAX_STRUCTURES = 400_000  # of the trajectories, that the report looks at


_MAX_ENERGIES = 5_000  # snapshots, and 200 frames of the walkers: enough for a histogram


_ASKED = 100  # structures outside, of which the words are asked


def make_report(
    model: str | Path,
    output: Path,
    *,
    snapshots: str | None = None,
    samples: Path | None = None,
    trajectories: Sequence[Path] = (),
    skip: float = 0.0,
    summary: dict[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Write the HTML report of a model to ``output``; returns its numbers.

    Parameters
    ----------
    model : file, or name of a shipped one
    output : the HTML file
    snapshots : reference; default, the shipped set that the model was trained on
    samples, trajectories : files of ``diffmd sample`` and ``diffmd run``
    skip : fraction of each trajectory that is left out at its beginning
    summary, title : as of `write_report`; default, the formula

    Raises
    ------
    FileNotFoundError : no such files
    ValueError : no reference was named and none is shipped, trajectories that are not shares of one
        batch, and what `write_report` refuses
    """
    loaded = ScoreModel.load(model)
    card = loaded.card
    source = Path(card.data["source"]).stem if snapshots is None else snapshots
    try:
        reference = read_frames(source, loaded)
    except FileNotFoundError as error:
        if snapshots is not None:
            raise
        raise ValueError(
            f"this model was trained on {card.data['source']}, which is no shipped set: name the "
            "reference (--snapshots)"
        ) from error
    potential = loaded.potential(reference.system)

    def energy(x: np.ndarray) -> np.ndarray:
        parts = [potential(torch.as_tensor(p)).energy for p in np.array_split(x, 1 + len(x) // 512)]
        return torch.cat(parts).double().cpu().numpy()

    def looked_at(x: np.ndarray) -> None:
        found = _outside(potential, x)
        if found is not None:
            outside["iid" if x.ndim == 3 else "md"] = found

    outside: dict[str, tuple[np.ndarray, str]] = {}
    few = reference.positions[:: max(1, len(reference) // _MAX_ENERGIES)]
    energies = {"data": energy(few)}
    options: dict[str, Any] = {}
    if samples is not None:
        options["iid"] = read_frames(samples, loaded).positions
        energies["iid"] = energy(options["iid"][: 4 * _MAX_ENERGIES])
        looked_at(options["iid"][: 4 * _MAX_ENERGIES])
    if trajectories:
        positions, steps, energies["md"], info = _side_by_side(trajectories, skip)
        options["trajectory"] = positions
        looked_at(positions[:: max(1, positions[..., 0, 0].size // (4 * _MAX_ENERGIES))])
        options["Dt"] = steps * info.h
        options["kinetics_valid"] = info.kinetics_valid
    return write_report(
        output,
        system=reference.system,
        reference=reference.positions,
        temperature_K=card.temperature_K,
        energies=energies,
        outside=outside,
        torsions=NAMED_TORSIONS.get(Path(source).stem),
        card=_readable(loaded),
        training=_training_rows(loaded),
        summary=summary,
        title=title or f"{card.formula}: score dynamics",
        **options,
    )


def _outside(potential: ScorePotential, x: np.ndarray) -> tuple[np.ndarray, str] | None:
    """Which of x (*batch, N, 3) are beyond the snapshots, and what most of them have, in words.

    None of a model that does not know. What is not finite is not looked at.
    """
    flat = torch.as_tensor(np.nan_to_num(x.reshape(-1, *x.shape[-2:])))
    values = [potential.extrapolation(part) for part in flat.split(512)]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    beyond = (torch.cat(known) > 1).numpy() & np.isfinite(x).all((-1, -2)).ravel()
    said = Counter(potential.outside(flat[n]) for n in np.flatnonzero(beyond)[:_ASKED])
    words = next((w for w, _ in said.most_common() if w), "")
    return beyond.reshape(x.shape[:-2]), words


def _side_by_side(
    paths: Sequence[Path], skip: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, RunInfo]:
    """Positions (T, B, N, 3), steps (T,), energies (T, B) of shares of one batch."""
    readers = [Trajectory(path) for path in paths]
    one = readers[0]
    count = min(len(reader) for reader in readers)
    for reader in readers[1:]:
        same = reader.info.h == one.info.h and np.array_equal(
            reader.steps[:count], one.steps[:count]
        )
        if not same or reader.system != one.system:
            raise ValueError(
                f"{reader.path} and {one.path} differ in system, step size or frames: they are "
                "not shares of one batch; report them one by one"
            )
    structures = count * sum(len(reader.walkers) for reader in readers)
    kept = slice(int(skip * count), count, max(1, structures // _MAX_STRUCTURES))
    positions = np.concatenate([reader.positions[kept] for reader in readers], axis=1)
    energies = np.concatenate([reader.energies[kept] for reader in readers], axis=1)
    return positions, one.steps[kept], energies, one.info


def _readable(model: ScoreModel) -> dict[str, Any]:
    card = model.card.model_dump(mode="json")
    for name in ("numbers", "masses", "covariance"):
        del card[name]
    card["experts"] = [{k: v for k, v in e.items() if k != "history"} for e in card["experts"]]
    return card


def _training_rows(model: ScoreModel) -> list[dict[str, Any]]:
    """Losses of all networks, one row a step; None where a network was not validated."""
    columns: list[str] = []
    rows: dict[int, dict[str, float]] = {}
    for expert in model.card.experts:
        for kind in ("training", "validation"):
            columns.append(f"{expert.name}: {kind} loss")
            for entry in expert.history:
                rows.setdefault(entry["step"], {})[columns[-1]] = entry[f"{kind}_loss"]
    return [{"step": step} | {c: rows[step].get(c) for c in columns} for step in sorted(rows)]
