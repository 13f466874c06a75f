"""Markov kernels: state and noise to state; hyper-parameters frozen.

`EulerMaruyama` is the harmonic-coupled reverse step. With ``s = F/kT`` at the
simulation temperature and the metric ``M`` (``h``, ``diag(h_i)``, or
``P diag(h) P`` where ``P`` removes the mean),

    x' = x + M s(x) + sqrt(2M) ξ        x' ~ N(x + M s, 2M)
       ∝ exp[-(k/2) |x' - x - h s(x)|²]    with k = 1/(2h)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .. import units
from ..noise import Noise
from ..potentials.base import Evaluation, Potential
from ..system import State
from .field import Field

__all__ = ["DivergedError", "EulerMaruyama", "Info", "Kernel"]


class DivergedError(RuntimeError):
    """Walkers left the region where numbers are finite.

    Attributes
    ----------
    step : the step that failed
    walkers : global ids of the lost walkers
    survivors : State of the others before that step, or None; continue with it
    """

    def __init__(self, step: int, walkers: Sequence[int], survivors: State | None = None):
        self.step, self.walkers, self.survivors = step, list(walkers), survivors
        kept = 0 if survivors is None else survivors.x.shape[0]
        super().__init__(
            f"step {step}: walkers {self.walkers} diverged (positions, forces or energy are not "
            f"finite), {kept} are kept; use a smaller step h, or start from relaxed "
            "positions inside the data of the model"
        )


class Info(NamedTuple):
    """Diagnostics of one step, never fed back; (*batch) where they are tensors.

    accepted : the proposal became the state
    log_ratio : log of the Metropolis ratio, float64; NaN or infinite where divergent
    delta_u : ΔU/kT of the target, from the old state to the proposal
    log_q : log of the ratio of the proposal densities, reverse over forward
    divergent : the proposal had no finite ratio: a rejection, and counted
    drift_evaluations, target_evaluations : structures evaluated for each walker, (*batch)
        int64 where walkers differ; a potential that is both counts as drift
    """

    accepted: Tensor | None = None
    log_ratio: Tensor | None = None
    delta_u: Tensor | None = None
    log_q: Tensor | None = None
    divergent: Tensor | None = None
    drift_evaluations: int | Tensor = 1
    target_evaluations: int | Tensor = 0


_NO_INFO = Info()


class Kernel(ABC):
    """``init(x) -> State`` and ``step(state, noise) -> (State, Info)``.

    Attributes
    ----------
    potential : the target; its ``update`` is what learns
    kT : thermal energy in eV, scalar or (B,)
    drift : gives the forces of the state, where it is one potential; else None
    exact : leaves ``exp(-U/kT)`` of the target invariant at any step size
    reversible : and a step from and to positions alone satisfies detailed balance
    """

    potential: Potential
    kT: float | Tensor
    drift: Potential | None = None
    exact: bool = False
    reversible: bool = False

    @abstractmethod
    def init(self, x: Tensor, *, walkers: Tensor | None = None) -> State:
        """The state at positions ``x`` (*batch, N, 3), evaluated once."""

    @abstractmethod
    def step(self, state: State, noise: Noise) -> tuple[State, Info]:
        """One step; noise number ``state.step`` makes state ``state.step + 1``."""

    @abstractmethod
    def refresh(self, state: State) -> State:
        """Evaluate again the terms with memory, after they have learned."""

    def adopt(self, state: State, drift: Potential | None = None) -> State:
        """Another kernel's state of the same target, as one of this kernel.

        What the other alone needs (momenta) is left behind. ``drift`` is that of the state's
        forces, if it is known: forces that are those of this kernel are not evaluated again.
        """
        return self.refresh(replace(state, extra={}))

    def scaled(self, factor: float) -> Kernel:
        """The same kernel with its step size h multiplied by ``factor``.

        Raises ``TypeError`` for a kernel without a step size.
        """
        raise TypeError(f"{type(self).__name__} has no step size to scale")


@dataclass(frozen=True)
class EulerMaruyama(Kernel):
    """One harmonic-coupled reverse step, ``x' = x + (h/kT) F + sqrt(2h) ξ``.

    Exactly the Euler–Maruyama step of overdamped Langevin dynamics
    (Diamond & Lill, arXiv 2511.17741).

    Parameters
    ----------
    potential : gives F in eV/Å
    kT : thermal energy in eV; scalar or (B,)
    h : step size D·Δt in Å²; scalar, (N,) or (B, N); 0 holds an atom fixed
    mean_free : remove the mean from drift and noise (isolated molecules)

    Raises
    ------
    ValueError : h negative, kT not positive, shapes that do not fit
    """

    potential: Potential
    kT: float | Tensor
    h: float | Tensor
    mean_free: bool = False

    def __post_init__(self):
        h, kT = torch.as_tensor(self.h).double(), torch.as_tensor(self.kT).double()
        if not (torch.isfinite(h).all() and (h >= 0).all() and (h > 0).any()):
            raise ValueError(
                f"h={self.h} must be finite, not negative, and positive for some atom (Å²)"
            )
        if not (torch.isfinite(kT).all() and (kT > 0).all()):
            raise ValueError(f"kT={self.kT} must be positive (eV)")
        if h.ndim > 2 or kT.ndim > 1:
            raise ValueError(
                f"h {tuple(h.shape)} and kT {tuple(kT.shape)}: expected h as scalar, (N,) "
                "or (B, N) and kT as scalar or (B,)"
            )
        if self.mean_free and (h == 0).any():
            raise ValueError(
                "mean_free=True with fixed atoms (h = 0): a fixed atom already removes "
                "the translation; use one of the two"
            )

    @classmethod
    def from_timestep(
        cls, potential, *, kT, timestep, friction=None, masses=None, mobility=None, **options
    ) -> EulerMaruyama:
        """From Δt (ASE time) and friction γ (1/ASE time) with masses (u), or mobility μ.

        ``h = kT Δt/(m γ)`` or ``h = μ kT Δt``; exactly one of ``friction`` and
        ``mobility`` is given.
        """
        if (friction is None) == (mobility is None):
            raise ValueError(
                f"{friction=} and {mobility=}: give exactly one of them, it sets the clock"
            )
        if friction is not None:
            if masses is None:
                system = potential.system
                if system is None:
                    raise ValueError("friction needs masses: pass masses=, or mobility=")
                masses = system.masses
            mobility = 1.0 / (torch.as_tensor(masses) * friction)
        h = units.h_from_mobility(kT=kT, timestep=timestep, mobility=mobility)
        return cls(potential, kT=kT, h=h, **options)

    @classmethod
    def from_spring(cls, potential, *, kT, k, **options) -> EulerMaruyama:
        """From the total stiffness k (1/Å²) of the coupling, ``h = 1/(2k)``."""
        return cls(potential, kT=kT, h=units.h_from_spring(k), **options)

    @classmethod
    def from_schedule(cls, potential, *, kT, eta, kappa, **options) -> EulerMaruyama:
        """From a denoising move η (Å²) and spring κ (1/Å²), ``h = η/(1 + 2κη)``."""
        h = units.h_from_schedule(eta=eta, kappa=kappa)
        return cls(potential, kT=kT, h=h, **options)

    def init(self, x, *, walkers=None) -> State:
        return self._state(x, 0, walkers)

    def step(self, state, noise) -> tuple[State, Info]:
        moved = self.propose(state.x, state.forces, state.step, state.walkers, noise)
        return self._state(moved, state.step + 1, state.walkers), _NO_INFO

    def propose(
        self, x: Tensor, forces: Tensor, step: int, walkers: Tensor | None, noise: Noise, stream=0
    ) -> Tensor:
        """The next positions, with the noise of ``step``; nothing is evaluated."""
        drift, sigma = self._coefficients(x)
        kick = sigma * noise.normal(step, x, walkers=walkers, stream=stream)
        if self.mean_free:
            kick = without_mean(kick)
        return x + self._drift(drift, forces) + kick

    def mean(self, x: Tensor, forces: Tensor) -> Tensor:
        """Mean of the next positions, ``x + M F/kT``."""
        drift, _ = self._coefficients(x)
        return x + self._drift(drift, forces)

    def log_proposal_ratio(
        self, x: Tensor, forces_x: Tensor, y: Tensor, forces_y: Tensor
    ) -> Tensor:
        """``log q(x|y) - log q(y|x)``, float64 (*batch), for drift forces at both points.

            -½ (y-x)·(s_x + s_y) - ¼ (s_yᵀ M s_y - s_xᵀ M s_x)        s = F/kT

        needs no inverse of the metric M, so that fixed atoms and a fixed mean cost nothing
        (Roberts & Tweedie, Bernoulli 2, 341 (1996), written for any drift).
        """
        h, kT = (
            torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (self.h, self.kT)
        )
        h = h[..., None] if h.ndim else h
        kT = kT[:, None, None] if kT.ndim else kT
        sx, sy = forces_x.double() / kT, forces_y.double() / kT
        if self.mean_free:
            sx, sy = without_mean(sx), without_mean(sy)
        along = (y.double() - x.double()) * (sx + sy)
        return -(0.5 * along + 0.25 * h * (sy.square() - sx.square())).sum((-2, -1))

    def scaled(self, factor: float) -> EulerMaruyama:
        return replace(self, h=self.h * factor)

    def _drift(self, drift: Tensor, forces: Tensor) -> Tensor:
        if not self.mean_free:
            return drift * forces
        # P diag(h) P: the forces of an isolated molecule have no mean, but those of a
        # general field may
        return without_mean(drift * without_mean(forces))

    @property
    def drift(self) -> Potential:  # type: ignore[override]
        return self.potential

    def refresh(self, state) -> State:
        return self._state(state.x, state.step, state.walkers, state.extra.get("fixed"))

    def _state(self, x, step, walkers, fixed: dict[int, Evaluation] | None = None) -> State:
        value = self._field(x, fixed=fixed)
        extra = {"fixed": value.fixed} if value.fixed else {}
        return State(x, value.target.energy, value.drift.forces, step, walkers, extra)

    @cached_property
    def _field(self) -> Field:
        return Field(self.potential)

    @cached_property
    def _cast(self) -> dict:
        return {}

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h/kT and sqrt(2h), broadcastable with (*batch, N, 3); cast once."""
        place = (x.dtype, x.device, x.shape)
        if place not in self._cast:
            h = torch.as_tensor(self.h, dtype=torch.float64, device=x.device)
            kT = torch.as_tensor(self.kT, dtype=torch.float64, device=x.device)
            if (
                h.shape != x.shape[x.ndim - 1 - h.ndim : -1]
                or kT.shape != x.shape[:-2][-1:] * kT.ndim
            ):
                raise ValueError(
                    f"h {tuple(h.shape)} and kT {tuple(kT.shape)} do not fit positions "
                    f"{tuple(x.shape)}: expected h as scalar, (N,) or (B, N) and kT as scalar "
                    "or (B,) for positions (N, 3) or (B, N, 3)"
                )
            h = h[..., None] if h.ndim else h
            kT = kT[:, None, None] if kT.ndim else kT
            self._cast[place] = (h / kT).to(x.dtype), (2.0 * h).sqrt().to(x.dtype)
        return self._cast[place]


def without_mean(x: Tensor) -> Tensor:
    """``P x``: positions, forces or noise with the mean over atoms removed."""
    return x - x.mean(-2, keepdim=True)
