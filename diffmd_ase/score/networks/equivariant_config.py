"""Hyper-parameters of the E(3)-equivariant network, without e3nn, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["EquivariantConfig"]


class EquivariantConfig(BaseModel):
    """Hyper-parameters of `EquivariantNetwork`.

    Raises ``ValueError`` for ``chiral`` with ``layers`` or ``l_max`` too few to tell hands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["equivariant"] = "equivariant"
    channels: int = Field(16, ge=1, description="channels of each degree and parity")
    l_max: int = Field(1, ge=0, le=3, description="highest degree of the messages")
    layers: int = Field(2, ge=1, description="message-passing layers")
    cutoff: float = Field(5.0, gt=0, description="radius of messages, Å")
    radial: int = Field(8, ge=2, description="radial basis functions")
    elements: tuple[int, ...] = Field((), description="atomic numbers it was trained on")
    neighbours: float = Field(12.0, gt=0, description="mean number of neighbours in the data")
    chiral: bool = Field(False, description="pseudoscalars enter the energy")

    @model_validator(mode="after")
    def _sees_hands(self) -> EquivariantConfig:
        # a triple product: vectors in the first layer, their cross products in the second
        if self.chiral and (self.layers < 3 or self.l_max < 1):
            raise ValueError("chiral=True needs layers >= 3 and l_max >= 1 to tell hands apart")
        return self
