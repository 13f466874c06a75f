"""Euler–Maruyama chains on a line, as matrices: exact laws at any lag."""

import numpy as np
import torch

LINE = torch.zeros(1, 3, 3, dtype=torch.float64)
LINE[0, 0, 0] = 1.0  # directions: one coordinate moves


class LineChain:
    """The chain ``x' = x + (h/kT) F(x) + sqrt(2h) ξ`` of a potential along x, on a grid."""

    def __init__(self, potential, kT: float, h: float, *, low=-2.4, high=2.4, points=481):
        self.grid = np.linspace(low, high, points)
        x = torch.zeros(points, 1, 3, dtype=torch.float64)
        x[:, 0, 0] = torch.from_numpy(self.grid)
        energy, forces, _ = potential(x)
        self.energy = energy.numpy() / kT
        mean = self.grid + h * forces[:, 0, 0].numpy() / kT
        log_p = -((self.grid[None] - mean[:, None]) ** 2) / (4 * h)
        p = np.exp(log_p)
        self.matrix = p / p.sum(1, keepdims=True)

    def stationary(self) -> np.ndarray:
        law = np.full(len(self.grid), 1 / len(self.grid))
        squared = self.matrix
        for _ in range(24):
            squared = squared @ squared
        return law @ squared

    def transitions(self, law: np.ndarray, states: np.ndarray, lag: int) -> np.ndarray:
        """p(x(lag) in j | x(0) in i), x(0) with this ``law`` within i."""
        count = states.max() + 1
        rows = np.array([np.where(states == i, law, 0.0) for i in range(count)])
        rows = rows / rows.sum(1, keepdims=True)
        for _ in range(lag):
            rows = rows @ self.matrix
        return np.stack([rows[:, states == j].sum(1) for j in range(count)], axis=1)
