"""Work in a forked process, which may be killed, and results that are kept line by line."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}  # and the exit code that each is to have


def fork(work: Callable[[], int | None], folder: Path) -> int:
    """Do ``work`` in ``folder`` in a child, whose words go to ``said`` there; gives its pid.

    The exit code is what it returns, or 1 with a traceback. A fork has torch imported already.
    """
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = work() or 0
    except SystemExit as error:
        code = error.code or 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code if isinstance(code, int) else 1)


def ended(pid: int, seconds: float) -> int | None:
    """Exit code of a child (negative: the signal), or None if it goes on for longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def stopped(pid: int, number: int, seconds: float = 120.0) -> int | None:
    """Send a signal to a child, and wait for its end; None: it had to be killed after that."""
    os.kill(pid, number)
    code = ended(pid, seconds)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def words(folder: Path) -> str:
    """What the last child in ``folder`` said."""
    path = folder / "said"
    return path.read_text(errors="replace") if path.exists() else ""


class Record:
    """Results in a file of one JSON object a line: what is there is not done again.

    Parameters
    ----------
    path : of the file
    seconds : after these no new result is begun
    """

    def __init__(self, path: Path, seconds: float):
        self._path, self._end = path, time.monotonic() + seconds
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("\n")]

    def missing(self, part: str, what: str, count: int) -> Iterator[int]:
        """Numbers below ``count`` that have no result, as long as there is time."""
        done = {row["n"] for row in self.of(part, what)}
        for n in range(count):
            if n not in done and time.monotonic() < self._end:
                yield n

    def add(self, part: str, what: str, n: int, **result: Any) -> None:
        """Keep a result."""
        row = {"part": part, "what": what, "n": n, **result}
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, part: str, what: str | None = None) -> list[dict[str, Any]]:
        """The results of a part, or of one thing in it."""
        return [r for r in self.rows if r["part"] == part and what in (None, r["what"])]
