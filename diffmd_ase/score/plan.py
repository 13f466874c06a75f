"""What is trained: the choices of a user, and the experts that follow from the snapshots.

An expert is an energy network for a range of noise levels. A molecule gets two: `fine`, at
the smallest noise, whose energy drives molecular dynamics, and `broad`, over all noise
levels, for i.i.d. reverse diffusion. Metals and noble gases have a `fine` one in closed form, and
small clusters of them a `broad` one. Anything else, and several sets of snapshots, get one
equivariant network; of several temperatures it learns the smallest noise only, since
there alone the density of noised snapshots is that of one energy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..geometry import minimum_image
from .networks.build import NetworkConfig
from .networks.embedded import EmbeddedConfig
from .networks.equivariant import EquivariantConfig
from .networks.molecule import MechanicsConfig, PairConfig
from .sets import as_sets
from .snapshots import Snapshots
from .spacing import mean_neighbours, nearest_neighbours

__all__ = ["Expert", "TrainConfig", "plan"]

# the broad expert begins at this multiple of the smallest noise, still below every bond
_BROAD = 5.0
# every second of its noise levels is drawn from here, in units of the largest: noise as large as
# the molecule leaves its shape open, smaller noise decides it, and samples go wrong there
_SHAPES = (0.08, 0.6)
# elements whose bonds have directions, or whose atoms pair up: densities alone do not see that
_COVALENT = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 50, 51, 52, 53, 84, 85}
_SMALL = 60  # atoms, of what may be drawn i.i.d. from pair distances
_SHELLS = 2.3  # mean distances to the nearest neighbour: four shells of fcc
_RIGID = 2e-3  # Å: bonds at room temperature vary ten times as much


class TrainConfig(BaseModel):
    """What a user may choose; None means: decide from the snapshots."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: Literal["auto", "pair", "embedded", "equivariant"] = Field(
        "auto",
        description="pair: one molecule; embedded: metals; equivariant: anything "
        "(auto: by elements, pbc and size)",
    )
    sigma_min: float | None = Field(
        None, gt=0, description="smallest noise, Å (default: 0.05 × the stiffest pair's std)"
    )
    sigma_max: float | None = Field(None, gt=0, description="largest noise, Å (default: data)")
    steps: int = Field(8_000, ge=1, description="optimiser steps of each expert")
    max_minutes: float = Field(5.0, gt=0, description="wall clock of the training loop at most")
    batch_size: int = Field(256, ge=1, description="snapshots per step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam; cosine decay")
    width: int = Field(96, ge=1, description="hidden units of the fine network")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights")
    torsion_weight: float = Field(10.0, ge=0, description="angular score matching")
    force_weight: float = Field(
        0.0, ge=0, description="of forces that snapshots carry, over score matching's; 0 needs none"
    )
    contrastive_weight: float = Field(1000.0, ge=0, description="torsion moves against data")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="snapshots held out")
    evaluations: int = Field(20, ge=1, description="validations during training")
    patience: int = Field(5, ge=1, description="validations without improvement before stopping")
    cutoff: float | None = Field(
        None, gt=0, description="radius of neighbours, Å (default: 4.5; embedded: four shells)"
    )
    channels: int = Field(16, ge=1, description="channels of the equivariant network")
    processes: int | None = Field(None, ge=1, description="experts trained at a time")


