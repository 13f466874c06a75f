"""What networks are told of a system besides positions and the noise level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...system import System
from ..losses import Energy

__all__ = ["Inputs"]


class Inputs(NamedTuple):
    """What a network is told of a system."""

    numbers: Tensor  # (N,) atomic numbers
    cell: Tensor | None  # (3, 3) in Å
    pbc: tuple[bool, ...]  # three

    @classmethod
    def of(cls, system: System, *, dtype: torch.dtype = torch.float32, device="cpu") -> Inputs:
        """Those of a system, the cell in the precision of the network."""
        numbers = torch.as_tensor(system.numbers, device=device)
        cell = None if system.cell is None else torch.as_tensor(system.cell).to(device, dtype)
        return cls(numbers, cell, tuple(system.pbc.tolist()))

    def energy(self, network: nn.Module) -> Energy:
        """``network`` as a function of x (B, N, 3) and σ (B,) only, in kT (B,)."""
        return lambda x, sigma: network(x, sigma, **self._asdict())
