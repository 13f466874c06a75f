"""What a validation judges and how: model, frames, effort, goals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ..analysis.modes import unphysical_frames
from ..analysis.statistics import statistical_inefficiency
from ..noise import Noise
from ..potentials.base import Potential, evaluate
from ..potentials.curvature import forces_and_divergence
from ..potentials.held import Held
from ..potentials.learned import ScorePotential
from ..score.curvature import largest_curvature
from ..score.model import ScoreModel
from ..score.networks.gradients import Compile
from ..score.snapshot_checks import ORDERED
from ..score.snapshots import Snapshots
from . import labels
from .comparisons import Torsions
from .scorecard import Goals, Line
from .walkers import Start

__all__ = ["ENOUGH", "Bench", "Effort", "Part", "energies_and_forces"]

ENOUGH = 1000
"""Independent snapshots that tell widths within 3 %."""
_FEW = 16  # of them, to compare anything
_SAME_KELVIN = 0.01
_BATCH = 500
_TRAJECTORY = 20  # steps of one trajectory


class Part(IntEnum):
    """What draws random numbers, each from the child of the noise that has its number."""

    INDEPENDENT = 0
    CORRECTED = 1
    PLAIN = 2
    EXCHANGE = 3
    SMOOTHED = 4
    PROBES = 5


@dataclass(frozen=True)
class Effort:
    """How much is sampled.

    Parameters
    ----------
    samples : i.i.d. draws
    walkers : of corrected dynamics; a quarter of them of plain dynamics
    moves : trajectories of 20 steps for each walker, frames of its series
    plain_steps : of plain dynamics
    labels : snapshots that forces are compared on
    ladders, exchange_steps : of replica exchange over 5 temperatures

    Raises
    ------
    ValueError : numbers too small to compare anything
    """

    samples: int = 4000
    walkers: int = 256
    moves: int = 120
    plain_steps: int = 1500
    labels: int = 1000
    ladders: int = 16
    exchange_steps: int = 8000

    def __post_init__(self):
        low = {"samples": 20, "walkers": 8, "moves": 4, "labels": 20, "ladders": 2}
        for name, value in vars(self).items():
            if value < low.get(name, 1):
                raise ValueError(f"{name}={value} must be at least {low.get(name, 1)}")

    def steps(self, modes: bool) -> int:
        """Evaluations of walkers, one after the other; with exchange if ``modes`` are sampled."""
        own = _TRAJECTORY * (self.moves + max(10, self.moves // 5)) + self.plain_steps
        return own + self.exchange_steps * modes

    def scaled(self, factor: float) -> Effort:
        """All but walkers and ladders times ``factor``."""
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"effort {factor} must be positive; 1 is the default")
        return Effort(
            max(20, round(self.samples * factor)),
            self.walkers,
            max(4, round(self.moves * factor)),
            max(1, round(self.plain_steps * factor)),
            max(20, round(self.labels * factor)),
            self.ladders,
            max(100, round(self.exchange_steps * factor)),
        )


@dataclass(frozen=True, eq=False)
class Bench:
    """What is judged and how; `of` makes it.

    Raises
    ------
    ValueError : fewer than 16 independent snapshots, another temperature than the model's
    """

    model: ScoreModel  # what is judged
    potential: ScorePotential  # its own, at its smallest noise
    stiffness: float  # largest curvature λ of U/kT in 1/Å²
    frames: Snapshots  # that are compared, none that cannot be right, independent ones
    effective: float  # how many independent ones the snapshots are worth
    unphysical: dict[int, str]  # frames of the snapshots that cannot be right: number → why
    torsions: Torsions  # that are looked at
    effort: Effort
    goals: Goals
    noise: Noise
    compile: Compile = "auto"

    @classmethod
    def of(
        cls, model, snapshots, effort, goals, named, seed, device, compile: Compile = "auto"
    ) -> Bench:
        system = snapshots.system
        potential = model.potential(system, device=device, compile=compile)
        topology = None if system.periodic else snapshots.topology
        wrong = unphysical_frames(system, snapshots.positions, topology)
        fine = np.setdiff1d(np.arange(len(snapshots)), list(wrong))
        g = snapshots.correlation
        if system.periodic and g > ORDERED:
            # atoms that swap or drift with the crystal change nothing that is compared
            g = statistical_inefficiency(
                energies_and_forces(potential, snapshots.positions[fine])[0]
            )
        g = g if g > ORDERED else 1.0
        frames = snapshots.take(fine[:: math.ceil(g)])
        if len(frames) < _FEW:
            raise ValueError(
                f"{snapshots.source}: {len(snapshots)} snapshots are worth {len(frames)} "
                f"independent ones; to compare anything it takes {_FEW} at least, for widths "
                f"within 3 % some {ENOUGH}"
            )
        looked_at = Torsions.find(system, topology, frames.positions, named)
        stiffness = model.card.lambda_max or largest_curvature(model, frames)
        effort, goals = effort or Effort(), goals or Goals()
        worth, noise = len(fine) / g, Noise(seed)
        bench = cls(
            model,
            potential,
            stiffness,
            frames,
            worth,
            wrong,
            looked_at,
            effort,
            goals,
            noise,
            compile,
        )
        if abs(snapshots.temperature_K - model.card.temperature_K) > _SAME_KELVIN:
            raise ValueError(bench.another_temperature())
        return bench

    @property
    def kT(self) -> float:
        return self.model.card.kT

    def starts(self, count: int) -> np.ndarray:
        """Numbers of frames, half of them at most."""
        order = np.random.default_rng(self.noise.seed).permutation(len(self.frames))
        return order[: max(8, min(count, len(order) // 2))]

    def free(self, potential: Potential, rows: np.ndarray) -> tuple[Potential, Tensor]:
        """The potential of the atoms that move, and their positions in these frames."""
        x = torch.as_tensor(self.frames.positions[rows], device=self.potential.device)
        moving = self.frames.moving
        if moving.all():
            return potential, x
        return Held(potential, self.frames.positions[0], moving), x[:, moving]

    def whole(self, x: np.ndarray) -> np.ndarray:
        """Positions (*batch, N, 3) of all atoms, for those that move."""
        moving = self.frames.moving
        if moving.all():
            return x
        every = np.broadcast_to(self.frames.positions[0], (*x.shape[:-2], len(moving), 3)).copy()
        every[..., moving, :] = x
        return every

    def dynamics(self, rows: np.ndarray, part: Part) -> Start:
        """What all walkers need that start from these frames."""
        potential, x = self.free(self.potential, rows)
        mean_free = not self.frames.system.periodic
        return Start(potential, x, self.kT, self.stiffness, mean_free, self.noise.child(part))

    def some(self, count: int) -> np.ndarray:
        return np.arange(0, len(self.frames), max(1, len(self.frames) // count))

    def temperature(self, count: int) -> Line:
        """Of the frames, smoothed by σ₀, which is what the model knows, in its forces."""
        device = str(self.potential.device)
        potential = self.model.potential(self.frames.system, device=device, dtype=torch.float64)
        free, y = self.free(potential, self.some(count))
        noise, ids = self.noise.child(Part.SMOOTHED), torch.arange(len(y))
        y = y + potential.sigma * noise.normal(0, y, walkers=ids)
        probes = self.noise.child(Part.PROBES)
        square, divergence = forces_and_divergence(free, y, noise=probes)
        return labels.temperature_line(square / self.kT, divergence, self.goals)

    def another_temperature(self) -> str:
        """What the widths say where the labels of model and snapshots differ."""
        own, stated, seen = self.model.card.temperature_K, self.frames.temperature_K, None
        seen = self.temperature(1000)
        kelvin, error = seen.value * own, max(seen.error, 0.01) * own
        verdict = (
            "their label may be wrong"
            if abs(kelvin - own) < 3 * error
            else "the temperatures differ indeed"
            if abs(kelvin - stated) < 3 * error
            else "neither label fits"
        )
        return (
            f"{self.frames.source} states {stated:g} K, the model is of {own:g} K: give snapshots "
            f"of its temperature. By the widths of stiff bonds these look like {kelvin:.0f} ± "
            f"{seen.error * own:.0f} K to the model, so that {verdict}"
        )


def energies_and_forces(potential: Potential, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (M,) in eV and forces (M, N, 3) in eV/Å of ``x`` (M, N, 3) in Å, in parts.

    Those of a ``potential``, in float64 on the host.
    """
    parts = [evaluate(potential.terms, p) for p in torch.as_tensor(x).split(_BATCH)]
    energy, forces = torch.cat([p.energy for p in parts]), torch.cat([p.forces for p in parts])
    return energy.double().cpu().numpy(), forces.double().cpu().numpy()
