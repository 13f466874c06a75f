"""The walkers of a run in shares: stepped in chunks, shared between ranks.

What floating point gives for a walker depends, in the last digit, on the batch that it is computed
in. So the walkers of a run are divided once, in their order, into chunks that step one after the
other, each alone; a rank has some whole chunks. Then every number is the same for any number of
ranks, and the trajectories are equal, bit by bit. Where walkers depend on each other (hills, swaps
of replicas, the adaptation of a step) each rank has what is asked of all of them, in their order,
and does the same with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..io.checkpoint import state_of, tensors_of
from ..io.json_text import to_json
from ..io.ranks import Ranks
from ..noise import Noise
from ..potentials.biases.metadynamics import Metadynamics
from ..potentials.biases.opes import OPES, OPESExplore
from ..sampling.acceptance import acceptance_probability
from ..sampling.adaptation import Adaptation, tune
from ..sampling.euler import EulerMaruyama
from ..sampling.exchange import ReplicaExchange, Replicas, potentials_of
from ..sampling.hamiltonian import MALT, GeneralizedHMC, HamiltonianMonteCarlo
from ..sampling.kernels import DivergedError, Info, Kernel
from ..sampling.metropolis import Metropolis
from ..sampling.run import move, survive
from ..state import State
from .division import Division, as_bytes
from .facts import merged

__all__ = ["Shares"]

_MOVERS = (EulerMaruyama, Metropolis, HamiltonianMonteCarlo, GeneralizedHMC, MALT)
_LEARNS = (Metadynamics, OPES, OPESExplore)  # from all walkers, and nothing else


@dataclass(eq=False)
class _Chunk:
    """Some walkers of a rank: what moves them, where they are."""

    kernel: Kernel
    state: State
    place: int  # among all chunks


class Shares:
    """Who has which walkers, and how those of this rank move.

    Parameters
    ----------
    kernel : of all walkers
    walkers : (W,) global ids, of all that began
    chunk : walkers that step together; the last chunk has the rest as well
    ranks : that share the chunks, default one

    Raises
    ------
    ValueError : more ranks than walkers, or than chunks; what walkers would do together that ranks
        cannot
    """

    def __init__(self, kernel: Kernel, walkers: Tensor, chunk: int, ranks: Ranks | None = None):
        self.ranks, self.chunk = ranks or Ranks(), chunk
        self._walkers = walkers.cpu()
        _check(kernel)
        self._division = Division.of(len(walkers), chunk, self.ranks.size)
        self._rows = {int(w): row for row, w in enumerate(self._walkers.tolist())}
        self._chunks: list[_Chunk] = []
        self._kernel: Kernel | None = None
        self._whole: State | None = None
        self._begun = False

    @property
    def walkers(self) -> list[np.ndarray]:
        """Global ids of the walkers that each rank began with."""
        return [self._walkers[self._division.rows(rank)].numpy() for rank in range(self.ranks.size)]

    @property
    def own(self) -> slice:
        """Which of all walkers this rank began with."""
        return self._division.rows(self.ranks.rank)

    def init(self, kernel: Kernel, x: Tensor, device: str | torch.device) -> State:
        """The state of this rank's walkers, of ``kernel`` at x (W, N, 3) of all, on ``device``."""
        mover, parts = _mover(kernel), []
        for place in self._division.places[self.ranks.rank]:
            rows = torch.arange(*self._division.bounds[place])
            ids = self._walkers[rows].to(device)
            state = mover.take(rows).init(x[rows].contiguous().to(device), walkers=ids)
            if isinstance(kernel, ReplicaExchange):
                labels = kernel.replicas(rows.to(device))
                state = replace(state, record=replace(labels, record=state.record))
            parts.append(state)
        return State.joined(parts)

    def advance(
        self, kernel: Kernel, state: State, noise: Noise, lost: Callable[[DivergedError], None]
    ) -> tuple[Kernel, State, Info]:
        """The step after ``state`` of this rank's walkers, without those that diverge.

        ``kernel`` is that of all walkers, also of those that are gone, and stays. A rank whose
        walkers are all gone goes on without any. ``noise`` and ``lost`` are as of `run.survive`.
        Raises ``DivergedError`` where a replica is lost, which ends its ladder.
        """
        if state is not self._whole or kernel is not self._kernel:
            self._cut(kernel, state)
        step, learns = state.step + 1, kernel.potential.has_memory
        if learns and not self._begun and kernel.potential.begin(self._every_x(state), state.step):
            self._refresh()
        self._begun = True
        infos = [self._moved(chunk, kernel, noise, lost) for chunk in list(self._chunks)]
        whole = self._joined(state, step)
        if isinstance(kernel, ReplicaExchange) and step % kernel.every == 0:
            every = kernel.exchanged(self.everyone(whole), noise)
            whole = every.take(torch.isin(every.walkers, whole.walkers))
            self._cut(kernel, whole)
        if learns and kernel.potential.next_change(state.step) <= step:
            if kernel.potential.update(self._every_x(whole), step):
                self._refresh()
                whole = self._joined(whole, step)
        self._whole = whole
        return kernel, whole, _info([info for info in infos if info is not None])

    def refresh(self, kernel: Kernel, state: State) -> State:
        """``state`` of this rank's walkers, with what has learned evaluated again by ``kernel``."""
        self._cut(kernel, state)
        self._refresh()
        self._begun, self._whole = True, self._joined(state, state.step)
        return self._whole

    def describe(self, kernel: Kernel, state: State) -> dict[str, Tensor]:
        """What frames say of ``state``, as `Kernel.describe` of ``kernel``, chunk by chunk."""
        if state is not self._whole:
            self._cut(kernel, state)
        said = [chunk.kernel.describe(chunk.state) for chunk in self._chunks]
        names = said[0] if said else {}
        return {name: torch.cat([part[name] for part in said]) for name in names}

    def adapt(
        self, kernel: Kernel, state: State, n_steps: int, noise: Noise
    ) -> tuple[Kernel, State, Adaptation]:
        """As `sampling.adaptation.adapt` of ``kernel``, ``state``, ``n_steps`` and ``noise``.

        The acceptance is the mean over all walkers of all ranks.
        """
        kernel.scaled(1.0)

        def step(factor: float) -> float:
            nonlocal state
            _, state, info = self.advance(kernel.scaled(factor), state, noise, _raise)
            parts = self.ranks.gather(as_bytes(acceptance_probability(info)))
            return float(np.concatenate([np.frombuffer(part) for part in parts]).mean())

        record = tune(step, state.step, n_steps)
        return kernel.scaled(record.factor), state, record

    def everyone(self, state: State) -> State:
        """``state`` of this rank's walkers and of those of the others, in the order of ids.

        What can be evaluated again is left out, as of a checkpoint.
        """
        device = state.x.device
        tensors, kinds = tensors_of(state)
        data = safetensors.torch.save({name: _apart(values) for name, values in tensors.items()})
        parts = [safetensors.torch.load(part) for part in self.ranks.gather(data)]
        joined = {name: torch.cat([part[name] for part in parts]).to(device) for name in tensors}
        return state_of("another rank", joined, state.step, kinds)

    def facts(self, facts: dict[str, Any], potential: dict) -> dict[str, Any]:
        """What a run has counted, of all ranks, from ``facts`` of this one.

        Raises ``RuntimeError`` where ``potential``, what biases have learned, is not the same.
        """
        learned = hashlib.sha256(to_json(potential, indent=None).encode()).hexdigest()
        every = self.ranks.told({"facts": facts, "learned": learned})
        if len({one["learned"] for one in every}) > 1:
            raise RuntimeError(
                "the biases of the ranks are not the same any more, which is a fault of diffmd, of "
                "processors that differ, or of a bias that was made differently: start again"
            )
        return merged([one["facts"] for one in every])

    def _cut(self, kernel: Kernel, state: State) -> None:
        """Chunks of the walkers of ``state``; copies, whose numbers lie in memory as always."""
        mover, ids = _mover(kernel), torch.as_tensor(state.walkers).cpu()
        self._chunks, self._kernel, self._whole = [], kernel, state
        for place in self._division.places[self.ranks.rank]:
            low, high = self._division.bounds[place]
            there = torch.isin(ids, self._walkers[low:high]).nonzero().flatten()
            if len(there):
                rows = torch.tensor([self._rows[w] for w in ids[there].tolist()])
                part = state.take(there.to(state.x.device)).packed()
                self._chunks.append(_Chunk(mover.take(rows), part, place))

    def _moved(
        self, chunk: _Chunk, kernel: Kernel, noise: Noise, lost: Callable[[DivergedError], None]
    ) -> Info | None:
        """One step of a chunk; None if none of its walkers is left."""
        swaps = isinstance(kernel, ReplicaExchange)
        state, labels = chunk.state, chunk.state.record
        if swaps and isinstance(labels, Replicas):
            state = replace(state, record=labels.record)
        noise = (noise.child("moves") if swaps else noise).share(chunk.place)

        def told(error: DivergedError) -> None:
            if swaps:
                raise error  # its ladder cannot go on
            lost(self._of_all(error, chunk))
            if error.survivors is not None:
                chunk.state = error.survivors

        try:
            chunk.kernel, new, info = survive(chunk.kernel, state, noise, told, move)
        except DivergedError as error:
            told(error)
            self._chunks.remove(chunk)
            return None
        if swaps and isinstance(labels, Replicas):
            new = replace(new, record=replace(labels, record=new.record))
        chunk.state = new.packed()
        return info

    def _of_all(self, error: DivergedError, chunk: _Chunk) -> DivergedError:
        """The ``error`` of a chunk as one of all walkers of this rank."""
        kept = [
            torch.ones(len(other.state.x), dtype=torch.bool, device=other.state.x.device)
            for other in self._chunks
        ]
        place = self._chunks.index(chunk)
        kept[place] = torch.zeros_like(kept[place]) if error.kept is None else error.kept
        return DivergedError(
            error.step, error.walkers, error.survivors, torch.cat(kept), error.before, error.after
        )

    def _refresh(self) -> None:
        for chunk in self._chunks:
            chunk.state = chunk.kernel.refresh(chunk.state).packed()

    def _joined(self, before: State, step: int) -> State:
        """The state of all chunks after ``step``; of nobody, where there are none any more."""
        if self._chunks:
            return State.joined([chunk.state for chunk in self._chunks])
        nobody = torch.zeros(0, dtype=torch.int64, device=before.x.device)
        return replace(before.take(nobody), step=step)

    def _every_x(self, state: State) -> Tensor:
        """Positions of the walkers of all ranks."""
        x = state.x
        if self.ranks.size == 1:
            return x
        parts = self.ranks.gather(as_bytes(x))
        rows = [torch.frombuffer(bytearray(part), dtype=x.dtype) for part in parts if part]
        return torch.cat(rows).reshape(-1, *x.shape[1:]).to(x.device)


