"""What accepts the steps: a user's word, calculator or potential as the target of a chain."""

from __future__ import annotations

from ase.calculators import calculator as ase_calculator
from ase.calculators.calculator import BaseCalculator

from ..plugins import installed_potentials, load_potential
from ..system import System
from .ase_calculator import AsePotential, PotentialCalculator
from .base import Potential

__all__ = ["find_target", "named_target"]


def find_target(target, system: System) -> Potential | None:
    """The target of a Metropolis step; None where it is the model itself.

    Parameters
    ----------
    target : "model", a `Potential`, or an ASE calculator. Structures for which a calculator
        fails are rejected and counted

    Raises
    ------
    ValueError : another word; no energy; another system than that of the atoms
    TypeError : something else
    """
    if isinstance(target, str):
        if target != "model":
            raise ValueError(
                f"{target=}: expected 'model' (the energy of the atoms' own calculator), an ASE "
                "calculator such as EMT(), or a Potential"
            )
        return None
    return _required(target, system)


def _required(target, system: System) -> Potential:
    if isinstance(target, PotentialCalculator):
        target = target.potential(system.to_atoms([[0.0, 0.0, 0.0]] * len(system)))
    elif isinstance(target, BaseCalculator):
        target = AsePotential(target, system, failures="reject")
    if not isinstance(target, Potential):
        raise TypeError(
            f"target is a {type(target).__name__}; expected 'model', an ASE calculator or a "
            "Potential"
        )
    if target.system is not None and target.system != system:
        raise ValueError(
            f"the target is bound to {_words(target.system)}, the atoms are {_words(system)}: "
            "make it for these atoms (System.from_atoms(atoms))"
        )
    if not target.conservative:
        raise ValueError(
            f"{type(target).__name__} has no energy, and a Metropolis step compares energies: "
            "give a target that has one"
        )
    return target


def named_target(name: str, system: System, options: dict | None = None) -> str | Potential:
    """A target by name: "model", an installed plugin, or a calculator of ASE with ``options``.

    Raises ``ValueError`` for a name that nobody knows, and for options that do not fit.
    """
    settings = options or {}
    if name == "model":
        if settings:
            raise ValueError(f"target 'model' takes no options, got {settings}")
        return name
    plugins = installed_potentials()
    if name in plugins:
        try:
            return _required(load_potential(name, system, **settings), system)
        except TypeError as error:
            raise ValueError(f"target {name!r} with options {settings}: {error}") from error
    if name.lower() not in ase_calculator.names:
        raise ValueError(
            f"target {name!r} is neither 'model' nor an installed potential "
            f"({', '.join(plugins) or 'none'}) nor a calculator of ASE (emt, lj, xtb, …)"
        )
    try:
        calculator = ase_calculator.get_calculator_class(name.lower())(**settings)
    except Exception as error:  # a calculator raises what it likes where a program is missing
        raise ValueError(
            f"target {name!r}: the calculator of ASE cannot be made with options {settings} "
            f"({type(error).__name__}: {error}); give others, or use ReverseDiffusion(target=…)"
        ) from error
    return _required(calculator, system)


def _words(system: System) -> str:
    return f"{system.formula} ({len(system)} atoms, pbc={system.pbc.tolist()})"
