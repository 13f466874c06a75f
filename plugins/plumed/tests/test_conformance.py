"""PLUMED's own regression cases, replayed through `Driver` as its command line tool does.

The folder is named by PLUMED_REGTESTS and holds `manifest.json` with, for each case of
plumed2's regtest/, the arguments of the tool; inputs and references beside it.
"""

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffmd_plumed import PLUMED_UNITS, Driver

FOLDER = os.environ.get("PLUMED_REGTESTS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="PLUMED_REGTESTS names no folder")
MANIFEST = json.loads(Path(FOLDER, "manifest.json").read_text()) if FOLDER else {}
FLAGS = {"noatoms", "dump-full-virial"}


def options_of(arguments: str) -> dict[str, str]:
    tokens = shlex.split(arguments.replace("=", " "))
    options = {}
    while tokens:
        key = tokens.pop(0).removeprefix("--")
        options[key] = "" if key in FLAGS else tokens.pop(0)
    return options


def frames(path: Path):
    """(box or None, positions) in nm of an xyz file."""
    lines = path.read_text().splitlines()
    while lines:
        count = int(lines[0])
        box = np.array([float(word) for word in lines[1].split()])
        box = np.diag(box) if len(box) == 3 else box.reshape(3, 3)
        rows = [line.split()[1:4] for line in lines[2 : 2 + count]]
        yield (box if box.any() else None), np.array(rows, dtype=float)
        lines = lines[2 + count :]


def replay(folder: Path, options: dict[str, str]) -> None:
    """What `plumed driver` does with these options: the files it leaves."""
    source = [(None, np.zeros((0, 3)))] * 10_000
    if "noatoms" not in options:
        source = list(frames(folder / options["ixyz"]))
    count = len(source[0][1])
    # without --mc the tool has NaN masses and charges; 1 and 0 are those of all --mc here
    masses, charges = np.ones(count), np.zeros(count)
    if "mc" in options:
        masses, charges = np.loadtxt(folder / options["mc"], usecols=(1, 2), unpack=True)
    fixed = options.get("box")
    fixed = None if fixed is None else np.diag([float(edge) for edge in fixed.split(",")])
    stride, first = int(options.get("trajectory-stride", 1)), int(options.get("initial-step", 0))
    style = options.get("dump-forces-fmt", "%f")
    out = []
    with Driver(
        count,
        folder / options["plumed"],
        units=PLUMED_UNITS,
        timestep=float(options.get("timestep", 1.0)),
        masses=masses,
        charges=charges,
        box=np.eye(3),
        directory=folder,
    ) as driver:
        for number, (box, positions) in enumerate(source):
            box = box if fixed is None else fixed
            driver.set_box(np.zeros((3, 3)) if box is None else box)
            value = driver.evaluate(positions, step=first + number * stride)
            driver.update()
            virial = value.virial if "dump-full-virial" in options else np.diag(value.virial)
            out += [str(count), " ".join(style % v for v in np.ravel(virial))]
            out += ["X " + " ".join(style % v for v in row) for row in value.forces]
            if driver.stopped:
                break
    if "dump-forces" in options:
        (folder / options["dump-forces"]).write_text("\n".join(out) + "\n")


@pytest.mark.parametrize("case", MANIFEST)
def test_reference(case, tmp_path):
    """Every file of the reference, as text."""
    source = Path(FOLDER, case)
    folder = tmp_path / "case"
    folder.mkdir()
    for path in source.iterdir():
        if not path.name.endswith(".reference"):
            shutil.copy(path, folder)
            (folder / path.name).chmod(0o644)
    if MANIFEST[case]["shared_trajectory"]:
        shutil.copy(Path(FOLDER, "trajectory.xyz"), folder)
    replay(folder, options_of(MANIFEST[case]["driver_arguments"]))
    references = sorted(source.glob("*.reference"))
    assert references
    for reference in references:
        name = reference.name.removesuffix(".reference")
        assert (folder / name).read_text() == reference.read_text(), name
