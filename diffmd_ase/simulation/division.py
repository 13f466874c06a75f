"""Which walkers step together, and which rank has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..io.ranks import Ranks

__all__ = ["Division", "as_bytes", "default_chunk"]


def default_chunk(walkers: int) -> int:
    """Walkers of a chunk where none is given: a quarter of all, 2 to 64, on any number of ranks."""
    return max(2, min(64, walkers // 4))


@dataclass(frozen=True)
class Division:
    """The walkers of a run in chunks, in their order, and whole chunks on each rank.

    Parameters
    ----------
    bounds : first walker of each chunk, and the one behind its last
    places : numbers of the chunks of each rank
    """

    bounds: list[tuple[int, int]]
    places: list[list[int]]

    @classmethod
    def of(cls, walkers: int, chunk: int, size: int) -> Division:
        """Of so many ``walkers``, ``chunk`` together, the rest with the last; on ``size`` ranks.

        Raises ``ValueError`` for ranks that would have none.
        """
        first = list(range(0, max(1, walkers - chunk + 1), chunk))
        bounds = list(zip(first, [*first[1:], walkers], strict=True))
        if size > walkers:
            raise ValueError(
                f"{size} ranks for {walkers} walkers, of which some would have none: start at most "
                f"{walkers}, or give more --walkers"
            )
        if size > len(bounds):
            raise ValueError(
                f"{size} ranks, but {walkers} walkers in chunks of {chunk} are {len(bounds)} "
                f"chunks, of which some rank would have none: start at most {len(bounds)} ranks, "
                "or give a smaller --chunk (at least 2; a run keeps its own)"
            )
        places = np.array_split(np.arange(len(bounds)), size)
        return cls(bounds, [part.tolist() for part in places])

    def rows(self, rank: int) -> slice:
        """Which of all walkers the ``rank`` has."""
        own = self.places[rank]
        return slice(self.bounds[own[0]][0], self.bounds[own[-1]][1])

    def starts(self, walkers: Tensor, start: Callable[[Tensor], Tensor], ranks: Ranks) -> Tensor:
        """Positions (W, N, 3) of all ``walkers`` (W,), by ``start`` of the ids of each chunk.

        Each of the ``ranks`` makes those of its own chunks.
        """
        x = torch.cat([start(walkers[slice(*self.bounds[p])]) for p in self.places[ranks.rank]])
        parts = [torch.frombuffer(bytearray(p), dtype=x.dtype) for p in ranks.gather(as_bytes(x))]
        return torch.cat(parts).reshape(-1, *x.shape[1:]).to(x.device)


def as_bytes(values: Tensor) -> bytes:
    """The numbers of ``values``, from any device."""
    return values.detach().cpu().contiguous().numpy().tobytes()
