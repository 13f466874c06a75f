"""A way between two structures of a model: from files to a transition path and its committor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ..analysis.kinetics.path_guess import interpolated, nearest, relaxed
from ..analysis.kinetics.transition_paths import TransitionPath, shoot, transition_path
from ..analysis.observables import Coordinate
from ..io.ase_frames import iterate
from ..noise import Noise
from ..sampling.euler import EulerMaruyama
from ..score.model import ScoreModel
from ..system import System
from ..units import spring_from_h
from .planned import held
from .prepare import StepRequest, prepare

__all__ = ["Way"]


@dataclass(frozen=True, eq=False)
class Way:
    """Two relaxed structures, and the plain kernel between them; `between` makes it."""

    kernel: EulerMaruyama  # plain steps of the model
    system: System  # of both ends
    ends: tuple[Tensor, Tensor]  # (N, 3) Å each, minima of the energy

    @classmethod
    def between(
        cls,
        model: str | Path,
        start: str | Path,
        end: str | Path,
        *,
        temperature_K: float | None = None,
        step_size: float | None = None,
        device: str = "auto",
    ) -> Way:
        """From the files of two structures, whose last frames count.

        Parameters
        ----------
        model : file or name
        start, end : anything that ASE reads; like atoms of the end that a symmetry exchanges, as of
            a methyl group, are ordered as is nearest to the start
        step_size : h in Å², default 0.2/λ

        Raises ``ValueError`` for structures of different systems, and as `prepare`.
        """
        loaded = ScoreModel.load(model)
        frames = [_last(Path(name)) for name in (start, end)]
        systems = [System.from_atoms(frame) for frame in frames]
        if difference := systems[1].difference(systems[0]):
            raise ValueError(
                f"{start} and {end} differ in {difference}: a path has the same atoms, in the same "
                "order, throughout"
            )
        system = systems[0]
        potential = loaded.potential(system, device=device)
        kelvin = loaded.card.temperature_K if temperature_K is None else temperature_K
        spring = None if step_size is None else spring_from_h(step_size)
        kernel = prepare(
            potential,
            temperature_K=kelvin,
            step=StepRequest(spring=spring),
            **held(loaded, system),
        ).kernel
        if not isinstance(kernel, EulerMaruyama):  # no target was asked for
            raise TypeError(f"{type(kernel).__name__} where plain steps were expected")
        kT = float(kernel.kT)
        a, b = (relaxed(potential, torch.from_numpy(f.positions), kT=kT) for f in frames)
        return cls(kernel, system, (a, nearest(system, a, b)))

    def path(self, images: int, *, most: int = 2000) -> TransitionPath:
        """The path of least action with so many ``images``, by ``most`` evaluations at a time."""
        guess = interpolated(self.system, *self.ends, images)
        return transition_path(self.kernel.potential, guess, kT=float(self.kernel.kT), most=most)

    def check_states(self, cv: str | None, start_range: str | None, end_range: str | None) -> None:
        """Raise ``ValueError`` unless the ends are in the states that they are said to be in.

        The parameters are those of `committor`.
        """
        states = self._states(cv, start_range, end_range)
        for name, inside, x in zip(("start", "end"), states, self.ends, strict=True):
            if not bool(inside(x[None])[0]):
                raise ValueError(f"the relaxed {name} is outside its range: choose the range anew")

    def committor(
        self,
        images: Tensor,
        cv: str | None,
        start_range: str | None,
        end_range: str | None,
        *,
        shots: int,
        most: int,
        seed: int,
    ) -> list[dict[str, float | None]]:
        """Of ``images`` (P, N, 3), with errors, by ``shots`` from each of ``most`` steps.

        Parameters
        ----------
        cv : definition of a `Coordinate`
        start_range, end_range : its values in the states, ``low:high``, Å or degrees
        """
        a, b = self._states(cv, start_range, end_range)
        found = shoot(self.kernel, images, a, b, shots=shots, noise=Noise(seed), most=most)
        return [estimate.to_dict() for estimate in found]

    def _states(self, cv: str | None, start_range: str | None, end_range: str | None):
        if cv is None or start_range is None or end_range is None:
            raise ValueError("shooting needs --cv, --start-range and --end-range: what is a state?")
        coordinate = Coordinate.parse(cv, len(self.system))
        return tuple(self._inside(coordinate, text) for text in (start_range, end_range))

    def _inside(self, coordinate: Coordinate, text: str):
        try:
            low, high = (float(part) for part in text.split(":"))
        except ValueError as error:
            raise ValueError(f"{text!r}: expected low:high, such as -180:0") from error

        def inside(x: Tensor) -> Tensor:
            values = coordinate(x, self.system)
            if coordinate.kind != "distance":
                values = torch.rad2deg(values)
            if coordinate.period:  # 170:190 is about 180
                return torch.remainder(values - low, 360.0) <= np.mod(high - low, 360.0)
            return (values >= low) & (values <= high)

        return inside


def _last(path: Path) -> Atoms:
    """The last frame of a file."""
    frame = None
    for frame in iterate(path):  # noqa: B007
        pass
    if frame is None:
        raise ValueError(f"{path} has no frames")
    return frame
