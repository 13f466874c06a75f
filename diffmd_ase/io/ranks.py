"""Several processes that make one run: who they are, and what they tell each other.

``torchrun --nproc-per-node N`` starts N processes, the *ranks* 0 … N-1 of one run. Each has some
of the walkers (`simulation.shares`), or of the snapshots of each step of a training (`score.fit`).
What they share goes through `Ranks.gather`, in which every rank gives bytes and has those of all,
in the order of ranks, and through `Ranks.average`. The engine is torch.distributed, with gloo on
the host also where walkers are on GPUs: a few kB are told at a time; gradients that are on GPUs go
through NCCL. Nothing is unpickled: what goes around is JSON, safetensors and numbers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store
from torch.distributed.rendezvous import rendezvous

from .json_text import to_json

__all__ = ["RankError", "Ranks"]

Given = TypeVar("Given")

_HEAD = 8  # bytes that say how many follow
_PATIENCE = 1.0  # s in which other ranks, that wait too, say where they are
_KINDS = {kind.__name__: kind for kind in (ValueError, FileExistsError, FileNotFoundError, OSError)}


class RankError(RuntimeError):
    """Another rank is gone, does not answer, or failed."""


class Ranks:
    """The ranks of one run; by default one, which is alone.

    Use `started`, and ``with``, so that the ranks part at the end.

    Parameters
    ----------
    rank, size : which of how many
    store : where the ranks find each other
    timeout : s in which they answer

    Attributes
    ----------
    leads : this is rank 0, which writes what all have in common
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None, timeout: float = 300.0
    ):
        self.rank, self.size, self.timeout = rank, size, timeout
        self.leads = rank == 0
        self._store, self._count, self._room = store, 0, 1024
        self._copies: TemporaryDirectory | None = None

    @classmethod
    def started(cls, *, timeout: float = 300.0) -> Ranks | None:
        """The ranks of a launcher, by its WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT.

        None without these. ``timeout`` is in seconds, that of every answer later too.

        Raises
        ------
        RankError : some rank has not come in time
        ValueError : ranks with other versions of diffmd_ase or torch
        """
        size = int(os.environ.get("WORLD_SIZE", "0"))
        if not size:
            return None
        if not timeout > 0:
            raise ValueError(f"{timeout=} s in which a rank answers must be positive")
        torch.set_num_threads(1)  # on several, sums depend on how many there are
        if size == 1:
            return cls()
        rank, within = int(os.environ["RANK"]), timedelta(seconds=timeout)
        try:
            store, rank, size = next(rendezvous("env://", timeout=within))
            dist.init_process_group(
                _engines(size), store=store, rank=rank, world_size=size, timeout=within
            )
        except (RuntimeError, OSError) as error:  # torch's own are RuntimeErrors
            raise RankError(
                f"rank {rank} of {size}: not all ranks have come within {timeout:g} s "
                f"({_short(error)}): start all of them, on machines that reach each other"
            ) from error
        ranks = cls(rank, size, store, timeout)
        versions = {name: version(name) for name in ("diffmd-ase", "torch")}
        ranks.alike(versions, "ranks must run the same versions")
        return ranks

    def gather(self, data: bytes) -> list[bytes]:
        """``data`` of all ranks, in their order; all of them call this at the same place.

        Raises ``RankError`` where another rank is gone, or has not answered in time.
        """
        if self.size == 1:
            return [data]
        with self._meeting():
            sizes, parts = self._exchange(data)
            if max(sizes) > self._room:  # known to all, since all have all sizes
                self._room = 2 * max(sizes)
                sizes, parts = self._exchange(data)
        return [part[:size] for size, part in zip(sizes, parts, strict=True)]

    def told(self, value) -> list[Any]:
        """``value`` of all ranks, JSON; see `gather`."""
        return [json.loads(part) for part in self.gather(to_json(value, indent=None).encode())]

    def first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, JSON, which rank 0 does for all.

        Raises what it raised, everywhere.
        """
        if self.size == 1:
            return work()
        said: dict[str, Any] = {}
        failure: Exception | None = None
        if self.leads:
            try:
                said = {"result": work()}
            except Exception as error:
                failure, said = error, {"kind": type(error).__name__, "words": str(error)}
        said = self.told(said)[0]
        if failure is not None:
            raise failure
        if "kind" in said:
            raise _KINDS.get(said["kind"], RankError)(f"rank 0: {said['words']}")
        return said["result"]

    def in_turn(self, work: Callable[[], Given], path: Path) -> Given:
        """What ``work`` gives here; rank 0 does it before the others, and leaves a file ``path``.

        The others, whose ``path`` may be another, have a copy of it there when they begin.
        Raises what rank 0 raised, everywhere.
        """
        done: list[Given] = []
        self.first(lambda: done.append(work()))
        self.copy(path)
        return done[0] if self.leads else work()

    def copy(self, path: Path) -> None:
        """The file ``path`` of rank 0, at the ``path`` of each; all call this at the same place."""
        if self.size == 1:
            return
        data = self.gather(path.read_bytes() if self.leads else b"")[0]
        if not self.leads:
            path.write_bytes(data)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all ranks in the place of ``tensors`` of one precision and device.

        It is the same number on all of them. All ranks call this at the same place.
        Raises ``RankError`` as `gather` does.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._meeting():
            dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, value: float) -> float:
        """The mean of ``value`` over all ranks; see `average`."""
        if self.size == 1:
            return value
        own = torch.tensor([value], dtype=torch.float64)
        self.average([own])
        return own.item()

    def device(self, name: str) -> str:
        """That of this rank, which was asked for by ``name``: ranks take turns at their GPUs."""
        if self.size == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        return f"cuda:{local % torch.cuda.device_count()}"

    def file(self, path: str | Path) -> Path:
        """Where this rank writes what all write alike, as hills do: rank 0 to ``path``.

        The others have copies of their own, with what is there now, which go at the end. All ranks
        call this at the same place.
        """
        path = Path(path).absolute()
        there = self.first(path.exists)
        data = self.gather(path.read_bytes() if self.leads and there else b"")[0]
        if self.leads:
            return path
        if self._copies is None:
            self._copies = TemporaryDirectory(prefix="diffmd-rank-")
        copy = Path(self._copies.name) / f"{self._count}-{path.name}"
        if there:
            copy.write_bytes(data)
        return copy

    def alike(self, facts: Mapping[str, Any], words: str) -> None:
        """Raise ``ValueError``, which ``words`` begin, where other ranks have other ``facts``."""
        every = self.told(dict(facts))
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other.get(name) != value:
                    raise ValueError(
                        f"{words}: {name} is {value} on rank 0 and {other.get(name)} on rank {rank}"
                    )

    def close(self) -> None:
        """Wait for the others, and part."""
        if self.size > 1 and dist.is_initialized():
            self.gather(b"")
            dist.destroy_process_group()
        if self._copies is not None:
            self._copies.cleanup()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """All ranks meet in this block; one that does not come is named in words."""
        self._count += 1
        try:
            yield
        except RuntimeError as error:
            raise RankError(self._missing(error)) from error

    def _exchange(self, data: bytes) -> tuple[list[int], list[bytes]]:
        """Sizes, and as much of what was told as there is room for."""
        buffer = torch.zeros(_HEAD + self._room, dtype=torch.uint8)
        head = len(data).to_bytes(_HEAD, "little") + data[: self._room]
        buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        parts = [torch.empty_like(buffer) for _ in range(self.size)]
        dist.all_gather(parts, buffer)
        every = [part.numpy().tobytes() for part in parts]
        return [int.from_bytes(p[:_HEAD], "little") for p in every], [p[_HEAD:] for p in every]

    def _missing(self, error: RuntimeError) -> str:
        """Who did not come to the meeting that failed, in words."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        late = self._late(others)
        who = f"rank{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
        silent = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        what = f"no answer within {self.timeout:g} s" if silent else "the connection is closed"
        return (
            f"rank {self.rank}: {who if late else 'another rank'}: {what}; this ends here, with "
            "files that are whole up to the last block, and goes on from the last checkpoint (run "
            "--restart, train --directory)"
        )

    def _late(self, others: list[int]) -> list[int]:
        """Those of the ``others`` that have not come as far as this one."""
        late = list(others)
        if self._store is None:
            return late
        try:
            self._store.set(f"diffmd {self.rank}", str(self._count))
            end = time.monotonic() + _PATIENCE
            while late and time.monotonic() < end:
                time.sleep(0.1)
                late = [rank for rank in late if not self._came(rank)]
        except RuntimeError:  # the store was that of a rank that is gone
            return late
        return late

    def _came(self, rank: int) -> bool:
        name = f"diffmd {rank}"
        if self._store is None or not self._store.check([name]):
            return False
        return int(self._store.get(name)) >= self._count


def _engines(size: int) -> str:
    """gloo; NCCL as well for tensors on GPUs, where each of ``size`` ranks has one of its own."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    own = torch.cuda.is_available() and torch.cuda.device_count() >= local
    return "cpu:gloo,cuda:nccl" if own and dist.is_nccl_available() else "gloo"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
