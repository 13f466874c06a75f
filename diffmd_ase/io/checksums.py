"""Checksums of what files hold, so that a flipped bit is never read as a number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np

__all__ = ["digest", "row_sums"]

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def row_sums(*columns: np.ndarray) -> np.ndarray:
    """One checksum for each row of ``columns``, which have as many rows.

        sum = Σ_i w_i b_i  mod 2^64        w_i odd, b_i the 32-bit words of the row

    A change inside one word always changes the sum, since an odd number has an inverse; any
    other change goes unseen with probability 2^-64 or little more.

    Parameters
    ----------
    columns : (n, …) each, of numbers of 4 or 8 bytes

    Returns
    -------
    (n,) uint64
    """
    rows = [
        np.ascontiguousarray(c, c.dtype.newbyteorder("<")).reshape(len(c), math.prod(c.shape[1:]))
        for c in columns
    ]
    words = np.concatenate([row.view("<u4") for row in rows], axis=1)
    return (words * _weights(words.shape[1])).sum(1, dtype=np.uint64)


def _weights(count: int) -> np.ndarray:
    """(count,) odd numbers that look random: those of SplitMix64 (Steele, OOPSLA 2014)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * _ODD
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def digest(arrays: Mapping[str, np.ndarray], texts: Iterable[str] = ()) -> str:
    """SHA-256 of ``texts``, and of names, types, shapes and values of ``arrays``."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode())
    for name in sorted(arrays):
        values = np.asarray(arrays[name])
        total.update(f"{name}{values.dtype.str}{values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()
