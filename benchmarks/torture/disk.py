"""Disks that are full, cannot be written, and clocks that go back."""

from __future__ import annotations

import io
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

import diffmd_ase.simulation.pace as simulation

from .kills import start, whole
from .kinds import Kind, content, differences
from .sandbox import Record, ended, fork, words

WRITES = "write,pwrite64,writev,fallocate,ftruncate,fsync,fdatasync,rename,renameat2"
_SECONDS = 300.0
_OFTEN = 0.02  # s between checkpoints, so that there are many writes


def full_disk(name: str, kind: Kind, count: int, record: Record) -> None:
    """No room at each of the writes of a run, spread over all of them if more than ``count``.

    With strace (Linux) the n-th system call that writes gives ENOSPC, as do all later ones until
    the run ends; without it files may not grow beyond a number of bytes (RLIMIT_FSIZE).
    """
    what = f"{name}, {'strace' if traced() else 'limit'}"
    if len(record.of("disk", what)) >= count:
        return
    with tempfile.TemporaryDirectory() as scratch:
        expected, _ = whole(kind, Path(scratch, "whole"))
        total = (
            _writes(kind, Path(scratch, "counted"))
            if traced()
            else _largest(Path(scratch, "whole"))
        )
        places = np.unique(np.linspace(1, total, count).astype(int)).tolist()
        for n in record.missing("disk", what, len(places)):
            folder = Path(scratch, str(n))
            folder.mkdir()
            code, text = _failing(kind, folder, places[n])
            said = [line for line in text.splitlines() if line.strip()]
            crash = code is None or code < 0
            told = code == 0 or any("rror" in line for line in said)
            again = ended(start(kind, folder, None), _SECONDS)
            wrong = [f"then exit code {again}: {words(folder)[-300:]}"] if again else []
            wrong = wrong or differences(kind, content(kind, folder), expected)
            record.add(
                "disk",
                what,
                n,
                place=places[n],
                of=total,
                code=code,
                crash=crash,
                told=told,
                wrong=wrong,
                said=said[-1:],
            )
            shutil.rmtree(folder)


def traced() -> bool:
    """Whether strace can make system calls fail here."""
    if shutil.which("strace") is None:
        return False
    probe = ["strace", "-qq", "-o", os.devnull, "-e", "inject=fsync:error=ENOSPC:when=1", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def _failing(kind: Kind, folder: Path, place: int) -> tuple[int | None, str]:
    """Exit code and words of a run whose write number ``place``, and all later ones, fail."""
    if not traced():

        def work():
            simulation._CHECKPOINT_SECONDS = _OFTEN
            resource.setrlimit(resource.RLIMIT_FSIZE, (place, place))
            return kind.go(False)

        return ended(fork(work, folder), _SECONDS), words(folder)
    return _attached(kind, folder, [f"inject={WRITES}:error=ENOSPC:when={place}+"])


def _attached(kind: Kind, folder: Path, rules: list[str], log: str = os.devnull):
    shared = mmap.mmap(-1, 1 << 16)  # what a run says is to be no write of it

    def work():
        simulation._CHECKPOINT_SECONDS = _OFTEN
        sys.stdout = sys.stderr = io.StringIO()
        os.kill(os.getpid(), signal.SIGSTOP)  # until strace is there
        code = 1
        try:
            code = kind.go(False) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            shared.write(sys.stderr.getvalue().encode()[-(1 << 16) :])
        return code

    pid = fork(work, folder)
    os.waitpid(pid, os.WUNTRACED)
    command = ["strace", "-qq", "-f", "-o", log, "-e", f"trace={WRITES}", "-p", str(pid)]
    for rule in rules:
        command += ["-e", rule]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0" in status.read_text() and tracer.poll() is None:
        time.sleep(0.005)
    os.kill(pid, signal.SIGCONT)
    code = ended(pid, _SECONDS)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    tracer.wait()
    return code, shared[:].rstrip(b"\0").decode(errors="replace")


def _writes(kind: Kind, folder: Path) -> int:
    """How many writes a run makes."""
    folder.mkdir()
    log = folder / "strace"
    code, said = _attached(kind, folder, [], str(log))
    if code:
        raise RuntimeError(said)
    return len(re.findall(r"^\d+ +\w+\(", log.read_text(), re.M))


def _largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.iterdir())


def read_only(kind: Kind, record: Record) -> None:
    """A folder in which nothing can be made: one line, and nothing is left there."""
    for n in record.missing("folder", "read-only", 1):
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch, "locked"), Path(scratch)
            folder.mkdir()
            folder.chmod(0o555)

            def work(folder=folder):
                if os.geteuid() == 0:  # root may write anywhere
                    os.setegid(65534)
                    os.seteuid(65534)
                os.chdir(folder)
                return kind.go(False)

            out.chmod(0o755)
            code = ended(fork(work, out), _SECONDS)
            said = words(out)
            wrong = [] if code == 1 and "Traceback" not in said else [f"exit code {code}"]
            wrong += sorted(p.name for p in folder.iterdir())
            record.add("folder", "read-only", n, wrong=wrong, said=said[-300:])


def clock_back(name: str, kind: Kind, record: Record) -> None:
    """The clock of the wall goes back an hour at each look at it."""
    for n in record.missing("clock", name, 1):
        with tempfile.TemporaryDirectory() as scratch:
            expected, _ = whole(kind, Path(scratch, "whole"))
            folder = Path(scratch, "back")
            folder.mkdir()

            def work():
                now = [time.time()]

                def earlier():
                    now[0] -= 3600.0
                    return now[0]

                time.time = earlier
                return kind.go(False)

            code = ended(fork(work, folder), _SECONDS)
            wrong = [f"exit code {code}: {words(folder)[-300:]}"] if code else []
            wrong = wrong or differences(kind, content(kind, folder), expected)
            record.add("clock", name, n, wrong=wrong)
