"""From what a user asks to a kernel: step, clock, target, bias and constraints, in one place.

The ASE classes, ``diffmd run``, the demonstration and the validation all come here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ..potentials.base import Potential
from ..potentials.curvature import measured_stiffness
from ..potentials.named import Source, find_potential
from ..sampling.directions import along, split
from ..sampling.euler import EulerMaruyama
from ..sampling.metropolis import Metropolis
from ..sampling.step_size import Step, card_stiffness, check_step, check_temperature, choose_step
from ..system import System
from ..units import kT_from_temperature

__all__ = ["Prepared", "StepRequest", "prepare"]

log = logging.getLogger(__name__)

_FEW = 6  # iterations, two evaluations each, that judge a step which the user chose


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

    @property
    def sets_h(self) -> bool:
        """The step is the user's; not the default."""
        return self.timestep is not None or self.spring is not None


@dataclass(frozen=True)
class Prepared:
    """A ``kernel`` of harmonic-coupled steps, and what its ``step`` means.

    Parameters
    ----------
    stiffness : λ in 1/Å² that the step is judged by, and where it is from; None: not known
    moving : (N,) bool, the atoms that move
    """

    kernel: EulerMaruyama | Metropolis
    step: Step
    stiffness: tuple[float, str] | None
    moving: np.ndarray

    def scaled(self, factor: float, why: str = "adapted") -> Prepared:
        """The same with ``factor`` times the step size; ``why`` goes into its source.

        Raises ``ValueError`` for a step beyond the limit of stability, as `prepare`.
        """
        step = replace(
            self.step,
            h=self.step.h * factor,
            timestep=self.step.timestep * factor,
            source=f"{self.step.source}, {why}",
        )
        return replace(self, kernel=self.kernel.scaled(factor), step=step).judged()

    def bound(self, drift: Potential, target: Potential | None) -> Prepared:
        """The same with other potentials: the atoms have another cell, or carry something else."""
        if isinstance(self.kernel, EulerMaruyama):
            return replace(self, kernel=replace(self.kernel, potential=drift))
        proposal = replace(self.kernel.proposal, potential=drift)
        return replace(self, kernel=replace(self.kernel, proposal=proposal, target=target))

    def judged(self) -> Prepared:
        """Itself, after `sampling.step_size.check_step`; steps to a target are only rejected."""
        if self.stiffness is not None and isinstance(self.kernel, EulerMaruyama):
            lam, words = self.stiffness
            check_step(self.step, lam, self.moving, words)
        return self

    def at(self, temperature_K: float, *, keeps_h: bool) -> Prepared:
        """The same at another temperature, where λ is that of the same energy, ``∝ 1/T``.

        The time step stays and ``h ∝ T``; or h does (``keeps_h``), as that of a spring. Raises and
        warns as `prepare`.
        """
        kT = kT_from_temperature(temperature_K)
        if isinstance(self.kernel, EulerMaruyama) or self.kernel.target is None:
            check_temperature(self.kernel.drift, temperature_K)
        ratio = kT / float(self.kernel.kT)
        factor = 1.0 if keeps_h else ratio
        step = replace(
            self.step, h=self.step.h * factor, timestep=self.step.timestep * factor / ratio
        )
        scaled = self.kernel.scaled(factor)
        if isinstance(scaled, EulerMaruyama):
            kernel: EulerMaruyama | Metropolis = replace(scaled, kT=kT)
        else:
            kernel = replace(scaled, proposal=replace(scaled.proposal, kT=kT))
        known = self.stiffness
        if known is not None:
            known = known[0] / ratio, known[1]
        return replace(self, kernel=kernel, step=step, stiffness=known).judged()


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
    where it is rejected: a target may be stiffer or softer than the model. Where no card has a
    stiffness it is measured: closely for a default step, with a few evaluations for a given one.

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
    moving : (N,) bool, atoms outside are held by h = 0; or (N, 3, 3), projectors on the directions
        in which each atom moves
    mean_free : drift and noise lose their mean (isolated molecules, a fixed centre of mass)
    stiffness : λ in 1/Å² at this temperature, default that of the model card
    x : (*batch, N, 3) in Å, where λ is measured of what no card has a λ for: potentials that were
        not learned, a bias; None: a default step without a card is an error, a given one not judged

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
    some, directions = split(np.ones(len(system), bool) if moving is None else moving)
    if not some.any() or (mean_free and len(system) == 1):
        what = "all atoms are fixed" if not some.any() else "one atom whose centre of mass is fixed"
        raise ValueError(f"{what}: there is nothing to simulate")
    accepts = None if target is None else find_potential(target, system, model=potential)
    if accepts is None or accepts is potential:  # another reference has the last word
        check_temperature(potential, temperature_K)
    asked = StepRequest() if step is None else step
    known = None if stiffness is None else (stiffness, "as given")
    card = card_stiffness(potential, kT)
    if known is None and card is not None:
        known = card, "from the model card"
    measure = None
    if x is not None:
        biased = potential + bias if isinstance(bias, Potential) else potential
        if asked.sets_h and not biased.per_walker and x.ndim > 2:
            x = x[:1]  # to judge a step, one walker will do
        measure = partial(_measured, biased, x, kT, some, directions)

    @cache
    def default_stiffness() -> tuple[float, str]:
        # what a bias adds is on no card
        if known is not None and (bias is None or measure is None):
            return known
        if measure is None:
            raise ValueError("the model card holds no stiffness to choose a step by: give one")
        return measure()

    chosen = choose_step(
        kT=kT,
        masses=system.masses,
        timestep=asked.timestep,
        friction=asked.friction,
        mobility=asked.mobility,
        spring=asked.spring,
        stiffness=default_stiffness,
    )
    if not asked.sets_h:
        known = default_stiffness()
    elif known is None and target is None and measure is not None:
        known = _roughly(measure)
        log.info("stiffness to judge the step by: %s", known)
    log.info("step h = %s A^2 (%s)", chosen.h, chosen.source)
    drift, separate = potential, None if accepts is potential else accepts
    if bias is not None:
        term = bias if isinstance(bias, Potential) else bias(chosen)
        drift, separate = drift + term, None if separate is None else separate + term
    uniform = np.ndim(chosen.h) == 0 and some.all()
    h = float(chosen.h) if uniform else torch.as_tensor(chosen.h * some)
    kernel: EulerMaruyama | Metropolis
    kernel = proposal = EulerMaruyama(drift, kT=kT, h=h, mean_free=mean_free, directions=directions)
    if target is not None:
        kernel = Metropolis(proposal, separate, proposal_steps)
    return Prepared(kernel, chosen, known, some).judged()


def _measured(
    potential: Potential,
    x: Tensor,
    kT: float,
    moving: np.ndarray,
    directions: Tensor | None,
    *,
    most: int = 60,
) -> tuple[float, str]:
    """λ of the atoms that move, in 1/Å², and the words for it."""
    mask = torch.as_tensor(moving, dtype=x.dtype, device=x.device)[:, None]

    def part(v: Tensor) -> Tensor:
        return mask * (v if directions is None else along(directions, v))

    lam, evaluations = measured_stiffness(potential, x, kT, most=most, moving=part)
    return lam, f"measured at the start with {evaluations} extra evaluations"


def _roughly(measure: Callable[..., tuple[float, str]]) -> tuple[float, str] | None:
    """A few evaluations for a step that was given; None where nothing is stiff."""
    try:
        lam, words = measure(most=_FEW)
        return lam, f"{words}, where overlapping atoms would be stiff too"
    except ValueError:  # free particles; or forces that are not finite, which a start refuses
        return None
