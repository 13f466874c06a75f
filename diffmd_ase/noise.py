"""Randomness by address: the noise of (seed, walker, step, stream) is a pure function.

Philox4x32-10 (Salmon et al., SC 2011) turns the 128-bit counter

    (block, walker, step mod 2³², stream·2¹⁶ + step div 2³²)

under the 64-bit key ``seed`` into four 32-bit words. A walker's noise therefore does
not depend on the batch it runs in, a restart needs no generator state, and a
time-parallel solver sees the numbers that the sequential loop sees.
Asking for consecutive steps draws ahead in growing blocks: an optimisation that
cannot be seen in the numbers.

Within a step every purpose has a stream of its own, by name (`STREAMS`), and a kernel that is
made of kernels hands each of them `Noise.child`: no composition can draw one number twice.
"""

from __future__ import annotations

import math
import secrets

import torch
from torch import Tensor

__all__ = [
    "CHILDREN",
    "STREAMS",
    "Noise",
    "Stream",
    "philox4x32",
    "stream_number",
    "to_normal",
]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_DRAW_AHEAD = 1 << 16  # words of noise kept ready at most: what stays in a cache
_SEEDS = 0xFFFF  # the stream whose words are the seeds of children

STREAMS: dict[str, tuple[int, int]] = {
    "kernel": (0, 1),  # the Gaussian numbers of a step: kicks, fresh momenta
    "accept": (1, 1),
    "probe": (2, 1),  # random directions, of what is measured and not sampled
    "choose": (3, 1),  # which of the possible moves
    "within step": (4, 1),  # when, between two frames, a path is looked at
    "couple": (5, 1),  # of a speculative step
    "jitter": (0x20, 1),  # of a time step
    "first momenta": (0x21, 1),
    "mixture": (0x22, 1),  # which kernel
    "exchange": (0x23, 1),
    "resample": (0x24, 1),
    "rotor": (0x40, 0x20),
    "within": (0x100, 0xF00),  # the further steps of one proposal
    "path down": (0x1000, 0x1000),
    "path up": (0x2000, 0x1000),
}
"""First number of each stream, and of how many: ``("rotor", 3)`` is one of several."""

CHILDREN: dict[str, int] = {
    "surrogate": 0,  # inner steps of delayed acceptance
    "moves": 1 << 32,  # the mover of a replica exchange
    "levels": (1 << 32) + 1,  # the kernels of an annealing
    "corrected": (1 << 32) + 2,  # the accepted chain beside a plain one, in a certificate
}
"""Place of each child with a name; kernels in a list have their number as place."""

Stream = str | tuple[str, int] | int


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32: four words (int64 tensors < 2³²) for each counter.

    ``counter``: four broadcastable int64 tensors with values in [0, 2³²);
    ``key``: two integers in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):  # most of the cost of the noise: of the first, words are short rows
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # the shift is arithmetic (torch has no unsigned one), hence the mask, which also
        # takes off what c1 and c3 have above their 32 bits
        c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, ((p0 >> 32) ^ c3 ^ k1) & _MASK
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


