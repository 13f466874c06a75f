"""PLUMED's own command line tool, `plumed driver`, on frames: what files should say."""

import subprocess
from pathlib import Path

import numpy as np
from ase import units
from diffmd_plumed.opening import with_all_digits
from plumed_command import plumed_command

KT = 0.0258
KJ = KT * units.mol / units.kJ


def drive(folder, lines, frames, *, timestep=0.001, stride=1, box="0 0 0", kt=KJ):
    """Files of ``plumed driver`` in ``folder``, for frames (T, N, 3) in Å; hills of all digits."""
    folder.mkdir(parents=True)
    rows = [
        f"{len(x)}\n{box}\n" + "".join("X {:.17g} {:.17g} {:.17g}\n".format(*r) for r in x)
        for x in np.asarray(frames, float)
    ]
    (folder / "in.xyz").write_text("".join(rows))
    (folder / "in.dat").write_text("\n".join(with_all_digits(lines)) + "\n")
    options = ["--plumed", "in.dat", "--ixyz", "in.xyz", "--length-units", "A", "--kt", repr(kt)]
    options += ["--timestep", repr(timestep), "--trajectory-stride", str(stride)]
    done = subprocess.run(
        [plumed_command(), "driver", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("in.xyz", "in.dat"):
        (folder / name).unlink()
    return folder


def check_same_text(folder, reference):
    """Every file of ``plumed driver`` is in ``folder``, with the same text."""
    names = sorted(p.name for p in Path(reference).iterdir())
    assert names
    for name in names:
        mine = Path(folder, name)
        assert mine.is_file(), f"{name} is missing"
        assert mine.read_text() == Path(reference, name).read_text(), name
