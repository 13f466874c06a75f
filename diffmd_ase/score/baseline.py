"""What a potential that is known already says of snapshots: a model learns what it leaves.

    E = E_base/kT + E_correction        s = F_base/kT + s_correction

at the smallest noise, whose energy drives dynamics; all other noise levels are learned whole.
A baseline is asked once: for its energies and forces at the snapshots, and for its energies where
rotations about bonds move them (`torsion_moves`), by which modes are weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..io.atomic import replacing
from ..state import Evaluation
from ..system import System
from .torsion_moves import TorsionProposals

if TYPE_CHECKING:
    from .snapshots import Snapshots

__all__ = ["Baseline", "BaselineCard", "BaselineValues", "evaluate_baseline"]

_BLOCK = 500  # structures between two files
_SAME = 0.01  # of the forces: what rounding, and other versions, may change


class Baseline(NamedTuple):
    """A potential and how it is found again; made by `potentials.baseline.find_baseline`.

    Attributes
    ----------
    name : that a user gave it, or its kind
    options : those of the name, JSON values
    by_name : the name is enough to find it
    bind : system → potential of it, (M, N, 3) in Å → `Evaluation` in eV
    """

    name: str
    options: dict[str, Any]
    by_name: bool
    bind: Callable[[System], Callable[[Tensor], Evaluation]]


class BaselineCard(BaseModel):
    """What a model adds its energy to, and how to see that it is the same."""

    model_config = ConfigDict(extra="forbid")
    name: str  # that finds it, or its kind
    options: dict[str, Any] = {}  # of the name
    by_name: bool = True  # otherwise it has to be given
    positions: list[list[float]]  # (N, 3) in Å of a snapshot
    forces: list[list[float]]  # (N, 3) in eV/Å of the baseline there

    @classmethod
    def of(cls, baseline: Baseline, snapshots: Snapshots) -> BaselineCard:
        """The card of a ``baseline`` whose values the ``snapshots`` hold."""
        values = snapshots.baseline
        if values is None:
            raise ValueError(f"{snapshots.source} holds no values of the baseline")
        return cls(
            name=baseline.name,
            options=baseline.options,
            by_name=baseline.by_name,
            positions=np.round(snapshots.positions[0], 6).tolist(),
            forces=np.round(values.forces[0], 6).tolist(),
        )

    def check(self, potential: Callable[[Tensor], Evaluation]) -> None:
        """``ValueError`` unless the forces of the ``potential`` are those of the training."""
        known = torch.tensor(self.forces, dtype=torch.float64)
        now = potential(torch.tensor(self.positions, dtype=torch.float64)).forces.cpu()
        off = float((now - known).norm() / known.norm().clamp_min(1e-3))
        if not off < _SAME:
            raise ValueError(
                f"the baseline {self.name!r} has other forces than when this model was trained "
                f"(they differ by {off:.2g} of their size): another version, or other options "
                f"than {self.options}; use those, or train again"
            )


@dataclass(frozen=True, eq=False)
class BaselineValues:
    """Energies in eV and forces in eV/Å of a baseline: of M frames, and of K moves of them.

    Parameters
    ----------
    energies, forces : (M,) and (M, N, 3) of the frames
    moved : (K, N, 3) in Å
    moved_energies : (K,)
    log_ratio : (K,) ``log q(y) - log q(x)`` of a move y of x
    origin : (K,) number of the frame x
    """

    energies: np.ndarray
    forces: np.ndarray
    moved: np.ndarray
    moved_energies: np.ndarray
    log_ratio: np.ndarray
    origin: np.ndarray

    def take(self, index) -> BaselineValues:
        """Those of the frames at ``index``, with their moves."""
        rows = np.arange(len(self.energies))[index]
        place = np.full(len(self.energies), -1)
        place[rows] = np.arange(len(rows))
        kept = place[self.origin] >= 0
        return BaselineValues(
            self.energies[rows],
            self.forces[rows],
            self.moved[kept],
            self.moved_energies[kept],
            self.log_ratio[kept],
            place[self.origin[kept]],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate_baseline(
    baseline: Baseline,
    snapshots: Snapshots,
    *,
    file: Path,
    seed: int = 0,
    report: Callable[[float], None] = lambda fraction: None,
) -> Snapshots:
    """The ``snapshots`` with the values of a ``baseline``, one move of each frame.

    Parameters
    ----------
    file : .npz that keeps what was evaluated; a second call goes on from there
    seed : of the moves
    report : called with the fraction done

    Raises
    ------
    ValueError : it fails for a frame, or has no energy
    """
    potential = baseline.bind(snapshots.system)
    moved, log_ratio, origin = _moves(snapshots, seed)
    every = np.concatenate([snapshots.positions, moved])
    energies, forces = _cached(potential, every, file, report)
    count = len(snapshots)
    failed = np.flatnonzero(~np.isfinite(forces[:count]).all((1, 2)))
    if len(failed):
        raise ValueError(
            f"the baseline {baseline.name!r} fails for {len(failed)} of {count} frames of "
            f"{snapshots.source}, first for number {failed[0]}: leave them out, or give another"
        )
    fine = np.isfinite(energies[count:])
    return snapshots.with_baseline(
        BaselineValues(
            energies[:count],
            forces[:count],
            moved[fine],
            energies[count:][fine],
            log_ratio[fine],
            origin[fine],
        )
    )


def _moves(snapshots: Snapshots, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One move (M, N, 3) of each frame with its ``log q(y)/q(x)`` (M,); none without rotors."""
    count = 0 if snapshots.system.periodic else len(snapshots)
    if not count or not len(snapshots.topology.rotors):
        return np.zeros((0, len(snapshots.system), 3)), np.zeros(0), np.zeros(0, int)
    x = torch.as_tensor(snapshots.positions, dtype=torch.float32)
    proposals = TorsionProposals(snapshots.topology, x)
    y, ratio = proposals.propose(x, torch.Generator().manual_seed(seed))
    return y.double().numpy(), ratio.double().numpy(), np.arange(count)


def _cached(potential, x: np.ndarray, file: Path, report) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces of ``x``, from the ``file`` as far as it goes, which then holds all."""
    energies, forces = np.zeros(0), np.zeros((0, *x.shape[1:]))
    if file.exists():
        with np.load(file) as known:
            count = len(known["energies"])
            if np.array_equal(known["positions"], x[:count]):
                energies, forces = known["energies"], known["forces"]
    for part in _blocks(len(energies), len(x)):
        value = potential(torch.as_tensor(x[part]))
        if value.energy is None:
            raise ValueError("the baseline has no energy; expected a potential that has one")
        energies = np.concatenate([energies, value.energy.double().cpu().numpy()])
        forces = np.concatenate([forces, value.forces.double().cpu().numpy()])
        with replacing(file) as partly, open(partly, "wb") as stream:
            np.savez(stream, positions=x[: len(energies)], energies=energies, forces=forces)
        report(len(energies) / len(x))
    return energies, forces


def _blocks(first: int, count: int) -> Iterator[slice]:
    for start in range(first, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
