"""Any ASE calculator as a potential: MACE, EMT, xTB, DFT, OpenMM through its bridge."""

from __future__ import annotations

import pickle
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.calculators.mixing import Mixer
from torch import Tensor

from ..state import Evaluation
from ..system import System, carried_by
from .base import Potential

__all__ = ["AsePotential", "PotentialCalculator", "one_at_a_time"]


_PATIENCE = 50  # batches
_LOCKS: WeakKeyDictionary = WeakKeyDictionary()


def one_at_a_time(calculator) -> AbstractContextManager:
    """A lock of this ``calculator``, for the threads that share it, in whatever potentials.

    Calculators of ASE keep what they were asked last: two threads would read each other's results.
    """
    return _LOCKS.setdefault(calculator, RLock())


class PotentialCalculator(Calculator, ABC):
    """An ASE calculator with a potential inside, which is asked instead of the calculator.

    Threads that share one wait for each other.
    """

    def get_property(self, name, atoms=None, allow_calculation=True):
        """ASE's way to the result ``name`` of ``atoms``; see `Calculator.get_property`."""
        with one_at_a_time(self):
            return super().get_property(name, atoms, allow_calculation)

    @abstractmethod
    def potential(self, atoms: Atoms) -> Potential:
        """The potential, bound to the elements, cell and pbc of ``atoms``."""


