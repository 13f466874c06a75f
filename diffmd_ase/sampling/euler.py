"""The harmonic-coupled reverse step, which is an Euler–Maruyama step.

With ``s = F/kT`` at the simulation temperature and the metric ``M`` (``h``, ``diag(h_i)``, or
``P diag(h) P`` where ``P`` removes the mean, or all but the directions in which atoms move),

    x' = x + M s(x) + sqrt(2M) ξ        x' ~ N(x + M s, 2M)
       ∝ exp[-(k/2) |x' - x - h s(x)|²]    with k = 1/(2h)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .. import units
from ..noise import Noise, Stream
from ..potentials.base import Potential
from ..potentials.learned import ScorePotential
from ..state import Evaluation, State
from .directions import along, check_directions
from .field import Field
from .kernels import Info, Kernel, check_kT, take_rows

__all__ = ["EulerMaruyama", "reversal", "without_mean"]


_NO_INFO = Info()


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
    directions : (N, 3, 3) projectors on the directions in which each atom moves (planes, lines);
        None: all

    Raises
    ------
    ValueError : h negative, kT not positive, shapes that do not fit, directions that are none
    """

    potential: Potential
    kT: float | Tensor
    h: float | Tensor
    mean_free: bool = False
    directions: Tensor | None = None

    def __post_init__(self):
        check_kT(self.kT)
        h = torch.as_tensor(self.h, dtype=torch.float64)
        if h.ndim > 2:
            raise ValueError(f"h {tuple(h.shape)}: expected a scalar, (N,) or (B, N) in Å²")
        if not (torch.isfinite(h).all() and (h >= 0).all() and (h > 0).any()):
            raise ValueError(
                f"h={self.h} must be finite, not negative, and positive for some atom (Å²)"
            )
        if self.mean_free and (h == 0).any():
            raise ValueError(
                "mean_free=True with fixed atoms (h = 0): a fixed atom already removes "
                "the translation; use one of the two"
            )
        check_directions(self.directions, mean_free=self.mean_free)
        self._derive(drift=self.potential)

    @classmethod
    def from_timestep(
        cls, potential, *, kT, timestep, friction=None, masses=None, mobility=None, **options
    ) -> EulerMaruyama:
        """From a ``timestep`` Δt and a friction γ with masses m, or a mobility μ.

        ``h = kT Δt/(m γ)`` or ``h = μ kT Δt``, with Δt in ASE time, γ in 1/ASE time, m in u and
        μ in Å²/(eV·ASE time). Exactly one of ``friction`` and ``mobility`` is given. Masses are
        those of the potential's system by default; ``options`` go to the class.

        Raises ``ValueError`` if both or none are given, or masses are missing.
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
            mobility = 1.0 / (torch.as_tensor(masses, dtype=torch.float64) * friction)
        h = units.h_from_mobility(kT=kT, timestep=timestep, mobility=mobility)
        return cls(potential, kT=kT, h=h, **options)

    @classmethod
    def from_spring(cls, potential, *, kT, k, **options) -> EulerMaruyama:
        """From the total stiffness k (1/Å²) of the coupling, ``h = 1/(2k)``."""
        return cls(potential, kT=kT, h=units.h_from_spring(k), **options)

    @classmethod
    def from_schedule(cls, potential, *, kT, eta, kappa, **options) -> EulerMaruyama:
        """From a denoising move ``eta`` (Å²) and spring ``kappa`` (1/Å²), ``h = η/(1 + 2κη)``."""
        h = units.h_from_schedule(eta=eta, kappa=kappa)
        return cls(potential, kT=kT, h=h, **options)

    def init(self, x, *, walkers=None) -> State:
        if self._fused is not None:  # the same function, standing still
            still = torch.zeros_like(x)
            made = self._at_once(0, walkers, x, still, still, *torch.zeros(2).to(x))
            if made is not None:
                return made
        return self._state(x, 0, walkers)

    def step(self, state, noise) -> tuple[State, Info]:
        if self._fused is not None and self._fused.compiled:
            xi = noise.normal(state.step, state.x, walkers=state.walkers)
            given = (state.x, state.forces, xi, *self._coefficients(xi))
            new = self._at_once(state.step + 1, state.walkers, *given)
            if new is not None:
                return new, self.decide_from(state, new, None)
        moved = self.propose(state.x, state.forces, state.step, state.walkers, noise)
        new = self._state(moved, state.step + 1, state.walkers)
        return new, self.decide_from(state, new, None)

    def propose(
        self,
        x: Tensor,
        forces: Tensor,
        step: int,
        walkers: Tensor | None,
        noise: Noise,
        *,
        stream: Stream = "kernel",
    ) -> Tensor:
        """The next positions, for drift ``forces`` at x (eV/Å) and the noise of ``step``.

        Nothing is evaluated. ``stream`` is that of the Gaussian numbers.
        """
        kick = self.kicks(step, x, noise=noise, walkers=walkers, stream=stream)
        return self.propose_from(x, forces, kick)

    def kicks(
        self,
        steps: int | Tensor,
        like: Tensor,
        *,
        noise: Noise,
        walkers: Tensor | None = None,
        stream: Stream = "kernel",
    ) -> Tensor:
        """`kick_of` the noise of ``steps``, int or (T,), in Å.

        ``like`` has the shape wanted, positions (*batch, N, 3) with T in front where steps have it;
        ``walkers`` and ``stream`` are those of `Noise.normal`.
        """
        return self.kick_of(noise.normal(steps, like, walkers=walkers, stream=stream))

    def kick_of(self, xi: Tensor) -> Tensor:
        """``sqrt(2M) ξ``: the displacement (*batch, N, 3) in Å that noise ``xi`` makes."""
        _, sigma = self._coefficients(xi)
        return self._projected(sigma * xi)

    def noise_of(self, forces: Tensor) -> Tensor:
        """The noise δ whose kick is the drift of ``forces``: ``sqrt(2M) δ = M F/kT``.

        It is ``sqrt(h/2) P F/kT``, without an inverse of M; what does not move has none.
        """
        drift, sigma = self._coefficients(forces)
        # (h/kT)/sigma, where nothing is divided by the sigma of what is held
        scale = torch.where(sigma > 0, drift / torch.where(sigma > 0, sigma, 1.0), 0.0)
        return scale * self._projected(forces)

    def propose_from(self, x: Tensor, forces: Tensor, kick: Tensor) -> Tensor:
        """``x + M F/kT + kick`` for drift ``forces`` F at x (eV/Å); nothing is drawn."""
        drift, _ = self._coefficients(x)
        return x + self._drift(drift, forces) + kick

    def log_u(
        self, steps: int | Tensor, like: Tensor, *, noise: Noise, walkers: Tensor | None = None
    ) -> None:
        """None, whatever ``steps``, ``like``, ``noise``, ``walkers``: every step is accepted."""

    def decide_from(self, old: State, new: State, log_u: Tensor | None) -> Info:
        """`Info` of the step from ``old`` to ``new``, which ``log_u`` does not decide."""
        return _NO_INFO

    def mean(self, x: Tensor, forces: Tensor) -> Tensor:
        """Mean of the next positions, ``x + M F/kT``, for drift ``forces`` F at x (eV/Å)."""
        drift, _ = self._coefficients(x)
        return x + self._drift(drift, forces)

    def log_proposal_ratio(
        self, x: Tensor, forces_x: Tensor, y: Tensor, forces_y: Tensor
    ) -> Tensor:
        """``log q(x|y) - log q(y|x)``, float64 (*batch), drift forces ``forces_x``, ``forces_y``.

            -½ (y-x)·(s_x + s_y) - ¼ (s_yᵀ M s_y - s_xᵀ M s_x)        s = F/kT

        needs no inverse of the metric M, so that what does not move costs nothing
        (Roberts & Tweedie, Bernoulli 2, 341 (1996), written for any drift).
        """
        sx, sy = self._scores(forces_x, forces_y)
        return reversal(y.double() - x.double(), sx, sy, self._step_size(x))

    def log_likelihood_ratio(self, x: Tensor, y: Tensor, forces: Tensor, other: Tensor) -> Tensor:
        """``log q'(y|x) - log q(y|x)`` of two drifts, float64 (*batch).

            ½ (y-x)·(s' - s) - ¼ (s'ᵀ M s' - sᵀ M s)        s = F/kT

        exact for the step from x to y, whose weight towards the drift ``other`` F' it is if drift
        ``forces`` F made it; what does not move costs nothing.
        """
        h, (s, other_s) = self._step_size(x), self._scores(forces, other)
        along = (y.double() - x.double()) * (other_s - s)
        return (0.5 * along - 0.25 * h * (other_s.square() - s.square())).sum((-2, -1))

    def divergence(self, forces: Tensor, other: Tensor) -> Tensor:
        """KL in nats of a step with drift ``forces`` F from one with ``other`` F', (*batch).

            ¼ (s - s')ᵀ M (s - s')        s = F/kT

        exactly; the same in both directions. Over a chain it adds up, each term at a position of
        the chain of F.
        """
        (apart,) = self._scores(forces.double() - other.double())
        return (0.25 * self._step_size(forces) * apart.square()).sum((-2, -1))

    def metric(self, v: Tensor) -> Tensor:
        """``M v`` of displacements or scores v (*batch, N, 3), in Å² times the unit of v."""
        return self._projected(self._step_size(v).to(v) * self._projected(v))

    def freedom(self, n_atoms: int) -> int:
        """d, the rank of the metric of a walker of ``n_atoms``: 3N, fewer where atoms are held."""
        h = torch.as_tensor(self.h)
        moves = (h.reshape(-1, h.shape[-1])[0] if h.ndim else h).expand(n_atoms) > 0
        each = torch.full((n_atoms,), 3.0)
        if self.directions is not None:
            each = torch.diagonal(self.directions, dim1=-2, dim2=-1).sum(-1).to(each)
        # the mean has as many directions as there are that all atoms move in alike
        lost = int(each.min().round()) if self.mean_free else 0
        return int((each * moves).sum().round()) - lost

    def scaled(self, factor: float) -> EulerMaruyama:
        return replace(self, h=self.h * factor)

    def _step_size(self, x: Tensor) -> Tensor:
        """h in float64, broadcastable with (*batch, N, 3)."""
        h = torch.as_tensor(self.h, dtype=torch.float64, device=x.device)
        return h[..., None] if h.ndim else h

    def _scores(self, *forces: Tensor) -> tuple[Tensor, ...]:
        """F/kT of ``forces`` F, in the directions in which atoms move, float64."""
        kT = torch.as_tensor(self.kT, dtype=torch.float64, device=forces[0].device)
        kT = kT[:, None, None] if kT.ndim else kT
        return tuple(self._projected(f.double() / kT) for f in forces)

    def _drift(self, drift: Tensor, forces: Tensor) -> Tensor:
        # P diag(h) P: the forces of an isolated molecule have no mean, but those of a
        # general field may
        return self._projected(drift * self._projected(forces))

    def _projected(self, v: Tensor) -> Tensor:
        if self.directions is not None:
            v = along(self.directions, v)
        return without_mean(v) if self.mean_free else v

    def refresh(self, state) -> State:
        return self._state(state.x, state.step, state.walkers, state.fixed)

    def take(self, rows: Tensor) -> EulerMaruyama:
        kT, h = take_rows(self.kT, rows, ndim=1), take_rows(self.h, rows, ndim=2)
        return replace(self, kT=kT, h=h)

    def _state(self, x, step, walkers, fixed: dict[int, Evaluation] | None = None) -> State:
        if self.field.learns:
            return self.field.state(x, step, walkers, fixed=fixed)
        value = Evaluation(*self.potential(x))
        return State(x, value.energy, value.forces, step, walkers)

    def _at_once(self, step: int, walkers: Tensor | None, *rows: Tensor) -> State | None:
        """The state after ``step`` by one compiled function, where there is one."""
        if self._fused is None:
            return None
        biases = self.potential.terms[1:]
        if biases:
            made = self._fused.within(_biased(self.mean_free, biases), *rows)
        else:
            made = self._fused.within(_moved_mean_free if self.mean_free else _moved, *rows)
        if made is None:
            return None
        x, energy, forces, *own = made
        fixed = {0: Evaluation(own[0], own[1])} if own else {}
        return State(x, energy, forces, step, walkers, fixed=fixed)

    @cached_property
    def _fused(self) -> ScorePotential | None:
        """The network, if the potential is it and biases that are compiled, and all may move."""
        network, *biases = self.potential.terms
        fits = self.directions is None and all(bias.compiles for bias in biases)
        return network if fits and isinstance(network, ScorePotential) else None

    @cached_property
    def field(self) -> Field:
        """The potential, which is drift and target at once."""
        return Field(self.potential)

    @cached_property
    def _cast(self) -> dict:
        return {}

    def _coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        """h/kT and sqrt(2h), broadcastable with (*batch, N, 3); cast once."""
        return self._constants(x)[:2]

    def wide(self, x: Tensor) -> tuple[Tensor, ...]:
        """h and kT in the precision of x (*batch, N, 3), broadcastable with it."""
        return self._constants(x)[2:]

    def _constants(self, x: Tensor) -> tuple[Tensor, ...]:
        place = (x.dtype, x.device, x.shape)
        if place not in self._cast:
            h = torch.as_tensor(self.h, dtype=torch.float64, device=x.device)
            kT = torch.as_tensor(self.kT, dtype=torch.float64, device=x.device)
            atoms = x.shape[-2] if self.directions is None else len(self.directions)
            if (
                h.shape != x.shape[x.ndim - 1 - h.ndim : -1]
                or kT.shape != x.shape[:-2][-1:] * kT.ndim
                or atoms != x.shape[-2]
            ):
                raise ValueError(
                    f"h {tuple(h.shape)}, kT {tuple(kT.shape)} and directions of {atoms} atoms "
                    f"do not fit positions {tuple(x.shape)}: expected h as scalar, (N,) or (B, N), "
                    "kT as scalar or (B,) and directions of N atoms for positions (N, 3) or "
                    "(B, N, 3)"
                )
            h = h[..., None] if h.ndim else h
            kT = kT[:, None, None] if kT.ndim else kT
            made = h / kT, (2.0 * h).sqrt(), h, kT
            self._cast[place] = tuple(part.to(x.dtype) for part in made)
        return self._cast[place]


def _moved(at: Callable, x, forces, xi, drift, sigma) -> tuple[Tensor, ...]:
    """``y = x + drift F + sigma ξ``, its energy and forces."""
    y = x + drift * forces + sigma * xi
    return y, *at(y)


def _moved_mean_free(at: Callable, x, forces, xi, drift, sigma) -> tuple[Tensor, ...]:
    """The same with forces and noise projected by P, which removes the mean."""
    y = x + without_mean(drift * without_mean(forces)) + without_mean(sigma * xi)
    return y, *at(y)


@lru_cache(maxsize=16)
def _biased(mean_free: bool, biases: tuple[Potential, ...]) -> Callable:
    """The same with ``biases``, and energy and forces of the network alone behind the sums."""
    move = _moved_mean_free if mean_free else _moved

    def moved(at, *rows):
        y, energy, forces = move(at, *rows)
        own = energy, forces
        for bias in biases:
            more = bias(y)
            energy, forces = energy + more.energy, forces + more.forces
        return y, energy, forces, *own

    return moved


def reversal(move: Tensor, sx: Tensor, sy: Tensor, h: Tensor) -> Tensor:
    """`EulerMaruyama.log_proposal_ratio` (*batch) of a ``move`` y - x in Å.

    ``sx`` and ``sy`` are the scores there, of the directions that move, ``h`` in Å² is
    broadcastable with them (*batch, N, 3).
    """
    return -(0.5 * move * (sx + sy) + 0.25 * h * (sy.square() - sx.square())).sum((-2, -1))


def without_mean(x: Tensor) -> Tensor:
    """``P x``: positions, forces or noise with the mean over atoms removed."""
    return x - x.mean(-2, keepdim=True)
