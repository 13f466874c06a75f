"""Options from a YAML file, below the flags; and the options used, as such a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..io.atomic import replacing
from ..io.limits import check_plain_file

__all__ = ["Config", "resolved", "save_resolved"]

# how to run, not what: never part of a saved configuration
_TRANSIENT = ("config", "dry-run", "json", "progress", "rank-timeout", "restart")


def _key(parameter) -> str:
    """Name of an option in a file: that of its long flag, or of the argument."""
    if parameter.param_type_name == "argument":
        return parameter.name
    return max(parameter.opts, key=len).lstrip("-")


class _Loader(yaml.SafeLoader):
    """Plain values: no tags of Python, no aliases, of which bombs are made, no key twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"alias *{event.anchor}: write values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        names = [str(key).replace("_", "-") for key in keys]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.MarkedYAMLError(problem=f"{', '.join(twice)} is given twice: give it once")
        return super().construct_mapping(node, deep)


def _read(context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        check_plain_file(path)
        loaded = yaml.load(path.read_text(), _Loader) or {}  # a SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise typer.BadParameter(f"{path} must hold a mapping of option names to values")
    names = {_key(p): p.name for p in context.command.params if _key(p) != "config"}
    many = {_key(p) for p in context.command.params if p.multiple or p.nargs != 1}
    values = {}
    for key, value in loaded.items():
        name = str(key).replace("_", "-")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise typer.BadParameter(
                f"{path}: unknown key {str(key)!r}; {hint}`{context.command.name}` knows "
                f"{', '.join(names)}"
            )
        values[names[name]] = [value] if name in many and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **values}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of these options (`steps: 1000`); flags win",
        callback=_read,
        is_eager=True,  # before the others ask for their defaults
    ),
]


def resolved(context: typer.Context) -> dict[str, Any]:
    """The options of the call of ``context``, as a file for ``--config`` holds them."""

    def plain(value):
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    values = {_key(p): plain(context.params.get(p.name)) for p in context.command.params}
    return {k: v for k, v in values.items() if v is not None and k not in _TRANSIENT}


def save_resolved(context: typer.Context, result: Path) -> None:
    """Write the options of the call of ``context`` beside ``result``, to ``RESULT.yml``."""
    with replacing(result.with_name(f"{result.name}.yml")) as part:
        part.write_text(yaml.safe_dump(resolved(context), sort_keys=False, allow_unicode=True))
