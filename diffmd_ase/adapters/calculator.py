"""`ScoreCalculator`: a potential of this package as an ASE calculator.

A thin shell around the stateless potentials: it binds a model to the atoms it is
given, turns arrays into tensors and back, and keeps ASE's cache honest. There is no
physics here; in particular a score without an energy gets no invented one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from ase.calculators import calculator as ase_calculator
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    all_changes,
)
from torch import Tensor

from ..potentials.ase_calculator import AsePotential, PotentialCalculator
from ..potentials.base import Potential, evaluate, unwrapped
from ..potentials.committee import Mean, Member
from ..state import Evaluation
from ..system import System, carried_by

if TYPE_CHECKING:
    from ..potentials.learned import ScorePotential
    from ..score.model import ScoreModel
    from ..score.networks.gradients import Compile

__all__ = ["ScoreCalculator", "register"]

_SETTABLE = ("device", "dtype", "sigma", "compile")
_KEPT = 16  # bound potentials: atoms of several systems may share a calculator


class ScoreCalculator(PotentialCalculator):
    """Energy, forces and stress of a learned score, or of any potential, in ASE.

    Parameters
    ----------
    model : path or shipped name of a model, a `ScoreModel`, a `Potential`, a function
        ``System -> Potential`` (called again when atoms are others in anything but positions),
        or a list of these: a committee, whose mean is used
    device : "auto" (CUDA where there is one), "cpu", "cuda", …
    dtype : precision of the network, "float32", "float64" or a torch.dtype;
        None: that of the model. Results are float64 always
    sigma : noise level in Å; None: the smallest the model was trained for
    compile : True, False or "auto": many calls are faster, see `ScorePotential`
    bias : a `Potential` added to the model. A calculator only evaluates: a bias with
        memory learns in `sampling.run`, `ReverseDiffusion`, or through its observer

    Attributes
    ----------
    details : what ASE has no place for, of the last calculation: ``bias_energy`` (eV),
        for a committee ``energy_std`` (eV) and ``forces_std`` (N, 3) in eV/Å, and where the model
        knows ``extrapolation``: above 1 the structure is outside of its snapshots

    Raises
    ------
    TypeError : a model or bias that is none
    ValueError : an empty list of models, ``sigma`` not positive, another ``dtype``
    InputError : atoms that the model does not know (elements, number, pbc)
    PropertyNotImplementedError : an energy of a model that has none, a stress without a cell
    CalculationFailed : energy or forces that are not finite

    Notes
    -----
    Threads that share one wait for each other, and each has the results of its own atoms.
    ``copy.deepcopy`` shares model and bias; a pickle of a calculator made from a path
    or name holds only that, and loads the model when it is first used.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    discard_results_on_any_change = True
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | ScoreModel | Potential | Callable | Sequence,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        sigma: float | None = None,
        bias: Potential | None = None,
        compile: Compile = "auto",
    ):
        if bias is not None and not isinstance(bias, Potential):
            raise TypeError(f"bias must be a Potential, not {type(bias).__name__}")
        models: list = list(model) if isinstance(model, list | tuple) else [model]
        if not models:
            raise ValueError("an empty list of models: a committee has at least 2 members")
        self._members = [Member(m) for m in models]
        self._bias, self._carries = bias, False  # are calculators of ASE asked, which see more?
        self._bound: dict[tuple, tuple] = {}
        self._shadow: tuple = (None, None)
        self._unbiased: tuple | None = None  # model, x, stress, value, details without the bias
        self.details: dict = {}
        super().__init__()
        self.set(
            model=[m.label for m in self._members] if len(models) > 1 else self._members[0].label,
            device=device,
            dtype=dtype,
            sigma=sigma,
            compile=compile,
            bias=None if bias is None else type(bias).__name__,
        )

    @classmethod
    def from_checkpoint(
        cls, path, *, device="auto", dtype=None, sigma=None, bias=None, compile="auto"
    ) -> ScoreCalculator:
        """The calculator of a model file; the same as ``ScoreCalculator(path, ...)``."""
        return cls(path, device=device, dtype=dtype, sigma=sigma, bias=bias, compile=compile)

    def _get_name(self) -> str:
        return "diffmd"

    @property
    def bias(self) -> Potential | None:
        """The potential added to the model."""
        return self._bias

    def set(self, **changes):
        """Change ``sigma`` (Å), ``device``, ``dtype``, ``compile``; results are discarded."""
        settable = _SETTABLE if self.parameters else ("model", "bias", *_SETTABLE)
        for name in changes:
            if name not in settable:
                raise InputError(f"{name!r} cannot be set, only {', '.join(settable)} can")
        # parameters are written into every trajectory: plain JSON values only
        if changes.get("device") is not None:
            changes["device"] = str(changes["device"])
        if changes.get("dtype") is not None:
            changes["dtype"] = _dtype_name(changes["dtype"])
        if changes.get("sigma") is not None:
            changes["sigma"] = float(changes["sigma"])
            if not changes["sigma"] > 0:
                raise ValueError(f"sigma={changes['sigma']} must be positive (Å)")
        changed = super().set(**changes)
        if changed:
            self._bound = {}
        return changed

    def set_atoms(self, atoms: Atoms) -> None:
        """ASE's hook of ``atoms.calc = calc``: refuse what the model does not know.

        Other bonds than those of the model's snapshots are a warning.
        """
        model = self._bind(atoms)[1]
        for known in _learned(model.potentials if isinstance(model, Mean) else [model]):
            known.recognise(torch.tensor(atoms.positions))

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; ASE's answer at a tenth of its cost."""
        if self.atoms is None or self._key(self.atoms) != self._key(atoms):
            # ASE does not look at masses and info
            return super().check_state(atoms, tol) or ["info"]
        near = np.abs(self.atoms.positions - atoms.positions).max(initial=0.0) <= tol
        return [] if near else ["positions"]

    def potential(self, atoms: Atoms) -> Potential:
        """Model plus bias, bound to the elements, masses, cell and pbc of ``atoms``.

        The same object as long as they are what it depends on.
        """
        return self._bind(atoms)[0]

    def computes_as(self, other: ScoreCalculator) -> bool:
        """Whether ``other`` has the same models, bias and settings."""
        same = [m.identity for m in self._members] == [m.identity for m in other._members]
        return same and self._bias is other._bias and self.parameters == other.parameters

    def device(self, atoms: Atoms) -> torch.device:
        """Where the model of these atoms computes."""
        return self._bind(atoms)[2]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """ASE's entry point: one evaluation, all results that it gives."""
        super().calculate(atoms, list(properties), system_changes)
        if self.atoms is None:
            raise CalculatorSetupError("no atoms: calculate(atoms) or attach the calculator")
        stress = "stress" in properties
        potential, model, device = self._bind(self.atoms)
        if stress:
            _check_stress(potential, self.atoms)
        x = torch.tensor(self.atoms.positions, device=device)
        value, details = self._evaluate(model, x, stress=stress)
        results = _results(value, stress=stress)
        if "energy" in properties and "energy" not in results:
            raise PropertyNotImplementedError(
                f"{type(model).__name__} is not conservative: its forces are not the gradient of "
                "an energy, so there is none to give"
            )
        self.results, self.details = results, details

    def adopt(self, atoms: Atoms, value: Evaluation) -> None:
        """Take ``value``, evaluated elsewhere at ``atoms``, as if it had been calculated.

        Dynamics seed the cache with the forces of their own state this way.
        """
        key = self._key(atoms)
        if self.atoms is not None and self._shadow[0] is self.atoms and self._shadow[1] == key:
            # a copy of Atoms costs more than a small network
            self.atoms.positions[...] = atoms.positions
        else:
            self.atoms = atoms.copy()
            self._shadow = self.atoms, key
        self.results, self.details = _results(value, stress=False), {}

    def predict_batch(self, images: Sequence[Atoms], *, stress: bool = False) -> list[dict]:
        """Results of many structures; those of one system are evaluated in one batch.

        Returns
        -------
        one dict per image: ``energy``, ``free_energy`` (eV), ``forces`` (N, 3) in eV/Å
        and, where asked for, ``stress`` (6,) in eV/Å³
        """
        groups: dict[tuple, list[int]] = {}
        for i, atoms in enumerate(images):
            groups.setdefault(self._key(atoms), []).append(i)
        out: list[dict] = [{} for _ in images]
        for members in groups.values():
            first = images[members[0]]
            potential, model, device = self._bind(first)
            if stress:
                _check_stress(potential, first)
            x = torch.tensor(np.stack([images[i].positions for i in members]), device=device)
            value, _ = self._evaluate(model, x, stress=stress)
            for n, i in enumerate(members):
                one = Evaluation(*(None if part is None else part[n] for part in value))
                out[i] = _results(one, stress=stress)
        return out

    def _evaluate(self, model: Potential, x: Tensor, *, stress: bool):
        base, details = self._evaluate_model(model, x, stress)
        if self._bias is None:
            return base, details
        total = evaluate(self._bias.terms, x, stress=stress, base=base)
        if total.energy is not None and x.ndim == 2:
            details = {**details, "bias_energy": float(total.energy - base.energy)}
        return total, details

    def _evaluate_model(self, model: Potential, x: Tensor, stress: bool):
        learns = self._bias is not None and self._bias.has_memory and not model.has_memory
        if learns and self._unbiased is not None:
            evaluated, positions, had_stress, base, details = self._unbiased
            if evaluated is model and had_stress == stress and torch.equal(positions, x):
                return base, details  # only the bias has changed
        details = _extrapolation(model, x)
        if isinstance(model, Mean):
            base, deviation = model.spread(x, stress=stress)
            details["forces_std"] = _numpy(deviation.forces)
            if base.energy is not None and x.ndim == 2:
                details["energy_std"] = float(deviation.energy)
        else:
            base = evaluate(model.terms, x, stress=stress)
        if learns:
            self._unbiased = model, x, stress, base, details
        return base, details

    def _bind(self, atoms: Atoms) -> tuple[Potential, Potential, torch.device]:
        """The total, the model without the bias, and where it computes."""
        key = self._key(atoms)
        bound = self._bound.get(key)
        if bound is None:
            system = System.from_atoms(atoms)
            settings = {name: self.parameters[name] for name in _SETTABLE}
            dtype = settings["dtype"]
            settings["dtype"] = None if dtype is None else getattr(torch, dtype)
            try:
                members = [m.potential(system, **settings) for m in self._members]
                model = members[0] if len(members) == 1 else Mean(*members)
                total = model if self._bias is None else model + self._bias
            except ValueError as error:
                raise InputError(str(error)) from error
            made = [p for m, p in zip(self._members, members, strict=True) if id(p) != m.identity]
            if not self._carries and any(map(_asks_ase, made)):
                self._carries, key = True, (*key[:-1], carried_by(atoms))
            if len(self._bound) >= _KEPT:
                self._bound.pop(next(iter(self._bound)), None)
            bound = self._bound[key] = total, model, self._device_of(members)
        return bound

    def _key(self, atoms: Atoms) -> tuple:
        """What a potential is bound to; cheap, since it is looked up at every call."""
        arrays, masses = atoms.arrays, None
        if "masses" in arrays:
            masses = arrays["masses"].tobytes()
        carried = carried_by(atoms) if self._carries else None
        cell, pbc = atoms.cell.array.tobytes(), atoms.pbc.tobytes()
        return arrays["numbers"].tobytes(), masses, cell, pbc, carried

    def _device_of(self, members: list[Potential]) -> torch.device:
        for known in _learned(members):
            return torch.device(known.device)
        device = self.parameters["device"]
        # analytic potentials and other programs live where their user put them: the CPU
        return torch.device("cpu" if device == "auto" else device)

    def __deepcopy__(self, memo) -> ScoreCalculator:
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(self.__getstate__())
        # weights are shared, not loaded again
        new._bound = dict(self._bound)
        new.parameters = type(self.parameters)(self.parameters)
        new.results = dict(self.results)  # replaced, never changed in place
        new.atoms = None if self.atoms is None else self.atoms.copy()
        return new

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_bound"], state["_shadow"], state["_unbiased"] = {}, (None, None), None
        # a method that ASE sets on the instance
        state.pop("get_spin_polarized", None)
        return state


