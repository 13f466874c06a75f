"""Curvature of a learned energy, and what it says of the temperature of snapshots."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .model import ScoreModel
from .sets import temperings
from .snapshots import Snapshots

__all__ = ["configurational_temperatures", "largest_curvature"]


def largest_curvature(
    model: ScoreModel, snapshots: Snapshots, *, frames: int = 32, seed: int = 0
) -> float:
    """Largest eigenvalue of -∇s at σ_min (1/Å²) over some frames, by power iteration.

    Euler–Maruyama is stable for ``h·λ < 2`` only.
    """
    network = model.expert(model.card.sigma_min)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(snapshots), generator=generator)[:frames]
    device = next(network.buffers()).device
    x = torch.as_tensor(snapshots.positions[index.numpy()], dtype=torch.float32, device=device)
    sigma = x.new_full((len(x),), model.card.sigma_min)
    system = snapshots.system
    numbers = torch.as_tensor(system.numbers, device=device)
    cell = None if system.cell is None else torch.as_tensor(system.cell, dtype=x.dtype).to(device)

    def energy(positions: Tensor, level: Tensor) -> Tensor:
        return network(positions, level, numbers=numbers, cell=cell, pbc=tuple(system.pbc.tolist()))

    x = x.requires_grad_()
    value = energy(x, sigma)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    v = torch.randn(x.shape, generator=generator).to(x)
    shift = rayleigh = x.new_zeros(len(x))
    for _ in range(2):
        for _ in range(40):
            v = v / v.flatten(1).norm(dim=1)[:, None, None]
            (hv,) = torch.autograd.grad(gradient, x, v, retain_graph=True)
            rayleigh = (v * hv).sum((1, 2))
            v = hv + shift[:, None, None] * v
        # where the largest in size is negative: once more, with the spectrum moved above zero
        shift = (-rayleigh).clamp_min(0)
        if not shift.any():
            break
        v = torch.randn(x.shape, generator=generator).to(x)
    return float(rayleigh.max())


_COORDINATES = 12_000  # that a temperature is measured by: about 1 %


_CONVERGED = 0.25  # of the balance that holds at the minimum


_SUSPECT = 0.1  # of a temperature: beyond the error of a fit that does not fit all sets


def configurational_temperatures(
    network: nn.Module, sigma: float, sets: tuple[Snapshots, ...]
) -> list[float]:
    """The temperature (K) that each set has by the forces of ``network``.

        T = T_n ⟨|s_n|²⟩ / ⟨-∇·s_n⟩        -∇·s ≈ ε·(s₋ - s₊)/(2σ)

    which is that of its label if energy and label are right (Rugh, Phys. Rev. Lett. 78, 772
    (1997); Butler et al., J. Chem. Phys. 109, 6519 (1998)). One set always agrees with its own
    energy; of several, one with a wrong label does not: that is a warning.
    """
    found, suspects, squared, curved = [], [], 0.0, 0.0
    for part, tempering in zip(sets, temperings(sets), strict=True):
        generator = torch.Generator().manual_seed(0)
        frames = max(128, _COORDINATES // (3 * len(part.system)))
        index = torch.randperm(len(part), generator=generator)[:frames].numpy()
        squares, slopes = _virial(network, sigma, part, index, tempering, generator)
        ratio = float(squares.mean() / slopes.mean())
        error = float((squares - ratio * slopes).std() / slopes.mean()) / len(index) ** 0.5
        found.append(part.temperature_K * ratio)
        known = float(slopes.mean() / slopes.std()) * len(index) ** 0.5 > 4
        if known and abs(ratio - 1) > max(_SUSPECT, 4 * error):
            suspects.append((part, found[-1]))
        squared += len(part) / tempering * float(squares.mean())
        curved += len(part) / tempering * float(slopes.mean())
    # at the minimum of the loss of all sets their ratio is 1: elsewhere the energy is to blame
    if len(sets) > 1 and abs(squared - curved) < _CONVERGED * curved:
        for part, kelvin in suspects:
            warnings.warn(
                f"{part.source} is said to be at {part.temperature_K:g} K but fits the energy of "
                f"all sets at {kelvin:.0f} K: a wrong temperature here or in another set, "
                "snapshots out of equilibrium, or an energy that depends on temperature",
                stacklevel=3,
            )
    return found


def _virial(network, sigma, part, index, tempering, generator) -> tuple[Tensor, Tensor]:
    """|s|² and -∇·s (M,) of some frames."""
    system = part.system
    numbers = torch.as_tensor(system.numbers)
    cell = None if system.cell is None else torch.as_tensor(system.cell).float()
    moving = torch.as_tensor(part.moving)[:, None]
    squares, slopes = [], []
    for x in torch.as_tensor(part.positions[index], dtype=torch.float32).split(16):
        epsilon = torch.randn(x.shape, generator=generator, dtype=x.dtype) * moving
        level = x.new_full((len(x),), sigma)
        scores = []
        for sign in (1, -1):
            y = (x + sign * sigma * epsilon).requires_grad_()
            energy = network(y, level, numbers=numbers, cell=cell, pbc=tuple(system.pbc.tolist()))
            scores.append(-tempering * torch.autograd.grad(energy.sum(), y)[0] * moving)
        plus, minus = scores
        squares.append(0.5 * (plus.square() + minus.square()).sum((1, 2)))
        slopes.append((epsilon * (minus - plus)).sum((1, 2)) / (2 * sigma))
    return torch.cat(squares).double(), torch.cat(slopes).double()
