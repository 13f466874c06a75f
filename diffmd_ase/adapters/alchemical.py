"""`AlchemicalCalculator`: two ASE calculators coupled by λ, with a cache that can be trusted."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculationFailed,
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)

from ..potentials.alchemical import Alchemical, check_lambda, coupled, coupled_slope
from ..potentials.ase_calculator import PotentialCalculator
from ..potentials.named import find_potential
from ..state import Evaluation
from ..system import System

__all__ = ["AlchemicalCalculator"]


class AlchemicalCalculator(PotentialCalculator):
    """``U_λ`` of two calculators (see `potentials.alchemical`) for every dynamics of ASE.

    ``results`` has energy and forces, and ``dudl``, ∂U/∂λ in eV; the atoms get ``info["lambda"]``
    and ``info["dudl"]``, which trajectories and extended XYZ keep. Our own dynamics take its
    `potential`, and their frames have both from there.

    Parameters
    ----------
    calc_a, calc_b : calculators with energies and forces, ours or any of ASE
    lam : λ in [0, 1]; may be set at any time
    soft : E of the soft core in eV; None: linear; likewise

    Results are not those of before once λ, E or a calculator is another one, or a calculator has
    been set to other parameters or reset.

    Raises
    ------
    TypeError : something that is no calculator
    ValueError : λ outside [0, 1] or not one number, E that is not positive, no energy or no forces
    CalculationFailed : energies or forces that are not finite
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012  # ASE's own

    def __init__(self, calc_a, calc_b, lam: float, *, soft: float | None = None):
        super().__init__()
        for calculator in (calc_a, calc_b):
            if not isinstance(calculator, BaseCalculator):
                raise TypeError(
                    f"{type(calculator).__name__} is no ASE calculator; ScoreCalculator makes one "
                    "of a model or a potential"
                )
            known = calculator.implemented_properties
            if "forces" not in known or not {"energy", "free_energy"} & set(known):
                raise ValueError(
                    f"{type(calculator).__name__} implements {known}: a coupling needs energy and "
                    "forces"
                )
        self.calc_a, self.calc_b, self.lam, self.soft = calc_a, calc_b, lam, soft
        self._valid_for: tuple = ()
        self._parameters = [_parameters(calc_a), _parameters(calc_b)]

    @property
    def lam(self) -> float:
        """λ in [0, 1]."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        if np.ndim(value):
            raise ValueError(f"lam={value} must lie in [0, 1], one number for one structure")
        self._lam = float(check_lambda(value))

    @property
    def soft(self) -> float | None:
        """E of the soft core in eV; None: linear."""
        return self._soft

    @soft.setter
    def soft(self, value: float | None) -> None:
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"soft={value} must be positive: the energy in eV of the soft core")
        self._soft = value

    def potential(self, atoms: Atoms) -> Alchemical:
        """The coupling, bound to ``atoms``; λ is that of now."""
        system = System.from_atoms(atoms)
        start, end = (
            find_potential(c, system, role="end state") for c in (self.calc_a, self.calc_b)
        )
        return Alchemical(start, end, self.lam, soft=self.soft)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list:
        """What has changed since the last calculation, by name, λ and calculators included."""
        changed = list(super().check_state(atoms, tol))
        if self._valid_for != self._now:
            changed.append("lambda")
        parts = {"a": self.calc_a, "b": self.calc_b}
        changed += [
            f"calc_{name}"
            for name, calculator in parts.items()
            if self._is_stale(calculator, "ab".index(name))
            or calculator.calculation_required(atoms, ["forces"])
        ]
        return changed

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """ASE's hook: energy, forces and ∂U/∂λ of ``atoms``.

        The derivative is ``results["dudl"]`` in eV.
        """
        super().calculate(atoms, properties, system_changes)
        if "stress" in properties:
            raise PropertyNotImplementedError("a coupling has no stress here")
        for place, calculator in enumerate((self.calc_a, self.calc_b)):
            # a calculator of ASE may answer from its cache after it was set to other parameters
            if self._is_stale(calculator, place) and isinstance(calculator, Calculator):
                calculator.reset()
            self._parameters[place] = _parameters(calculator)
        ends = [_evaluated(calc, self.atoms) for calc in (self.calc_a, self.calc_b)]
        lam, x = torch.tensor(self.lam, dtype=torch.float64), torch.tensor(self.atoms.positions)
        value = coupled(ends, lam, self.soft, x)
        energy, forces = float(value.energy), value.forces.numpy()
        slope = float(coupled_slope(ends[0].energy, ends[1].energy, lam, self.soft))
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise CalculationFailed(
                f"energy or forces at λ = {self.lam} are not finite: look for overlapping atoms; "
                "soft= keeps those of one end state from the other"
            )
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, "dudl": slope}
        self._valid_for = self._now
        if atoms is not None:
            atoms.info["lambda"], atoms.info["dudl"] = self.lam, slope

    def _is_stale(self, calculator, place: int) -> bool:
        return _parameters(calculator) != self._parameters[place]

    @property
    def _now(self) -> tuple:
        return self.lam, self.soft, id(self.calc_a), id(self.calc_b)


def _parameters(calculator) -> str:
    return repr(calculator.parameters)


def _evaluated(calculator, atoms: Atoms) -> Evaluation:
    forces = torch.tensor(np.array(calculator.get_property("forces", atoms), dtype=float))
    free = "free_energy" in calculator.implemented_properties
    energy = calculator.get_property("free_energy" if free else "energy", atoms)
    return Evaluation(torch.tensor(float(energy), dtype=torch.float64), forces)
