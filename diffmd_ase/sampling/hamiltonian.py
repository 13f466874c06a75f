"""Hamiltonian kernels: leapfrog trajectories with any force, accepted to any target.

Leapfrog with forces that depend on positions alone,

    p ← p + ½ Δt F(x)      x ← x + Δt p/m      p ← p + ½ Δt F(x)

preserves volume and is its own inverse after p → −p, whether F is a gradient or not. So a
learned drift moves, and only energy of the target and kinetic energy decide,

    log α = −[U(y) + K(q) − U(x) − K(p)]/kT        K(p) = Σ_i p_i²/2m_i

One leapfrog step with fresh momenta is a Metropolised reverse step with h = kT Δt²/2m.

Masses of ``inf`` hold atoms fixed; ``directions`` leave each atom those in which it moves, its
momenta with it (`sampling.directions`). With ``mean_free`` velocities have no mean over atoms:
momenta and forces go through ``a_i − Σ_j (a_j/m_j)/Σ_j (1/m_j)``, so that the mean position
stays, as it does in the other kernels, and momenta are Maxwell's under that constraint.

Streams of the noise of one step: "kernel" momenta, "accept", "jitter" of the time step,
"first momenta", ("within", i) the momenta before leapfrog step i.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..potentials.base import Potential, evaluate
from ..state import State
from .directions import along, check_directions
from .kernels import check_kT, take_rows
from .metropolis import TargetKernel, accept

__all__ = ["GeneralizedHMC", "HamiltonianMonteCarlo", "MALT"]


class _Constants(NamedTuple):
    """On one device, to broadcast with (*batch, N, 3)."""

    kT: Tensor
    thermal: Tensor  # sqrt(m kT), 0 for a fixed atom
    inverse: Tensor  # 1/m, 0 for a fixed atom
    mobile: Tensor  # 1 or 0


@dataclass(frozen=True, kw_only=True)
class _Hamiltonian(TargetKernel, ABC):
    drift: Potential = field(kw_only=False)
    kT: float | Tensor
    timestep: float
    n_leapfrog: int = 10
    masses: Any = None
    target: Potential | None = None
    jitter: float = 0.1
    mean_free: bool = False
    directions: Tensor | None = None

    def __post_init__(self):
        if not (math.isfinite(self.timestep) and self.timestep > 0):
            raise ValueError(f"timestep={self.timestep!r} must be positive (ASE time)")
        if self.n_leapfrog < 1:
            raise ValueError(f"n_leapfrog={self.n_leapfrog!r} must be at least 1")
        if not 0 <= self.jitter < 1:
            raise ValueError(
                f"jitter={self.jitter!r} must lie in [0, 1): Δt varies by this fraction"
            )
        check_kT(self.kT)
        masses = self._masses
        if masses.ndim > 1 or not ((masses > 0).all() and torch.isfinite(masses).any()):
            raise ValueError(
                f"masses={masses.tolist()} must be positive (u), scalar or (N,), and finite for "
                "some atom; inf holds an atom fixed"
            )
        if self.mean_free and torch.isinf(masses).any():
            raise ValueError(
                "mean_free=True with fixed atoms (masses inf): a fixed atom already removes the "
                "translation; use one of the two"
            )
        check_directions(self.directions, mean_free=self.mean_free)
        self._bind(self.drift, self.target)

    def scaled(self, factor: float):
        """h = kT Δt²/2m times ``factor``: the time step times its square root."""
        return replace(self, timestep=self.timestep * math.sqrt(factor))

    def take(self, rows: Tensor):
        return replace(self, kT=take_rows(self.kT, rows, ndim=1))

    def _fresh(self, state: State, noise: Noise, stream: Stream = "kernel") -> Tensor:
        """Momenta of Maxwell's law, (*batch, N, 3)."""
        c = self._constants(state.x)
        xi = noise.normal(state.step, state.x, walkers=state.walkers, stream=stream)
        return self._projected(c.thermal * xi, c)

    def _renewed(
        self, p: Tensor, keep: float, state: State, noise: Noise, stream: Stream
    ) -> Tensor:
        """``keep p + sqrt(1 − keep²) p'`` with fresh p': leaves Maxwell's law invariant."""
        return keep * p + math.sqrt(1.0 - keep * keep) * self._fresh(state, noise, stream)

    def _flow(
        self,
        state: State,
        p: Tensor,
        noise: Noise,
        between: Callable[[Tensor, int], Tensor] | None = None,
    ) -> tuple[State, Tensor, Tensor]:
        """Proposal, its momenta, and ``−Σ ΔK/kT`` over the leapfrog parts.

        ``between(p, i)`` changes momenta before leapfrog step i ≥ 1.
        """
        c = self._constants(state.x)
        u = noise.uniform(
            state.step, like=state.energy, walkers=state.walkers, stream="jitter"
        ).double()
        dt = (self.timestep * (1.0 + self.jitter * (2.0 * u - 1.0)))[..., None, None]
        x, forces = state.x, self._projected(state.forces, c)
        fine = torch.ones_like(state.energy, dtype=torch.bool)[..., None, None]
        log_q = torch.zeros_like(state.energy, dtype=torch.float64)
        for i in range(self.n_leapfrog):
            if between is not None and i:
                p = between(p, i)
            before = _kinetic(p, c)
            p = p + 0.5 * dt * c.mobile * forces
            x = x + dt * c.inverse * p
            # what is not finite is rejected, but no calculator should see it
            fine = fine & torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)
            x = torch.where(fine, x, state.x)
            if i + 1 < self.n_leapfrog:
                forces = evaluate(self.drift.terms, x).forces
            else:
                new = self.field.state(x, state.step + 1, state.walkers)
                forces = new.forces
            forces = self._projected(forces, c)
            p = p + 0.5 * dt * c.mobile * forces
            log_q = log_q - (_kinetic(p, c) - before)
        log_q = torch.where(fine[..., 0, 0], log_q, torch.nan)
        return new, p, log_q

    def _decided(self, old: State, new: State, log_q: Tensor, noise: Noise):
        separate = self.field.evaluations - 1
        return accept(old, new, log_q, self.kT, noise, evaluations=(self.n_leapfrog, separate))

    def _projected(self, a: Tensor, c: _Constants) -> Tensor:
        if self.directions is not None:
            a = along(self.directions, a)
        if not self.mean_free:
            return a
        weights = c.inverse.expand(a.shape[-2], 1)
        return a - (weights * a).sum(-2, keepdim=True) / weights.sum()

    @cached_property
    def _masses(self) -> Tensor:
        masses = self.masses
        if masses is None:
            if self.drift.system is None:
                raise ValueError(
                    "the drift is bound to no system, and momenta need masses: pass masses= in u"
                )
            masses = self.drift.system.masses
        return torch.as_tensor(masses, dtype=torch.float64)

    @cached_property
    def _cast(self) -> dict:
        return {}

    def _constants(self, x: Tensor) -> _Constants:
        place = (x.device, x.shape)
        if place not in self._cast:
            masses = self._masses.to(x.device)
            kT = torch.as_tensor(self.kT, dtype=torch.float64, device=x.device)
            atoms = x.shape[-2] if self.directions is None else len(self.directions)
            if (
                masses.shape not in ((), x.shape[-2:-1])
                or kT.shape not in ((), x.shape[-3:-2])
                or atoms != x.shape[-2]
            ):
                raise ValueError(
                    f"masses {tuple(masses.shape)}, kT {tuple(kT.shape)} and directions of {atoms} "
                    f"atoms do not fit positions {tuple(x.shape)}: expected masses as scalar or "
                    "(N,), kT as scalar or (B,) and directions of N atoms for positions (N, 3) or "
                    "(B, N, 3)"
                )
            masses = masses[..., None]  # (1,) or (N, 1)
            kT = kT[:, None, None] if kT.ndim else kT
            mobile = torch.isfinite(masses).double()
            thermal = (torch.where(mobile > 0, masses, 0.0) * kT).sqrt()
            self._cast[place] = _Constants(kT, thermal, 1.0 / masses, mobile)
        return self._cast[place]


