"""The card of a model: what it was trained on and what it may be used for."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..system import System
from .baseline import BaselineCard
from .networks.build import NetworkConfig
from .sets import Sets, joint_hash
from .snapshot_checks import blocks
from .snapshots import Snapshots
from .uncertainty import ForceError

__all__ = ["SCHEMA_VERSION", "Card", "ExpertCard", "SystemCard"]

# since 2: `systems`; since 3: atoms of them that were held; since 4: files have a digest; since 5:
# a baseline, and the covariance of what was fitted; since 6: errors of forces
SCHEMA_VERSION = 6
# numbers that can be what they say; a card may come from anybody
_Element = Annotated[int, Field(ge=1, le=118)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_OF_FIRST = ("formula", "numbers", "cell", "pbc", "temperature_K")  # of several systems


class ExpertCard(BaseModel):
    """One energy network: its noise levels, its shape, how its training went."""

    model_config = ConfigDict(extra="forbid")
    name: str  # prefix of its weights in the file
    sigma: tuple[float, float]  # lowest and highest noise level in Å
    network: NetworkConfig
    best_step: int = 0  # of the weights that are kept
    correction: str | None = None  # what a network on a fitted force field was good for
    history: list[dict[str, Any]] = Field(default_factory=list)  # losses of each validation


class SystemCard(BaseModel):
    """One set of snapshots that a model was trained on."""

    model_config = ConfigDict(extra="forbid")
    formula: str
    numbers: list[_Element]  # (N,) atomic numbers
    cell: list[list[_Finite]] | None  # (3, 3) in Å
    pbc: tuple[bool, bool, bool]
    temperature_K: _Positive  # on its label
    source: str  # where it came from
    snapshots: int  # how many
    sha256: str  # of what it held
    correlation: float = 1.0  # statistical inefficiency
    held: list[int] = Field(
        default_factory=list, description="atoms that have one place in all snapshots"
    )
    configurational_temperature_K: float | None = Field(
        None, description="that of the snapshots, by the forces of the model"
    )

    @classmethod
    def of(cls, part: Snapshots) -> SystemCard:
        """The card of one set."""
        system = part.system
        return cls(
            formula=system.formula,
            numbers=system.numbers.tolist(),
            cell=None if system.cell is None else system.cell.tolist(),
            pbc=tuple(system.pbc.tolist()),
            temperature_K=part.temperature_K,
            source=part.source,
            snapshots=len(part),
            sha256=part.sha256,
            correlation=round(part.correlation, 2),
            held=np.flatnonzero(~part.moving).tolist(),
        )


class Card(BaseModel):
    """What a model is, what it was trained on and how well it did.

    System and temperature are those of the first set of snapshots; ``systems`` lists all.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION  # of the file
    name: str = ""  # what its maker calls it
    formula: str
    numbers: list[_Element]  # (N,) atomic numbers
    masses: list[_Positive]  # (N,) in u
    cell: list[list[_Finite]] | None  # (3, 3) in Å
    pbc: tuple[bool, bool, bool]
    units: dict[str, str] = Field(  # of lengths and energies, and of the energy of the network
        default_factory=lambda: {"length": "Å", "energy": "eV", "network": "kT_train"}
    )
    temperature_K: _Positive  # of the network's energy
    kT: _Positive  # likewise, eV
    sigma_min: _Positive  # lowest noise level, Å
    sigma_max: _Positive  # highest, Å
    lambda_max: float | None = Field(
        None, description="largest eigenvalue of -∇s at sigma_min seen in the data, 1/Å²"
    )
    covariance: list[list[float]] = Field(
        description="⟨x_i·x_j⟩/3 of centred snapshots, Å²: the start of reverse diffusion; of a "
        "periodic system, which is not sampled so, nothing"
    )
    exchanges: list[tuple[int, int]] = Field(
        default_factory=list, description="like atoms whose exchange turns the hand of a centre"
    )
    systems: list[SystemCard] = Field(
        default_factory=list, description="all sets of snapshots; the first one names the model"
    )
    experts: list[ExpertCard]  # one for each network, in order
    baseline: BaselineCard | None = None  # what the energy of the smallest noise is added to
    force_error: ForceError | None = None  # of the smallest noise, where it is known
    data: dict[str, Any]  # source, number, hash and correlation of the snapshots
    training: dict[str, Any]  # seed, config and cost
    validation: dict[str, float]  # losses on held-out snapshots, by expert
    versions: dict[str, str]  # of the libraries

    @model_validator(mode="after")
    def _fits(self) -> Card:
        if len(self.numbers) != len(self.masses):
            raise ValueError(f"{len(self.numbers)} numbers and {len(self.masses)} masses")
        return self

    @model_validator(mode="after")
    def _of_one_system(self) -> Card:
        """A file of schema 1: one set, told by the card itself."""
        if not self.systems:
            fields = {k: v for k, v in self.data.items() if k in SystemCard.model_fields}
            fields |= {name: getattr(self, name) for name in _OF_FIRST}
            self.systems = [SystemCard(**fields)]
        return self

    def moving(self, system: System) -> np.ndarray:
        """(N,) bool: False for atoms that snapshots of these atoms had in one place."""
        moving = np.ones(len(system), bool)
        for part in self.systems:
            if part.numbers == system.numbers.tolist():
                moving[part.held] = False
                break
        return moving

    @property
    def temperatures(self) -> tuple[float, float]:
        """Lowest and highest temperature (K) of the snapshots."""
        every = [system.temperature_K for system in self.systems]
        return min(every), max(every)

    @classmethod
    def describe(
        cls, sets: Sets, experts: list[ExpertCard], *, seed: int, config: dict[str, Any]
    ) -> Card:
        """The card of freshly trained experts."""
        snapshots = sets[0]
        system = snapshots.system
        systems = [SystemCard.of(part) for part in sets]
        versions = {name: metadata.version(name) for name in ("torch", "e3nn", "ase", "numpy")}
        validation = {
            f"{e.name}_{key.removeprefix('validation_')}": value
            for e in experts
            for entry in e.history
            if entry["step"] == e.best_step
            for key, value in entry.items()
            if key.startswith("validation_")
        }
        return cls(
            **systems[0].model_dump(include=set(_OF_FIRST)),
            masses=system.masses.tolist(),
            kT=snapshots.kT,
            sigma_min=min(e.sigma[0] for e in experts),
            sigma_max=max(e.sigma[1] for e in experts),
            covariance=[] if system.periodic else _covariance(snapshots.positions).tolist(),
            exchanges=[] if system.periodic else snapshots.topology.exchanges(system.numbers),
            systems=systems,
            experts=experts,
            data={
                "source": ", ".join(part.source for part in sets),
                "snapshots": sum(len(part) for part in sets),
                "sha256": joint_hash(sets),
                "correlation": round(max(part.correlation for part in sets), 2),
            },
            training={"seed": seed, "config": config},
            validation=validation,
            versions=versions,
        )


def _covariance(positions: np.ndarray) -> np.ndarray:
    total = np.zeros((positions.shape[1],) * 2)
    for part in blocks(len(positions), 2 * positions[0].size):
        x = positions[part] - positions[part].mean(1, keepdims=True)
        total += np.einsum("mia,mja->ij", x, x)
    return total / (3 * len(positions))
