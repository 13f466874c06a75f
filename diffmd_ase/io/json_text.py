"""JSON as its standard has it: a number that is missing or not finite is null."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["check_plain", "plain", "to_json"]


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


def check_plain(value: Any, source) -> None:
    """Raise ``ValueError``, naming ``source``, for text in ``value`` that commands a terminal.

    ``value`` is what was read of JSON. Control characters other than line ends and tabs are in no
    name, and escape sequences of a stranger's file would act where it is printed.
    """
    if isinstance(value, Mapping):
        for name, part in value.items():
            check_plain(name, source)
            check_plain(part, source)
    elif isinstance(value, list):
        for part in value:
            check_plain(part, source)
    elif isinstance(value, str) and any(
        unicodedata.category(c) == "Cc" and c not in "\n\r\t" for c in value
    ):
        raise ValueError(
            f"{source} holds control characters in {value[:40]!r}: it is damaged, or hostile"
        )
