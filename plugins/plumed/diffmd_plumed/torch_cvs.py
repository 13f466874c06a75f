"""PLUMED biases on collective variables that torch computes, on any device.

PLUMED is given d numbers for each walker (PUT) and returns V and dV/ds; torch takes the
derivative back to the atoms. Positions stay where they are: B·d numbers cross each way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffmd_ase.io.plumed_writer import plumed_number
from diffmd_ase.potentials.biases.base import CVBias
from diffmd_ase.potentials.biases.cvs import CV

from . import library
from .check import PlumedInputError, check_input
from .driver import Driver
from .instances import Instances
from .memory import Remembering
from .script import parse, read_lines
from .units import ASE_UNITS

__all__ = ["PlumedCVPotential"]

# one that nothing asks for: where there is none, PLUMED crashes on HISTOGRAM
_ATOM = np.zeros((1, 3))


class PlumedCVPotential(Remembering, CVBias):
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
    ImportError : no library of PLUMED
    PlumedInputError : a ValueError with the number of the line and PLUMED's own words
    FileExistsError : files of another run would be overwritten
    """

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
        settings: dict = {"kT": float(kT), "timestep": float(timestep)}
        lines = read_lines(input)
        self._check_lines(lines)
        lines = [*_puts(self.cv), *lines]
        checked = _checked(lines, len(self.cv), directory, settings)
        self._unit, self._what = np.array(self.cv.plumed_units), ", ".join(self.cv.names)
        instances = Instances(
            len(_ATOM),
            checked,
            self._prepare,
            source=lines,
            walkers=walkers,
            restart=restart,
            directory=directory,
            first_step=first_step,
            settings=settings,
        )
        self._use(instances)
        self.walkers = walkers

    def bias(self, s):
        values = self._on_host(s)
        walkers = s.shape[-2] if s.ndim > 1 else 1
        self._instances.require(walkers)
        if s.ndim < 3:
            self._instances.saw(values)
        out = np.full((len(values), 1 + len(self.cv)), np.nan)
        with library.working_directory(str(self.directory)):  # once for all of them
            for index in np.flatnonzero(np.isfinite(values).all(-1)).tolist():
                try:
                    driver = self._at(index % walkers, values[index])
                except RuntimeError as error:
                    if "grid" not in str(error).lower():
                        raise
                    warnings.warn(f"{error}; the bias there is NaN", stacklevel=3)
                else:
                    out[index] = [driver.bias, *(force[0] for _, force in driver.buffers)]
        out[:, 1:] *= -self._unit / ASE_UNITS.energy
        # one copy back: energy and derivatives together
        back = torch.from_numpy(out).to(s.device).reshape(*s.shape[:-1], -1)
        return back[..., 0], back[..., 1:]

    def _given(self, x: Tensor) -> np.ndarray:
        return self._on_host(self.cv(x))

    def _on_host(self, s: Tensor) -> np.ndarray:
        return s.reshape(-1, len(self.cv)).cpu().numpy() * self._unit

    def _calculate(self, driver: Driver, walker: int, values: np.ndarray, step: int) -> None:
        # in the order of the variables: that of `_prepare`
        for (value, _), number in zip(driver.buffers, values.tolist(), strict=True):
            value[0] = number
        try:
            driver.calculate(_ATOM, step)
        except RuntimeError as error:
            raise RuntimeError(f"walker {self._instances.name(walker)}: {error}") from error

    def _prepare(self, driver: Driver, labels: Sequence[str]) -> None:
        for name in self.cv.names:
            driver.set_value(name, 0.0)

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
            period = ",".join(plumed_number(limit * unit) for limit in domain)
        lines.append(f"{name}: PUT PERIODIC={period} UNIT=number")
    return lines


def _checked(lines: list[str], added: int, directory: str | Path, settings: dict):
    """The input as `check_input` understands it; lines are numbered as the user has them."""
    try:
        return check_input(lines, len(_ATOM), directory=directory, **settings)
    except PlumedInputError as error:
        number = error.line
        if number is None or number <= added:
            raise
        words = str(error).replace(f"line {number} of", f"line {number - added} of", 1)
        raise PlumedInputError(words, number - added) from None
