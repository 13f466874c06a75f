"""Units: Å, eV, u and ASE time, and the step size ``h`` that the sampler knows.

One Euler–Maruyama step needs a single number per atom, ``h = D·Δt`` in Å², with
``D = μ kT`` and ``μ = 1/(m γ)``. The formulas that turn a time step with a mobility, a
spring constant, or a noise schedule with a stiffness into ``h`` are here;
`sampling.step_size.choose_step` decides which of them a user means.
"""

from __future__ import annotations

import math

from ase.units import kB

__all__ = [
    "kB",
    "kT_from_temperature",
    "h_from_mobility",
    "h_from_schedule",
    "h_from_spring",
    "spring_from_h",
]


def kT_from_temperature(temperature_K):
    """Thermal energy ``kB·T`` in eV, for ``temperature_K`` in K.

    Raises ``ValueError`` for a temperature that is not positive.
    """
    if not 0 < temperature_K < math.inf:
        raise ValueError(f"{temperature_K=} must be positive: give the temperature in kelvin")
    return kB * temperature_K


def h_from_mobility(*, kT, timestep, mobility):
    """Step size ``h = μ kT Δt`` (Å²).

    ``mobility`` is ``μ = 1/(m γ)`` in Å²/(eV·ASE time): a scalar or one per atom;
    ``timestep`` is Δt in ASE time.
    """
    return mobility * kT * timestep


def h_from_spring(k):
    """Step size ``h = 1/(2k)`` (Å²) of a harmonic coupling of total stiffness ``k`` (1/Å²).

    With unit mobility ``h = kT Δt``, so that ``Δt = β/(2k)``
    (Diamond & Lill, arXiv 2511.17741).
    """
    return 1.0 / (2.0 * k)


def spring_from_h(h):
    """Total stiffness ``k = 1/(2h)`` (1/Å²) of the coupling to the previous frame; ``h`` in Å²."""
    return 1.0 / (2.0 * h)


def h_from_schedule(*, eta, kappa):
    """Step size ``h = η/(1 + 2κη)`` (Å²) of a denoising move coupled to the last frame.

    A Langevin denoising move ``N(x + ηs, 2ηI)``, with ``eta`` in Å², times the spring
    ``exp(-(κ/2)|x' - x|²)``, with ``kappa`` in 1/Å², is the Gaussian ``N(x + hs, 2hI)``; the
    total stiffness is ``k = κ + 1/(2η)``.
    """
    return eta / (1.0 + 2.0 * kappa * eta)