class Noise:
    """Addressable noise: key = (seed, walker, step, stream).

    Parameters
    ----------
    seed : int in [0, 2⁶⁴) or None, which draws one (see ``self.seed``)

    Raises
    ------
    TypeError : a seed that is no int
    ValueError : a seed out of range
    """

    def __init__(self, seed: int | None = None):
        if seed is None:
            seed = secrets.randbits(63)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"{seed=} must be an int or None, not {type(seed).__name__}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"{seed=} must lie in [0, 2**64)")
        self.seed = seed
        self._ahead: dict = {}
        self._ids: tuple[Tensor, int, tuple[int, ...]] | None = None
        self._column: tuple[tuple[int, ...], Tensor] | None = None  # of ids
        self._children: dict[int, Noise] = {}
        self._shares: dict[int, Noise] = {}

    def __repr__(self) -> str:
        return f"Noise({self.seed})"

    def child(self, place: str | int) -> Noise:
        """The noise of a part of a kernel made of kernels.

        Its seed is a pure function of (seed, place), so that the parts may use any step and
        stream: they meet neither each other's addresses nor those of the whole.

        Parameters
        ----------
        place : a name of `CHILDREN`, or the number of a kernel in a list

        Raises
        ------
        LookupError : a name that is not in `CHILDREN`
        """
        if isinstance(place, str):
            if place not in CHILDREN:
                raise LookupError(f"no child {place!r} of a noise: there is {', '.join(CHILDREN)}")
            place = CHILDREN[place]
        if place not in self._children:
            counter = (place & _MASK, place >> 32, 0, _SEEDS << 16)
            words = philox4x32(
                tuple(torch.tensor(word) for word in counter), (self.seed & _MASK, self.seed >> 32)
            )
            self._children[place] = self._of_child(int(words[0]) | int(words[1]) << 32)
        return self._children[place]

    def share(self, place: int) -> Noise:
        """The same numbers, drawn ahead for one of several batches that take turns.

        ``place`` is the number of that batch.
        """
        if place not in self._shares:
            self._shares[place] = self._of_child(self.seed)
        return self._shares[place]

    def _of_child(self, seed: int) -> Noise:
        return Noise(seed)

    def normal(self, step, like: Tensor, *, walkers=None, stream: Stream = "kernel") -> Tensor:
        """Standard normal numbers of the shape, dtype and device of ``like``.

        Parameters
        ----------
        step : int, or (T,) for the leading axis of ``like``; step n makes state n+1
        like : (N, 3) for walker 0, or (B, N, 3); with (T,) steps one more axis in front
        walkers : (B,) global ids of the last batch axis, default 0…B−1
        stream : what for, a name of `STREAMS`; (name, number) where a step has several

        Raises
        ------
        LookupError : a stream without a name, or a number beyond those it has
        ValueError : steps or ids that do not fit the shape; a step outside [0, 2⁴⁸), an id
            outside [0, 2³²)
        """
        return self._draw(step, like, walkers, stream, to_normal)

    def uniform(self, step, like: Tensor, *, walkers=None, stream: Stream = "accept") -> Tensor:
        """Uniform numbers in (0, 1] with 53 bits, addressed (and refused) as in :meth:`normal`.

        ``like`` has the shape of the numbers wanted, one per walker, for example their
        energies (B,); a 0-dimensional one is walker 0.
        """
        return self._draw(step, like, walkers, stream, to_uniform)

    def _draw(self, step, like: Tensor, walkers, stream: Stream, convert) -> Tensor:
        stream = stream_number(stream)
        if isinstance(step, int):
            return self._one(step, like, walkers, stream, convert)
        step = torch.as_tensor(step)
        if step.ndim == 0:
            return self._one(int(step), like, walkers, stream, convert)
        if step.shape != like.shape[:1]:
            raise ValueError(
                f"steps {tuple(step.shape)} for shape {tuple(like.shape)}: expected one step "
                "per entry of the leading axis"
            )
        ids, size = _layout(like.shape[1:], walkers, convert)
        return self._block(step.tolist(), ids, stream, size, convert, like).reshape(like.shape)

    def _one(self, step: int, like: Tensor, walkers, stream: int, convert) -> Tensor:
        place = (stream, convert, like.dtype, like.device)
        walkers = None if walkers is None else self._known(walkers)
        shape = (like.shape, walkers)
        known, first, rows = self._ahead.get(place, (None, 0, ()))
        if known != shape or not first <= step < first + len(rows):
            ids, size = _layout(like.shape, walkers, convert)
            follows = known == shape and step == first + len(rows)
            limit = max(1, _DRAW_AHEAD // (len(ids) * max(1, size)))
            length = min(4 * len(rows), limit) if follows else 1
            first = step
            block = self._block(range(step, step + length), ids, stream, size, convert, like)
            rows = block.reshape(length, *like.shape).unbind(0)
            self._ahead[place] = (shape, first, rows)
        # a copy: the caller may write into it, and the same address may be asked for again
        return rows[step - first].clone()

    def _known(self, walkers) -> tuple[int, ...]:
        """Ids as numbers; those of a device are asked for once, not at each step."""
        if not torch.is_tensor(walkers):
            return tuple(walkers)
        if self._ids is None or self._ids[0] is not walkers or self._ids[1] != walkers._version:
            self._ids = walkers, walkers._version, tuple(walkers.tolist())
        return self._ids[2]

    def _block(self, steps, ids, stream: int, size: int, convert, like) -> Tensor:
        device = like.device

        def column(values):
            return torch.tensor(values, dtype=torch.int64, device=device)

        per_block = 4 if convert is to_normal else 2
        blocks = -(-size // per_block)
        if steps and not 0 <= min(steps) <= max(steps) < 1 << 48:
            raise ValueError(f"steps {min(steps)}…{max(steps)} must lie in [0, 2**48)")
        low = column([s & _MASK for s in steps])[:, None, None]
        high = column([(stream << 16) | (s >> 32) for s in steps])[:, None, None]
        if self._column is None or self._column[0] is not ids or self._column[1].device != device:
            self._column = ids, column(ids)
        walker = self._column[1][None, :, None]
        index = torch.arange(blocks, device=device)[None, None, :]
        key = (self.seed & _MASK, self.seed >> 32)
        words = philox4x32((index, walker, low, high), key)
        numbers = convert(words)
        flat = numbers.reshape(len(low), len(ids), blocks * per_block)
        return flat[..., :size].to(like.dtype)


def stream_number(stream: Stream) -> int:
    """The number of a stream in the addresses of a step, from its name in `STREAMS`.

    Raises
    ------
    LookupError : a name that is not there, or a place beyond those that it has
    ValueError : a number of your own outside [0, 2¹⁶ - 1)
    """
    if isinstance(stream, int):  # a kernel of your own; `testing` finds one that is taken
        if not 0 <= stream < _SEEDS:
            raise ValueError(f"{stream=} must lie in [0, 2**16 - 1)")
        return stream
    name, place = (stream, 0) if isinstance(stream, str) else stream
    first, count = STREAMS.get(name, (0, 0))
    if not 0 <= place < count:
        raise LookupError(
            f"no stream {stream!r}: there is "
            + ", ".join(n if c == 1 else f"{n} 0…{c - 1}" for n, (_, c) in STREAMS.items())
        )
    return first + place


def _tuple(walkers) -> tuple[int, ...]:
    return tuple(walkers.tolist() if torch.is_tensor(walkers) else walkers)


def _layout(shape, walkers, convert) -> tuple[tuple[int, ...], int]:
    """Walker ids and the count of numbers of each, for one step of this shape."""
    tail = shape[-2:] if convert is to_normal else ()
    batch = shape[: len(shape) - len(tail)]
    if len(batch) > 1 or (convert is to_normal and len(tail) != 2):
        raise ValueError(
            f"noise for shape {tuple(shape)}: expected (N, 3) or (B, N, 3) for normal, "
            "() or (B,) for uniform numbers"
        )
    count = batch[0] if batch else 1
    ids = tuple(range(count)) if walkers is None else _tuple(walkers)
    if len(ids) != count:
        raise ValueError(f"{len(ids)} walker ids for a batch of {count}")
    if ids and not 0 <= min(ids) <= max(ids) < 1 << 32:
        raise ValueError(f"walker ids {min(ids)}…{max(ids)} must lie in [0, 2**32)")
    return ids, math.prod(tail)


def to_normal(words) -> Tensor:
    """Box–Muller on 32-bit uniforms in (0, 1): numbers (…, 4) from four ``words`` (…)."""
    a = torch.stack((words[0], words[2])).double().add_(0.5).mul_(2.0**-32)
    b = torch.stack((words[1], words[3])).double().add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
    radius = a.log_().mul_(-2.0).sqrt_()
    odd = torch.sin(b).mul_(radius)
    even = radius.mul_(b.cos_())
    return torch.stack((even[0], odd[0], even[1], odd[1]), dim=-1)


def to_uniform(words) -> Tensor:
    """Uniforms (…, 2) in (0, 1] with 53 bits from four ``words`` (…)."""
    pairs = [
        ((a << 21) | (b >> 11)).double() + 1.0
        for a, b in ((words[0], words[1]), (words[2], words[3]))
    ]
    return torch.stack(pairs, dim=-1) * 2.0**-53
