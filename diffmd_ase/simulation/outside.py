"""Frames of a run that are outside of the snapshots of its model: counted, collected, ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase.io
import torch
from torch import Tensor

from ..potentials.learned import ScorePotential, scores
from ..sampling.kernels import Kernel
from ..state import State
from ..system import System

__all__ = ["Outside", "scores_of"]


def scores_of(kernel: Kernel) -> list[ScorePotential]:
    """The learned scores of a ``kernel``, of its target and its drift, each once."""
    both = [kernel.potential] if kernel.drift is None else [kernel.potential, kernel.drift]
    return list({id(score): score for potential in both for score in scores(potential)}.values())


@dataclass
class Outside:
    """What a run does with frames outside, and how many there were.

    Parameters
    ----------
    system : of the walkers
    collect : .extxyz that they are added to, or None
    stop : walkers end there
    frames, counted : frames outside, of those that were looked at
    ended : walkers that ended, with the step
    """

    system: System
    collect: Path | None = None
    stop: bool = False
    frames: int = 0
    counted: int = 0
    ended: dict[str, int] = field(default_factory=dict)

    def look(self, kernel: Kernel, state: State) -> Tensor | None:
        """Which walkers (B,) of the ``state`` are outside, for any model of the ``kernel``.

        None where no model knows. The first is a warning in words.
        """
        outside, worst, words = None, None, None
        for score in scores_of(kernel):
            said = score.describe(state.x)
            if not said:
                continue
            value = said["extrapolation"]
            worst = value if worst is None else torch.maximum(worst, value)
            outside, words = worst > 1, score.outside
        if outside is None or worst is None or words is None:
            return None
        self.counted += len(outside)
        self.frames += int(outside.sum())
        if self.collect is not None and outside.any():
            images = []
            for x, value in zip(state.x[outside], worst[outside].tolist(), strict=True):
                atoms = self.system.to_atoms(x.cpu())
                atoms.info |= {"extrapolation": value, "outside": words(x) or ""}
                images.append(atoms)
            ase.io.write(self.collect, images, format="extxyz", append=True)
        return outside

    def facts(self) -> dict[str, Any]:
        """Counts, JSON values: what `restored` takes."""
        return {"frames": self.frames, "counted": self.counted, "ended": self.ended}

    def restored(self, facts: dict[str, Any] | None) -> Outside:
        """As it was when it had these ``facts``; itself without any."""
        return self if facts is None else replace(self, **facts)