def _learned(members: Sequence[Potential]) -> Iterator[ScorePotential]:
    """The learned scores among the terms of potentials."""
    from ..potentials.learned import scores

    for member in members:
        yield from scores(member)


def _extrapolation(model: Potential, x: Tensor) -> dict:
    """That of one structure x (N, 3), the largest of a committee; nothing where none knows."""
    members = model.potentials if isinstance(model, Mean) else [model]
    said = [known.describe(x) for known in _learned(members)] if x.ndim == 2 else []
    values = [float(one["extrapolation"]) for one in said if one]
    return {"extrapolation": max(values)} if values else {}


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise ValueError(f"{dtype=}: expected float32 or float64")
    return name


def _asks_ase(member: Potential) -> bool:
    terms = [unwrapped(term) for term in member.terms]
    terms += [unwrapped(known.baseline) for known in _learned([member]) if known.baseline]
    return any(isinstance(term, AsePotential) for term in terms)


def _check_stress(potential: Potential, atoms: Atoms) -> None:
    if atoms.cell.rank < 3:
        raise PropertyNotImplementedError(
            f"stress needs a cell of three vectors, this one has rank {atoms.cell.rank}"
        )
    for term in potential.terms:
        # a potential in a user's script is __call__(self, x) alone
        if "stress" not in inspect.signature(term).parameters:
            raise PropertyNotImplementedError(f"{type(term).__name__} has no stress")