def _mover(kernel: Kernel) -> Kernel:
    return kernel.kernel if isinstance(kernel, ReplicaExchange) else kernel


def _check(kernel: Kernel) -> None:
    """Raise ``ValueError`` for what chunks of walkers cannot do one by one."""
    mover = _mover(kernel)
    if not isinstance(mover, _MOVERS):
        raise ValueError(
            f"{type(mover).__name__} does not run in chunks of walkers, as ranks and --chunk ask "
            f"for: use one of {', '.join(kind.__name__ for kind in _MOVERS)}, or run one process "
            "without --chunk"
        )
    learns = {id(t): t for p in potentials_of(kernel) for t in p.terms if t.has_memory}
    for term in learns.values():
        if type(term) not in _LEARNS:
            raise ValueError(
                f"{type(term).__name__} learns from the walkers of one process: ranks (and "
                f"--chunk) share {', '.join(kind.__name__ for kind in _LEARNS)}; run one process, "
                "or processes of their own with --first-walker (with PLUMED's WALKERS_N, "
                "WALKERS_ID and WALKERS_DIR, where it is PLUMED)"
            )
        if isinstance(term, Metadynamics) and term.walkers != "shared":
            raise ValueError(
                "Metadynamics(walkers='independent') in chunks or on ranks: its biases are of one "
                "batch; give walkers='shared', or run one process without --chunk"
            )
    if isinstance(kernel, ReplicaExchange) and learns:
        raise ValueError(
            "replica exchange with a bias that learns in chunks or on ranks: run one process "
            "without --chunk"
        )
    if any(p.per_walker for p in potentials_of(kernel)):
        raise ValueError(
            "walkers with potentials of their own (a ladder of potentials, atoms that differ in "
            "more than positions) in chunks or on ranks: run one process without --chunk; a "
            "ladder of temperatures can be shared"
        )


def _info(infos: list[Info]) -> Info:
    """`Info` of chunks as one, walker behind walker."""
    if len(infos) < 2:
        return infos[0] if infos else Info()
    parts = [info._asdict() for info in infos]
    joined = {
        # a number for each walker, or nothing, is the same in all chunks
        name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
        for name, value in parts[0].items()
    }
    return Info(**joined)


def _apart(values: Tensor) -> Tensor:
    """A copy on the host that shares its memory with no other."""
    return values.cpu().clone(memory_format=torch.contiguous_format)


def _raise(error: DivergedError) -> None:
    raise error