@dataclass(frozen=True, kw_only=True)
class HamiltonianMonteCarlo(_Hamiltonian):
    """Fresh momenta, ``n_leapfrog`` leapfrog steps, one Metropolis decision.

        log α = −[U(y) + K(q) − U(x) − K(p)]/kT

    exact for any drift and time step (Duane et al., Phys. Lett. B 195, 216 (1987); Neal,
    arXiv 1206.1901). One drift evaluation per leapfrog step; the target only at the end.

    Parameters
    ----------
    drift : gives F in eV/Å; any field of positions
    kT : thermal energy in eV; scalar or (B,)
    timestep : Δt in ASE time
    n_leapfrog : steps of one trajectory
    masses : in u, scalar or (N,), default those of the drift's system; inf: fixed atom
    target : has the energy that decides; None: that of the drift
    jitter : Δt of each walker and trajectory is uniform in Δt(1 ± jitter), so that no
        period of the system resonates
    mean_free : no mean velocity (isolated molecules)
    directions : (N, 3, 3) projectors on the directions in which each atom moves; None: all

    Raises
    ------
    ValueError : parameters out of range, no masses, a target without energy, memory in the
        drift alone; at a start that is not finite, naming the walkers
    """

    def step(self, state, noise):
        new, _, log_q = self._flow(state, self._fresh(state, noise), noise)
        return self._decided(state, new, log_q, noise)


