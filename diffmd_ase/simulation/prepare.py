"""From what a user asks to a kernel: step, clock, target, bias and constraints, in one place.

The ASE classes, ``diffmd run``, the demonstration and the validation all come here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..potentials.base import Potential
from ..potentials.curvature import measured_stiffness
from ..potentials.named import Source, find_potential
from ..sampling.euler import EulerMaruyama
from ..sampling.metropolis import Metropolis
from ..sampling.step_size import Step, card_stiffness, check_step, check_temperature, choose_step
from ..system import System
from ..units import kT_from_temperature

__all__ = ["Prepared", "StepRequest", "prepare"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRequest:
    """What a user says of the step; none of it: the default, ``h = 0.2/λ``.

    Parameters
    ----------
    timestep : Δt in ASE time, with friction or mobility
    friction : γ in 1/ASE time, ``h = kT Δt/(m γ)``; alone it sets the clock
    mobility : μ in Å²/(eV·ASE time), ``h = μ kT Δt``, scalar or (N,); alone it sets the clock
    spring : k in 1/Å², ``h = 1/(2k)``, scalar or (N,)
    """

    timestep: float | None = None
    friction: float | None = None
    mobility: float | np.ndarray | None = None
    spring: float | np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """A ``kernel`` of harmonic-coupled steps, and what its ``step`` means."""

    kernel: EulerMaruyama | Metropolis
    step: Step

    def scaled(self, factor: float) -> Prepared:
        """The same with ``factor`` times the step size, as an adaptation has found it."""
        step = replace(
            self.step,
            h=self.step.h * factor,
            timestep=self.step.timestep * factor,
            source=f"{self.step.source}, adapted",
        )
        return Prepared(self.kernel.scaled(factor), step)

    def bound(self, drift: Potential, target: Potential | None) -> Prepared:
        """The same with other potentials: the atoms have another calculator or cell."""
        if isinstance(self.kernel, EulerMaruyama):
            return replace(self, kernel=replace(self.kernel, potential=drift))
        proposal = replace(self.kernel.proposal, potential=drift)
        return replace(self, kernel=replace(self.kernel, proposal=proposal, target=target))


def prepare(
    potential: Potential,
    system: System | None = None,
    *,
    temperature_K: float,
    step: StepRequest | None = None,
    target: Source | None = None,
    proposal_steps: int = 1,
    bias: Potential | Callable[[Step], Potential] | None = None,
    moving: np.ndarray | None = None,
    mean_free: bool = False,
    stiffness: float | None = None,
    x: Tensor | None = None,
) -> Prepared:
    """The kernel of harmonic-coupled steps that a user means, and its step.

    A step that is too large by the stiffness of the model is refused, but not with a target,
    where it is rejected: a target may be stiffer or softer than the model.

    Parameters
    ----------
    potential : the drift, without the bias
    system : of the walkers, default that of the potential
    step : default 0.2/λ
    target : what steps are accepted to, see `potentials.named.find_potential`; "model" is the
        potential itself, None plain dynamics
    proposal_steps : of one proposal to the target
    bias : added to drift and target; or a function of the step that makes it, for one that
        writes times
    moving : (N,) bool, atoms outside are held by h = 0
    mean_free : drift and noise lose their mean (isolated molecules, a fixed centre of mass)
    stiffness : λ in 1/Å² at this temperature, default that of the model card
    x : (*batch, N, 3) in Å, where λ is measured for a default step that no card has a λ for:
        potentials that were not learned, a bias; None: it is an error without a card

    Raises
    ------
    ValueError : contradictions, a step beyond the limit of stability, no stiffness to choose a
        step by, nothing that moves, a target that does not fit
    """
    kT = kT_from_temperature(temperature_K)
    system = potential.system if system is None else system
    if target is None and proposal_steps != 1:
        raise ValueError(
            f"{proposal_steps=} without a target: steps of plain dynamics are not proposals; "
            "give target="
        )
    moving = np.ones(len(system), bool) if moving is None else moving
    if not moving.any():
        raise ValueError("all atoms are fixed: there is nothing to simulate")
    accepts = None if target is None else find_potential(target, system, model=potential)
    if accepts is None or accepts is potential:  # another reference has the last word
        check_temperature(potential, temperature_K)
    lam = card_stiffness(potential, kT) if stiffness is None else stiffness

    def default_stiffness() -> tuple[float, str]:
        if lam is not None and (bias is None or x is None):
            return lam, "from the model card" if stiffness is None else "as given"
        if x is None:
            raise ValueError("the model card holds no stiffness to choose a step by: give one")
        # what a bias adds is on no card
        biased = potential + bias if isinstance(bias, Potential) else potential
        measured, evaluations = measured_stiffness(biased, x, kT)
        return measured, f"measured at the start with {evaluations} extra evaluations"

    asked = StepRequest() if step is None else step
    chosen = choose_step(
        kT=kT,
        masses=system.masses,
        timestep=asked.timestep,
        friction=asked.friction,
        mobility=asked.mobility,
        spring=asked.spring,
        stiffness=default_stiffness,
    )
    if lam is not None and accepts is None:
        check_step(chosen, lam, moving)
    log.info("step h = %s A^2 (%s)", chosen.h, chosen.source)
    drift, separate = potential, None if accepts is potential else accepts
    if bias is not None:
        term = bias if isinstance(bias, Potential) else bias(chosen)
        drift, separate = drift + term, None if separate is None else separate + term
    uniform = np.ndim(chosen.h) == 0 and moving.all()
    h = float(chosen.h) if uniform else torch.as_tensor(chosen.h * moving)
    kernel: EulerMaruyama | Metropolis
    kernel = proposal = EulerMaruyama(drift, kT=kT, h=h, mean_free=mean_free)
    if target is not None:
        kernel = Metropolis(proposal, separate, proposal_steps)
    return Prepared(kernel, chosen)
