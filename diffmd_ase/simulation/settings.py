"""The settings of a run, and the kernel that they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import units as ase_units

from ..potentials.base import Potential
from ..potentials.named import find_target
from ..sampling.euler import EulerMaruyama
from ..sampling.metropolis import Metropolis
from ..sampling.step_size import Step, card_stiffness, check_step, check_temperature, choose_step
from ..units import kT_from_temperature, spring_from_h

__all__ = ["coupled_kernel", "Files"]


@dataclass(frozen=True)
class Files:
    """The files of one run."""

    prefix: str

    @property
    def trajectory(self) -> Path:
        return Path(f"{self.prefix}.h5")

    @property
    def restart(self) -> Path:
        return Path(f"{self.prefix}.restart")

    @property
    def summary(self) -> Path:
        return Path(f"{self.prefix}.json")

    @property
    def final(self) -> Path:
        return Path(f"{self.prefix}.extxyz")

    def check_free(self) -> None:
        """Raise ``FileExistsError`` where another run left its files."""
        for path in (self.trajectory, self.restart):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists: restart that run, remove it, or choose another prefix"
                )


def coupled_kernel(
    potential: Potential,
    *,
    temperature_K: float,
    timestep_fs: float | None = None,
    friction_per_fs: float | None = None,
    spring: float | None = None,
    h: float | None = None,
    target: str | Potential | None = None,
    proposal_steps: int = 1,
    moving: np.ndarray | None = None,
) -> tuple[EulerMaruyama | Metropolis, Step]:
    """The harmonic-coupled step in a user's words, judged by the stiffness on the card.

    Isolated molecules lose no mean: drift and noise are projected. With a ``target`` ("model"
    or as in `targets.find_target`) ``proposal_steps`` steps are accepted or rejected, and a
    step that is too large is rejected instead of refused. Atoms outside of ``moving`` (N,) are
    held: their h is 0.

    Raises
    ------
    ValueError : contradictory words, a step beyond the limit of stability, or none where
        the card knows no stiffness
    """
    if h is not None and (spring is not None or timestep_fs is not None):
        raise ValueError(f"step size {h} Å² and a spring or time step: give one, each sets h")
    if timestep_fs is not None and friction_per_fs is None:
        raise ValueError(
            f"time step {timestep_fs} fs needs a friction (1/fs): only together they make a step "
            "h; give neither for the default"
        )
    if h is not None and not h > 0:
        raise ValueError(f"step size {h} Å² must be positive")
    kT = kT_from_temperature(temperature_K)
    moving = np.ones(len(potential.system), bool) if moving is None else moving
    stiffness = card_stiffness(potential, kT)
    if target in (None, "model"):  # another reference has the last word
        check_temperature(potential, temperature_K)

    def known() -> tuple[float, str]:
        if stiffness is None:
            raise ValueError("the model card holds no stiffness to choose a step by: give one")
        return stiffness, "from the model card"

    step = choose_step(
        kT=kT,
        masses=potential.system.masses,
        timestep=None if timestep_fs is None else timestep_fs * ase_units.fs,
        friction=None if friction_per_fs is None else friction_per_fs / ase_units.fs,
        mobility=None,
        spring=spring if h is None else spring_from_h(h),
        stiffness=known,
    )
    if stiffness is not None and target is None:
        # its words are those of this call: fs
        in_fs = replace(step, timestep=step.timestep / ase_units.fs)
        check_step(in_fs, stiffness, moving)
    mean_free = not potential.system.periodic
    size = torch.as_tensor(step.h if moving.all() else step.h * moving)
    proposal = EulerMaruyama(potential, kT=kT, h=size, mean_free=mean_free)
    if target is None:
        if proposal_steps != 1:
            raise ValueError(f"{proposal_steps=} without a target: nothing is proposed")
        return proposal, step
    return Metropolis(proposal, find_target(target, potential.system), proposal_steps), step
