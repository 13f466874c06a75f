"""What networks are told besides positions: the system, and the noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...system import System
from ..losses import Energy
from .liquid import LiquidNetwork

__all__ = ["Inputs", "NoiseEmbedding"]


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

    def energy(self, network: Callable[..., Tensor]) -> Energy:
        """``network`` as a function of x (B, N, 3) and σ (B,) only, in kT (B,)."""
        if isinstance(network, LiquidNetwork):  # others need no numbers from the device
            network = network.arranged(self.numbers.cpu().numpy())
        return lambda x, sigma: network(x, sigma, **self._asdict())


class NoiseEmbedding(nn.Module):
    """log σ as Fourier features and a small network: (B,) → (B, width)."""

    frequency: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequency", 0.45 * torch.arange(1.0, 9.0))
        self.net = nn.Sequential(
            nn.Linear(17, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, sigma: Tensor) -> Tensor:
        t = sigma.log()[:, None]
        phase = t * self.frequency
        return self.net(torch.cat([t / 3, phase.cos(), phase.sin()], dim=-1))
