"""Noises that steer a kernel, or tell what it has drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise import STREAMS, Noise, stream_number, to_normal

__all__ = ["Prescribed", "Recorded", "check_addresses"]


class Prescribed(Noise):
    """Another noise with the numbers of some streams prescribed, to steer a kernel.

    Parameters
    ----------
    noise : gives all other numbers, and the children of combined kernels
    normal, uniform : by stream, numbers or tensors that fit the shape asked for

    Raises
    ------
    LookupError : a stream without a name (`stream_number`)
    """

    def __init__(
        self,
        noise: Noise,
        *,
        normal: Mapping[Any, Tensor] | None = None,
        uniform: Mapping[Any, Tensor | float] | None = None,
    ):
        super().__init__(noise.seed)
        self._noise = noise
        self._normals, self._uniforms = (
            {stream_number(stream): value for stream, value in (given or {}).items()}
            for given in (normal, uniform)
        )

    def normal(self, step, like, *, walkers=None, stream="kernel") -> Tensor:
        value = self._normals.get(stream_number(stream))
        if value is None:
            return self._noise.normal(step, like, walkers=walkers, stream=stream)
        return torch.as_tensor(value).to(like).expand(like.shape).clone()

    def uniform(self, step, like, *, walkers=None, stream="accept") -> Tensor:
        value = self._uniforms.get(stream_number(stream))
        if value is None:
            return self._noise.uniform(step, like, walkers=walkers, stream=stream)
        return torch.as_tensor(value).to(like).expand(like.shape).clone()

    def child(self, place) -> Noise:
        return self._noise.child(place)


class Recorded(Noise):
    """A noise that knows which addresses were drawn, its own and those of its children.

    Attributes
    ----------
    repeated : (step, stream, walker) of numbers that were drawn twice
    """

    def __init__(self, seed: int | None = None):
        super().__init__(seed)
        self._drawn: dict[tuple[int, int, int], list[np.ndarray]] = {}
        self.repeated: list[tuple[int, int, int]] = []

    def _of_child(self, seed: int) -> Noise:
        child = Recorded(seed)
        child._drawn, child.repeated = self._drawn, self.repeated
        return child

    def _draw(self, step, like, walkers, stream, convert) -> Tensor:
        number = stream_number(stream)
        batch = like.shape[-3:-2] if convert is to_normal else like.shape[-1:]
        ids = np.arange(batch.numel()) if walkers is None else np.asarray(walkers)
        for n in torch.as_tensor(step).reshape(-1).tolist():
            before = self._drawn.setdefault((self.seed, n, number), [])
            for others in before:
                again = np.intersect1d(ids, others).tolist()
                self.repeated += [(n, number, walker) for walker in again]
            before.append(ids)
        return super()._draw(step, like, walkers, stream, convert)


def check_addresses(noise: Recorded) -> None:
    """No number was drawn twice: each purpose has a stream, each part of a kernel a child.

    Raises ``AssertionError`` with the first address that was.
    """
    if noise.repeated:
        step, number, walker = noise.repeated[0]
        names = [n for n, (first, count) in STREAMS.items() if first <= number < first + count]
        raise AssertionError(
            f"{len(noise.repeated)} numbers were drawn twice, the first at step {step}, stream "
            f"{number} ({', '.join(names) or 'your own'}), walker {walker}: give each purpose a "
            "stream of its own, and each kernel inside of another noise.child(...)"
        )