def _numpy(value: Tensor) -> np.ndarray:
    """A float64 copy on the host: float32 arrays upset ASE and PLUMED."""
    return np.array(value.detach().cpu().numpy(), dtype=np.float64)


def _results(value: Evaluation, *, stress: bool) -> dict:
    """ASE's results; raises CalculationFailed for numbers that are not finite."""
    results: dict = {}
    if value.energy is not None:
        results["energy"] = results["free_energy"] = float(value.energy)
    results["forces"] = _numpy(value.forces)
    if stress:
        if value.stress is None:
            raise PropertyNotImplementedError("the potential gives no stress for this system")
        results["stress"] = _numpy(value.stress)
    for name, part in results.items():
        if not np.isfinite(part).all():
            raise CalculationFailed(
                f"{name} is not finite: look for overlapping atoms or positions that are NaN"
            )
    return results


def register(name: str = "diffmd") -> None:
    """Make ``get_calculator_class(name)`` of ASE know `ScoreCalculator`; again is fine.

    Raises ``ValueError`` for the name of another calculator.
    """
    registered = ase_calculator.external_calculators.get(name)
    if registered is ScoreCalculator:
        return
    if registered is not None or name in ase_calculator.names:
        raise ValueError(f"{name!r} is already the name of another ASE calculator")
    ase_calculator.register_calculator_class(name, ScoreCalculator)
