"""What the command line says: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..progress import Bars
from ..simulation.signals import Ending

__all__ = ["bar", "bars", "execute", "say", "show", "show_table", "show_verdicts"]

_errors, _results = Console(stderr=True), Console()
# what the package raises in words for users, and what comes of a slip in code
_SAID = (ValueError, OSError, ImportError, RuntimeError, LookupError, NotImplementedError)
_UNSAID = (KeyError, IndexError, UnicodeError, RecursionError)
# neither typer nor, since it brings its own click, click names this class in public
_UsageError: Any = typer.BadParameter.__base__


def execute(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command of ``app`` that ``arguments`` name; gives the exit code.

    Any exception is one line and a code of 1, or 2 for wrong usage; an interruption is 130. Where
    ``DIFFMD_DEBUG`` is set the traceback comes before the line.
    Warnings are lines without the place in the source; SIGTERM, which batch systems send
    before they kill, ends a run as Ctrl-C does, with what was computed written.
    """
    before = signal.signal(signal.SIGTERM, Ending())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            code = app(arguments or ["--help"], standalone_mode=False)
    except _UsageError as error:
        place = "diffmd" if error.ctx is None else error.ctx.command_path
        _complain("error", f"{error.format_message()} (see `{place} --help`)")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if os.environ.get("DIFFMD_DEBUG"):
            traceback.print_exc()
        _complain("error", _in_words(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == 130:
        say("interrupted")
    return code if isinstance(code, int) else 0


def _in_words(error: Exception) -> str:
    """One line: what was said for users as it is, anything else with its kind and place."""
    words = str(error)
    if isinstance(error, MemoryError):
        words = f"not enough memory{': ' * bool(words)}{words}; ask for less at a time"
        return words
    if isinstance(error, _SAID) and not isinstance(error, _UNSAID) and words:
        return words
    root = str(Path(__file__).parents[1])
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    place = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    return (
        f"{type(error).__name__}{place}: {words or 'no further words'}; an input that nothing "
        "here expects, or a fault of diffmd: DIFFMD_DEBUG=1 shows the traceback to report"
    )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    _complain("warning", str(message))


def _complain(kind: str, message: str) -> None:
    colour = {"error": "bold red", "warning": "yellow"}[kind]
    line = " ".join(message.split())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not line.startswith("rank "):
        line = f"rank {os.environ.get('RANK')}: {line}"
    _errors.print(Text.assemble((f"{kind}: ", colour), line), soft_wrap=True)


def say(message: str) -> None:
    """``message``, one line, on standard error."""
    _errors.print(Text(message), soft_wrap=True)


def show(result: dict[str, Any], as_json: bool, *, full: dict[str, Any] | None = None) -> None:
    """``result`` as a table, or ``as_json`` (``full``, where there is more than the table)."""
    if as_json:
        from ..io.json_text import to_json

        typer.echo(to_json(result if full is None else full))
        return
    table = Table(show_header=False)
    for key, value in result.items():
        words = f"{value:.6g}" if isinstance(value, float) else str(value)
        table.add_row(Text(key), Text(words, overflow="fold"))
    _results.print(table)


def show_table(title: str, names: list[str], rows: list[list[str]]) -> None:
    """``rows`` of cells under the ``names`` of the columns and a ``title``: words, then numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for place, name in enumerate(names):  # where there is no room, words wrap and numbers do not
        table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    if not _results.is_terminal:  # a file or a pipe is as wide as it takes
        table.width = sum(widths) + 3 * len(widths)
    _results.print(table, crop=False)


def show_verdicts(verdicts: list[dict[str, Any]]) -> None:
    """The ``verdicts`` of a report, one a line: ``text``, and ``good`` (None: to be known)."""
    marks = {True: ("✓ ", "green"), False: ("✗ ", "bold red"), None: ("· ", "dim")}
    for verdict in verdicts:
        _results.print(Text.assemble(marks[verdict["good"]], verdict["text"]), soft_wrap=True)


@contextmanager
def bar(name: str, total: float, shown: bool) -> Iterator:
    """Progress ``name`` of ``total`` on standard error (see `Bars`), if it is to be ``shown``.

    Gives ``update(done, note)``.
    """
    with bars(shown) as report:
        yield lambda done, note=None: report(name, done / total if total else 1.0, note)


def bars(shown: bool) -> Bars:
    """Progress of several parts, if ``shown``, on the console that warnings go to."""
    return Bars(shown, console=_errors)
