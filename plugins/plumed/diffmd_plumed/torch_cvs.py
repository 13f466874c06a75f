"""PLUMED biases on collective variables that torch computes, on any device.

PLUMED is given d numbers for each walker (PUT) and returns V and dV/ds; torch takes the
derivative back to the atoms. Positions stay where they are: B·d numbers cross each way.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffmd_ase.potentials.cvbias import CVBias
from diffmd_ase.potentials.cvs import CV

from . import kernel as kernels
from .check import PlumedInputError, check_input
from .driver import Driver
from .files import cut_back, lengths, refuse_empty, refuse_existing
from .plan import actions_of, plan
from .script import parse, read_lines
from .units import ASE_UNITS

__all__ = ["PlumedCVPotential"]

_NO_ATOMS = np.empty((0, 3))


class PlumedCVPotential(CVBias):
    """The bias V(s(x), t) of a PLUMED input on torch variables, for any number of walkers.

    The input names the variables by their names (``METAD ARG=phi,psi …``), in PLUMED's units
    (nm, kJ/mol), and has no atoms; the PUT lines are added here. Hills are put down in
    `update` only, one walker after the other.

    Parameters
    ----------
    cvs : one or several `CV`; their names are the labels
    input : path of a PLUMED input, or its lines
    kT : eV
    timestep : ASE time of one step
    walkers : "shared" (one instance) or "independent" (instances in ``walker-0``, …)
    restart : go on with the files in ``directory``, from a checkpoint
    directory : of all files; relative names of the input mean this folder
    first_step : steps completed before the first one here

    Raises
    ------
    ImportError : no PLUMED kernel
    PlumedInputError : a ValueError with the number of the line and PLUMED's own words
    FileExistsError : files of another run would be overwritten
    """

    has_memory = True

    def __init__(
        self,
        cvs: CV | Sequence[CV],
        input: str | Path | Sequence[str],
        *,
        kT: float,
        timestep: float,
        walkers: str = "shared",
        restart: bool = False,
        directory: str | Path = ".",
        first_step: int = 0,
    ):
        super().__init__(cvs)
        if walkers not in ("shared", "independent"):
            raise ValueError(f"{walkers=}: expected 'shared' or 'independent'")
        self.walkers, self.directory = walkers, Path(os.path.abspath(directory))
        self._settings = {"kT": float(kT), "timestep": float(timestep)}
        lines = read_lines(input)
        self._check_lines(lines)
        checked = _checked([*_puts(self.cv), *lines], len(self.cv), self.directory, self._settings)
        self._lines, self._script, self._written = checked.lines, checked.script, checked.files
        self._plan = plan(actions_of(checked.log), checked.script)
        self._unit = np.array(self.cv.plumed_units)
        self._step, self._restart, self._begun = int(first_step), bool(restart), False
        self._drivers: list[Driver] = []
        self._ids: list[int] | None = None
        for name in self._plan.impure:
            warnings.warn(f"{name} learns at every evaluation, not only in updates", stacklevel=2)
        for name, what in self._plan.inexact.items() if restart else ():
            warnings.warn(f"{name} does not restart exactly ({what})", stacklevel=2)
        if not restart:
            folders = [self.directory, *self.directory.glob("walker-*")]
            for folder in folders if walkers == "independent" else folders[:1]:
                refuse_existing(folder, self._written)

    def bias(self, s):
        values = self._on_host(s)
        walkers = s.shape[-2] if s.ndim > 1 else 1
        self._require(walkers)
        out = np.full((len(values), 1 + len(self.cv)), np.nan)
        for index in np.flatnonzero(np.isfinite(values).all(-1)).tolist():
            try:
                out[index] = self._evaluate(index % walkers, values[index])
            except RuntimeError as error:
                if "grid" not in str(error).lower():
                    raise
                warnings.warn(f"{error}; the bias there is NaN", stacklevel=3)
        out[:, 1:] *= -self._unit / ASE_UNITS.energy
        # one copy back: energy and derivatives together
        back = torch.from_numpy(out).to(s.device).reshape(*s.shape[:-1], -1)
        return back[..., 0], back[..., 1:]

    def update(self, x, step) -> bool:
        """Deposit and print at accepted positions (N, 3) or (B, N, 3); True if V changed.

        Raises
        ------
        ValueError : a step that was completed before, variables that are not finite
        """
        if step <= self._step:
            raise ValueError(f"step {step} after step {self._step}: steps are completed once")
        if not self._plan.due(step):
            self._step = step
            return False
        values = self._on_host(self.cv(x))
        if not np.isfinite(values).all():
            lost = np.flatnonzero(~np.isfinite(values).all(-1)).tolist()
            raise ValueError(
                f"step {step}: {', '.join(self.cv.names)} of walkers {lost} are not finite; "
                "nothing was deposited"
            )
        self._require(len(values))
        if not self._begun and any(step % pace == 0 for pace in self._plan.paced):
            # PLUMED swallows the hill of its first update
            self._prime(values, self._plan.quiet_before(step))
        self._begun, self._step = True, step
        for walker, row in enumerate(values):
            self._evaluate(walker, row)
            self._driver(walker).update()
        return self._plan.changes(step)

    def select(self, keep) -> None:
        if self.walkers == "shared" or self._ids is None:
            return
        kept = keep.tolist()
        for driver, stays in zip(self._drivers, kept, strict=True):
            if not stays:
                driver.finalize()
        self._drivers = [d for d, stays in zip(self._drivers, kept, strict=True) if stays]
        self._ids = [w for w, stays in zip(self._ids, kept, strict=True) if stays]

    def checkpoint(self) -> dict:
        kernels.flush_files()
        files = {d.directory: lengths(d.directory, self._written) for d in self._drivers}
        relative = {os.path.relpath(path, self.directory): found for path, found in files.items()}
        return {"lines": list(self._lines), "ids": self._ids, "files": relative}

    def restore(self, saved, x, step) -> None:
        if not self._restart:
            raise ValueError("to go on from a checkpoint, make this potential with restart=True")
        if saved["lines"] != list(self._lines):
            raise ValueError("the PLUMED input or the variables are not those of the checkpoint")
        for folder, files in saved["files"].items():
            cut_back(self.directory / folder, files, self._written)
        self._open(saved["ids"] or [0])
        self._ids = saved["ids"]
        # the last step is repeated: PLUMED swallows it; what it prints is there already
        self._prime(self._on_host(self.cv(x)), step)
        kernels.flush_files()
        for folder, files in saved["files"].items():
            cut_back(self.directory / folder, files)
        self._begun = True

    def flush(self) -> None:
        """Files are complete on disk up to the last update."""
        kernels.flush_files()

    def finalize(self) -> None:
        """Close all files; nothing can be evaluated any more."""
        for driver in self._drivers:
            driver.finalize()

    def _on_host(self, s: Tensor) -> np.ndarray:
        return s.reshape(-1, len(self.cv)).cpu().numpy() * self._unit

    def _driver(self, walker: int) -> Driver:
        return self._drivers[0 if self.walkers == "shared" else walker]

    def _evaluate(self, walker: int, values: np.ndarray) -> list[float]:
        """V in eV and PLUMED's -dV/ds at values in its units."""
        driver = self._driver(walker)
        buffers = driver._values.values()  # in the order of the variables
        for (value, _), number in zip(buffers, values.tolist(), strict=True):
            value[0] = number
        try:
            energy = driver.calculate(_NO_ATOMS, self._step)
        except RuntimeError as error:
            raise RuntimeError(f"walker {walker}: {error}") from error
        return [energy, *(force[0] for _, force in buffers)]

    def _prime(self, values: np.ndarray, step: int) -> None:
        self._step = step
        for walker in range(len(self._drivers)):
            self._evaluate(walker, values[walker])
            self._driver(walker).update()

    def _require(self, walkers: int) -> None:
        if self.walkers == "shared":
            if walkers > 1 and self._plan.per_walker:
                name, reason = next(iter(self._plan.per_walker.items()))
                raise ValueError(
                    f"{name} keeps {reason}, so one instance cannot serve {walkers} walkers: "
                    "use walkers='independent'"
                )
            if not self._drivers:
                self._open([0])
        elif not self._drivers:
            self._ids = list(range(walkers))
            self._open(self._ids)
        elif walkers != len(self._drivers):
            raise ValueError(
                f"{walkers} walkers, but there are {len(self._drivers)} independent biases: "
                "evaluate all of them, or use walkers='shared'"
            )

    def _open(self, walkers: Sequence[int]) -> None:
        own = self.walkers == "independent"
        for folder in [f"walker-{walker}" for walker in walkers] if own else ["."]:
            path = self.directory / folder
            path.mkdir(parents=True, exist_ok=True)
            if self._restart:
                refuse_empty(path, self._script)
            options = {"restart": self._restart, "first_step": self._step, "directory": path}
            driver = Driver(0, self._lines, **self._settings, **options)
            for name in self.cv.names:
                driver.set_value(name, 0.0)
            self._drivers.append(driver)

    def _check_lines(self, lines: Sequence[str]) -> None:
        for line in parse(lines):
            if line.name in ("PUT", "UNITS", "EXTRACV"):
                raise PlumedInputError(
                    f"line {line.number} of the input, {line.text!r}: remove it; the variables "
                    f"{', '.join(self.cv.names)} are given, in nm where they are lengths",
                    line.number,
                )


def _puts(cv: CV) -> list[str]:
    """The lines that declare the variables."""
    lines = []
    for name, domain, unit in zip(cv.names, cv.domains, cv.plumed_units, strict=True):
        period = "NO"
        if domain is not None:
            # PLUMED compares the text of periods
            special = {math.pi: "pi", -math.pi: "-pi"}
            period = ",".join(special.get(v * unit, f"{v * unit:.17g}") for v in domain)
        lines.append(f"{name}: PUT PERIODIC={period} UNIT=number")
    return lines


def _checked(lines: list[str], added: int, directory: Path, settings: dict):
    """The input as `check_input` understands it; lines are numbered as the user has them."""
    try:
        return check_input(lines, 0, directory=directory, **settings)
    except PlumedInputError as error:
        number = error.line
        if number is None or number <= added:
            raise
        words = str(error).replace(f"line {number} of", f"line {number - added} of", 1)
        raise PlumedInputError(words, number - added) from None
