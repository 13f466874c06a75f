"""PLUMED as a potential with memory: evaluation is pure, hills come from accepted positions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from diffmd_ase.state import Evaluation
from diffmd_ase.system import System

from . import library
from .bases import Bases, frames_of
from .check import PlumedInputError, check_input
from .driver import Driver
from .instances import Instances
from .memory import Remembering
from .script import read_lines

__all__ = ["WALKER", "PlumedPotential", "takes_walker"]

WALKER = "walker"


class PlumedPotential(Remembering):
    """The bias V(x, t) of a PLUMED input, in eV, for any number of walkers.

    With ``walkers="shared"`` one PLUMED instance serves all walkers in turn: each sees the
    hills of all, at once, and files have one row per walker (tag them with
    ``w: EXTRACV NAME=walker``). With ``"independent"`` each walker has an instance and
    files of its own, in ``walker-0``, ``walker-1``, … of ``directory``.

    Files are PLUMED's (nm, kJ/mol, ps unless the input has UNITS). ``update`` evaluates again
    only at steps at which the input deposits or prints.

    Parameters
    ----------
    system : atoms, masses, cell
    input : path of a PLUMED input, or its lines
    kT : eV
    timestep : ASE time of one step, for the time column and time-dependent biases
    walkers : "shared" or "independent"
    restart : go on with the files in ``directory``; `restore` first cuts them back to the
        checkpoint
    directory : of all files; relative names of the input mean this folder
    charges : (N,) in e, for actions that need them
    first_step : steps completed before the first one here
    allow_load : whether the input may run code of files (LOAD and the like), as PLUMED lets it;
        False for inputs of strangers

    Raises
    ------
    ImportError : no library of PLUMED
    PlumedInputError : a ValueError with the number of the line and PLUMED's own words
    ValueError : partial pbc, kT or timestep that are not positive
    FileExistsError : files of another run would be overwritten
    """

    _what = "positions"

    def __init__(
        self,
        system: System,
        input: str | Path | Sequence[str],
        *,
        kT: float,
        timestep: float,
        walkers: str = "shared",
        restart: bool = False,
        directory: str | Path = ".",
        charges=None,
        first_step: int = 0,
        allow_load: bool = True,
    ):
        if not (np.isfinite(kT) and kT > 0):
            raise ValueError(f"{kT=} must be positive: kB times the temperature, in eV")
        if not (np.isfinite(timestep) and timestep > 0):
            raise ValueError(f"{timestep=} must be positive (ASE time)")
        if system.periodic and not system.pbc.all():
            raise ValueError(
                f"pbc={system.pbc.tolist()}: PLUMED knows all three directions or none; give "
                "pbc=True with a cell that is long where there are no images, or pbc=False"
            )
        self.system, self.walkers = system, walkers
        settings = {
            "kT": float(kT),
            "timestep": float(timestep),
            "masses": system.masses,
            "charges": charges,
            "box": system.cell if system.periodic else None,
        }
        checked = check_input(
            input, len(system), directory=directory, allow_load=allow_load, **settings
        )
        self.needs_base = checked.needs_energy
        self._plan, self._tagged = checked.plan, takes_walker(checked.script)
        instances = Instances(
            len(system),
            checked,
            self._prepare,
            source=read_lines(input),
            walkers=walkers,
            restart=restart,
            directory=directory,
            first_step=first_step,
            settings=settings,
        )
        self._use(instances)
        self._bases = Bases()

    # ------------------------------------------------------------------ evaluation

    def __call__(
        self, x: Tensor, *, stress: bool = False, base: Evaluation | None = None
    ) -> Evaluation:
        count = len(self.system)
        if x.shape[-2:] != (count, 3):
            raise ValueError(
                f"positions {tuple(x.shape)} do not fit the {count} atoms of "
                f"{self.system.formula}: expected (*batch, {count}, 3)"
            )
        frames = frames_of(x)
        walkers = x.shape[-3] if x.ndim > 2 else 1
        self._instances.require(walkers)
        energies = np.full(len(frames), np.nan)
        forces, virials = np.full(frames.shape, np.nan), np.full((len(frames), 3, 3), np.nan)
        if self.needs_base:
            self._bases.remember(frames, base)
        if x.ndim < 4:
            self._see(frames)
        with library.working_directory(str(self.directory)):  # once for all of them
            for index in np.flatnonzero(np.isfinite(frames).all((1, 2))).tolist():
                walker = index % walkers
                try:
                    driver = self._at(walker, frames[index])
                except RuntimeError as error:
                    if "grid" not in str(error).lower():
                        raise RuntimeError(
                            f"walker {self._instances.name(walker)}: {error}"
                        ) from error
                    self._warn_outside(walker, error)
                    continue
                energies[index], forces[index], virials[index] = (
                    driver.bias,
                    driver.forces,
                    driver.virial,
                )
                if self.needs_base:
                    forces[index] -= self._bases.of(frames[index])[1]
        return Evaluation(
            x.new_tensor(energies).reshape(x.shape[:-2]),
            x.new_tensor(forces).reshape(x.shape),
            self._stress(x, virials) if stress else None,
        )

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """What the input names, (*batch) each, at ``x``, in the input's units; deposits nothing.

        Values that only PRINT asks for are those of its last step. Empty where ENERGY is biased.
        """
        if self.needs_base:
            return {}
        walkers = x.shape[-3] if x.ndim > 2 else 1
        self._instances.require(walkers)
        values = {name: np.full(x.shape[:-2], np.nan) for name in self._plan.values}
        with library.working_directory(str(self.directory)):
            for index, frame in enumerate(frames_of(x)):
                if not np.isfinite(frame).all():
                    continue
                driver = self._at(index % walkers, frame)
                for name, found in values.items():
                    found.flat[index] = driver.get_value(name)
        return {name: x.new_tensor(found) for name, found in values.items()}

    def _calculate(self, driver: Driver, walker: int, values: np.ndarray, step: int) -> None:
        if self._tagged:
            driver.set_extra(WALKER, float(self._instances.name(walker)))
        if self.needs_base:
            energy, forces = self._bases.of(values)
            driver.evaluate(values, step=step, energy=energy, forces=forces)
        else:
            driver.calculate(values, step)

    def _see(self, frames: np.ndarray) -> None:
        if self._instances.saw(frames) and self.needs_base:
            self._bases.settle(frames)

    def _stress(self, x: Tensor, virials: np.ndarray) -> Tensor | None:
        # a bias on ENERGY scales the virial of the base, which PLUMED is not given
        if not self.system.periodic or self.needs_base:
            return None
        volume = abs(np.linalg.det(self.system.cell))
        six = (virials / volume)[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        return x.new_tensor(six).reshape(*x.shape[:-2], 6)

    # ------------------------------------------------------------------ learning

    def begin(self, x: Tensor, step: int) -> bool:
        if self.needs_base and not self._instances.begun:
            self._bases.settle(frames_of(x))
        return super().begin(x, step)

    def update(self, x: Tensor, step: int) -> bool:
        changed = super().update(x, step)
        if self.needs_base:
            self._bases.settle(frames_of(x))
        return changed

    def values(self) -> dict[str, np.ndarray]:
        """Bias, CVs and what is printed, (B,) each, before the last deposit, in the units of
        the input; of the last step at which the input deposits or prints."""
        rows = self._instances.rows
        return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def checkpoint(self) -> dict:
        return super().checkpoint() | {"base": self._bases.checkpoint()}

    def restore(self, saved: dict, x: Tensor, step: int) -> None:
        self._bases.restore(saved.get("base", {}))
        super().restore(saved, x, step)

    def _given(self, x: Tensor) -> np.ndarray:
        return frames_of(x)

    @property
    def _watched(self) -> tuple[str, ...]:
        return self._plan.values

    def _prepare(self, driver: Driver, labels: Sequence[str]) -> None:
        # bound before anything is evaluated: PLUMED fills them from then on
        for name, label in zip(self._plan.values, labels, strict=True):
            driver.watch(name, label)

    def _warn_outside(self, walker: int, error: Exception) -> None:
        name = self._instances.name(walker)
        warnings.warn(
            f"walker {name} left the grid of the bias, its energy is NaN: {error}; "
            "widen the grid, or keep the CV inside with UPPER_WALLS and LOWER_WALLS",
            stacklevel=3,
        )


def takes_walker(script) -> bool:
    """Whether the actions of an input (``script``) ask for the number of the walker.

    Raises `PlumedInputError` where they ask for other values.
    """
    for line in script:
        if line.name == "PUT" or (line.name == "EXTRACV" and line.keywords.get("NAME") != WALKER):
            raise PlumedInputError(
                f"line {line.number} of the input, {line.text!r}: PlumedPotential passes atoms and "
                f"EXTRACV NAME={WALKER} only; values of your own go through Driver.set_value",
                line.number,
            )
    return any(line.name == "EXTRACV" for line in script)
