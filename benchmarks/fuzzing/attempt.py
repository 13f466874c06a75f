"""One call of ``diffmd``, in a process of its own that is watched."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffmd_ase.cli import output
from diffmd_ase.cli.main import app
from diffmd_ase.progress import Bars

_PATIENCE = 3.0
GROWTH = 1e9  # bytes by which a call may grow
_ROOM = 6 << 30  # bytes of addresses above those there are: the machine is not ours alone
_PROGRESS = re.compile(r"^([\w .:-]+ +\d+%|compiling )", re.MULTILINE)  # a line of a bar
_LIBRARY = ("https://", "pydantic", "validation error")


@dataclass(frozen=True)
class Attempt:
    """How a call ended: its exit code (negative: by a signal), its words, and what it took."""

    code: int
    text: str
    seconds: float  # of CPU, and the limit on top where it was stopped
    growth: int  # bytes above what there was at its start, at most

    @property
    def error(self) -> str:
        """The line that says what is wrong; "" where there is none, or several."""
        lines = [line for line in self.text.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 else ""

    def verdict(self, seconds: float) -> str:
        """One of at work, hang, memory, crash, traceback, library words, refused, accepted."""
        if self.seconds > seconds:
            return "at work" if _PROGRESS.search(self.text) else "hang"
        if self.growth > GROWTH:
            return "memory"
        if self.code < 0:
            return "crash"
        if "Traceback" in self.text or "DIFFMD_DEBUG" in self.text:
            return "traceback"
        if self.code == 0:
            return "accepted"
        if not self.error:
            return "traceback"
        return "library words" if any(w in self.error for w in _LIBRARY) else "refused"


def attempt(words: Sequence[str], folder: Path, seconds: float) -> Attempt:
    """Call ``diffmd`` with these ``words`` in ``folder``, for so many ``seconds`` of CPU at most.

    Others may use the machine: what waits is stopped after three times as long.

    A fork of this process, which has imported all: a crash, a hang or a leak is the child's.
    """
    log = folder / "said.txt"
    child = os.fork()
    if not child:
        _call(words, folder, log)
    status, usage, hung = _wait(child, seconds)
    took = usage.ru_utime + usage.ru_stime + hung * seconds
    code = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace") if log.exists() else ""
    before = int((folder / "resident.txt").read_text())
    return Attempt(code, text, took, usage.ru_maxrss * 1024 - before)


def _call(words: Sequence[str], folder: Path, log: Path) -> None:
    """In the child: never returns."""
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        into, nothing = os.open(log, os.O_WRONLY | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(into, 1)
        os.dup2(into, 2)
        Path("resident.txt").write_text(str(_status("VmRSS:")))
        limit = _status("VmSize:") + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        output.Bars = partial(Bars, every=2.0)  # lines of progress come before the limit of time
        code = output.execute(app, list(words))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float):
    """Status, usage, and whether it was stopped."""
    until = time.monotonic() + _PATIENCE * seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage, False
        if _spent(child) > seconds or time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage, True
        time.sleep(0.01)


def _spent(process: int) -> float:
    """Seconds of CPU so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: the fuzzer runs on Linux")