@dataclass(frozen=True, kw_only=True)
class GeneralizedHMC(_Hamiltonian):
    """Momenta that persist: partly renewed, moved, and reversed on rejection.

        p ← a p + sqrt(1 − a²) p'      a = exp(−γ n_leapfrog Δt)
        log α as in `HamiltonianMonteCarlo`; accepted (y, q), rejected (x, −p)

    (Horowitz, Phys. Lett. B 268, 247 (1991)). With ``n_leapfrog=1`` this is Langevin
    dynamics with friction γ, corrected. Momenta (*batch, N, 3) in u Å/ASE time are
    ``state.momenta``, drawn at the first step and kept in checkpoints.

    Parameters
    ----------
    friction : γ in 1/ASE time, not negative
    n_leapfrog : default 1
    others : as of `HamiltonianMonteCarlo`

    Raises
    ------
    ValueError : a friction that is negative or infinite; others as of `HamiltonianMonteCarlo`
    """

    friction: float
    n_leapfrog: int = 1

    def __post_init__(self):
        _check_friction(self.friction)
        super().__post_init__()

    def step(self, state, noise):
        keep = math.exp(-self.friction * self.n_leapfrog * self.timestep)
        p = state.momenta
        if p is None:
            p = self._fresh(state, noise, "first momenta")
        p = self._renewed(p, keep, state, noise, "kernel")
        new, q, log_q = self._flow(state, p, noise)
        # detailed balance pairs (x, p) with (y, −q): without the reversal the chain is wrong
        return self._decided(replace(state, momenta=-p), replace(new, momenta=q), log_q, noise)


@dataclass(frozen=True, kw_only=True)
class MALT(_Hamiltonian):
    """Metropolis-adjusted Langevin trajectories: friction within one trajectory.

    Fresh momenta, then leapfrog steps with ``p ← a p + sqrt(1 − a²) p'``,
    a = exp(−γ Δt), between them, and

        log α = −ΔU/kT − Σ_i ΔK_i/kT

    over the leapfrog parts alone (Riou-Durand & Vogrinc, arXiv 2202.13230; their
    half steps of friction at the ends change nothing and are left out). The friction takes
    the periodic orbits out of long trajectories. γ = 0 is `HamiltonianMonteCarlo`.

    Parameters
    ----------
    friction : γ in 1/ASE time, not negative
    others : as of `HamiltonianMonteCarlo`

    Raises
    ------
    ValueError : a friction that is negative or infinite; others as of `HamiltonianMonteCarlo`
    """

    friction: float

    def __post_init__(self):
        _check_friction(self.friction)
        super().__post_init__()

    def step(self, state, noise):
        between = partial(self._between, state, noise)
        new, _, log_q = self._flow(state, self._fresh(state, noise), noise, between)
        return self._decided(state, new, log_q, noise)

    def _between(self, state: State, noise: Noise, p: Tensor, i: int) -> Tensor:
        keep = math.exp(-self.friction * self.timestep)
        return self._renewed(p, keep, state, noise, ("within", i))


def _kinetic(p: Tensor, c: _Constants) -> Tensor:
    """K/kT, float64 (*batch)."""
    return (0.5 * c.inverse * p.square() / c.kT).sum((-2, -1))


def _check_friction(friction: float) -> None:
    if not (math.isfinite(friction) and friction >= 0):
        raise ValueError(f"{friction=} must be finite and not negative (1/ASE time)")
