"""One resolver: what a user calls a target, a reference, a baseline, a draft or an end state.

A name, a file, a calculator or a potential comes in, and a `Potential` bound to the system goes
out. Rooms from here on ask it; nobody else turns a name into a potential.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ase.calculators import calculator as ase_calculator
from ase.calculators.calculator import BaseCalculator

from ..plugins import installed_potentials, load_potential
from ..system import System
from .ase_calculator import AsePotential, PotentialCalculator
from .base import Potential, unwrapped

if TYPE_CHECKING:
    from ..score.model import ScoreModel

__all__ = ["MODEL", "Source", "find_potential", "in_its_place"]

# names of its methods in tblite
_TBLITE = {"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB"}
MODEL = "model"  # the one name that depends on who asks: the model that drives

Source: TypeAlias = (
    "str | Path | Potential | ScoreModel | BaseCalculator | Callable[[System], Potential]"
)


def find_potential(
    source: Source,
    system: System,
    *,
    role: str = "target",
    model: Potential | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    needs_energy: bool = True,
) -> Potential:
    """The potential that ``source`` means for these atoms.

    Parameters
    ----------
    source : "model"; a `Potential`; a `ScoreModel`, its file, or the name of a shipped one; an
        installed plugin by name; an ASE calculator or its name (emt, lj, xtb, …); or a function
        ``System -> Potential``. Structures for which a calculator fails have an energy of NaN,
        which a Metropolis step rejects, and are counted
    role : what it is to be, for messages
    model : what "model" means here; None: nothing
    options : settings of what is named: of the plugin or the calculator; ``sigma`` of a model
    device : of the network of a model
    needs_energy : refuse a field that is no gradient

    Raises
    ------
    ValueError : a name that nobody knows, options that do not fit, another system, no energy
    TypeError : something that is no source
    """
    settings = dict(options or {})
    if isinstance(source, str | Path):
        potential = _named(str(source), system, role, model, settings, device)
    elif settings:
        raise ValueError(f"options {settings} are those of a name, the {role} is made already")
    else:
        potential = _made(source, system, role, device)
    if potential.system is not None and (difference := _difference(potential.system, system)):
        raise ValueError(
            f"the {role} {type(potential).__name__} is bound to {potential.system.formula} "
            f"({len(potential.system)} atoms), and the atoms differ from that in {difference}: "
            "make it for these atoms (System.from_atoms(atoms)), or give a function "
            "System -> Potential, which follows them"
        )
    if needs_energy and not potential.conservative:
        blamed = [_kind(unwrapped(t)) for t in potential.terms if not t.conservative]
        stays = ", and keep this score as the drift" if role == "target" else ""
        raise ValueError(
            f"{', '.join(blamed)} has no energy (its forces are not a gradient), and the {role} "
            f"needs one: give an ASE calculator or a Potential that has one{stays}"
        )
    return potential


def in_its_place(source):
    """``source``, the name of a file by its whole path: it may be read in another directory.

    What is no name, or one that `find_potential` knows without files, is given back as it is.
    """
    if not isinstance(source, str | Path):
        return source
    name = str(source)
    known = name == MODEL or name.lower() in _TBLITE or name in installed_potentials()
    if known or name.lower() in ase_calculator.names or not Path(name).is_file():
        return name
    return str(Path(name).resolve())


def _made(source, system: System, role: str, device: str) -> Potential:
    if isinstance(source, PotentialCalculator):
        return source.potential(system.carriers()[0])
    if isinstance(source, BaseCalculator):
        return AsePotential(source, system, failures="reject")
    made = source(system) if callable(source) and not isinstance(source, Potential) else source
    if isinstance(made, Potential):
        return made
    from ..score.model import ScoreModel  # networks are heavy, and not all need them

    if not isinstance(made, ScoreModel):
        raise TypeError(
            f"{role} is a {type(made).__name__}; expected 'model', an ASE calculator, a "
            "ScoreModel, a Potential, or the name of one"
        )
    return made.potential(system, device=device)


def _named(
    name: str, system: System, role: str, model: Potential | None, settings: dict, device: str
) -> Potential:
    if name == MODEL and model is not None:
        if settings:
            raise ValueError(f"{role} {MODEL!r} takes no options, got {settings}")
        return model
    plugins = installed_potentials()
    if name in plugins:
        try:
            return load_potential(name, system, **settings)
        except TypeError as error:
            raise ValueError(f"{role} {name!r} with options {settings}: {error}") from error
    if name.lower() in _TBLITE:
        return AsePotential(_tblite(name, role, settings), system, failures="reject")
    if name.lower() in ase_calculator.names:
        return AsePotential(_calculator(name, role, settings), system, failures="reject")
    from ..score.model import ScoreModel

    try:
        loaded = ScoreModel.load(name)
    except FileNotFoundError as error:
        own = "" if model is None else f"{MODEL!r} (the energy of the atoms' own calculator), "
        raise ValueError(
            f"{role} {name!r} is neither {repr(MODEL) + ' nor ' if own else ''}an installed "
            f"potential ({', '.join(plugins) or 'none'}) nor gfn1 or gfn2 nor a calculator of ASE "
            "(emt, lj, xtb, …) "
            f"nor a model: expected {own}a name, a model file, an ASE calculator such as EMT(), "
            "or a Potential"
        ) from error
    if strange := sorted(set(settings) - {"sigma"}):
        raise ValueError(f"{role} {name!r} is a model, whose option is sigma (Å), not {strange}")
    return loaded.potential(system, device=device, **settings)


def _calculator(name: str, role: str, settings: dict) -> BaseCalculator:
    try:
        return ase_calculator.get_calculator_class(name.lower())(**settings)
    except Exception as error:  # a calculator raises what it likes where a program is missing
        raise ValueError(
            f"{role} {name!r}: the calculator of ASE cannot be made with options {settings} "
            f"({type(error).__name__}: {error}); give others, or the calculator itself in Python"
        ) from error


def _tblite(name: str, role: str, settings: dict) -> BaseCalculator:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ImportError(
            f"{role} {name!r} is computed by tblite, which is not here ({error}): pip install "
            "tblite"
        ) from error
    try:
        return TBLite(**{"method": _TBLITE[name.lower()], "verbosity": 0, **settings})
    except Exception as error:  # a calculator raises what it likes
        raise ValueError(f"{role} {name!r} with options {settings}: {error}") from error


def _kind(potential: Potential) -> str:
    own = potential.calculator if isinstance(potential, AsePotential) else potential
    return type(own).__name__


def _difference(bound: System, system: System) -> str:
    """What differs for a potential, in words: masses, and a cell without images, do not."""
    if len(bound) == len(system):
        bound = replace(bound, masses=system.masses)
    if not (bound.periodic or system.periodic):
        bound = replace(bound, cell=system.cell)
    return bound.difference(system)
