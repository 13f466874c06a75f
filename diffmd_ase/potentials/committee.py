"""Several models as one: what each of them is, their mean, and how far they spread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..state import Evaluation
from ..system import System
from .base import Potential, evaluate, part_by_part
from .named import find_potential

if TYPE_CHECKING:
    from ..score.model import ScoreModel
    from ..score.networks.gradients import Compile

__all__ = ["Mean", "Member"]


class Mean(Potential):
    """Committee: ``U(x) = (1/M) Σ_m U_m(x)``, M ≥ 2 potentials of one system.

    Energies, forces and stresses are averaged; see :meth:`spread`.

    Raises
    ------
    ValueError : fewer than two, or a bias among them
    """

    def __init__(self, *members: Potential):
        if len(members) < 2:
            raise ValueError(f"a committee has at least 2 members, not {len(members)}")
        if any(m.has_memory or m.needs_base for m in members):
            raise ValueError("biases cannot be members of a committee: add them to it")
        self.potentials = members
        self.system = members[0].system
        self.conservative = all(m.conservative for m in members)

    def __call__(self, x, *, stress=False) -> Evaluation:
        return self.spread(x, stress=stress)[0]

    def spread(self, x: Tensor, *, stress: bool = False) -> tuple[Evaluation, Evaluation]:
        """Mean and standard deviation over the members (M - 1 in the denominator), part by part."""
        values = [evaluate(m.terms, x, stress=stress) for m in self.potentials]
        return (
            part_by_part(lambda parts: torch.stack(parts).mean(0), values),
            part_by_part(lambda parts: torch.stack(parts).std(0), values),
        )


class Member:
    """One model as its user gave it, loaded when it is first asked for a potential.

    Parameters
    ----------
    source : path or shipped name of a model, a `ScoreModel`, a `Potential`, or a function
        ``System -> Potential``

    Attributes
    ----------
    label : what trajectories and messages call it

    A pickle of one that came from a file holds only where that is.

    Raises
    ------
    TypeError : something else
    """

    def __init__(self, source: str | Path | ScoreModel | Potential | Callable):
        if not isinstance(source, str | Path) and not callable(source):
            from ..score.model import ScoreModel  # networks are heavy, and not all need them

            if not isinstance(source, ScoreModel):
                raise TypeError(
                    f"model is a {type(source).__name__}; expected a path or shipped name, a "
                    "ScoreModel, a Potential, a function System -> Potential, or a list of these"
                )
        self._model, self._file, self.label = source, None, type(source).__name__
        if isinstance(source, str | Path):
            self.label = str(source)
            # absolute: it is read when it is needed, which may be in another directory
            self._file = str(Path(source).resolve()) if Path(source).is_file() else str(source)
            self._model = self._file
        elif inspect.isfunction(source):
            self.label = source.__qualname__

    @property
    def identity(self) -> str | int:
        """The same for two that are the same: a file or name, or the object itself."""
        return id(self._model) if self._file is None else self._file

    def potential(
        self,
        system: System,
        *,
        sigma: float | None,
        device: str,
        dtype: torch.dtype | None,
        compile: Compile = "auto",
    ) -> Potential:
        """The potential of these atoms; σ in Å and precision are settings of a `ScoreModel`.

        So is ``compile``, which is nothing to others.

        Raises ``ValueError`` for atoms that it does not fit, and for settings that it has not.
        """
        if isinstance(self._model, str | Path):
            from ..score.model import ScoreModel

            self._model = ScoreModel.load(self._model)
        if not callable(self._model):
            return self._model.potential(
                system, sigma=sigma, device=device, dtype=dtype, compile=compile
            )
        for name, value in (("sigma", sigma), ("dtype", dtype)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} is a setting of a ScoreModel; a {self.label} has none: "
                    "choose it where the potential is made"
                )
        return find_potential(self._model, system, role="model", needs_energy=False)

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        if self._file is not None:
            state["_model"] = self._file
        return state
