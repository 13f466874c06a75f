"""What a user may choose of a training. Imports nothing heavy: the command line makes its options
of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TrainConfig"]


class TrainConfig(BaseModel):
    """What a user may choose; None means: decide from the snapshots."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: Literal["auto", "pair", "embedded", "liquid", "equivariant"] = Field(
        "auto",
        description="pair: one molecule; embedded: metals and solids; liquid: molecules, periodic "
        "or many; equivariant: anything (auto: by elements, bonds, pbc and size)",
    )
    sigma_min: float | None = Field(
        None, gt=0, description="smallest noise, Å (default: 0.05 × the stiffest pair's std)"
    )
    sigma_max: float | None = Field(None, gt=0, description="largest noise, Å (default: data)")
    steps: int = Field(8_000, ge=1, description="optimiser steps of each expert")
    max_minutes: float = Field(
        5.0, gt=0, description="wall clock of the training loop at most, min"
    )
    batch_size: int = Field(256, ge=1, description="snapshots per step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam; cosine decay")
    width: int = Field(96, ge=1, description="hidden units of the fine network")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights")
    torsion_weight: float = Field(10.0, ge=0, description="of angular score matching")
    force_weight: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0,
        description="of forces that snapshots carry, all or some of them, over score matching's; 0 "
        "needs none; auto: by their errors",
    )
    contrastive_weight: float = Field(1000.0, ge=0, description="of torsion moves against data")
    validation_fraction: float = Field(
        0.05, gt=0, lt=1, description="fraction of the snapshots held out"
    )
    evaluations: int = Field(20, ge=1, description="validations during training")
    patience: int = Field(5, ge=1, description="validations without improvement before stopping")
    cutoff: float | None = Field(
        None,
        gt=0,
        description="radius of neighbours, Å (default: 4.5; embedded: four shells; liquid: 6)",
    )
    channels: int = Field(16, ge=1, description="channels of the equivariant network")
    processes: int | None = Field(None, ge=1, description="experts trained at a time")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile the step of pair networks and of those on a force field, which takes "
        "half of the time then, after up to a minute for the compiler; auto: where that pays",
    )
