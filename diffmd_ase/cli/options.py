"""Options that several commands share, and what they check."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

__all__ = [
    "COMPILE",
    "AsJson",
    "Compile",
    "Device",
    "Model",
    "Progress",
    "Seed",
    "check_output",
    "checked",
    "one_thread",
    "options_of",
]

_Settings = TypeVar("_Settings", bound=BaseModel)

Seed = Annotated[int, typer.Option(min=0, help="seed of all randomness")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Progress = Annotated[bool, typer.Option(help="show progress")]
Compile = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        help="compile the networks: several times faster after up to a minute for each; auto: "
        "where that pays"
    ),
]
COMPILE: dict[str, Any] = {"auto": "auto", "on": True, "off": False}
"""What `Compile` is to a potential."""
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Model = Annotated[str, typer.Argument(help="model file, or name of a shipped model")]


# what takes long to make again: such a file is replaced by its own kind only
_PRECIOUS = {".safetensors", ".h5", ".restart"}


def check_output(
    path: Path,
    *,
    endings: tuple[str, ...] = (),
    own: str = "",
    reads: Iterable[str | Path | None] = (),
) -> None:
    """Before the work: ``ValueError`` for a ``path`` that cannot be that of a new file.

    Parameters
    ----------
    endings : of its name, by which the format is chosen; none, any
    own : ending of what the command writes, where that takes long to make
    reads : files that the command reads, or None: none of them is written over
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: folder {folder} does not exist; make it first")
    if path.is_symlink():
        raise ValueError(
            f"{path} is a link to {os.readlink(path)}: nothing is written through links; give the "
            "name of the file itself, or remove the link"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{path}: expected a name that ends with {', '.join(endings)}")
    if not path.exists():
        return
    if any(Path(source).exists() and path.samefile(source) for source in reads if source):
        raise ValueError(f"{path} is read by this command and would be lost; give another output")
    if path.suffix in _PRECIOUS - {own}:
        raise ValueError(
            f"{path} exists and is of another kind than what this command writes; give another "
            "output, or remove it"
        )


def checked(kind: type[_Settings], values: dict[str, Any]) -> _Settings:
    """The pydantic model ``kind`` with the options ``values``, by the names of its fields.

    Raises, in the words of the flags, `typer.BadParameter` for values that are none of an option,
    and ``ValueError`` for options that contradict each other.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = [e["type"] != "value_error" for e in error.errors()]
        failure = typer.BadParameter if any(wrong) else ValueError
        raise failure("; ".join(map(_complaint, error.errors()))) from error


def _complaint(error) -> str:
    if error["type"] == "value_error":  # our own words
        return str(error["ctx"]["error"])
    return f"--{str(error['loc'][0]).replace('_', '-')}: {error['msg']}, got {error['input']!r}"


def options_of(kind: type[BaseModel]) -> Callable[[Callable], Callable]:
    """Decorator of a command: the fields of ``kind`` are its options, given as ``settings``.

    What the help says of an option is the description of its field. A field without a default
    is an argument. Options of the command itself come after them.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def call(**given):
            fields = {name: given.pop(name) for name in kind.model_fields}
            return command(settings=checked(kind, fields), **given)

        own = dict(inspect.signature(command, eval_str=True).parameters)
        del own["settings"]
        fields = [_parameter(n, field) for n, field in kind.model_fields.items()]
        call.__dict__["__signature__"] = inspect.Signature(
            [p.replace(kind=p.KEYWORD_ONLY) for p in (*fields, *own.values())]
        )
        return call

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    told: Any = typer.Argument(help=field.description)
    default = inspect.Parameter.empty
    if not field.is_required():
        told, default = typer.Option(help=field.description), field.default
    # of several kinds, which typer does not know: the words as they are, for pydantic to read
    several = get_origin(field.annotation) in (Union, UnionType)
    plain = several and type(None) not in get_args(field.annotation)
    kind: Any = str if plain else field.annotation
    annotation: Any = Annotated[kind, told]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def one_thread() -> None:
    """Compute on one thread: small networks wait for each other on more."""
    import torch

    torch.set_num_threads(1)
