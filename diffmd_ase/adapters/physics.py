"""What a chain of `Atoms` feels: a calculator with bias and target, or a kernel of its own.

Both answer the same questions: which kernel, and which energies belong to the state that
it has reached. The proposals of a Metropolis step are evaluated as well, so that values
are kept row by row for those walkers whose state they are of.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixCom
from torch import Tensor

from ..potentials.ase_calculator import AsePotential
from ..potentials.base import Potential, Sum
from ..potentials.curvature import measured_stiffness
from ..potentials.named import find_target
from ..sampling.euler import EulerMaruyama
from ..sampling.kernels import Kernel
from ..sampling.metropolis import Metropolis
from ..sampling.step_size import Step, card_stiffness, check_step, check_temperature, choose_step
from ..state import Evaluation, State
from ..system import System
from .calculator import ScoreCalculator
from .remembered import _inner, _Remembered, _total

__all__ = ["OfCalculator", "OfKernel", "Physics"]

log = logging.getLogger(__name__)


class Physics(ABC):
    """A kernel, and the energies of the states that it reaches."""

    kernel: Kernel
    com: bool = False  # the centre of mass is held

    def follow(self) -> bool:
        """Follow the atoms; True if the kernel is another one now."""
        return False

    def keep(self, state: State, *, first: bool = False) -> None:  # noqa: B027
        """The chain has come to ``state``, or starts (``first``) there."""

    def felt(self, state: State) -> list[Tensor]:
        """Forces of everything that a shift of all atoms might change the energy of."""
        return [state.forces]

    def seed(self, state: State) -> None:  # noqa: B027
        """Give the calculator of a single `Atoms` what is known, so that reading is free."""

    @property
    @abstractmethod
    def device(self) -> torch.device | str:
        """Where the walkers live."""

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
        terms = [_inner(t) for t in self.kernel.potential.terms]
        found = [t for t in terms if isinstance(t, AsePotential) and t.failed]
        return sum(t.failed for t in found), found[-1].last_failure if found else ""


class OfKernel(Physics):
    """A kernel as the user made it; frames and log show the energy of its target."""

    def __init__(self, kernel: Kernel, system: System, device: torch.device | str = "cpu"):
        known = kernel.potential.system
        if known is not None and known != system:
            raise ValueError(
                f"the kernel is bound to {known.formula} ({len(known)} atoms), the atoms are "
                f"{system.formula} ({len(system)} atoms) with this cell and these masses: make "
                "its potentials for System.from_atoms(atoms)"
            )
        self.kernel, self._device = kernel, device

    @property
    def device(self):
        return self._device

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

    Parameters
    ----------
    images : the first has the calculator; constraints are read from it
    target : None for plain dynamics; see `targets.find_target`
    """

    def __init__(
        self, images: list[Atoms], *, temperature_K: float, kT: float, bias, target, proposal_steps
    ):
        if bias is not None and not isinstance(bias, Potential):
            raise TypeError(f"bias must be a Potential, not {type(bias).__name__}")
        if target is None and proposal_steps != 1:
            raise ValueError(
                f"{proposal_steps=} without a target: steps of plain dynamics are not proposals; "
                "give target="
            )
        self._images, self.temperature_K, self.kT, self.bias = images, temperature_K, kT, bias
        self._target, self._proposal_steps = target, proposal_steps
        self.fixed, self.com = _constraints(images[0])
        self._ase: tuple | None = None
        self._factor = 1.0
        self._results: tuple[np.ndarray, dict] | None = None
        self._base = self._field()
        self._bind()

    def choose(self, x: Tensor, *, timestep, friction, mobility, spring) -> None:
        """Resolve the step and make the kernel; ``x`` is where a stiffness is measured."""
        atoms, moving = self._images[0], ~self.fixed
        if not moving.any():
            raise ValueError("all atoms are fixed: there is nothing to simulate")
        # what a bias adds to the stiffness is on no card
        card = None if self.bias is not None else card_stiffness(self._base, self.kT)
        if self._target in (None, "model"):  # another reference has the last word
            check_temperature(self._base, self.temperature_K)

        def stiffness() -> tuple[float, str]:
            if card is not None:
                return card, "from the model card"
            lam, evaluations = measured_stiffness(self._drift, x, self.kT)
            return lam, f"measured at the start with {evaluations} extra evaluations"

        self._said = {
            name: value if value is None else np.asarray(value, float).tolist()
            for name, value in {
                "friction": friction, "mobility": mobility, "spring": spring
            }.items()
        }  # fmt: skip
        self.step_size = choose_step(
            kT=self.kT,
            masses=atoms.get_masses(),
            timestep=timestep,
            friction=friction,
            mobility=mobility,
            spring=spring,
            stiffness=stiffness,
        )
        # a step that is too large is rejected where there is a target
        if card is not None and self._target is None and not (timestep is spring is None):
            check_step(self.step_size, card, moving)
        h: float | Tensor = torch.tensor(np.where(moving, self.step_size.h, 0.0))
        if np.ndim(self.step_size.h) == 0 and moving.all():
            h = float(self.step_size.h)
        log.info("step h = %s A^2 (%s)", h, self.step_size.source)
        self._h = h
        self._make()

    @property
    def device(self):
        atoms = self._images[0]
        return atoms.calc.device(atoms) if isinstance(atoms.calc, ScoreCalculator) else "cpu"

    def follow(self) -> bool:
        field = self._field()
        if field is self._base:
            return False
        self._base = field
        self._bind()
        self._make()
        return True

    def scale(self, factor) -> None:
        step = self.step_size
        self._h = self._h * factor
        self.step_size = Step(
            step.h * factor, step.timestep * factor, step.physical, f"{step.source}, adapted"
        )
        self._make()

    def keep(self, state, *, first=False) -> None:
        for term in self._remembered:
            term.keep(state.x, first=first)

    def felt(self, state) -> list[Tensor]:
        target = [_total(self._target_terms, state.x).forces] if self._target_terms else []
        return [state.forces, *target]

    def values(self, state) -> Evaluation:
        if not self._remembered:
            return Evaluation(state.energy, state.forces)
        return _total(self._drift_terms, state.x)

    def described(self, state) -> dict[str, Tensor]:
        return {} if self.bias is None else self.bias.describe(state.x)

    def energies(self, state) -> dict[str, float]:
        base, accepts = self.values(state).energy, self._accepting(state)
        bias = 0.0 if base is not None or self._target is not None else float("nan")
        if self.bias is not None:
            bias = _mean(self._bias_energy(state))
        said = {"Epot[eV]": _mean(base), "Bias[eV]": bias}
        if self._target is not None:
            said["Etarget[eV]"] = _mean(accepts)
        return said

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
        return _total(self._target_terms, state.x).energy

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
        if self._target is not None and isinstance(calc, Calculator) and calc.atoms is not None:
            # it has seen the proposal last; after a rejection it is told what it knew before
            if np.array_equal(calc.atoms.positions, atoms.positions):
                self._results = atoms.positions.copy(), _copied(calc.results)
            elif self._results is not None and np.array_equal(self._results[0], atoms.positions):
                calc.atoms, calc.results = atoms.copy(), _copied(self._results[1])
        # AsePotential used this very calculator: its cache answers
        atoms.get_forces()

    def todict(self) -> dict:
        target = self._target
        return {
            "timestep": self.step_size.timestep,
            "temperature_K": self.temperature_K,
            **self._said,
            "h": np.asarray(self.step_size.h).tolist(),
            "step-source": self.step_size.source,
            "bias": None if self.bias is None else type(self.bias).__name__,
            "target": target if target is None or isinstance(target, str) else _name(target),
            "proposal-steps": self._proposal_steps,
        }

    def _field(self) -> Potential:
        atoms = self._images[0]
        calc = atoms.calc
        if isinstance(calc, ScoreCalculator):
            return calc.potential(atoms)
        if calc is None:
            raise ValueError("the atoms have no calculator: atoms.calc = ScoreCalculator(...)")
        key = calc, atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes()
        if self._ase is None or self._ase[0] != key:
            for name in ("initial_charges", "initial_magmoms"):
                if atoms.has(name) and atoms.arrays[name].any():
                    raise ValueError(
                        f"atoms have {name}, which a potential does not carry: give the "
                        "calculator its charges and moments by its own settings"
                    )
            # plain dynamics has no other state to stay in
            failures: Literal["raise", "reject"] = "raise" if self._target is None else "reject"
            self._ase = key, AsePotential(calc, System.from_atoms(atoms), failures=failures)
        return self._ase[1]

    def _bind(self) -> None:
        atoms, target = self._images[0], None
        if self._target is not None and self._target is not atoms.calc:
            target = find_target(self._target, System.from_atoms(atoms))
        # one for each term, so that what drift and target share stays shared
        wrapped: dict[int, _Remembered] = {}
        if self.bias is not None or target is not None:
            for term in (*self._base.terms, *(() if target is None else target.terms)):
                wrapped.setdefault(id(term), _Remembered(term))
        self._remembered = list(wrapped.values())
        self._drift_terms = [wrapped.get(id(t), t) for t in self._base.terms]
        self._drift = self._with_bias(self._drift_terms) if wrapped else self._base
        self._target_terms = [] if target is None else [wrapped[id(t)] for t in target.terms]
        self._accepts = self._with_bias(self._target_terms) if target is not None else None

    def _with_bias(self, terms) -> Potential:
        return Sum(*terms) if self.bias is None else Sum(*terms) + self.bias

    def _make(self) -> None:
        proposal = EulerMaruyama(self._drift, kT=self.kT, h=self._h, mean_free=self.com)
        self.kernel = proposal
        if self._target is not None:
            if self._accepts is None and not self._drift.conservative:
                raise ValueError(
                    f"target='model', but {_name(self._images[0].calc)} has no energy (its forces "
                    "are not a gradient), and a Metropolis step compares energies: give target= "
                    "an ASE calculator or a Potential that has one, and keep this score as the "
                    "drift"
                )
            self.kernel = Metropolis(proposal, self._accepts, self._proposal_steps)


def _values(value: Tensor) -> list[float]:
    return value.double().reshape(-1).tolist()


def _mean(energy: Tensor | None) -> float:
    return float("nan") if energy is None else float(energy.mean())


def _name(thing) -> str:
    return type(thing).__name__


def _copied(results: dict) -> dict:
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in results.items()}


def _constraints(atoms: Atoms) -> tuple[np.ndarray, bool]:
    """Which atoms are fixed, and whether the centre of mass is."""
    fixed, com = np.zeros(len(atoms), bool), False
    for constraint in atoms.constraints:
        if type(constraint) is FixAtoms:
            fixed[constraint.index] = True
        elif type(constraint) is FixCom:
            com = True
        else:
            raise ValueError(
                f"{type(constraint).__name__} is not supported: overdamped steps projected on "
                "internal constraints sample with a metric factor, and energies do not belong "
                "in constraints; use FixAtoms, FixCom, or a restraint as bias"
            )
    if com and fixed.any():
        raise ValueError("FixCom with FixAtoms: fixed atoms already hold the origin, drop FixCom")
    return fixed, com
