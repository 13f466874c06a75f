"""Options that several commands share, and what they check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "AsJson",
    "Device",
    "Model",
    "Progress",
    "Seed",
    "check_output",
    "json_object",
    "one_thread",
]

Seed = Annotated[int, typer.Option(min=0, help="seed of all randomness")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Progress = Annotated[bool, typer.Option(help="show progress")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Model = Annotated[str, typer.Argument(help="model file, or name of a shipped model")]


def check_output(path: Path) -> None:
    """Before the work: ``ValueError`` for a name that cannot be that of a file."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: folder {folder} does not exist; make it first")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")


def json_object(flag: str, words: str | None) -> dict[str, Any]:
    """The value of ``flag``, a JSON object; empty if it was not given."""
    try:
        values = {} if words is None else json.loads(words)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {words!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f'{flag} {words!r}: expected an object, {{"name": value}}')
    return values


def one_thread() -> None:
    """Compute on one thread: small networks wait for each other on more."""
    import torch

    torch.set_num_threads(1)
