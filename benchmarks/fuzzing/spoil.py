"""Ways to spoil values, JSON, arrays and bytes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

STEPS = "--steps 4 --every 2 --walkers 2"  # of a short run
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    -(2**63),
    "",
    "text",
    "\x1b[2J\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "x" * 100_000,
    [],
    {},
    [[]],
    [None],
    [1e9] * 5,
    {"a": {"b": [1, {"c": None}]}},
]


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """Where each part of a JSON value is, as keys and indices."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key, part in value.items():
            found += paths(part, (*at, key))
    elif isinstance(value, list):
        for n in {0, len(value) - 1} if value else ():
            found += paths(value[n], (*at, n))
    return found


def spoiled(value: dict, rng: np.random.Generator) -> tuple[dict, str]:
    """A copy with one part replaced, removed or added; and which."""
    value = copy.deepcopy(value)
    places = paths(value)
    by_name: dict[str, list[tuple]] = {}  # as often one field as another, however long
    for place in places:
        by_name.setdefault(str(place[0]), []).append(place)
    group = by_name[sorted(by_name)[rng.integers(len(by_name))]]
    place = group[rng.integers(len(group))]
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    name = ".".join(map(str, place))
    how = rng.integers(10)
    if how == 0:
        del parent[place[-1]]
        return value, f"{name} removed"
    if how == 1 and isinstance(parent, dict):
        parent["surplus"] = 1
        return value, f"{name}: surplus beside it"
    old = parent[place[-1]]
    if how == 2 and isinstance(old, list):
        parent[place[-1]] = old + old[:1] if rng.integers(2) else old[:-1]
        return value, f"{name}: of another length"
    if how == 3 and isinstance(old, int | float):
        parent[place[-1]] = old * float(rng.choice([-1, 1e-12, 1e12, 0]))
        return value, f"{name} = {parent[place[-1]]}"
    odd = ODD[rng.integers(len(ODD))]
    parent[place[-1]] = odd
    return value, f"{name} = {repr(odd)[:30]}"


def spoiled_array(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """The array in another shape, kind or with other values; and how."""
    ways = {
        "no rows": lambda v: v[:0] if v.ndim else v.reshape(0 if not v.size else 1),
        "a scalar": lambda v: np.asarray(v.reshape(-1)[0] if v.size else 0.0),
        "one axis more": lambda v: v[None],
        "flat": lambda v: v.reshape(-1),
        "transposed": lambda v: v.T,
        "a row less": lambda v: v[:-1] if v.ndim else v,
        "a column less": lambda v: v[..., :-1] if v.ndim else v,
        "text": lambda v: np.full(v.shape, "text"),
        "bytes": lambda v: np.full(v.shape, b"b"),
        "bool": lambda v: v.astype(bool),
        "complex": lambda v: v.astype(complex),
        "int8": lambda v: np.zeros(v.shape, np.int8),
        "float16": lambda v: np.zeros(v.shape, np.float16),
        "dates": lambda v: np.zeros(v.shape, "M8[s]"),
        "records": lambda v: np.zeros(v.shape, [("a", "f8"), ("b", "i4")]),
        "NaN": lambda v: np.full(v.shape, np.nan),
        "infinity": lambda v: np.full(v.shape, np.inf),
        "zeros": np.zeros_like,
        "1e6 times": lambda v: v * 1e6,
        "1e300": lambda v: np.full(v.shape, 1e300),
        "negative": lambda v: -v if v.dtype.kind in "if" else v,
        "constant": lambda v: np.full_like(v, v.reshape(-1)[0] if v.size else 0),
        "billions": lambda v: np.full(v.shape, 2**40),
        "shifted": lambda v: v + 0.37 if v.dtype.kind in "if" else v,
    }
    names = sorted(ways)
    while True:
        name = names[rng.integers(len(names))]
        try:
            return np.ascontiguousarray(ways[name](values)) if values.ndim else ways[name](
                values
            ), name
        except (ValueError, TypeError, IndexError):
            continue


def spoiled_bytes(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Bits flipped, the end cut off, a piece doubled, filled or overwritten; and how."""
    content = bytearray(content)
    how, place = int(rng.integers(6)), int(rng.integers(max(1, len(content))))
    if how == 0:
        return bytes(content[:place]), f"cut at {place}"
    if how == 1:
        return bytes(content[:place] + content[place // 2 :]), f"doubled at {place}"
    if how == 2:
        content[place : place + 64] = rng.bytes(64)
        return bytes(content), f"noise at {place}"
    if how == 3:
        content[place : place + 8] = b"\xff" * 8
        return bytes(content), f"ones at {place}"
    if how == 4:
        return b"", "empty"
    for at in rng.integers(0, max(1, len(content)), 20):
        content[at] ^= 1 << rng.integers(8)
    return bytes(content), "20 bits flipped"


def spoiled_text(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """A word of a text replaced, a line lost or doubled, or its bytes spoiled; and how."""
    lines = text.split("\n")
    # the first lines say what the others are
    row = int(rng.integers(min(len(lines), 4) if rng.integers(2) else len(lines)))
    words = lines[row].split(" ")
    how = int(rng.integers(8))
    odd = ["nan", "inf", "-1", "1e400", "text", "", "1e30", "99999999999", "\x1b[2J", "0", "1/0"]
    if how < 4:
        n, word = int(rng.integers(len(words))), odd[rng.integers(len(odd))]
        words[n] = word
        lines[row] = " ".join(words)
        return "\n".join(lines), f"line {row}, word {n} = {word!r}"
    if how == 4:
        del lines[row]
        return "\n".join(lines), f"line {row} lost"
    if how == 5:
        lines.insert(row, lines[row] * 2)
        return "\n".join(lines), f"line {row} doubled"
    if how == 6:
        lines[row] = " ".join(words[:-1])
        return "\n".join(lines), f"line {row}: a word lost"
    content, told = spoiled_bytes(text.encode(), rng)
    return content.decode("latin-1"), told
