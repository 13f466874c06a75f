"""Non-equilibrium switching from one end of a coupling to the other, and back.

A particle from equilibrium at λ = 0 is carried through the states in finite time; its work is

    w = Σ_t [u_{t+1}(x_t) - u_t(x_t)]           forward, and the same from the other end, backward

with Metropolis steps of state t between. Forward and backward works obey Crooks' relation
``P_F(w)/P_B(-w) = exp(w - ΔF)`` (Phys. Rev. E 60, 2721 (1999)) however fast the switch, which is
what BAR makes an estimate of (Shirts, Bair, Hooker & Pande, Phys. Rev. Lett. 91, 140601 (2003)).
The switch is the annealing of `independent.smc` that never resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..noise import Noise
from ..sampling.kernels import Kernel
from .smc import smc_levels

__all__ = ["switch"]


def switch(
    kernels: Sequence[Kernel],
    x: Tensor,
    *,
    noise: Noise,
    n_steps: int = 1,
    walkers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Works (B,) in kT of switches along ``kernels``, and where they end (B, N, 3).

    Parameters
    ----------
    kernels : (T,), exact ones, from the state of ``x`` on; the reversed list for the way back
    x : (B, N, 3), independent equilibrium samples of the first kernel's law
    noise : each direction and each set of particles wants its own ``walkers``
    n_steps : at each state
    walkers : (B,) ids, default 0…B-1

    Raises
    ------
    ValueError : as `smc_levels`; a particle whose energy is not finite has an infinite work
    """
    *_, last = smc_levels(
        kernels, x, noise=noise, n_steps=n_steps, populations=1, threshold=0.0, walkers=walkers
    )
    return -last.log_weights, last.state.x
