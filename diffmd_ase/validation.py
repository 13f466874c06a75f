"""Do data, independent samples and dynamics of a model agree? One card with the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from . import validation_parts as parts
from .analysis.scorecard import Goals, Validation
from .noise import Noise
from .potentials.base import Potential
from .score.model import ScoreModel, largest_curvature
from .score.snapshots import Snapshots
from .validation_data import Data, refuse_label
from .validation_parts import Bench, Draft, Effort

__all__ = ["Effort", "validate"]

_GROUPS = (
    "torsions",
    "free energy",
    "distances",
    "widths",
    "energies",
    "labels",
    "temperature",
    "uncertainty",
    "stability",
)
_SAME_KELVIN = 0.01


def validate(
    model: ScoreModel,
    snapshots: Snapshots,
    *,
    effort: Effort | None = None,
    goals: Goals | None = None,
    reference: Potential | None = None,
    committee: Sequence[ScoreModel] = (),
    torsions: dict[str, tuple[int, int, int, int]] | None = None,
    modes: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[float, str], None] | None = None,
) -> Validation:
    """Compare data, i.i.d. reverse diffusion and Metropolis-corrected dynamics of a model.

    Every divergence comes with the sampling floor, what as many frames of the data have
    from its rest; every number with a standard error, and a verdict that may be that it
    cannot be told. Walkers start from snapshots, so that dynamics judges what lies within
    modes; the weights of modes are judged by energies, i.i.d. samples and, with ``modes``, by
    replica exchange that starts in one of them.

    Parameters
    ----------
    model, snapshots : of the same atoms, at one temperature
    reference : the potential that made the snapshots, for forces, and energies where the
        snapshots have none; a part of the snapshots is evaluated
    committee : further models of the same data: is their spread the error?
    torsions : four atoms each, by name; default all about rotatable bonds of heavy atoms
    modes : sample the populations of the largest torsion's modes from one; minutes more
    progress : called with the finished fraction and what comes next

    Raises
    ------
    ValueError : other atoms or pbc than the model's, another temperature on the label (with
        what the forces say of it), fewer than 16 independent snapshots
    """
    effort, goals, noise = effort or Effort(), goals or Goals(), Noise(seed)
    begun = time.monotonic()
    tell = _Stages(progress, _shares(model, modes))
    potential = model.potential(snapshots.system, device=device)
    data = Data.of(snapshots, torsions)
    if abs(snapshots.temperature_K - model.card.temperature_K) > _SAME_KELVIN:
        refuse_label(model, data.frames, goals, noise, device)
    stiffness = model.card.lambda_max or largest_curvature(model, data.frames)
    bench = Bench(model, data, potential, stiffness, goals, effort, noise, device)
    draft = Draft()

    tell("the snapshots")
    weights, energies = parts.energies_part(draft, bench)
    parts.temperature_part(draft, bench)
    parts.labels_part(draft, bench, reference, committee)
    samples: dict[str, np.ndarray] = {}
    if snapshots.system.periodic:
        draft.left_out.append(
            "i.i.d. reverse diffusion: starts from a Gaussian, which periodic systems have not"
        )
    else:
        tell("i.i.d. samples")
        samples["i.i.d."] = parts.independent_part(draft, bench, tell.part)
    tell("corrected dynamics")
    walkers, starts = parts.corrected_part(draft, bench, tell.part)
    parts.compared_part(draft, bench, samples, walkers, starts, weights, energies)
    tell("plain dynamics")
    parts.plain_part(draft, bench, tell.part)
    if modes:
        tell("exchange from one mode")
        parts.exchange_part(draft, bench, tell.part)
    elif data.torsions.parted:
        draft.left_out.append("populations of modes by exchange from one of them: ask for modes")
    parts.unknown_part(draft, bench)
    facts = {
        "formula": snapshots.system.formula,
        "temperature_K": model.card.temperature_K,
        "model": {"source": model.card.data["source"], "sha256": model.card.data["sha256"]},
        "snapshots": {
            "source": snapshots.source,
            "frames": len(snapshots),
            "effective": round(data.effective, 1),
            "trained_on_these": snapshots.sha256 == model.card.data["sha256"],
        },
        "sampling": draft.facts | {"effort": vars(effort), "seed": seed},
        "seconds": round(time.monotonic() - begun, 1),
    }
    lines = sorted(draft.entries, key=lambda line: _GROUPS.index(line.group))
    return Validation(facts, tuple(lines), tuple(draft.notes), tuple(draft.left_out))


def _shares(model: ScoreModel, modes: bool) -> dict[str, float]:
    """What is done in turn, and its share of the time."""
    shares = {"the snapshots": 1.0, "corrected dynamics": 4.0, "plain dynamics": 1.0}
    if not model.system.periodic:
        shares["i.i.d. samples"] = 6.0
    if modes:
        shares["exchange from one mode"] = 8.0
    return shares


class _Stages:
    """Fractions of parts as fractions of the whole."""

    def __init__(self, progress, shares: dict[str, float]):
        self.progress, self.shares, self.done, self.now = progress, shares, 0.0, ""

    def __call__(self, name: str) -> None:
        self.done += self.shares.get(self.now, 0.0)
        self.now = name
        self.part(0.0)

    def part(self, fraction: float) -> None:
        if self.progress is not None:
            done = self.done + fraction * self.shares[self.now]
            self.progress(done / sum(self.shares.values()), self.now)