class Expert(BaseModel):
    """One energy network, its noise levels, and the weights of its losses.

    Attributes
    ----------
    name : of its checkpoint, and in reports
    sigma : lowest and highest noise level in Å
    network : its hyper-parameters
    denoising, torsional, contrastive, force_weight, mirror : weights of the terms of `SetLoss`;
        ``mirror`` is the contrastive one of mirror images
    clip : largest norm of a gradient
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    sigma: tuple[float, float]
    focus: tuple[float, float] | None = Field(
        None, description="every second noise level is drawn from here"
    )
    network: NetworkConfig
    denoising: float = 1.0
    torsional: float = 0.0
    contrastive: float = 0.0
    force_weight: float = 0.0
    mirror: float = 0.0
    clip: float = 50.0


def plan(snapshots: Snapshots | Iterable[Snapshots], config: TrainConfig) -> list[Expert]:
    """The experts for one or several sets; the one that drives dynamics comes first.

    Parameters
    ----------
    snapshots : one set or several
    config : what the user chose; the rest follows from the snapshots

    Raises
    ------
    ValueError : a network that cannot be of these snapshots, forces asked for where there are none,
        rigid bonds, atoms that do not move, no range of noise levels
    """
    sets = as_sets(snapshots)
    system, kind = sets[0].system, config.network
    elements = {int(z) for part in sets for z in part.system.numbers}
    if kind == "auto":
        large = system.periodic or len(system) > _SMALL or len(sets) > 1
        kind = "equivariant" if large else "pair"
        if not _COVALENT & elements:
            kind = "embedded"
    if kind == "pair" and (system.periodic or len(sets) > 1):
        raise ValueError(
            "network='pair' is for one isolated molecule at one temperature; use 'equivariant'"
        )
    unlabelled = [part.source for part in sets if part.forces is None]
    if config.force_weight and unlabelled:
        raise ValueError(
            f"force_weight={config.force_weight:g}, but {', '.join(unlabelled)} holds no forces: "
            "give frames with forces, or force_weight=0"
        )
    experts = _experts(sets, config, kind, elements)
    return [e.model_copy(update={"force_weight": config.force_weight}) for e in experts]


def _experts(sets, config: TrainConfig, kind: str, elements: set[int]) -> list[Expert]:
    system = sets[0].system
    tempered = len({part.temperature_K for part in sets}) > 1
    ranges = [_noise_range(part, config, fine=kind != "equivariant" or tempered) for part in sets]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if kind == "embedded":
        nearest = [nearest_neighbours(part) for part in sets] if config.cutoff is None else []
        metal = EmbeddedConfig(cutoff=config.cutoff or round(_SHELLS * max(nearest), 2))
        fine = Expert(name="fine", sigma=(low, low), network=metal)
        cluster = len(sets) == 1 and len(system) <= _SMALL and not system.periodic
        return [fine, _broad(low, high)] if cluster else [fine]
    if kind == "equivariant":
        cutoff = config.cutoff or 4.5
        chiral = not system.periodic and any(part.topology.chiral for part in sets)
        network = EquivariantConfig(
            channels=config.channels,
            layers=3 if chiral else 2,
            cutoff=cutoff,
            elements=tuple(sorted(elements)),
            neighbours=round(float(np.mean([mean_neighbours(p, cutoff) for p in sets])), 2),
            chiral=chiral,
        )
        if tempered:
            weights = {"denoising": low**-2, "clip": 1000.0}
            return [Expert(name="fine", sigma=(low, low), network=network, **weights)]
        return [Expert(name="all", sigma=(low, high), network=network, mirror=1.0 * chiral)]
    fine = Expert(
        name="fine",
        sigma=(low, low),
        network=MechanicsConfig(width=config.width),
        denoising=low**-2,
        torsional=config.torsion_weight,
        contrastive=config.contrastive_weight,
        clip=1000.0,
    )
    return [fine, _broad(low, high)]


def _broad(low: float, high: float) -> Expert:
    """For i.i.d. samples of one molecule or cluster."""
    least = min(_BROAD * low, 0.5 * high)
    focus = max(least, _SHAPES[0] * high), _SHAPES[1] * high
    return Expert(name="broad", sigma=(least, high), focus=focus, network=PairConfig())


def _vibrations(snapshots: Snapshots, x: np.ndarray) -> np.ndarray:
    """Displacements from the sites of the first of the frames ``x``, of the nearest images.

    Without the drift of the whole, where no atom is held.
    """
    away = minimum_image(x - x[0], snapshots.system)
    if not snapshots.moving.all():
        return away
    # of one atom first: those of a whole that drifts far would be cut by the boundary
    away = minimum_image(away - away[:, :1], snapshots.system)
    return away - away.mean(axis=1, keepdims=True)


def _noise_range(snapshots: Snapshots, config: TrainConfig, fine: bool) -> tuple[float, float]:
    x = snapshots.positions[:: max(1, len(snapshots) // 2000)]
    if snapshots.system.periodic:
        # melts are bounded by 1 Å
        if not snapshots.moving.any():
            raise ValueError(f"{snapshots.source}: no atom moves, all frames are the same")
        amplitude = float(np.median(_vibrations(snapshots, x).std(axis=0)[snapshots.moving]))
        # atoms of a melt wander: what bends the energy is how far they vibrate, 0.15 Å at most
        low = 0.05 * min(amplitude, 0.15) if fine else 0.2 * min(amplitude, 0.5)
        high = 1.0
    else:
        i, j = np.triu_indices(x.shape[1], 1)
        x = x[:: 1 + len(x) * len(i) // 20_000_000]
        std = np.linalg.norm(x[:, i] - x[:, j], axis=-1).std(axis=0)
        size = np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).mean())
        low, high = 0.05 * float(std.min()), max(4.0, 2.5 * float(size))
        # of a handful of frames the width says nothing
        if len(x) >= 10 and std.min() < _RIGID and config.sigma_min is None:
            k = int(std.argmin())
            raise ValueError(
                f"the distance of atoms {i[k]} and {j[k]} hardly varies (std {std[k]:.1e} Å): it "
                "was constrained, and a rigid bond has no finite force; sample without "
                "constraints, or give sigma_min, at which the model then smooths it"
            )
    low, high = config.sigma_min or low, config.sigma_max or high
    if not 0 < low < high:
        raise ValueError(f"noise levels from {low:g} to {high:g} Å: need 0 < sigma_min < sigma_max")
    return round(low, 5), round(high, 3)
