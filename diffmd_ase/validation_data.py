"""The snapshots of a validation: what is compared, and what their labels are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .analysis.comparisons import Torsions
from .analysis.label_entries import temperature_entry
from .analysis.modes import unphysical_frames
from .analysis.scorecard import Entry, Goals
from .noise import Noise
from .potentials.base import Potential
from .score.model import ScoreModel
from .score.snapshots import Snapshots
from .score.topology import Topology
from .validation_runs import forces_and_divergence

__all__ = ["Data", "energies_of", "forces_of", "measured_temperature", "refuse_label"]

_FEW = 16  # independent snapshots, below which nothing can be compared
_ORDERED = 2.0  # statistical inefficiency, as when snapshots are read
_BATCH = 500
_SMOOTHED, _PROBES = 4, 5  # children of the noise


@dataclass(frozen=True, eq=False)
class Data:
    """The snapshots that are compared: none that cannot be right, and independent ones.

    ``frames`` (M, N, 3) of ``whole``, every g-th one of an ordered series.
    """

    whole: Snapshots
    frames: Snapshots
    topology: Topology | None
    torsions: Torsions
    unphysical: dict[int, str]

    @classmethod
    def of(cls, snapshots: Snapshots, named) -> Data:
        system = snapshots.system
        topology = None if system.periodic else snapshots.topology
        wrong = unphysical_frames(system, snapshots.positions, topology)
        fine = np.setdiff1d(np.arange(len(snapshots)), list(wrong))
        whole = snapshots.take(fine) if wrong else snapshots
        stride = math.ceil(snapshots.correlation) if snapshots.correlation > _ORDERED else 1
        frames = whole.take(np.arange(0, len(whole), stride)) if stride > 1 else whole
        if len(frames) < _FEW:
            raise ValueError(
                f"{snapshots.source}: {len(snapshots)} snapshots are worth {len(frames)} "
                f"independent ones; to compare anything it takes {_FEW} at least, for widths "
                "within 3 % some thousand"
            )
        if topology is None:
            torsions = Torsions([], np.zeros((0, 4), int), [], [])
        else:
            torsions = Torsions.find(system, topology, frames.positions, named)
        return cls(whole, frames, topology, torsions, wrong)

    @property
    def effective(self) -> float:
        """Independent snapshots."""
        g = self.whole.correlation
        return len(self.whole) / (g if g > _ORDERED else 1.0)


def measured_temperature(
    model: ScoreModel, frames: Snapshots, x: np.ndarray, goals: Goals, noise: Noise, device: str
) -> Entry:
    """`temperature_entry` at x of the frames, smoothed by σ₀, which is what the model knows.

    Draws from children 4 and 5 of the noise.
    """
    potential = model.potential(frames.system, device=device, dtype=torch.float64)
    y = torch.as_tensor(x, device=potential.device)
    ids = torch.arange(len(y))
    y = y + potential.sigma * noise.child(_SMOOTHED).normal(0, y, walkers=ids)
    square, divergence = forces_and_divergence(potential, y, noise=noise.child(_PROBES))
    return temperature_entry(square / model.card.kT, divergence, len(x), goals)


def refuse_label(
    model: ScoreModel, frames: Snapshots, goals: Goals, noise: Noise, device: str
) -> None:
    """Raise ``ValueError`` for frames of another temperature, with what the forces say of it."""
    own = model.card.temperature_K
    few = frames.positions[:: max(1, len(frames) // 1000)]
    seen = measured_temperature(model, frames, few, goals, noise, device)
    raise ValueError(
        f"{frames.source} states {frames.temperature_K:g} K, the model is of {own:g} K: give "
        "snapshots of its temperature. In the model's forces these frames look like "
        f"{own * seen.value:.0f} ± {own * seen.error:.0f} K (widths of stiff bonds), so that "
        + (
            "their label may be wrong"
            if abs(seen.value - 1) < 3 * max(seen.error, 0.01)
            else "the temperatures differ indeed"
            if abs(seen.value * own - frames.temperature_K) < 3 * max(seen.error, 0.01) * own
            else "neither label fits"
        )
    )


def energies_of(potential: Potential, x: np.ndarray) -> np.ndarray:
    """Energies (M,) in eV at x (M, N, 3)."""
    parts = torch.as_tensor(x).split(_BATCH)
    return torch.cat([potential(p).energy for p in parts]).double().cpu().numpy()


def forces_of(potential: Potential, x: np.ndarray) -> np.ndarray:
    """Forces (M, N, 3) in eV/Å at x (M, N, 3)."""
    parts = torch.as_tensor(x).split(_BATCH)
    return torch.cat([potential(p).forces for p in parts]).double().cpu().numpy()
