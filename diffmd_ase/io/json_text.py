"""JSON as its standard has it: a number that is missing or not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["plain", "to_json"]


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: dicts, lists, words, booleans, finite numbers and None.

    Arrays and numbers of NumPy become lists and numbers, NaN and infinities None, and what JSON
    does not know its ``str``.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def to_json(value: Any, *, indent: int | None = 1) -> str:
    """The text of ``value`` (see `plain`), which every reader of JSON takes.

    ``indent`` as of `json.dumps`: spaces of each level, or None for one line.
    """
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
