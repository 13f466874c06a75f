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
from ..state import State, _permuted, where_accepted
from .field import reduced
from .kernels import Info, Kernel

__all__ = ["ExchangeSummary", "ReplicaExchange"]

_STREAM = 0x20  # of the uniform numbers of the exchanges
_TRAVEL = ("replica", "heading", "round_trips")  # with the positions
_STAY = ("attempts", "swaps", "acceptance")  # with the pair of states above row b
_UP, _DOWN = 1, 2  # has been at the first state; and since then at the last


class ExchangeSummary(NamedTuple):
    """What the exchanges did, over the whole run.

    acceptance : (M, K-1) mean of min(1, α) of each pair of neighbours; NaN without attempts
    swapped : (M, K-1) fraction of attempts that were accepted
    round_trips : (M,) journeys first state → last → first, of all replicas together
    """

    acceptance: Tensor
    swapped: Tensor
    round_trips: Tensor


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
    kept. Momenta in ``state.extra["momenta"]`` are scaled by ``sqrt(kT_new/kT_old)``.

    ``state.extra`` also has, for each row: ``replica``, the label (0…K-1, the state it started
    in) of the configuration there; ``heading``, 1 if that has been at the first state, 2 if
    since then at the last; ``round_trips``, those it has made; ``attempts``, ``swaps`` and
    ``acceptance``, sums over the exchanges with the row above. All are tensors (B,) and are
    kept by checkpoints; the order of swaps depends on the step alone, so that a restart gives
    the uninterrupted chain. A ladder is the same alone and in a batch of ladders.

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
            raise ValueError(f"{self.n_states=} must be at least 2 and {self.every=} at least 1")
        kT = torch.as_tensor(self.kT)
        if kT.ndim and len(kT) % self.n_states:
            raise ValueError(
                f"kT {tuple(kT.shape)} for {self.n_states} states: expected a scalar or "
                f"(M·{self.n_states},), one value for each row of M ladders"
            )
        if not self.potential.conservative:
            raise ValueError(
                "the kernel's target has no energy, and an exchange compares energies: give a "
                "target that has one"
            )

    @property
    def potential(self) -> Potential:  # type: ignore[override]
        return self.kernel.potential

    @property
    def drift(self) -> Potential | None:  # type: ignore[override]
        return self.kernel.drift

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.kernel.exact

    @property
    def kT(self):  # type: ignore[override]
        return self.kernel.kT

    def scaled(self, factor: float) -> ReplicaExchange:
        return replace(self, kernel=self.kernel.scaled(factor))

    def init(self, x, *, walkers=None) -> State:
        if x.ndim != 3 or len(x) % self.n_states:
            raise ValueError(
                f"positions {tuple(x.shape)} for {self.n_states} states: expected "
                f"(M·{self.n_states}, N, 3), M whole ladders with state b mod K in row b"
            )
        state = self.kernel.init(x, walkers=walkers)
        return replace(state, extra=state.extra | self._records(state))

    def step(self, state, noise) -> tuple[State, Info]:
        own, records = self._split(state)
        new, info = self.kernel.step(own, noise)
        if new.step % self.every == 0:
            new, records = self._exchange(new, records, noise)
            if self._distinct:
                info = info._replace(drift_evaluations=info.drift_evaluations + 1)
        return replace(new, extra=new.extra | records), info

    def refresh(self, state) -> State:
        own, records = self._split(state)
        new = self.kernel.refresh(own)
        return replace(new, extra=new.extra | records)

    def summary(self, state: State) -> ExchangeSummary:
        """Acceptance of each pair and round trips, up to ``state``."""
        ladders = {name: state.extra[name].reshape(-1, self.n_states) for name in _STAY}
        attempts = ladders["attempts"][:, :-1]
        return ExchangeSummary(
            ladders["acceptance"][:, :-1] / attempts,
            ladders["swaps"][:, :-1] / attempts,
            state.extra["round_trips"].reshape(-1, self.n_states).sum(-1),
        )

    @property
    def _distinct(self) -> bool:
        """The states differ in potentials, of the target or of the drift."""
        return any(p.per_walker for p in potentials_of(self.kernel))

    def _records(self, state: State) -> dict[str, Tensor]:
        level = torch.arange(len(state.x), device=state.x.device) % self.n_states
        nothing = torch.zeros_like(level)
        heading = torch.where(level == 0, _UP, nothing)
        return {
            "replica": level,
            "heading": heading,
            "round_trips": nothing,
            "attempts": nothing,
            "swaps": nothing,
            "acceptance": torch.zeros_like(level, dtype=torch.float64),
        }

    def _split(self, state: State) -> tuple[State, dict[str, Tensor]]:
        """The inner kernel's state, and our records."""
        if len(state.x) % self.n_states:
            raise ValueError(
                f"{len(state.x)} walkers are not whole ladders of {self.n_states} states: a lost "
                "replica ends its ladder; start again from the last checkpoint with a smaller h, "
                "or with a Metropolis kernel, which loses none"
            )
        names = set(_TRAVEL + _STAY)
        records = {name: value for name, value in state.extra.items() if name in names}
        own = {name: value for name, value in state.extra.items() if name not in names}
        return replace(state, extra=own), records or self._records(state)

    def _exchange(self, state: State, records: dict, noise: Noise) -> tuple[State, dict]:
        rows = torch.arange(len(state.x), device=state.x.device)
        level = rows % self.n_states
        upper = level % 2 != (state.step // self.every) % 2  # has its partner below
        partner = rows + torch.where(upper, -1, 1)
        paired = (partner >= rows - level) & (partner < rows - level + self.n_states)
        partner = torch.where(paired, partner, rows)

        travel = {name: records[name] for name in _TRAVEL}
        offered = self._swapped(state, partner)
        offered = replace(offered, extra=offered.extra | _permuted(travel, partner))
        change = reduced(offered.energy, self.kT) - reduced(state.energy, self.kT)
        log_ratio = -(change + change[partner])
        # one number for each pair, that of its lower walker; the step is the one being made
        u = noise.uniform(state.step - 1, change, walkers=state.walkers, stream=_STREAM)
        u = u[torch.minimum(rows, partner)]
        # not a number: a rejection
        swap = paired & (u.log() <= log_ratio) & (log_ratio < torch.inf)
        state = replace(state, extra=state.extra | travel)
        state = where_accepted(swap, offered, state)

        lower = paired & (partner > rows)
        alpha = log_ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp(max=0.0).exp()
        state, travel = _without(state, _TRAVEL)
        return state, _arrivals(travel, level, self.n_states) | {
            "attempts": records["attempts"] + lower,
            "swaps": records["swaps"] + (lower & swap),
            "acceptance": records["acceptance"] + torch.where(lower, alpha, 0.0),
        }

    def _swapped(self, state: State, partner: Tensor) -> State:
        """The state if every pair swapped, evaluated where states have other potentials."""
        extra = _permuted(state.extra, partner)
        if "momenta" in extra:
            kT = torch.as_tensor(self.kT, dtype=torch.float64, device=state.x.device)
            kT = kT.expand(len(partner))
            scale = (kT / kT[partner]).sqrt().to(extra["momenta"].dtype)
            extra["momenta"] = scale[:, None, None] * extra["momenta"]
        x, walkers = state.x[partner], state.walkers
        if not self._distinct:
            energy, forces = state.energy[partner], state.forces[partner]
            return State(x, energy, forces, state.step, walkers, extra)
        return adopt_target(self.kernel, State(x, None, state.forces, state.step, walkers, extra))


def adopt_target(kernel: Kernel, state: State) -> State:
    """The state of ``kernel`` at positions that another state of a ladder had.

    Energies that are not finite are kept, for those who reject or weigh them. What the
    kernel does not need is kept from ``state.extra``.
    """
    target = kernel.potential
    energy, forces, _ = evaluate(target.terms, state.x)
    extra = {name: value for name, value in state.extra.items() if name != "fixed"}
    given = replace(state, energy=energy, forces=forces, extra={})
    new = kernel.adopt(given, None if target.has_memory else target)
    return replace(new, extra=extra | new.extra)


def potentials_of(kernel: Kernel) -> Iterator[Potential]:
    """The potentials that a kernel, or the kernels it is made of, was given."""
    for field in fields(kernel):  # type: ignore[arg-type]  # kernels are dataclasses
        value = getattr(kernel, field.name)
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, Potential):
                yield part
            elif isinstance(part, Kernel):
                yield from potentials_of(part)


def _arrivals(travel: dict[str, Tensor], level: Tensor, n_states: int) -> dict[str, Tensor]:
    """Headings and round trips of replicas that have come to an end of the ladder."""
    heading, first, last = travel["heading"], level == 0, level == n_states - 1
    return {
        "replica": travel["replica"],
        "heading": torch.where(first, _UP, torch.where(last & (heading == _UP), _DOWN, heading)),
        "round_trips": travel["round_trips"] + (first & (heading == _DOWN)),
    }


def _without(state: State, names) -> tuple[State, dict[str, Tensor]]:
    taken = {name: state.extra[name] for name in names}
    rest = {name: value for name, value in state.extra.items() if name not in names}
    return replace(state, extra=rest), taken


__getattr__ = forward(__name__, "sampling.temperature_ladder")
