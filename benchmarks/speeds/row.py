"""A row of the table of speeds: what was compared, how much faster, and the goal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared import alternating, ratios, timing_options

from diffmd_ase.io.json_text import to_json
from diffmd_ase.score.model import ScoreModel
from diffmd_ase.score.settings import TrainConfig
from diffmd_ase.score.snapshots import Snapshots
from diffmd_ase.score.training import train

__all__ = ["NAME", "Row", "equivariant", "frames", "in_turn", "older", "printed"]

NAME = "alanine-dipeptide"


class Row(NamedTuple):
    """One comparison; a ``value`` of None is not measured."""

    what: str
    value: float | None  # a ratio, or a slope
    low: float | None = None
    high: float | None = None
    goal: str = ""  # "≥ 3" or "≤ 1.1"; none: told only
    good: bool | None = None
    told: str = ""  # times, acceptance, memory
    precision: str = "float32"


def in_turn(
    what: str,
    slow: Callable[[], object],
    fast: Callable[[], object],
    *,
    goal: float | None,
    rounds: int,
    each: int = 1,
    unit: str = "a call",
    told: str = "",
    scale: float = 1.0,
    precision: str = "float32",
) -> Row:
    """``slow`` over ``fast`` by CPU time of this thread, which take turns.

    ``each`` of what is told in ms are made by one call, ``scale`` of them by the slow side for one
    of the fast one.
    """
    times = alternating({"slow": slow, "fast": fast}, rounds)
    value, (low, high) = ratios(scale * times["slow"], times["fast"])
    ms = (1e3 * scale * times["slow"].min() / each, 1e3 * times["fast"].min() / each)
    words = f"{ms[0]:.3g} and {ms[1]:.3g} ms {unit}" + (f"; {told}" if told else "")
    wanted = "" if goal is None else f"≥ {goal:.3g}"
    good = None if goal is None else value >= goal
    return Row(what, value, low, high, wanted, good, words, precision)


def frames(count: int) -> torch.Tensor:
    """Positions (count, 22, 3) in Å of the shipped molecule, float32."""
    positions = Snapshots.read(NAME).positions[:count]
    return torch.as_tensor(np.asarray(positions), dtype=torch.float32)


@contextmanager
def older(folder: str, kept: dict[str, ModuleType]):
    """`diffmd_ase` is that of a checkout in ``folder`` in this block, its modules in ``kept``."""
    own = _taken()
    sys.modules.update(kept)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        kept.update(_taken())
        sys.modules.update(own)


def _taken() -> dict[str, ModuleType]:
    """The modules of the package, which are no longer found."""
    names = [name for name in sys.modules if name.split(".")[0] == "diffmd_ase"]
    return {name: sys.modules.pop(name) for name in names}


def equivariant() -> ScoreModel:
    """An e3nn network of the shipped molecule, as it is before training."""
    some = Snapshots.read(NAME).take(slice(0, 400))
    config = TrainConfig(network="equivariant", steps=1, batch_size=4, evaluations=1, processes=1)
    return train(some, config=config, device="cpu")


def printed(doc: str, rows: Callable[..., list[Row]], *, rounds: int = 5) -> None:
    """The main of a script: measure ``rows(options)`` and print them, or JSON."""
    parser = timing_options(doc, steps=0, pairs=rounds)
    parser.add_argument("--before", help="folder of an older checkout, to compare with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(options)
    if options.json:
        print(to_json([row._asdict() for row in found]))
        return
    for row in found:
        print(line(row._asdict()))


def line(row: Mapping) -> str:
    """One row in words."""
    if row["value"] is None:
        return f"{row['what']}: not measured"
    spread = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
    goal = f", goal {row['goal']}: {'met' if row['good'] else 'missed'}" if row["goal"] else ""
    return f"{row['what']}: {row['value']:.3g}{spread}{goal}; {row['told']}; {row['precision']}"
