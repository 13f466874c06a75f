"""Expanded ensemble: walkers that change λ themselves, with weights that SAMS finds.

A walker has a state k besides its positions, with the joint law

    p(x, k) ∝ exp(g_k - u_k(x)),      u_k = U_λk/kT

Steps at fixed λ alternate with a draw of k from ``p(k|x)`` (Gibbs: nothing is rejected). With
``g_k = F_k/kT`` all states are visited alike. SAMS (Tan, J. Comput. Graph. Stat. 26, 54 (2017))
finds such weights along the way; while they change the chain has no law, so that they are frozen
before anything counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..noise import Noise
from ..potentials.alchemical import Alchemical, check_lambda, coupled_energy
from ..state import Record, State
from .euler import EulerMaruyama
from .field import reduced
from .kernels import Info, Kernel
from .metropolis import Metropolis
from .run import advance

__all__ = ["ExpandedEnsemble", "Level", "sams"]


@dataclass(frozen=True, eq=False)
class Level(Record):
    """Where each walker of an `ExpandedEnsemble` is."""

    number: Tensor  # (B,) k of each
    visits: Tensor  # (B, K) draws that came out as k
    share: Tensor  # (B, K) sum of p(k|x) over the draws


@dataclass(frozen=True)
class ExpandedEnsemble(Kernel):
    """Steps at the λ of each walker; after every ``every`` of them λ is drawn anew.

        p(k|x) = softmax_k(g_k - u_k(x))

    Both end states are evaluated once for a draw, whatever K. ``state.record`` is a `Level`.
    Steps that are plain (`EulerMaruyama`) leave the law invariant up to the error of their step.

    Parameters
    ----------
    kernel : moves the walkers; its drift is an `Alchemical` (its own λ is not used)
    lambdas : (K,)
    weights : g (K,), in kT; only differences matter
    h : step size in each state, (K, N) in Å²; None: that of the kernel in all
    every : steps between draws

    Raises
    ------
    ValueError : a drift that is no coupling or has no energy, shapes that do not fit
    """

    kernel: EulerMaruyama | Metropolis
    lambdas: Tensor
    weights: Tensor
    h: Tensor | None = None
    every: int = 10
    coupling: Alchemical = field(init=False, repr=False)  # drives
    target: Alchemical = field(init=False, repr=False)  # counts

    def __post_init__(self):
        coupling = self.kernel.drift
        if not isinstance(coupling, Alchemical) or coupling.target is None:
            raise ValueError(
                f"the kernel is driven by {type(coupling).__name__}: an expanded ensemble needs an "
                "Alchemical coupling of potentials with energies"
            )
        lambdas = check_lambda(self.lambdas)
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        if lambdas.ndim != 1 or len(lambdas) < 2 or weights.shape != lambdas.shape:
            raise ValueError(
                f"lambdas {tuple(lambdas.shape)} and weights {tuple(weights.shape)}: expected (K,) "
                "of both, for K ≥ 2 states"
            )
        if self.h is not None and (self.h.ndim != 2 or len(self.h) != len(lambdas)):
            raise ValueError(
                f"h {tuple(self.h.shape)} for {len(lambdas)} states: expected (K, N) in Å²"
            )
        if self.every < 1:
            raise ValueError(f"every={self.every!r} must be at least 1")
        target = coupling.target if isinstance(self.kernel, Metropolis) else coupling
        self._derive(
            lambdas=lambdas,
            weights=weights,
            coupling=coupling,
            target=target,
            potential=target,
            kT=self.kernel.kT,
            exact=self.kernel.exact,
        )

    def scaled(self, factor: float) -> ExpandedEnsemble:
        h = None if self.h is None else self.h * factor
        return replace(self, kernel=self.kernel.scaled(factor), h=h)

    def take(self, rows: Tensor) -> ExpandedEnsemble:
        return replace(self, kernel=self.kernel.take(rows))

    def init(self, x, *, walkers=None, level: Tensor | None = None) -> State:
        """The state at positions x (B, N, 3), with walker b in state ``level`` b, or b mod K."""
        if x.ndim != 3:
            raise ValueError(f"positions {tuple(x.shape)}: expected (B, N, 3)")
        K = len(self.lambdas)
        number = torch.arange(len(x), device=x.device) % K if level is None else level
        state = self._mover(number).init(x, walkers=walkers)
        nothing = state.energy.new_zeros(len(x), K, dtype=torch.float64)
        return replace(state, record=Level(number, nothing, nothing))

    def step(self, state, noise) -> tuple[State, Info]:
        level = _level(state)
        new, info = self._mover(level.number).step(
            replace(state, record=None), noise.child("moves")
        )
        if new.step % self.every:
            return replace(new, record=level), info
        values = self.coupling.inner.values(new.x)
        target = values
        if self.target is not self.coupling:
            target = self.target.inner.values(new.x)
        chances = self.chances(*(v.energy for v in target))
        u = noise.uniform(new.step - 1, new.energy, walkers=new.walkers, stream="choose")
        ladder = chances.cumsum(-1)
        drawn = torch.searchsorted(ladder / ladder[:, -1:], u.double()[:, None])[:, 0]
        # a walker whose energies are no numbers stays where it is
        number = torch.where(torch.isfinite(chances).all(-1), drawn, level.number)
        lam = self.lambdas.to(new.x.device)[number]
        moved = self.coupling.at(lam).mixed(values, new.x)
        energy = moved.energy
        if target is not values:
            energy = self.target.at(lam).mixed(target, new.x).energy
        one = torch.nn.functional.one_hot(number, len(self.lambdas)).double()
        record = Level(number, level.visits + one, level.share + chances.nan_to_num(nan=0.0))
        new = replace(new, energy=energy, forces=moved.forces, record=record)
        return new, info._replace(drift_evaluations=info.drift_evaluations + 1)

    def chances(self, start: Tensor, end: Tensor) -> Tensor:
        """``p(k|x)`` (B, K) at the energies (B,) of the end states in eV."""
        lambdas = self.lambdas.to(start.device)
        energies = coupled_energy(
            start.double()[:, None], end.double()[:, None], lambdas, self.coupling.soft
        )
        kT = torch.as_tensor(self.kT, dtype=torch.float64, device=start.device)
        kT = kT[:, None] if kT.ndim else kT
        return torch.softmax(self.weights.to(start.device) - reduced(energies, kT), -1)

    def refresh(self, state) -> State:
        new = self._mover(_level(state).number).refresh(replace(state, record=None))
        return replace(new, record=state.record)

    def describe(self, state) -> dict[str, Tensor]:
        lam = self.lambdas.to(state.x.device)[_level(state).number]
        return self.target.at(lam).describe(state.x)

    def _mover(self, number: Tensor) -> EulerMaruyama | Metropolis:
        """The kernel of walkers in the states ``number`` (B,)."""
        drift = self.coupling.at(self.lambdas.to(number.device)[number])
        plain = self.kernel
        proposal = plain if isinstance(plain, EulerMaruyama) else plain.proposal
        h = proposal.h
        if self.h is not None:
            h = self.h[number.to(self.h.device)]
        proposal = replace(proposal, potential=drift, h=h)
        if isinstance(plain, EulerMaruyama):
            return proposal
        target = None if self.target is self.coupling else drift.target
        return replace(plain, proposal=proposal, target=target)


def sams(
    kernel: ExpandedEnsemble, state: State, n_steps: int, *, noise: Noise
) -> tuple[ExpandedEnsemble, State]:
    """``n_steps`` steps that find the weights; the ensemble with them frozen, and the state.

        g_k -= γ_t K ⟨p(k|x)⟩          at draw t, the mean over walkers
        γ_t = min(1/K, t^-0.6), and 1/(t - t₀ + 1/γ_t₀) once all states were visited alike

    (Tan 2017, eqs. (4) and (8), with p(k|x) in place of the state itself.) Counts of the record
    start anew.

    Raises
    ------
    ValueError : so few steps that no state is ever drawn
    """
    draws, K = n_steps // kernel.every, len(kernel.lambdas)
    if draws < 1:
        raise ValueError(f"{n_steps=} with a draw every {kernel.every}: expected one at least")
    flat, gain, visited = 0, 1.0 / K, torch.zeros(K, dtype=torch.float64)
    for t in range(1, draws + 1):
        before = _level(state).share.sum(0)
        for _ in range(kernel.every):
            state, _ = advance(kernel, state, noise)
        share = (_level(state).share.sum(0) - before).cpu() / len(state.x)
        visited += share
        if not flat and visited.min() > 0.5 * visited.mean() and t >= 2 * K:
            flat = t
        slow = t**-0.6
        gain = min(1.0 / K, slow, 1.0 / (t - flat + flat**0.6)) if flat else min(1.0 / K, slow)
        weights = kernel.weights - gain * K * share
        kernel = replace(kernel, weights=weights - weights[0])
    level = _level(state)
    nothing = torch.zeros_like(level.share)
    return kernel, replace(state, record=Level(level.number, nothing, nothing))


def _level(state: State) -> Level:
    if not isinstance(state.record, Level):
        raise ValueError("the state knows no λ: make it by `init` of the expanded ensemble")
    return state.record
