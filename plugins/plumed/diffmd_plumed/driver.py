"""One PLUMED instance, driven through its cmd interface without the traps.

PLUMED keeps pointers to the arrays it is given: all of them are float64, contiguous and
owned here. Forces and virial are added to, so they are zeroed. Masses and charges are read
at the first step only. The input is given before ``init``: read line by line afterwards,
ENERGY would stay in the caller's units (PLUMED 2.11-dev). Evaluation (``calculate`` and
``apply``) and learning (``update``) are separate calls.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import library
from .ending import ERRORS, Ending, words
from .script import read_lines
from .units import ASE_UNITS, Units

__all__ = ["Driver", "Result"]

LOG = "plumed.log"
_FINALIZED = "this driver was finalized: make another one"
_FORCE_OF = {"Value": "setValueForces", "ExtraCV": "setExtraCVForce"}


class Result(NamedTuple):
    """Bias energy, forces (N, 3) of the bias alone and virial (3, 3), dV/d(strain)."""

    bias: float
    forces: np.ndarray
    virial: np.ndarray


class Driver:
    """PLUMED for one system, step by step, in any units.

    Parameters
    ----------
    natoms : atoms that are passed; 0 for inputs of READ or PUT actions
    input : path of a PLUMED input, or its lines
    units : of everything that is passed and returned
    kT : thermal energy; None leaves PLUMED without one, and what needs it refuses
    timestep : between steps
    masses, charges : (natoms,); None: zeros
    box : (3, 3), rows are lattice vectors; None: not periodic. `set_box` changes it
    first_step : step of the first evaluation
    restart : append to the files there are, and read the hills in them
    directory : of all files; relative names in the input mean this folder
    log : name of PLUMED's log in it
    kernel : path of another libplumedKernel.so

    Attributes
    ----------
    buffers : value and ``-dV/d(value)`` of each PUT action that was set, in that order: the arrays
        PLUMED works on. For many walkers: filling them before `calculate` is `set_value` without
        its checks

    Raises
    ------
    ImportError : no library of PLUMED
    ValueError : PLUMED refuses the input, with its own words; shapes, values that are not finite
    """

    def __init__(
        self,
        natoms: int,
        input: str | Path | Sequence[str],
        *,
        timestep: float,
        units: Units = ASE_UNITS,
        kT: float | None = None,
        masses=None,
        charges=None,
        box=None,
        first_step: int = 0,
        restart: bool = False,
        directory: str | Path = ".",
        log: str = LOG,
        kernel: str | None = None,
    ):
        if natoms < 0:
            raise ValueError(f"{natoms=} must not be negative")
        if not (np.isfinite(timestep) and timestep > 0):
            raise ValueError(f"{timestep=} must be positive")
        if kT is not None and not (np.isfinite(kT) and kT > 0):
            raise ValueError(f"{kT=} must be positive, or None")
        self.natoms, self.units, self.step = int(natoms), units, int(first_step)
        self.directory = os.path.abspath(directory)
        self.log_path = os.path.join(self.directory, log)
        self._positions = np.zeros((self.natoms, 3))
        self.forces, self.virial = np.zeros((self.natoms, 3)), np.zeros((3, 3))
        self._masses, self._charges = np.zeros(self.natoms), np.zeros(self.natoms)
        if masses is not None:
            self._fill(self._masses, masses, "masses")
        if charges is not None:
            self._fill(self._charges, charges, "charges")
        self._box = None if box is None else np.zeros((3, 3))
        self._bias, self._stop = np.zeros(1), np.zeros(1, np.intc)
        self._step = np.zeros(1, np.int_)
        self._values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.buffers: list[tuple[np.ndarray, np.ndarray]] = []
        self._put: dict[str, np.ndarray] = {}  # values by command: PLUMED copies them once a step
        self._data: dict[str, np.ndarray] = {}
        self._fresh = False  # an evaluation that was not learned from
        self._told: int | None = None  # the step PLUMED knows, until it updates or fails
        self._plumed = library.new_instance(kernel)
        # forgotten drivers, and those that are left when Python ends, end as others do
        self._ending = Ending(self._plumed, self.directory, vars(self).copy())
        self._forgotten = weakref.finalize(self, self._ending)
        self._start(read_lines(input), kT, float(timestep), bool(restart), log)
        if box is not None:
            self.set_box(box)
        # it asks for all atoms in its update, which PLUMED forgets after a calculation without one
        self._at_once = "Action EFFECTIVE_ENERGY_DRIFT\n" in self.log()

    # ------------------------------------------------------------------ one step

    def evaluate(
        self, positions=None, *, step: int | None = None, energy: float | None = None, forces=None
    ) -> Result:
        """The bias at ``positions`` (natoms, 3), at ``step`` or the last one; nothing learns.

        An input that biases ENERGY needs the ``energy`` and ``forces`` (natoms, 3) that it is
        added to: PLUMED scales the forces, and the difference is the bias.

        Raises
        ------
        ValueError : shapes, values that are not finite
        RuntimeError : PLUMED failed (a value outside a grid, for instance), in its own words
        """
        with library.working_directory(self.directory):  # and other threads wait
            return self._evaluated(positions, step, energy, forces)

    def _evaluated(self, positions, step, energy, forces) -> Result:
        if positions is not None:
            self._fill(self._positions, positions, "positions")
        if step is not None:
            self.step = int(step)
        if energy is not None and not np.isfinite(energy):
            raise ValueError(f"{energy=} to be biased is not finite")
        if forces is None:
            self.forces.fill(0.0)
        else:
            self._fill(self.forces, forces, "forces")
        base = self.forces.copy()
        bias = self._calculate(energy)
        return Result(bias, self.forces - base, self.virial.copy())

    def calculate(self, positions: np.ndarray, step: int) -> float:
        """The bias, as `evaluate`, without its checks and copies.

        For many walkers whose positions are known to be finite; `forces` and `virial` hold the
        rest of the result until the next call.
        """
        self._positions[...] = positions
        self.step = step
        self.forces.fill(0.0)
        return self._calculate(None)

    def _calculate(self, energy: float | None) -> float:
        if self._plumed is None:
            raise RuntimeError(_FINALIZED)
        self._fresh, self._told, told = False, None, self._told
        if self._at_once:
            self._energy, self._before = energy, self.forces.copy()
        try:
            with library.working_directory(self.directory):  # some actions open files here
                self._call("performCalcNoUpdate", energy, told)
                self._cmd("getBias", self._bias)
        except ERRORS as error:
            raise RuntimeError(f"PLUMED failed at step {self.step}: {words(error)}") from error
        self._fresh, self._told = True, self.step
        return float(self._bias[0])

    def _call(self, perform: str, energy: float | None, told: int | None = None) -> None:
        """One calculation with what was given; PLUMED was ``told`` the step before."""
        cmd = self._plumed.cmd
        self.virial.fill(0.0)
        for _, force in self._values.values():
            force.fill(0.0)
        if told != self.step or energy is not None or self._put:
            self._step[0] = self.step
            cmd("setStepLong", self._step)
        for key, value in self._put.items():
            cmd(key, value)
        if energy is not None:
            cmd("setEnergy", float(energy))
        cmd("prepareCalc")
        cmd(perform)

    def update(self) -> None:
        """Learn from, and print, what was evaluated last; once for each evaluation.

        Raises ``RuntimeError`` without an evaluation since the last update, or if PLUMED fails.
        """
        if not self._fresh:
            raise RuntimeError(
                f"nothing was evaluated since the update at step {self.step}: call evaluate() "
                "with the positions to learn from"
            )
        self._fresh, self._told = False, None
        self._ending.owed = True
        try:
            with library.working_directory(self.directory):
                if self._at_once:
                    self.forces[...] = self._before
                    self._call("performCalc", self._energy)
                else:
                    self._cmd("update")
        except ERRORS as error:
            raise RuntimeError(
                f"PLUMED failed to update at step {self.step}: {words(error)}"
            ) from error

    @property
    def bias(self) -> float:
        """The bias energy of the last evaluation."""
        return float(self._bias[0])

    @property
    def stopped(self) -> bool:
        """An action (COMMITTOR) asked the run to stop."""
        return bool(self._stop[0])

    def set_box(self, box) -> None:
        """Lattice vectors (3, 3), as rows, from the next evaluation on."""
        if self._box is None:
            raise ValueError("this driver was made without a box: give box= when it is made")
        self._fill(self._box, box, "box")

    # ------------------------------------------------------------------ values

    def set_value(self, name: str, value) -> None:
        """Set the scalar or array of a PUT action (label ``name``), in its units."""
        self._set(name, value, "Value", "PUT")

    def set_extra(self, name: str, value: float) -> None:
        """Set the number of EXTRACV actions with ``NAME=name``."""
        self._set(name, value, "ExtraCV", "EXTRACV")

    def _set(self, name: str, value, kind: str, action: str) -> None:
        value = np.asarray(value, dtype=float)
        if not np.isfinite(value).all():
            raise ValueError(f"the value of {name} is not finite: {value}")
        if name not in self._values:
            buffers = np.array(value, ndmin=1, order="C"), np.zeros(value.shape or (1,))
            try:
                self._cmd(f"set{kind} {name}", buffers[0])
                self._cmd(f"{_FORCE_OF[kind]} {name}", buffers[1])
            except ERRORS as error:
                raise ValueError(f"{name} is no {action} action: {words(error)}") from error
            self._values[name] = buffers
            if kind == "Value":
                self.buffers.append(buffers)
                self._put[f"setValue {name}"] = buffers[0]
        mine = self._values[name][0]
        if value.size != mine.size:
            raise ValueError(f"{name} had {mine.size} numbers, now {value.size}")
        mine[...] = value.reshape(mine.shape)

    def value_force(self, name: str) -> np.ndarray:
        """``-dV/d(value)`` of a PUT or EXTRACV action after the last evaluation."""
        return self._values[name][1].copy()

    def watch(self, name: str, label: str | None = None) -> None:
        """Have the value of an action or component kept from the next evaluation on.

        As ``name``, where PLUMED's ``label`` is another. Raises ``ValueError`` where there is none
        of that name.
        """
        if name in self._data:
            return
        label = name if label is None else label
        try:
            rank = np.zeros(1, np.int_)
            self._cmd(f"getDataRank {label}", rank)
            shape = np.ones(max(1, int(rank[0])), np.int_)
            self._cmd(f"getDataShape {label}", shape)
            data = np.full(tuple(shape), np.nan)
            self._cmd(f"setMemoryForData {label}", data)
        except ERRORS as error:
            raise ValueError(f"PLUMED has no value {name!r}: {words(error)}") from error
        self._data[name] = data

    def get_value(self, name: str) -> float | np.ndarray:
        """Value of an action or component (``d``, ``m.bias``) in the units of the input.

        The one of the last evaluation in which it took part: what only PRINT asks for is
        computed at the steps of PRINT. Raises ``RuntimeError`` if nobody watches it.
        """
        if name not in self._data:
            raise RuntimeError(f"{name} is not kept: call watch({name!r}) before evaluating")
        data = self._data[name]
        return float(data.flat[0]) if data.size == 1 else data.copy()

    # ------------------------------------------------------------------ life

    def log(self) -> str:
        """What PLUMED has written to its log."""
        library.flush_files()
        return Path(self.log_path).read_text("utf-8", errors="replace")

    def finish(self) -> None:
        """Run PLUMED's final jobs, such as DUMPGRID without STRIDE: no step follows.

        `finalize` does, where there were updates since. Raises ``RuntimeError`` if PLUMED fails.
        """
        self._ending.jobs()

    def finalize(self) -> None:
        """Run the final jobs and close all files; the driver cannot be used any more.

        Twice is harmless; a driver that is forgotten, or left when Python ends, does so by itself.
        Raises ``RuntimeError``, with all closed, if PLUMED fails in a job.
        """
        self._plumed = None
        self._forgotten()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.finalize()
        except RuntimeError:
            if kind is None:  # an error before has the first word
                raise

    def _cmd(self, key: str, value=None) -> None:
        if self._plumed is None:
            raise RuntimeError(_FINALIZED)
        name = library.command(key)
        if value is None:
            self._plumed.cmd(name)
        else:
            self._plumed.cmd(name, value)

    def _start(self, lines, kT, timestep, restart, log) -> None:
        units = self.units
        with tempfile.NamedTemporaryFile(
            "w", suffix=".dat", delete=False, encoding="utf-8", errors="surrogateescape"
        ) as file:
            file.write("\n".join(lines) + "\n")
        try:
            # the log is opened by its name, as all files are
            with library.working_directory(self.directory):
                self._cmd("setMDEngine", "diffmd_ase")
                self._cmd("setMDLengthUnits", float(units.length))
                self._cmd("setMDEnergyUnits", float(units.energy))
                self._cmd("setMDTimeUnits", float(units.time))
                self._cmd("setMDMassUnits", float(units.mass))
                self._cmd("setMDChargeUnits", float(units.charge))
                self._cmd("setNatoms", self.natoms)
                self._cmd("setTimestep", timestep)
                if kT is not None:
                    self._cmd("setKbT", float(kT))
                self._cmd("setRestart", int(restart))
                self._cmd("setPlumedDat", file.name)
                self._cmd("setLogFile", log)
                self._cmd("init")
        except ERRORS as error:
            self.finalize()
            raise ValueError(f"PLUMED refuses the input: {words(error)}") from error
        finally:
            os.unlink(file.name)
        self._step[0] = self.step
        self._cmd("setStepLong", self._step)
        self._cmd("setStopFlag", self._stop)
        if self.natoms == 0:  # PLUMED then knows none of these
            return
        self._cmd("setPositions", self._positions)
        self._cmd("setForces", self.forces)
        self._cmd("setVirial", self.virial)
        self._cmd("setMasses", self._masses)
        self._cmd("setCharges", self._charges)
        if self._box is not None:
            self._cmd("setBox", self._box)

    @staticmethod
    def _fill(buffer: np.ndarray, values, name: str) -> None:
        values = np.asarray(values, dtype=float)
        if values.shape != buffer.shape:
            raise ValueError(f"{name} have shape {values.shape}, expected {buffer.shape}")
        # one number to look at: NaN and inf survive the sum
        if not np.isfinite(values.sum()) and not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[:, 0] if values.ndim else [0]
            raise ValueError(f"{name} of atoms {sorted(set(map(int, bad)))[:10]} are not finite")
        buffer[...] = values
