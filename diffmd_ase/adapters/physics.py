"""What a chain of `Atoms` feels: a calculator with bias and target, or a kernel of its own.

Both answer the same questions: which kernel, and which energies belong to the state that
it has reached. The proposals of a Metropolis step are evaluated as well, so that values
are kept row by row for those walkers whose state they are of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor

from ..potentials.ase_calculator import AsePotential
from ..potentials.base import Potential, Sum, unwrapped
from ..potentials.named import MODEL, Source, find_potential, in_its_place
from ..sampling.directions import along, split
from ..sampling.kernels import Kernel
from ..simulation.constraints import what_moves
from ..simulation.prepare import Prepared, StepRequest, prepare
from ..state import Evaluation, State
from ..system import System
from .calculator import ScoreCalculator
from .images import constraints_of
from .remembered import LastResults, Remembered, total

__all__ = ["OfCalculator", "OfKernel", "Physics"]


class Physics(ABC):
    """A kernel, and the energies of the states that it reaches.

    Attributes
    ----------
    kernel : of all walkers
    device : where they live
    com : the centre of mass is held
    holds : the kernel holds what constraints of the atoms hold
    asks : the calculator of the atoms is asked
    carries : what the atoms carry, such as charges and ``info``, is seen by a calculator of ASE
    remembered : terms that keep their values at the states reached; `keep` tells them
    adopt : gives the calculator of a single `Atoms` the values of its state, where that is all
        there is to say of a step; None: `seed` and `frame_info` say it
    """

    kernel: Kernel
    device: torch.device | str
    com: bool = False
    holds: bool = False
    asks: bool = False
    carries: bool = False
    remembered: Sequence[Remembered] = ()
    adopt: Callable[[Atoms, Evaluation], None] | None = None

    @abstractmethod
    def follow(self, images: Sequence[Atoms]) -> bool:
        """The atoms of the live walkers have something else: True if the kernel is another one now.

        Raises ``ValueError`` for what the kernel cannot follow.
        """

    def keep(self, state: State, *, first: bool = False) -> None:
        """The chain has come to ``state``, or starts (``first``) there."""
        for term in self.remembered:
            term.keep(state.x, first=first)

    def felt(self, state: State) -> list[Tensor]:
        """Forces of everything that a shift of all atoms might change the energy of."""
        return [state.forces]

    def seed(self, state: State) -> None:  # noqa: B027
        """Give the calculator of a single `Atoms` what is known, so that reading is free."""

    @abstractmethod
    def scale(self, factor: float) -> None:
        """Multiply the step size."""

    @abstractmethod
    def values(self, state: State) -> Evaluation:
        """Energy and forces that frames show."""

    @abstractmethod
    def energies(self, state: State) -> dict[str, float]:
        """Means over walkers in eV, by the name of their column in a log."""

    def described(self, state: State) -> dict[str, Tensor]:
        """What the bias says of the walkers, by name, each (*batch)."""
        return self.kernel.potential.describe(state.x)

    def frame_info(self, state: State) -> dict[str, list[float]]:
        """What ``atoms.info`` of frames holds in addition, one value for each walker."""
        return {name: _values(value) for name, value in self.described(state).items()}

    @abstractmethod
    def todict(self) -> dict:
        """Settings; JSON values only."""

    @property
    def failed(self) -> tuple[int, str]:
        """Structures for which a calculator failed so far, and what it said last."""
        terms = [unwrapped(term) for term in self.kernel.potential.terms]
        failing = [t for t in terms if isinstance(t, AsePotential) and t.failed]
        return sum(t.failed for t in failing), failing[-1].last_failure if failing else ""


class OfKernel(Physics):
    """A kernel as the user made it; frames and log show the energy of its target.

    ``kernel`` is that of all walkers, ``system`` what the atoms are, and ``device`` where the
    walkers live. Raises ``ValueError`` for a kernel that is bound to another system.
    """

    def __init__(self, kernel: Kernel, system: System, device: torch.device | str = "cpu"):
        self.kernel, self.device = kernel, device
        self._check(system)

    def follow(self, images) -> bool:
        self._check(System.from_atoms(images[0]))
        return False

    def _check(self, system: System) -> None:
        bound = self.kernel.potential.system
        if bound is not None and (difference := bound.difference(system)):
            raise ValueError(
                f"the kernel is bound to {bound.formula} ({len(bound)} atoms), and the atoms "
                f"differ from that in {difference}: make its potentials for "
                "System.from_atoms(atoms)"
            )

    def scale(self, factor) -> None:
        self.kernel = self.kernel.scaled(factor)

    def values(self, state) -> Evaluation:
        return Evaluation(state.energy, state.forces)

    def energies(self, state) -> dict[str, float]:
        return {"Etarget[eV]": _mean(state.energy)}

    def todict(self) -> dict:
        return {"kernel": type(self.kernel).__name__}


class OfCalculator(Physics):
    """The atoms' own calculator, with bias, as harmonic-coupled reverse steps to a target.

    What it is follows the atoms: their calculator, masses, cell, constraints and all they carry.

    Parameters
    ----------
    images : the first has the calculator; constraints are read from it
    batched : positions are (B, N, 3); False: of one walker, (N, 3)
    temperature_K, step, proposal_steps : see `simulation.prepare.prepare`
    bias : felt by drift and target, no part of the energies that frames show
    target : None for plain dynamics; see `potentials.named.find_potential`

    Attributes
    ----------
    step_size : the resolved step

    Raises
    ------
    ValueError : no calculator, constraints that are not supported; others as
        `simulation.prepare.prepare`
    """

    asks, holds = True, True

    def __init__(
        self,
        images: Sequence[Atoms],
        *,
        batched: bool,
        temperature_K: float,
        step: StepRequest,
        bias: Potential | None,
        target: Source | None,
        proposal_steps: int,
    ):
        if bias is not None and not isinstance(bias, Potential):
            raise TypeError(f"bias must be a Potential, not {type(bias).__name__}")
        self.temperature_K, self.bias = temperature_K, bias
        self._images, self._batched, self._asked = images, batched, step
        self._target, self._proposal_steps = in_its_place(target), proposal_steps
        self._keeps_h = step.spring is not None
        self._factor = 1.0  # of the step that was asked for, adapted or set since
        self._last = LastResults()
        self._prepare(images)

    def _prepare(self, images: Sequence[Atoms]) -> None:
        """The kernel of the ``images`` as they are now."""
        self._moving, self.com = what_moves(images[0])
        drift, accepts = self._bind(images)
        x = torch.tensor(np.stack([image.positions for image in images]), device=self.device)
        prepared = prepare(
            drift,
            System.from_atoms(images[0]),
            temperature_K=self.temperature_K,
            step=self._asked,
            target=MODEL if accepts is None and self._target is not None else accepts,
            proposal_steps=self._proposal_steps,
            bias=self.bias,
            moving=self._moving,
            mean_free=self.com,
            x=x if self._batched else x[0],
        )
        self._use(prepared if self._factor == 1.0 else prepared.scaled(self._factor, "set later"))
        self._held, self._calculator = self._holding(images[0]), self._images[0].calc

    def _use(self, prepared: Prepared) -> None:
        self._prepared, self.kernel, self.step_size = prepared, prepared.kernel, prepared.step

    def _holding(self, atoms: Atoms) -> tuple:
        """What the step and the metric follow from; the potentials from all else."""
        return atoms.numbers.tobytes(), atoms.get_masses().tobytes(), constraints_of(atoms)

    def follow(self, images) -> bool:
        same = self._images[0].calc is self._calculator and self._holding(images[0]) == self._held
        if not same:
            self._prepare(images)
            return True
        drift, accepts = self._bind(images)
        if self.bias is not None:
            drift, accepts = drift + self.bias, None if accepts is None else accepts + self.bias
        self._use(self._prepared.bound(drift, accepts))
        return True

    def scale(self, factor, why: str = "adapted") -> None:
        """Multiply the step size; ``why`` goes into its source."""
        self._use(self._prepared.scaled(factor, why))
        self._factor *= factor

    def set_timestep(self, timestep: float) -> None:
        """Another time step, in ASE time: h in proportion; refused and warned of as at first."""
        if not (np.isfinite(timestep) and timestep > 0):
            raise ValueError(f"{timestep=} must be positive and finite (ASE time)")
        if timestep != self.step_size.timestep:
            self.scale(timestep / self.step_size.timestep, "dt set")
            self._keeps_h = False

    def heat(self, temperature_K: float) -> None:
        """Another temperature from the next step on; see `simulation.prepare.Prepared.at`.

        Raises ``ValueError`` for a bias that has learned at this one.
        """
        if self.kernel.potential.has_memory:
            raise ValueError(
                f"a bias that learns ({self._learning()}) holds the temperature that it was made "
                f"for, {self.temperature_K:g} K: make a new bias and a new dynamics for "
                f"{temperature_K:g} K"
            )
        self._use(self._prepared.at(temperature_K, keeps_h=self._keeps_h))
        if self._asked.spring is not None and not self._keeps_h:
            self._factor *= temperature_K / self.temperature_K
        self.temperature_K = temperature_K

    def _learning(self) -> str:
        terms = self.kernel.potential.terms
        return ", ".join(type(unwrapped(term)).__name__ for term in terms if term.has_memory)

    def felt(self, state) -> list[Tensor]:
        felt = [state.forces]
        if self._target_terms:
            felt.append(total(self._target_terms, state.x).forces)
        _, directions = split(self._moving)
        return felt if directions is None else [along(directions, forces) for forces in felt]

    def values(self, state) -> Evaluation:
        if not self.remembered:
            return Evaluation(state.energy, state.forces)
        return total(self._drift_terms, state.x)

    def described(self, state) -> dict[str, Tensor]:
        return {} if self.bias is None else self.bias.describe(state.x)

    def energies(self, state) -> dict[str, float]:
        base, accepts = self.values(state).energy, self._accepting(state)
        bias = 0.0 if base is not None or self._target is not None else float("nan")
        if self.bias is not None:
            bias = _mean(self._bias_energy(state))
        columns = {"Epot[eV]": _mean(base), "Bias[eV]": bias}
        if self._target is not None:
            columns["Etarget[eV]"] = _mean(accepts)
        return columns

    def frame_info(self, state) -> dict[str, list[float]]:
        info = super().frame_info(state)
        if self._target_terms:
            info["target_energy"] = _values(self._accepting(state))
        bias = self._bias_energy(state)
        if bias is not None:
            info["bias_energy"] = _values(bias)
        return info

    def _accepting(self, state: State) -> Tensor | None:
        """Energy of what decides, without the bias."""
        if not self._target_terms:
            return self.values(state).energy
        return total(self._target_terms, state.x).energy

    def _bias_energy(self, state: State) -> Tensor | None:
        if self.bias is None or state.energy is None:
            return None
        accepts = self._accepting(state)
        return None if accepts is None else state.energy - accepts

    def seed(self, state) -> None:
        atoms = self._images[0]
        calc = atoms.calc
        if isinstance(calc, ScoreCalculator):
            calc.adopt(atoms, self.values(state))
            return
        if isinstance(calc, Calculator):
            self._last.tell(calc, atoms)
        # AsePotential used this very calculator: its cache answers
        atoms.get_forces()

    def todict(self) -> dict:
        target = self._target
        return {
            "timestep": self.step_size.timestep,
            "temperature_K": self.temperature_K,
            "friction": _plain(self._asked.friction),
            "mobility": _plain(self._asked.mobility),
            "spring": _plain(self._asked.spring),
            "h": np.asarray(self.step_size.h).tolist(),
            "step-source": self.step_size.source,
            "bias": None if self.bias is None else type(self.bias).__name__,
            "target": target
            if target is None or isinstance(target, str)
            else type(target).__name__,
            "proposal-steps": self._proposal_steps,
        }

    def _bind(self, images: Sequence[Atoms]) -> tuple[Potential, Potential | None]:
        """Drift and separate target of the atoms as they are now, without the bias.

        Their terms remember their values where frames show less than what drives.
        """
        atoms, target = images[0], None
        calc, base = self._images[0].calc, self._field(images)
        ours = isinstance(calc, ScoreCalculator)
        self.device = calc.device(atoms) if ours else "cpu"
        of_model = self._target is calc or (isinstance(self._target, str) and self._target == MODEL)
        if self._target is not None and not of_model:
            target = find_potential(self._target, System.from_walkers(images), model=base)
        self.carries = not ours or target is not None
        # one for each term, so that what drift and target share stays shared
        wrapped: dict[int, Remembered] = {}
        if self.bias is not None or target is not None:
            for term in (*base.terms, *(() if target is None else target.terms)):
                wrapped.setdefault(id(term), Remembered(term))
        self.remembered = list(wrapped.values())
        self.adopt = calc.adopt if ours and not wrapped else None
        self._drift_terms = [wrapped[id(term)] for term in base.terms] if wrapped else []
        self._target_terms = [] if target is None else [wrapped[id(t)] for t in target.terms]
        return (
            Sum(*self._drift_terms) if wrapped else base,
            None if target is None else Sum(*self._target_terms),
        )

    def _field(self, images: Sequence[Atoms]) -> Potential:
        calc = self._images[0].calc  # that of the first serves all, lost or not
        if isinstance(calc, ScoreCalculator):
            return calc.potential(images[0])
        if calc is None:
            raise ValueError("the atoms have no calculator: atoms.calc = ScoreCalculator(...)")
        # plain dynamics has no other state to stay in
        failures: Literal["raise", "reject"] = "raise" if self._target is None else "reject"
        return AsePotential(calc, System.from_walkers(images), failures=failures)


def _values(value: Tensor) -> list[float]:
    return value.double().reshape(-1).tolist()


def _mean(energy: Tensor | None) -> float:
    return float("nan") if energy is None else float(energy.mean())


def _plain(value) -> float | list | None:
    """A number or an array as JSON has it."""
    return value if value is None else np.asarray(value, float).tolist()
