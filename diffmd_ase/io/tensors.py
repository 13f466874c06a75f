"""Tensors with a JSON header in one safetensors file, and a digest of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import replacing
from .checksums import digest
from .limits import check_plain_file
from .schema import json_object

__all__ = ["load_tensors", "save_tensors", "verify"]

_DIGEST = "sha256"


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], key: str, header: Mapping[str, Any]
) -> None:
    """Write a file whole or not at all; the same content is the same bytes.

    Parameters
    ----------
    tensors : of any device
    key : under which the header stands in the file, one for each kind of file
    header : JSON values; their digest with that of the tensors is added, as ``sha256``

    Raises
    ------
    OSError : a full disk; what was there before stays
    TypeError : what JSON does not hold
    """
    # clones: safetensors refuses tensors that share memory
    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    facts = json.loads(json.dumps(header))  # as it will be read
    facts = {_DIGEST: _digest(own, facts), **facts}
    # one key: with two the order of the bytes would be another in each process
    content = save(own, metadata={key: json.dumps(facts)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and header of a file of :func:`save_tensors`, not yet verified.

    The header is None where there is nothing under ``key``: another kind of file.

    Raises ``ValueError`` where the file is cut off, or no safetensors file with such a header.
    """
    check_plain_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not readable as a .safetensors file ({error}); it may be truncated"
        ) from error
    if text is None:
        return tensors, None
    return tensors, json_object(text, path)


def verify(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    """The ``header`` without its digest, which is that of ``tensors`` and the rest of it.

    Raises ``ValueError``, naming the ``path``, where it is another or is missing.
    """
    facts = {name: value for name, value in header.items() if name != _DIGEST}
    if header.get(_DIGEST) != _digest(tensors, facts):
        raise ValueError(
            f"{path} was altered or damaged: it does not match its checksum; use a copy of it"
        )
    return facts


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    arrays = {name: t.numpy() for name, t in tensors.items()}
    return digest(arrays, [json.dumps(facts, sort_keys=True)])