class AsePotential(Potential):
    """Energies, forces and stress of an ASE calculator, one structure after the other.

    The energy is ``free_energy`` where the calculator has it, since that is the one whose
    gradient the forces are; without any energy the field counts as not conservative and
    the energy is None.

    Parameters
    ----------
    calculator : an ASE calculator that implements forces; it is used, not copied
    system : atoms, cell and pbc of every structure. The calculator sees the `Atoms` that it
        carries, moved: with their charges, spins, tags, arrays and ``info``, those of each walker
        where walkers differ
    processes : batches are spread over this many processes, each with its own copy of
        the calculator, which must pickle. They start with the first batch and, in a
        script, need the usual ``if __name__ == "__main__":``; `close` ends them.
    failures : "raise", or "reject": a structure for which the calculator fails (an SCF
        that does not converge) gets NaN for energy and forces, which a Metropolis step
        rejects, and is counted. After 50 batches in which every structure failed it raises: such
        a calculator is broken, and walkers would stay where they are

    Attributes
    ----------
    failed : structures that failed so far (``failures="reject"``)
    last_failure : what the calculator said of the last of them

    Raises
    ------
    ValueError : the calculator has no forces, positions do not fit the system, processes are
        below 1, or failures another word
    TypeError : processes > 1 with a calculator, or something that the atoms carry, that does not
        pickle
    RuntimeError : the calculator failed, or failed for everything; the message names it and the
        structure
    """

    def __init__(
        self,
        calculator,
        system: System,
        *,
        processes: int = 1,
        failures: Literal["raise", "reject"] = "raise",
    ):
        if processes < 1:
            raise ValueError(f"{processes=} must be at least 1")
        if failures not in ("raise", "reject"):
            raise ValueError(f"{failures=}: expected 'raise' or 'reject'")
        known = list(calculator.implemented_properties)
        if "forces" not in known:
            raise ValueError(
                f"{type(calculator).__name__} implements {known}, but a potential needs forces"
            )
        self.calculator, self.system, self.processes = calculator, system, processes
        self.conservative = "energy" in known or "free_energy" in known
        self._carriers = system.carriers()
        # row b of a batch is the walker that the number b of these carries
        self._rows = np.arange(len(self._carriers))
        self.per_walker = len(self._carriers) > 1
        self._has_stress = "stress" in known and self._carriers[0].cell.rank == 3
        self._pickled = _pickle(calculator, self._carriers) if processes > 1 else b""
        self._pool: ProcessPoolExecutor | None = None
        self._worked = False
        self.failures, self.failed, self.last_failure = failures, 0, ""
        self._in_vain = 0  # batches in a row of which nothing came

    def __call__(self, x: Tensor, *, stress: bool = False) -> Evaluation:
        if x.shape[-2:] != (len(self.system), 3):
            raise ValueError(
                f"positions {tuple(x.shape)} do not fit the {len(self.system)} atoms of "
                f"{self.system.formula}: expected (*batch, {len(self.system)}, 3)"
            )
        batch, rows = x.shape[:-2], self._rows
        if self.per_walker and batch[-1:] != rows.shape:
            raise ValueError(
                f"positions {tuple(x.shape)} of {len(rows)} walkers that carry charges, spins, "
                f"tags or info of their own: expected (*batch, {len(rows)}, N, 3)"
            )
        frames = x.detach().reshape(-1, *x.shape[-2:]).double().cpu().numpy()
        rows = np.resize(rows, len(frames))
        wanted = (self.conservative, stress and self._has_stress, self.failures == "reject")
        with one_at_a_time(self.calculator):
            *arrays, said = zip(*self._parts(frames, rows, wanted), strict=True)
            self._count([message for messages in said for message in messages], len(frames))
        energies, forces, stresses = (x.new_tensor(np.concatenate(a)) for a in arrays)
        return Evaluation(
            energies.reshape(batch) if wanted[0] else None,
            forces.reshape(x.shape),
            stresses.reshape(*batch, 6) if wanted[1] else None,
        )

    def _count(self, messages: list[str], structures: int) -> None:
        if not messages:
            self._in_vain = 0
            return
        self._in_vain = self._in_vain + 1 if len(messages) == structures else 0
        self.failed, self.last_failure = self.failed + len(messages), messages[-1]
        if self._in_vain >= _PATIENCE:
            raise RuntimeError(
                f"{type(self.calculator).__name__} failed for every structure of {_PATIENCE} "
                f"batches in a row, the last with: {self.last_failure}; mend it, and go on from "
                "what the run has on disk (restart)"
            )

    def _parts(self, frames, rows, wanted) -> list:
        if self.processes == 1 or len(frames) < 2:
            return [_evaluate(self.calculator, self._carriers, frames, rows, 0, *wanted)]
        try:
            parts = self._in_processes(frames, rows, wanted)
        except BrokenProcessPool as error:
            self._pool = None
            name = type(self.calculator).__name__
            if not self._worked:
                raise RuntimeError(
                    f"a process of {name} ended before it had evaluated anything; a script needs "
                    'if __name__ == "__main__": around its work, or use processes=1'
                ) from error
            self._worked = False  # twice in a row is no accident
            warnings.warn(
                f"a process of {name} ended (killed, or out of memory): its batch is evaluated "
                "again, in new ones",
                stacklevel=3,
            )
            return self._parts(frames, rows, wanted)
        self._worked = True
        return parts

    def select(self, keep) -> None:
        if self.per_walker:
            self._rows = self._rows[keep.cpu().numpy()]

    def close(self) -> None:
        """End the processes; the next batch starts new ones."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _in_processes(self, frames, rows, wanted) -> list:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.processes,
                # a fork would copy the threads of torch in an unknown state
                mp_context=get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._pickled,),
            )
        blocks = np.array_split(np.arange(len(frames)), min(self.processes, len(frames)))
        jobs = [
            self._pool.submit(
                _evaluate_in_worker, frames[block], rows[block], int(block[0]), *wanted
            )
            for block in blocks
        ]
        return [job.result() for job in jobs]


def _pickle(calculator, carriers: tuple[Atoms, ...]) -> bytes:
    try:
        return pickle.dumps((calculator, carriers))
    except Exception as error:  # pickle raises whatever the object raises
        raise TypeError(
            f"{type(calculator).__name__}, or what the atoms carry, cannot be sent to other "
            f"processes ({error}); use processes=1"
        ) from error


def _evaluate(
    calculator,
    carriers: tuple[Atoms, ...],
    frames: np.ndarray,
    rows: np.ndarray,
    first: int,
    energy: bool,
    stress: bool,
    reject: bool,
):
    """Energies (n,), forces (n, N, 3), stresses (n, 6), and what failed, in words.

    Row i of the ``frames`` (n, N, 3) moves carrier ``rows[i]``. Zeros where not wanted, NaN where
    failures are rejected.
    """
    said: list[str] = []
    energies, tensions = np.zeros(len(frames)), np.zeros((len(frames), 6))
    forces = np.zeros_like(frames)
    free = "free_energy" in calculator.implemented_properties
    for index, positions in enumerate(frames):
        atoms = carriers[rows[index]]
        if atoms.calc is not calculator:
            atoms.calc = calculator
        atoms.positions = positions
        _forget_others(calculator, atoms)
        try:
            # forces first: most calculators then know the energy as well
            forces[index] = atoms.get_forces(apply_constraint=False)
            if energy:
                energies[index] = atoms.get_potential_energy(
                    force_consistent=free, apply_constraint=False
                )
            if stress:
                tensions[index] = atoms.get_stress(apply_constraint=False)
        except Exception as error:  # calculators raise anything
            message = (
                f"{type(calculator).__name__} failed for structure {first + index} of the "
                f"batch: {type(error).__name__}: {error}"
            )
            if not reject:
                raise RuntimeError(message) from error
            said.append(message)
            energies[index] = forces[index] = tensions[index] = np.nan
    return energies, forces, tensions, said


def _forget_others(calculator, atoms: Atoms) -> None:
    """A cache that looks at positions does not answer for atoms that carry another charge."""
    known = calculator.atoms if isinstance(calculator, BaseCalculator) else None
    if known is None or not np.array_equal(known.positions, atoms.positions):
        return
    if carried_by(known) != carried_by(atoms):
        _forget(calculator)


def _forget(calculator: BaseCalculator) -> None:
    """Clear the cache, and those of the calculators that this one is made of."""
    if isinstance(calculator, Calculator):
        calculator.reset()
    else:
        calculator.atoms, calculator.results = None, {}
    for part in vars(calculator).values():
        inner = part.calcs if isinstance(part, Mixer) else [part]
        for one in inner:
            if isinstance(one, BaseCalculator):
                _forget(one)


# the calculator of a worker process and what it moves, set once when it starts; empty in the parent
_worker: list[tuple[Any, tuple[Atoms, ...]]] = []


def _start_worker(pickled: bytes) -> None:
    _worker[:] = [pickle.loads(pickled)]


def _evaluate_in_worker(frames, rows, first: int, energy: bool, stress: bool, reject: bool):
    [(calculator, carriers)] = _worker
    return _evaluate(calculator, carriers, frames, rows, first, energy, stress, reject)
