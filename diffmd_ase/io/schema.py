"""What files say in JSON: read and validated in one place, with words of ours."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .json_text import check_plain

__all__ = ["json_object", "validated"]

_Kind = TypeVar("_Kind", bound=BaseModel)
_SHOWN = 3  # complaints


def json_object(text: Any, source, what: str = "header") -> dict[str, Any]:
    """The JSON object in ``text``, without control characters (see `check_plain`).

    Raises ``ValueError``, naming ``source`` and ``what`` of it this is, for anything else.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} was altered or damaged: its {what} is no JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} was altered or damaged: its {what} is no JSON object")
    check_plain(value, source)
    return value


def validated(kind: type[_Kind], data: dict[str, Any], source, what: str) -> _Kind:
    """The pydantic model ``kind`` of ``data``.

    Raises ``ValueError``, naming ``source``, ``what`` of it is damaged, and the first fields that
    are wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:_SHOWN]]
        raise ValueError(f"{source} has a damaged {what}: {'; '.join(wrong)}") from error
