"""Which step: the user's words (time step, friction, mobility, spring, or none) to ``h``.

Also the stiffness λ, the largest eigenvalue of ``-∇s`` in 1/Å², against which a step is
judged: ``h λ < 2`` is the limit of stability of an Euler–Maruyama step.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.units import fs

from .. import units
from ..potentials.base import Potential, unwrapped
from ..potentials.committee import Mean

if TYPE_CHECKING:
    from ..score.card import Card

__all__ = [
    "DEFAULT_H_LAMBDA",
    "Step",
    "card_stiffness",
    "check_step",
    "check_temperature",
    "choose_step",
]

log = logging.getLogger(__name__)

DEFAULT_H_LAMBDA = 0.2  # variance of the stiffest mode 1/(1 - 0.1): 11 % too wide
"""h λ of the step that is taken where nobody chose one."""
_SAME = 0.02  # relative: 298 K is 300 K


@dataclass(frozen=True)
class Step:
    """A resolved step.

    Parameters
    ----------
    h : step size D·Δt in Å²; scalar or (N,)
    timestep : Δt in ASE time; with unit mobility where the user gave none
    physical : friction or mobility was given, so that time means time
    source : where h comes from, in words
    """

    h: float | np.ndarray
    timestep: float
    physical: bool
    source: str


def choose_step(
    *,
    kT: float,
    masses: np.ndarray,
    timestep: float | None,
    friction: float | None,
    mobility: float | np.ndarray | None,
    spring: float | np.ndarray | None,
    stiffness: Callable[[], tuple[float, str]],
) -> Step:
    """``h`` from one of: timestep with friction or mobility, spring, or nothing.

        h = kT Δt/(m γ)        h = μ kT Δt        h = 1/(2k)        h = 0.2/λ

    A spring alone means unit mobility, ``Δt = 1/(2k kT)``; friction or mobility alone set
    the clock of the default step.

    Parameters
    ----------
    kT : in eV
    masses : (N,) in u, for friction
    timestep : Δt in ASE time
    friction : γ in 1/ASE time
    mobility : μ in Å²/(eV·ASE time), scalar or (N,)
    spring : k in 1/Å², scalar or (N,)
    stiffness : ``() -> (λ, words)``, λ in 1/Å² and where it is from; called for the default only

    Raises
    ------
    ValueError : arguments that contradict each other, or are not positive
    """
    given = {"timestep": timestep, "friction": friction, "mobility": mobility, "spring": spring}
    for name, value in given.items():
        if value is not None and not (np.isfinite(value).all() and np.greater(value, 0).all()):
            raise ValueError(f"{name}={value} must be positive and finite")
    if friction is not None and mobility is not None:
        raise ValueError(f"{friction=} and {mobility=}: give one of them, either sets the clock")
    if timestep is not None and spring is not None:
        raise ValueError(f"{timestep=} and {spring=}: give one of them, either sets the step")
    physical = friction is not None or mobility is not None
    mu = 1.0 if mobility is None else mobility
    if friction is not None:
        mu = 1.0 / (masses * friction)
    if timestep is not None:
        if not physical:
            raise ValueError(
                f"{timestep=} needs friction (1/ASE time) or mobility (Å²/(eV·ASE time)): only "
                "together they make a step h; give neither for the default step"
            )
        h = units.h_from_mobility(kT=kT, timestep=timestep, mobility=mu)
        return Step(h, float(timestep), physical, "timestep")
    if spring is not None:
        h = units.h_from_spring(spring)
        times = np.unique(np.asarray(h / (mu * kT)))
        if np.ptp(times) > 1e-10 * times[-1]:
            raise ValueError(
                "this spring with this friction or mobility gives every atom its own time step; "
                "give timestep with friction, or one spring with one mobility"
            )
        return Step(h, float(times[0]), physical, "spring")
    lam, words = stiffness()
    timestep = DEFAULT_H_LAMBDA / (lam * kT * float(np.max(mu)))
    h = units.h_from_mobility(kT=kT, timestep=timestep, mobility=mu)
    return Step(h, timestep, physical, f"{DEFAULT_H_LAMBDA}/lambda, lambda={lam:.4g}/A^2 {words}")


def check_step(
    step: Step, lam: float, moving: np.ndarray, words: str = "from the model card"
) -> None:
    """Judge ``h λ``: above 1 warn, above 2 raise, naming the step that would do.

    With one h per atom ``h_min λ`` and ``h_max λ`` bound the true value; an error needs
    the lower bound beyond the limit.

    Parameters
    ----------
    step : to be judged
    lam : λ in 1/Å²
    moving : (N,) bool, the atoms that count
    words : where λ is from

    Raises
    ------
    ValueError : ``h_min λ`` above 2
    """
    h = np.broadcast_to(step.h, moving.shape)[moving]
    low, high = float(h.min()) * lam, float(h.max()) * lam
    # at the upper bound, so that the remedy is stable in any case
    good = DEFAULT_H_LAMBDA / high
    remedy = (
        f"h*lambda = {low:.3g}"
        + (f" to {high:.3g}" if high > low else "")
        + f" (lambda = {lam:.4g}/A^2 {words}, limit 2): use timestep="
        f"{step.timestep * good:.3g}, which is {step.timestep * good / fs:.3g} fs, spring="
        f"{1 / (2 * h.max() * good):.4g} or no step at all (h = {h.max() * good:.3g} A^2)"
    )
    if low > 2:
        raise ValueError(f"the step h = {h.max():.3g} A^2 is unstable: {remedy}")
    if high > 1:
        warnings.warn(f"the step h = {h.max():.3g} A^2 is large: {remedy}", stacklevel=4)


def card_stiffness(potential: Potential, kT: float) -> float | None:
    """λ in 1/Å² at ``kT`` (eV), the largest on the cards of ``potential``; None without any.

    The cards are those of the learned terms and hold λ at their own temperature,
    ``λ(T) = λ_card T_card/T``. Stiff biases are not on any card.
    """
    known = [c.lambda_max * c.kT / kT for c in _cards(potential) if c.lambda_max is not None]
    return max(known, default=None)


def check_temperature(potential: Potential, temperature_K: float) -> None:
    """Warn where a learned term of ``potential`` has no snapshots of ``temperature_K``.

    Its card says so, within 2 %. A learned energy is used at any temperature as it is, with
    the kT of the run.
    """
    for card in _cards(potential):
        low, high = card.temperatures
        if low * (1 - _SAME) <= temperature_K <= high * (1 + _SAME):
            continue
        of = f"at {low:g} K" if low == high else f"between {low:g} and {high:g} K"
        risk = " and hotter than any of them, where frames unlike them come" * (
            temperature_K > high
        )
        warnings.warn(
            f"{temperature_K=:g}, but the snapshots of the model of {card.formula} are {of}: the "
            "same energy is used with the kT of the run, right only if it does not depend on "
            f"temperature (all atoms, no coarse graining){risk}; train on snapshots of several "
            "temperatures",
            stacklevel=4,
        )


def _cards(potential: Potential) -> Iterator[Card]:
    """The cards of the learned terms, members of committees included."""
    from ..potentials.learned import ScorePotential

    for term in map(unwrapped, potential.terms):
        for member in term.potentials if isinstance(term, Mean) else (term,):
            if isinstance(member, ScorePotential):
                yield member.model.card
