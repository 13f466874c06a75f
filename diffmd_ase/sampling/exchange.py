"""Replica exchange: neighbours in a ladder of states swap their configurations.

Rows of the batch are *states*: row b is state ``b mod K`` of ladder ``b div K``, with its kT,
its step size, its potential, its noise, for the whole run. Configurations move between the
rows. So any kernel with kT (B,) is the mover, unchanged; row k of a trajectory is the
ensemble of state k; and which replica is where is a label that travels with the positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._moved import forward
from ..noise import Noise
from ..potentials.base import Potential, evaluate
from ..state import Record, State
from .field import reduced
from .kernels import Info, Kernel

__all__ = ["ExchangeSummary", "ReplicaExchange", "Replicas", "adopt_target"]

_UP, _DOWN = 1, 2  # has been at the first state; and since then at the last


@dataclass(frozen=True, eq=False)
class Replicas(Record):
    """Where the replicas of a `ReplicaExchange` are and what its swaps did, each (B,)."""

    replica: Tensor  # label (0…K-1, the state it started in) of the configuration in row b
    heading: Tensor  # 1 if that has been at the first state, 2 if since then at the last
    round_trips: Tensor  # those it has made
    attempts: Tensor  # exchanges with the row above
    swaps: Tensor  # of them, those accepted
    acceptance: Tensor  # sum of min(1, α) over them
    record: Record | None = None  # what the kernel that moves the replicas remembers


class ExchangeSummary(NamedTuple):
    """What the exchanges did, over the whole run."""

    acceptance: Tensor  # (M, K-1) mean of min(1, α) of neighbours; NaN without attempts
    swapped: Tensor  # (M, K-1) fraction of attempts that were accepted
    round_trips: Tensor  # (M,) journeys first state → last → first, of all replicas


@dataclass(frozen=True)
class ReplicaExchange(Kernel):
    """Steps of a kernel; after every ``every`` of them neighbours try to swap.

    With ``u_i = U_i/kT_i`` and the configurations ``x_i, x_j`` of neighbours,

        log α = -[u_i(x_j) + u_j(x_i) - u_i(x_i) - u_j(x_j)]

    for the pairs (0,1), (2,3), … and (1,2), (3,4), … in turn: the deterministic even-odd
    order of Okabe et al. (Chem. Phys. Lett. 335, 435 (2001)), whose round trips do not
    slow down diffusively (Syed et al., J. R. Stat. Soc. B 84, 321 (2022)). States differ in
    kT, and then a swap evaluates nothing, or in their potential (`Ladder`, `Blend`: λ, bias,
    noise level), which costs one evaluation of the batch for each attempt; its results are
    kept. Momenta are scaled by ``sqrt(kT_new/kT_old)``.

    ``state.record`` is a `Replicas`, kept by checkpoints; the order of swaps depends on the step
    alone, so that a restart gives the uninterrupted chain. A ladder is the same alone and in a
    batch of ladders. The mover draws from ``noise.child("moves")``.

    Parameters
    ----------
    kernel : moves all replicas; kT scalar or (M·K,), h so that hot states take longer steps
        (h ∝ kT keeps hλ). The ensembles are exact if its own are (`Metropolis`)
    n_states : K
    every : steps between attempts

    Raises
    ------
    ValueError : no energy to exchange by, less than two states, kT or positions that are not
        whole ladders
    """

    kernel: Kernel
    n_states: int
    every: int = 10

    def __post_init__(self):
        if self.n_states < 2 or self.every < 1:
            raise ValueError(
                f"n_states={self.n_states!r} must be at least 2 and every={self.every!r} at least 1"
            )
        kT = torch.as_tensor(self.kernel.kT)
        if kT.ndim and len(kT) % self.n_states:
            raise ValueError(
                f"kT {tuple(kT.shape)} for {self.n_states} states: expected a scalar or "
                f"(M·{self.n_states},), one value for each row of M ladders"
            )
        if not self.kernel.potential.conservative:
            raise ValueError(
                "the kernel's target has no energy, and an exchange compares energies: give a "
                "target that has one"
            )

        inner = self.kernel
        self._derive(potential=inner.potential, drift=inner.drift, kT=inner.kT, exact=inner.exact)

    def scaled(self, factor: float) -> ReplicaExchange:
        return replace(self, kernel=self.kernel.scaled(factor))

    def take(self, rows: Tensor) -> ReplicaExchange:
        return replace(self, kernel=self.kernel.take(rows))

    def init(self, x, *, walkers=None) -> State:
        if x.ndim != 3 or len(x) % self.n_states:
            raise ValueError(
                f"positions {tuple(x.shape)} for {self.n_states} states: expected "
                f"(M·{self.n_states}, N, 3), M whole ladders with state b mod K in row b"
            )
        state = self.kernel.init(x, walkers=walkers)
        return _recorded(state, self.replicas(torch.arange(len(x), device=x.device)))

    def step(self, state, noise) -> tuple[State, Info]:
        own, replicas = self._split(state)
        new, info = self.kernel.step(own, noise.child("moves"))
        if self._distinct and new.step % self.every == 0:
            info = info._replace(drift_evaluations=info.drift_evaluations + 1)
        return self.exchanged(_recorded(new, replicas), noise), info

    def exchanged(self, state: State, noise: Noise) -> State:
        """``state``, in which all replicas have moved, after the swaps of its step, if it has any.

        The ``noise`` is that of `step`.
        """
        if state.step % self.every:
            return state
        return _recorded(*self._exchange(*self._split(state), noise))

    def refresh(self, state) -> State:
        own, replicas = self._split(state)
        return _recorded(self.kernel.refresh(own), replicas)

    def summary(self, state: State) -> ExchangeSummary:
        """Acceptance of each pair and round trips, up to ``state``."""
        _, replicas = self._split(state)
        attempts, swaps, acceptance, round_trips = (
            value.reshape(-1, self.n_states)
            for value in (
                replicas.attempts,
                replicas.swaps,
                replicas.acceptance,
                replicas.round_trips,
            )
        )
        attempts = attempts[:, :-1]
        return ExchangeSummary(
            acceptance[:, :-1] / attempts, swaps[:, :-1] / attempts, round_trips.sum(-1)
        )

    @property
    def _distinct(self) -> bool:
        """The states differ in potentials, of the target or of the drift."""
        return any(p.per_walker for p in potentials_of(self.kernel))

    def replicas(self, rows: Tensor) -> Replicas:
        """The record of ``rows`` (B,), by number, at the start: each replica in its state."""
        level = rows % self.n_states
        nothing = torch.zeros_like(level)
        return Replicas(
            replica=level,
            heading=torch.where(level == 0, _UP, nothing),
            round_trips=nothing,
            attempts=nothing,
            swaps=nothing,
            acceptance=torch.zeros_like(level, dtype=torch.float64),
        )

    def _split(self, state: State) -> tuple[State, Replicas]:
        """The inner kernel's state, and our record."""
        if len(state.x) % self.n_states:
            raise ValueError(
                f"{len(state.x)} walkers are not whole ladders of {self.n_states} states: a lost "
                "replica ends its ladder; start again from the last checkpoint with a smaller h, "
                "or with a Metropolis kernel, which loses none"
            )
        if isinstance(state.record, Replicas):
            return replace(state, record=state.record.record), state.record
        return state, self.replicas(torch.arange(len(state.x), device=state.x.device))

    def _exchange(self, state: State, before: Replicas, noise: Noise) -> tuple[State, Replicas]:
        rows = torch.arange(len(state.x), device=state.x.device)
        level = rows % self.n_states
        upper = level % 2 != (state.step // self.every) % 2  # has its partner below
        partner = rows + torch.where(upper, -1, 1)
        paired = (partner >= rows - level) & (partner < rows - level + self.n_states)
        partner = torch.where(paired, partner, rows)

        offered = self._swapped(state, partner)
        change = reduced(offered.energy, self.kT) - reduced(state.energy, self.kT)
        log_ratio = -(change + change[partner])
        # one number for each pair, that of its lower walker; the step is the one being made
        u = noise.uniform(state.step - 1, change, walkers=state.walkers, stream="exchange")
        u = u[torch.minimum(rows, partner)]
        # not a number: a rejection
        swap = paired & (u.log() <= log_ratio) & (log_ratio < torch.inf)

        lower = paired & (partner > rows)
        alpha = log_ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp(max=0.0).exp()
        source = torch.where(swap, partner, rows)
        heading, round_trips = _arrived(
            before.heading[source], before.round_trips[source], level, self.n_states
        )
        return offered.where(swap, state), Replicas(
            replica=before.replica[source],
            heading=heading,
            round_trips=round_trips,
            attempts=before.attempts + lower,
            swaps=before.swaps + (lower & swap),
            acceptance=before.acceptance + torch.where(lower, alpha, 0.0),
        )

    def _swapped(self, state: State, partner: Tensor) -> State:
        """The state if every pair swapped, evaluated where states have other potentials."""
        moved = replace(state.take(partner), walkers=state.walkers)
        if moved.momenta is not None:
            kT = torch.as_tensor(self.kT, dtype=torch.float64, device=state.x.device)
            kT = kT.expand(len(partner))
            scale = (kT / kT[partner]).sqrt().to(moved.momenta.dtype)
            moved = replace(moved, momenta=scale[:, None, None] * moved.momenta)
        return adopt_target(self.kernel, moved) if self._distinct else moved


def _recorded(state: State, replicas: Replicas) -> State:
    return replace(state, record=replace(replicas, record=state.record))


def _arrived(heading: Tensor, round_trips: Tensor, level: Tensor, n_states: int):
    """Headings and round trips of replicas that may have come to an end of the ladder."""
    first, last = level == 0, level == n_states - 1
    finished = round_trips + (first & (heading == _DOWN))
    return torch.where(first, _UP, torch.where(last & (heading == _UP), _DOWN, heading)), finished


def adopt_target(kernel: Kernel, state: State) -> State:
    """The state of ``kernel`` at positions that another state of a ladder had.

    Energies that are not finite are kept, for those who reject or weigh them. What the
    kernel does not need is kept from ``state``.
    """
    target = kernel.potential
    energy, forces, _ = evaluate(target.terms, state.x)
    given = State(state.x, energy, forces, state.step, state.walkers)
    new = kernel.adopt(given, None if target.has_memory else target)
    return replace(new, momenta=state.momenta, record=new.record or state.record)


def potentials_of(kernel: Kernel) -> Iterator[Potential]:
    """The potentials that a kernel, or the kernels it is made of, was given."""
    for field in fields(kernel):  # type: ignore[arg-type]  # kernels are dataclasses
        value = getattr(kernel, field.name)
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, Potential):
                yield part
            elif isinstance(part, Kernel):
                yield from potentials_of(part)


__getattr__ = forward(__name__, "sampling.temperature_ladder")
