"""The command ``plumed`` beside our own code, in the tests only."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffmd_ase.io.plumed_tables import read_plumed


def plumed_command() -> str:
    """Path of ``plumed``, beside this Python or on PATH; skips the test where there is none."""
    beside = str(Path(sys.executable).parent)
    command = shutil.which("plumed", path=beside) or shutil.which("plumed")
    if command is None:
        pytest.skip("no command `plumed`: pip install --no-deps hillclimber")
    return command


def plumed_sum_hills(path, points, periods):
    """The free energy of ``plumed sum_hills`` at evenly spaced ``points``, an axis each."""
    low, high, count = [], [], []
    for axis, period in zip(points, periods, strict=True):
        step = axis[1] - axis[0]
        low.append(repr(float(axis[0])))
        high.append(repr(float(axis[-1] + step if period else axis[-1])))
        count.append(str(len(axis) if period else len(axis) - 1))
    with tempfile.TemporaryDirectory() as folder:
        words = [plumed_command(), "sum_hills", "--hills", str(Path(path).absolute())]
        words += ["--outfile", "fes.dat", "--fmt", "%20.12f"]
        words += ["--min", ",".join(low), "--max", ",".join(high), "--bin", ",".join(count)]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
        table = read_plumed(Path(folder) / "fes.dat")
    values = table.column("file.free").reshape([len(axis) for axis in points][::-1])
    return values.T  # PLUMED's first variable runs fastest
