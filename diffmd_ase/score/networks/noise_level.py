"""How networks are told the noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NoiseEmbedding"]


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
