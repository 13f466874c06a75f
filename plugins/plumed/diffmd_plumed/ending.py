"""How an instance of PLUMED ends, whatever becomes of its driver; what PLUMED says of errors."""

from __future__ import annotations

import os
from typing import Any

from . import library

__all__ = ["ERRORS", "Ending", "words"]

ERRORS = (RuntimeError, ValueError, TypeError, OSError, MemoryError, OverflowError)
"""C++ exceptions arrive as these; PlumedError is a RuntimeError."""


class Ending:
    """What is left to do for an instance of PLUMED: its final jobs, and to close its files.

    Parameters
    ----------
    plumed : the instance
    directory : where it runs
    kept : the arrays that it works on, which must live as long

    Attributes
    ----------
    owed : there were updates since the final jobs
    """

    def __init__(self, plumed, directory: str, kept: Any):
        self._plumed, self._directory, self._kept = plumed, directory, kept
        self.owed = False

    def jobs(self) -> None:
        """Run the final jobs, if they are owed; raises ``RuntimeError`` if PLUMED fails."""
        owed, self.owed = self.owed, False
        if not owed or not os.path.isdir(self._directory):
            return
        try:
            with library.working_directory(self._directory):
                self._plumed.cmd("runFinalJobs")
        except ERRORS as error:
            raise RuntimeError(f"PLUMED failed in its final jobs: {words(error)}") from error

    def __call__(self) -> None:
        try:
            self.jobs()
        finally:
            with library.working_directory(self._directory):
                self._plumed.finalize()


def words(error: BaseException) -> str:
    """PLUMED's message, with the one of its cause, on one line."""
    parts = []
    while error is not None:
        lines = [line.strip() for line in str(error).splitlines()]
        # the place in PLUMED's source says nothing to a user
        lines = [line for line in lines if line and not (line[0] == "(" and ".cpp:" in line)]
        parts.append(" ".join(lines))
        error = error.__cause__
    return "; ".join(part for part in parts if part)
