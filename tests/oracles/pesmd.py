"""Files that the real PLUMED wrote: Langevin dynamics of ``plumed pesmd``, in units of kT."""

import subprocess
from pathlib import Path

from plumed_command import plumed_command

PI = 3.141592653589793


def pesmd(folder: Path, lines: str, *, steps: int, seed: int, dimension=1, periodic=False) -> Path:
    """Run in ``folder``, made for it; skips without the command ``plumed``."""
    command = plumed_command()
    folder.mkdir()
    (folder / "plumed.dat").write_text("UNITS NATURAL\n" + lines)
    words = ["temperature 1.0", "tstep 0.02", "friction 2.0", f"dimension {dimension}"]
    words += [f"nstep {steps}", f"idum -{seed}", "plumed plumed.dat"]
    words += ["ipos " + ",".join(["-1.0"] * dimension), f"periodic {str(periodic).lower()}"]
    if periodic:
        limits = [",".join([str(x)] * dimension) for x in (-PI, PI)]
        words += [f"min {limits[0]}", f"max {limits[1]}"]
    done = subprocess.run(
        [command, "pesmd"],
        input="\n".join(words) + "\n",
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-500:] + done.stderr[-500:])
    return folder


def double_well(bias: str, *, barrier: float = 4.0) -> str:
    """x in a double well with minima at ±1, biased, printed every 10 steps."""
    return (
        "p: DISTANCE ATOMS=1,2 COMPONENTS\nx: CUSTOM ARG=p.x FUNC=x PERIODIC=NO\n"
        f"U: CUSTOM ARG=x FUNC={barrier}*(x^2-1)^2 PERIODIC=NO\nBIASVALUE ARG=U\n{bias}\n"
    )
