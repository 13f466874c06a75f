"""Files of columns as PLUMED writes and reads them: HILLS, KERNELS, COLVAR.

    #! FIELDS time phi sigma_phi height biasf
    #! SET min_phi -pi
    0.002 0.1 ...

Numbers have 17 digits, so that what is read is what was written. A file is opened only for the
moment of writing: a run that is killed loses nothing that was written.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from ase import units

from .plumed_tables import read_rows

__all__ = ["KJ_PER_MOL", "PlumedFile", "plumed_number"]

KJ_PER_MOL = units.mol / units.kJ  # in one eV


def plumed_number(value: float) -> str:
    """``value``, a limit, as PLUMED's input and files have it.

    ``pi`` is by name, since PLUMED compares the text of periods; others have all digits.
    """
    return {math.pi: "pi", -math.pi: "-pi"}.get(value, f"{value:.17g}")


class PlumedFile:
    """A file of columns that grows.

    Parameters
    ----------
    path : of the file
    fields : names of the columns
    constants : SET lines of the header
    restart : go on with the file that is there; else there must be none

    Raises
    ------
    FileExistsError : there is a file and no ``restart``
    ValueError : the file that is there has other columns; `truncate`: it is too short
    """

    def __init__(self, path, fields: list[str], constants: dict[str, str], *, restart: bool):
        self.path, self.fields = Path(path).absolute(), fields
        header = [f"#! FIELDS {' '.join(fields)}"]
        header += [f"#! SET {name} {value}" for name, value in constants.items()]
        if self.path.exists():
            if not restart:
                raise FileExistsError(
                    f"{self.path} exists: give restart=True to go on with it, or move it away"
                )
            with self.path.open() as file:
                first = file.readline().split()
            if first[2:] != fields:
                raise ValueError(f"{self.path} has columns {first[2:]}, expected {fields}")
            # a kill may have left half a line, which the next one must not continue
            whole = self.path.read_bytes().rfind(b"\n") + 1
            if 0 < whole < self.length:
                self.truncate(whole)
        else:
            self._write("\n".join(header) + "\n")

    def append(self, rows: np.ndarray) -> None:
        """Write ``rows`` (n, columns)."""
        text = (" ".join(f"{value:23.17g}" for value in row) for row in rows.tolist())
        self._write("".join(f"{line}\n" for line in text))

    def read(self) -> np.ndarray:
        """All rows (n, columns)."""
        return read_rows(self.path)

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size

    def truncate(self, length: int) -> None:
        """Forget what was written after the file had ``length`` bytes."""
        if self.length < length:
            raise ValueError(
                f"{self.path} has {self.length} bytes, fewer than the {length} of the checkpoint: "
                "it is not the file of that run"
            )
        os.truncate(self.path, length)

    def _write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)
